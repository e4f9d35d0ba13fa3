"""Dreamer 4 in PyTorch: causal, predicted from cached keys as from the whole window, in both generations."""

import pytest
import torch
from published_worlds import dreamer4_networks, dreamer4_world
from torch import Tensor

from vwm.core.components import rebuild_network
from vwm.core.frame_window import FrameWindow
from vwm.core.spaces import ActionSpace
from vwm.models.dreamer4.agent_heads import Dreamer4PolicyHead, Dreamer4RewardHead
from vwm.models.dreamer4.network import Dreamer4Dynamics, Noising
from vwm.models.dreamer4.sampling import Dreamer4Sampling, sample_shortcut
from vwm.models.dreamer4.simulator import Dreamer4Simulator
from vwm.models.dreamer4.tokenizer import Dreamer4Tokenizer


@pytest.fixture(scope="module", params=[False, True], ids=["dreamer4", "mmbench2"])
def networks(request) -> tuple[Dreamer4Tokenizer, Dreamer4Dynamics]:
    tokenizer, dynamics, _ = dreamer4_networks(request.param)
    return tokenizer.double(), dynamics.double()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noising(frames: int, batch: int = 2) -> Noising:
    generator = torch.Generator().manual_seed(0)
    return Noising(*(torch.randint(0, high, (batch, frames), generator=generator) for high in (9, 4)))


def test_a_frame_depends_on_itself_and_on_earlier_ones(networks):
    dynamics = networks[1]
    given = {"latents": draw(2, 4, 1, 4, 3), "actions": draw(2, 4, 16, seed=1).clamp(-1, 1)}
    before, agents = dynamics(**given, noising=noising(4))
    for name in given:
        other = {**given, name: given[name].clone()}
        other[name][:, 2] = other[name][:, 2].flip(0)
        after, other_agents = dynamics(**other, noising=noising(4))
        assert torch.equal(after[:, :2], before[:, :2])
        assert not torch.isclose(after[:, 2:], before[:, 2:]).all(dim=(0, 2, 3, 4)).any()
        reads = dynamics.agent_attention == "reading"
        assert torch.equal(other_agents, agents) != reads
    silent = rebuild_network(dynamics).double()
    silent.load_state_dict({**dynamics.state_dict(), "agents": torch.zeros_like(dynamics.agents)})
    assert torch.equal(silent(**given, noising=noising(4))[0], before)  # no token attends to the agents'


@pytest.mark.parametrize("missing", [0, 1])
def test_a_sampled_latent_equals_that_of_the_whole_window_in_every_step(networks, missing):
    """The authors' loop, which computes all frames again in every step."""
    dynamics = networks[1]
    past, context_noise = draw(2, 3, 1, 4, 3), draw(2, 3, 1, 4, 3, seed=2)
    actions, noise = draw(2, 4, 16, seed=1).clamp(-1, 1), draw(2, 1, 4, 3, seed=3)
    known = torch.arange(3).expand(2, 3) >= missing
    sampling = Dreamer4Sampling(steps=4, context_noise=0.1, warm_start=0.25)
    window = FrameWindow(past, actions[:, :3], known)
    sampled = sample_shortcut(dynamics, window, actions[:, 3], noise, context_noise, sampling).latent
    context = (0.9 * past + 0.1 * context_noise)[:, missing:]
    x = 0.75 * noise + 0.25 * past[:, -1]
    for number in (1, 2, 3):  # the first ends where the warm start begins
        signal = torch.full((2, 4 - missing), 7)  # 0.9 of 8
        step = torch.full((2, 4 - missing), 3)
        signal[:, -1], step[:, -1] = 2 * number, 2
        whole = torch.cat((context, x[:, None]), dim=1)
        clean = dynamics(whole, Noising(signal, step), actions[:, missing:])[0][:, -1]
        x = x + (clean - x) / (1 - number / 4) / 4
    torch.testing.assert_close(sampled, x, rtol=0, atol=1e-10)


def test_the_first_frame_of_a_window_has_no_action_in_the_first_generation(networks):
    dynamics = networks[1]
    latents, actions = draw(1, 3, 1, 4, 3), draw(1, 3, 16, seed=1).clamp(-1, 1)
    without = actions.clone()
    without[:, 0] = 0
    first, second = (dynamics(latents, noising(3, 1), given)[0] for given in (actions, without))
    assert torch.equal(first, second) != dynamics.rotary
    assert (dynamics.clean_signal, dynamics.first_latent) == ((8, 2) if dynamics.rotary else (7, 3))


def test_latents_encode_frames_by_themselves_within_bounds(networks):
    tokenizer = networks[0]
    video = draw(1, 2, 3, 16, 16).clamp(-1, 1)
    latents = tokenizer.encode(video)
    assert latents.shape == (1, 2, 1, 4, 3) and latents.abs().max() < 1
    torch.testing.assert_close(tokenizer.encode(video[:, 1:]), latents[:, 1:], rtol=0, atol=1e-12)
    decoded = tokenizer.decode(latents)
    assert decoded.shape == video.shape and decoded.abs().max() <= 1
    changed = video.clone()
    changed[:, :, :, :4, :4] *= -1  # one patch
    assert not torch.isclose(tokenizer.encode(changed), latents).all()


def test_rewards_are_the_expectation_of_the_first_distribution():
    head = Dreamer4RewardHead(width=4, hidden=3, rewards=2, bins=3, limit=2.0).double()
    with torch.no_grad():
        head.out.weight.zero_()
        head.out.bias.copy_(torch.tensor([0.0, 0.0, 20.0, 30.0, 0.0, 0.0]))
    expected = torch.tensor([2.0]).expm1().expand(3)
    torch.testing.assert_close(head(draw(3, 2, 4)), expected, rtol=1e-3, atol=0)
    world = dreamer4_world(rotary=True)
    state, _ = world.reset(torch.zeros(2, 2, 16, 16, 3, dtype=torch.uint8), torch.tensor([1, 2]))
    assert world.step(state, torch.zeros(2, 3))[1].reward.unique().numel() == 2


def test_the_cloned_policy_chooses_by_the_clean_frames_so_far_and_its_own_actions():
    """The first action that the head predicts from the agent tokens of the last frame, until the window moves."""
    world = dreamer4_world(rotary=True)
    dynamics, head = world.dynamics.double(), world.trained_policy.double()
    world.tokenizer.double()
    frames = torch.randint(0, 256, (5, 2, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    latents = world.tokenizer.encode(frames.double().div(127.5).sub(1).permute(1, 0, 4, 2, 3))
    memory, actions = world.init_policy(2), torch.zeros(2, 1, 16, dtype=torch.float64)
    for count in range(1, 6):
        memory, chosen = world.run_policy(memory, frames[count - 1])
        shown = slice(max(0, count - 4), count)  # a window of 4 frames
        clean = Noising(*(torch.full((2, shown.stop - shown.start), value) for value in (8, 3)))
        agents = dynamics(latents[:, shown], clean, actions[:, shown])[1][:, -1]
        keys, values = (agents @ head.pool_kv.weight.T).split(16, dim=-1)
        pooled = ((keys @ head.pool_query / 4).softmax(-1)[..., None] * values).sum(1)
        expected = head.out(head.projector(pooled))[:, :3].tanh()
        torch.testing.assert_close(chosen, expected.float(), rtol=0, atol=1e-6)
        torch.testing.assert_close(memory.action[:, :3], expected, rtol=0, atol=1e-10)
        assert not memory.action[:, 3:].any()
        actions = torch.cat((actions, torch.nn.functional.pad(expected, (0, 13))[:, None]), dim=1)
    assert len(actions[:, 1:, 0].unique()) == 10  # every action is another one


def test_rejects_what_does_not_fit():
    tokenizer, dynamics, head = dreamer4_networks(True)
    with pytest.raises(ValueError, match=r"the dynamics takes \[1, 4\] x 3"):
        Dreamer4Simulator(Dreamer4Tokenizer((16, 16), width=16, heads=2), dynamics, None, ActionSpace("continuous", 3))
    for actions in (ActionSpace("discrete", 3), ActionSpace("continuous", 17)):
        with pytest.raises(ValueError, match="1 to 16 continuous actions"):
            Dreamer4Simulator(tokenizer, dynamics, head, actions)
    with pytest.raises(ValueError, match="reward reads agent tokens of width 8"):
        Dreamer4Simulator(tokenizer, dynamics, Dreamer4RewardHead(width=8), ActionSpace("continuous", 3))
    for policy, problem in (
        (Dreamer4PolicyHead(width=8), "trained_policy reads agent tokens of width 8"),
        (Dreamer4PolicyHead(width=16, action_inputs=4), "chooses 4 numbers, and the dynamics takes actions of 16"),
    ):
        with pytest.raises(ValueError, match=problem):
            Dreamer4Simulator(tokenizer, dynamics, head, ActionSpace("continuous", 3), trained_policy=policy)
    for sampling, problem in (
        (Dreamer4Sampling(steps=3), r"must be one of \[1, 2, 4, 8\]"),
        (Dreamer4Sampling(warm_start=0.75), "at most 0.5"),
    ):
        with pytest.raises(ValueError, match=problem):
            Dreamer4Simulator(tokenizer, dynamics, head, ActionSpace("continuous", 3), sampling=sampling)
    for changes in ({"packing": 3}, {"signal_levels": 6}, {"agent_attention": "all"}, {"window": 1}, {"heads": 3}):
        with pytest.raises(ValueError, match="must be"):
            Dreamer4Dynamics(**{"width": 16, "depth": 1, **changes})
