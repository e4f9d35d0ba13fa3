"""The laws of the diffusion transformer, for every layout, prediction and kind of action."""

import pytest
import torch
from factories import dit

from vwm.core.states import concatenate_states
from vwm.models.dit.network import NoisyFrames

FRAMES = 9
KINDS = {
    "discrete": {},
    "continuous": {"num_actions": 0, "action_dims": 3},
    "mixed": {"num_actions": [4, 2], "action_dims": 2},
    "none": {"num_actions": 0},
    "shortcut": {"prediction": "clean", "num_step_sizes": 4},
    "patches": {"patch_size": 2},
    "full": {"attention": "full"},
    "time-every-4th-gqa-capped": {"time_every": 4, "kv_heads": 1, "soft_cap": 9.0},
    "agent": {"agent_tokens": 1},
    "agents-patches-gqa-capped": {"agent_tokens": 3, "patch_size": 2, "kv_heads": 1, "soft_cap": 9.0},
}


@pytest.fixture(params=list(KINDS))
def network(request):
    return dit(**KINDS[request.param]).double().eval()


def random(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def actions(network, frames: int = FRAMES - 1, batch: int = 2) -> torch.Tensor | None:
    embedding = network.embed_action
    if embedding is None:
        return None
    generator = torch.Generator().manual_seed(5)
    if embedding.is_single_discrete:
        return torch.randint(embedding.choices[0], (batch, frames), generator=generator)
    picks = [torch.randint(size, (batch, frames, 1), generator=generator) for size in embedding.choices]
    return torch.cat((*picks, torch.rand(batch, frames, embedding.dims, generator=generator) * 2 - 1), dim=-1)


def noisy(network, frames: int = FRAMES, seed: int = 0) -> NoisyFrames:
    signal = torch.rand(2, frames, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    step = torch.randint(network.num_step_sizes, (2, frames)) if network.num_step_sizes else None
    return NoisyFrames(
        random(2, frames, 4, 4, 3, seed=seed), signal, step, network.embed_previous_actions(actions(network), 2, FRAMES)
    )


def cut(frames: NoisyFrames, here: slice) -> NoisyFrames:
    return NoisyFrames(*(None if x is None else x[:, here] for x in frames))


@pytest.mark.parametrize("chunks", [[1] * FRAMES, [FRAMES], [5, 4], [1, 6, 2]])
def test_streaming_is_parallel_past_the_window(network, chunks):
    frames, start = noisy(network), 0
    whole, state = network(frames), network.init_state(2)
    for length in chunks:
        here = slice(start, start + length)
        state, out = network.step(state, cut(frames, here))
        torch.testing.assert_close(out.prediction, whole.prediction[:, here], rtol=0, atol=1e-10)
        torch.testing.assert_close(out.features, whole.features[:, here], rtol=0, atol=1e-10)
        start += length


@pytest.mark.parametrize("seen", [FRAMES - 1, FRAMES])
def test_training_over_a_clean_past_is_what_play_computes(network, seen):
    """Every frame of the parallel pass sees what a world that has been played so far would see."""
    past, frames = noisy(network, seed=1), noisy(network, seed=2)
    out = network(cut(frames, slice(1, None)), cut(past, slice(0, seen)))
    state = network.init_state(2)
    for i in range(1, FRAMES):
        state, before = network.step(state, cut(past, slice(i - 1, i)))
        torch.testing.assert_close(out.features[:, i - 1], before.features[:, 0], rtol=0, atol=1e-10)
        look = network.denoise(state, cut(frames, slice(i, i + 1)))
        torch.testing.assert_close(out.prediction[:, i - 1 : i], look, rtol=0, atol=1e-10)


def test_worlds_of_different_age_step_in_one_batch(network):
    frames = noisy(network)
    alone, states = [], []
    for world, age in ((0, 6), (1, 1)):
        mine = NoisyFrames(*(None if x is None else x[world : world + 1] for x in frames))
        state, _ = network.step(network.init_state(1), cut(mine, slice(0, age)))
        states.append(state)
        alone.append((cut(mine, slice(age, age + 1)), network.step(state, cut(mine, slice(age, age + 1)))[1]))
    both = NoisyFrames(*(None if x[0] is None else torch.cat(x) for x in zip(*(a[0] for a in alone), strict=True)))
    _, out = network.step(concatenate_states(states), both)
    together = torch.cat([a[1].prediction for a in alone])
    torch.testing.assert_close(out.prediction, together, rtol=0, atol=1e-10)


def test_no_frame_sees_a_later_one_nor_a_later_action(network):
    frames = noisy(network)
    other = noisy(network, seed=3)
    later = NoisyFrames(
        *(None if x is None else torch.cat((x[:, :5], y[:, 5:]), dim=1) for x, y in zip(frames, other, strict=True))
    )
    a, b = network(frames).prediction, network(later).prediction
    assert torch.equal(a[:, :5], b[:, :5]) and not torch.equal(a[:, 5:], b[:, 5:])


def test_actions_act_on_the_frame_they_lead_to_and_not_before(network):
    given = actions(network)
    if given is None:
        with pytest.raises(ValueError, match="has no actions"):
            network.embed_actions(torch.zeros(2, 1, dtype=torch.int64))
        return
    changed = given.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 2
    frames = noisy(network)
    a, b = (
        network(frames._replace(action_embedding=network.embed_previous_actions(x, 2, FRAMES))).prediction
        for x in (given, changed)
    )
    assert torch.equal(a[:, :4], b[:, :4]) and not torch.equal(a[:, 4], b[:, 4])


def test_hidden_actions_leave_no_trace(network):
    given = actions(network)
    if given is None:
        return
    known = torch.ones(2, FRAMES - 1, dtype=torch.bool)
    known[1] = False
    action_embedding = network.embed_previous_actions(given, 2, FRAMES, known)
    assert torch.equal(action_embedding[0], network.embed_previous_actions(given, 2, FRAMES)[0])
    assert torch.equal(action_embedding[1], network.embed_previous_actions(None, 2, FRAMES)[1])


@pytest.mark.parametrize("changes", [{}, {"num_step_sizes": 3, "prediction": "clean", "kv_heads": 1}])
def test_nothing_attends_to_agent_tokens(changes):
    """A world goes on as it was when it gets some, whatever they are: played, trained, and drawn frame by frame."""
    plain = dit(**changes).double().eval()
    frames, past = noisy(plain), noisy(plain, seed=1)
    agents = dit(agent_tokens=2, **changes).double().eval()
    assert not (agents.load_state_dict(plain.state_dict(), strict=False).unexpected_keys)
    for value in (0.02, 30.0):
        torch.nn.init.normal_(agents.agents, std=value)
        for asked in ((frames,), (cut(frames, slice(1, None)), past)):
            said, alone = agents(*asked), plain(*asked)
            torch.testing.assert_close(said.prediction, alone.prediction, rtol=0, atol=1e-10)
            assert not torch.allclose(said.features, alone.features, atol=1e-3)
        (state, _), (other, _) = (network.step(network.init_state(2), past) for network in (agents, plain))
        torch.testing.assert_close(agents.denoise(state, frames), plain.denoise(other, frames), rtol=0, atol=1e-10)
    assert agents(frames).features.shape == (2, FRAMES, 32)


def test_agent_tokens_see_every_token_of_their_frame_and_their_own_past_within_the_window():
    """Two layers of time attention with a window of 4: no further back than 6 frames."""
    network = dit(agent_tokens=1, registers=1).double().eval()
    frames = noisy(network)
    latents = frames.latents.requires_grad_(True)
    (seen,) = torch.autograd.grad(network(frames).features[:, 7].square().sum(), latents)
    assert (seen[:, 1:8] != 0).all() and not seen[:, 0].any() and not seen[:, 8:].any()
    # Past features act on later ones, through nothing but the agent tokens' own keys and values.
    state, _ = network.step(network.init_state(2), cut(noisy(network), slice(0, 3)))
    blind = state._replace(blocks=tuple(type(b)(b.keys, b.values.index_fill(1, LAST_PLACE, 0)) for b in state.blocks))
    (_, one), (_, two) = (network.step(s, cut(noisy(network), slice(3, 4))) for s in (state, blind))
    assert torch.equal(one.prediction, two.prediction) and not torch.equal(one.features, two.features)


LAST_PLACE = torch.tensor([17])
"""Of a frame of one register, 4 x 4 patches and one agent token."""


def test_an_agent_needs_a_past_that_can_be_masked():
    for changes in ({"attention": "full"}, {"causal": False}):
        with pytest.raises(ValueError, match="agent_tokens=1 need attention='factored' and causal=True"):
            dit(agent_tokens=1, **changes)


def test_recomputed_layers_give_the_same_gradients():
    network, gradients = dit().train(), []
    for recompute in (False, True):
        network.transformer.checkpointing = recompute
        network.zero_grad()
        frames = NoisyFrames(
            torch.ones(2, 5, 4, 4, 3), torch.full((2, 5), 0.5), None, network.embed_previous_actions(None, 2, 5)
        )
        network(frames).prediction.square().sum().backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in network.parameters()])
    assert all((a is b is None) or torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_errors_name_what_is_wrong():
    network = dit().double()
    frames = noisy(network)
    with pytest.raises(ValueError, match=r"\[b, t, 4, 4, 3\], got \[2, 9, 4, 4, 2\]"):
        network(frames._replace(latents=frames.latents[..., :2]))
    with pytest.raises(ValueError, match=r"integers \[b, t\], got torch.float32"):
        network.embed_previous_actions(torch.zeros(2, 8), 2, FRAMES)
    with pytest.raises(ValueError, match=r"actions must be \[b, t, 3\]"):
        dit(num_actions=0, action_dims=3).embed_previous_actions(torch.zeros(2, 8, 2), 2, FRAMES)
    with pytest.raises(ValueError, match=r"give noisy\.step_index"):
        dit(prediction="clean", num_step_sizes=3).double()(frames)
    with pytest.raises(ValueError, match="prediction='noise'"):
        dit(prediction="noise")
