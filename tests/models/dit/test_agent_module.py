"""Dreamer 4's agent phase: gradient flow, features equal to those of play, and initialization from a world."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from factories import dit, latent_frames_world, randomize

from vwm.core.components import ComponentError, save_component
from vwm.core.seeds import fold_in, seeded_normal
from vwm.core.spaces import ActionSpace
from vwm.data.clips import ClipBatch
from vwm.models.dit.agent_module import DiTAgentModule
from vwm.models.dit.objectives import DiffusionForcing, ShortcutForcing
from vwm.models.dit.policy_heads import PolicyRewardHeads
from vwm.models.dit.sampling import CONTEXT_SEED_STREAM
from vwm.models.dit.simulator import DiTSimulator
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.outcome_heads import RewardTerminationHeads
from vwm.tokenizers.pixel_tokenizer import PixelTokenizer

FRAMES = 6
CONTEXTS = ["clean", "noisy"]


def network(**changes):
    """Every weight random; over pixels of 8x8 in patches of 2x2."""
    return dit(grid=(4, 4), channels=12, **{"agent_tokens": 2, **changes})


def module(context: str = "clean", dynamics=None, outcomes: bool = True, **settings) -> DiTAgentModule:
    torch.manual_seed(0)
    return DiTAgentModule(
        dynamics=dynamics or network(),
        policy=settings.pop("policy", randomize(PolicyRewardHeads(32, num_actions=4, hidden=16, length=3, bins=21))),
        tokenizer=PixelTokenizer((8, 8), patch_size=2),
        objective=settings.pop("objective", DiffusionForcing()),
        optimizer=OptimizerConfig(),
        outcomes=randomize(RewardTerminationHeads(width=32, hidden=16, bins=21)) if outcomes else None,
        context=context,
        **settings,
    ).train()


def clips(batch: int = 3, frames: int = FRAMES, **more) -> ClipBatch:
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (batch, frames, 8, 8, 3), dtype=torch.uint8, generator=generator)
    actions = torch.randint(0, 4, (batch, frames), generator=generator)
    fields = {"frames": video, "actions": actions, "rewards": (actions == 1).float(), "terminated": actions == 3}
    return ClipBatch(**{**fields, **more})


def gradients(learner: DiTAgentModule, batch: ClipBatch) -> list[torch.Tensor]:
    learner.zero_grad()
    torch.manual_seed(1)
    loss, _ = learner(batch)
    loss.backward()
    return [loss.detach()] + [p.grad.clone() for p in learner.parameters() if p.grad is not None]


def simulator(learner: DiTAgentModule) -> DiTSimulator:
    parts = (learner.tokenizer, learner.dynamics, learner.outcomes)
    return DiTSimulator(*parts, ActionSpace("discrete", 4), learner.policy, sampling=learner.sampling)


def policy_features(learner: DiTAgentModule, batch: ClipBatch) -> torch.Tensor:
    """The features that the policy learns from, [b, t, d]."""
    inputs_seen = []
    hook = learner.policy.policy_body.register_forward_pre_hook(
        lambda _module, inputs: inputs_seen.append(inputs[0].detach())
    )
    learner(batch)
    hook.remove()
    return inputs_seen[0]


@pytest.mark.parametrize("num_step_sizes", [0, 3])
@pytest.mark.parametrize("context", CONTEXTS)
def test_policy_features_in_training_equal_those_of_play(context, num_step_sizes, monkeypatch):
    """After a reset and after each observed frame, past the window; training gets the noise that play draws."""
    changes = {"num_step_sizes": num_step_sizes, "prediction": "clean"} if num_step_sizes else {}
    objective = ShortcutForcing(finest=4) if num_step_sizes else DiffusionForcing()
    learner = module(context, network(**changes), objective=objective, context_noise=0.3).eval()
    batch, world, seeds = clips(), simulator(learner), torch.tensor([4, 5, 6])
    of_frames = fold_in(fold_in(seeds, CONTEXT_SEED_STREAM)[:, None], torch.arange(FRAMES)).flatten()
    noise = seeded_normal(of_frames, 4, 4, 12).unflatten(0, (3, FRAMES))
    monkeypatch.setattr(torch, "randn_like", lambda x: noise[:, : x.shape[1]])
    features = policy_features(learner, batch)
    state, _ = world.reset(batch.frames[:, :2], seeds, batch.actions[:, :1])
    for i in range(2, FRAMES):
        torch.testing.assert_close(world.features(state), features[:, i - 1], rtol=0, atol=1e-5)
        state = world.observe(state, batch.actions[:, i - 1], batch.frames[:, i])
    torch.testing.assert_close(world.features(state), features[:, -1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("outcomes", [False, True])
@pytest.mark.parametrize("context", CONTEXTS)
def test_every_weight_gets_a_gradient(context, outcomes):
    """Also where no clip is labeled: data-parallel training waits for the gradient of every weight."""
    learner = module(context, outcomes=outcomes)
    gradients(learner, clips())
    assert not [name for name, p in learner.named_parameters() if p.requires_grad and not p.grad.any()]
    unlabeled = torch.zeros(3, dtype=torch.bool)
    gradients(learner, clips(labeled=unlabeled, terminated=None))
    assert not [name for name, p in learner.named_parameters() if p.requires_grad and p.grad is None]
    assert not learner.policy.action.weight.grad.any() and learner.policy.reward.weight.grad.any()


@pytest.mark.parametrize("context", CONTEXTS)
def test_actions_of_unlabeled_clips_have_no_effect(context):
    batch = clips(labeled=torch.tensor([True, False, True]))

    def has_effect(clip: int) -> bool:
        """Whether other actions of one clip change the loss or any gradient."""
        others = batch.actions.clone()
        others[clip] = (others[clip] + 1) % 4
        learners = (module(context) for _ in range(2))  # loss normalizers keep state
        one, two = map(gradients, learners, (batch, replace(batch, actions=others)))
        return not all(torch.equal(a, b) for a, b in zip(one, two, strict=True))

    assert [has_effect(clip) for clip in range(3)] == [True, False, True]


@pytest.mark.parametrize("context", CONTEXTS)
def test_learns_the_policy_and_rewards_of_recorded_players(context):
    """The frame's brightness determines the recorded action and its reward."""
    torch.manual_seed(0)
    heads = PolicyRewardHeads(32, num_actions=4, hidden=32, length=2, bins=21)
    learner = module(context, context_noise=0.05, policy=heads)
    learner.outcomes = RewardTerminationHeads(width=32, hidden=16)  # randomized weights of distant bins would dominate
    optimizer = torch.optim.Adam(learner.parameters(), lr=5e-3)

    def recording() -> ClipBatch:
        actions = torch.randint(0, 4, (16, 4))
        level = torch.tensor([-2.0, -0.7, 0.7, 2.0])[actions]
        latents = level[..., None, None, None].expand(16, 4, 4, 4, 12)
        return ClipBatch(
            latents=latents, actions=actions, rewards=(actions == 1).float(), terminated=torch.zeros(16, 4).bool()
        )

    for _ in range(80):
        optimizer.zero_grad()
        learner(recording())[0].backward()
        optimizer.step()
    held_out = recording()
    with torch.no_grad():
        features = policy_features(learner.eval(), held_out)
        chosen = learner.policy.policy(features).argmax(-1)
        predicted_rewards = learner.policy.two_hot.mean(learner.policy(features)[1])[..., 0]
    assert (chosen == held_out.actions).float().mean() > 0.95
    torch.testing.assert_close(predicted_rewards, held_out.rewards, rtol=0, atol=0.4)


def test_a_policy_over_latents_of_two_frames_learns_the_actions_after_each_latent():
    world = latent_frames_world(2, agent_tokens=1)
    learner = DiTAgentModule(
        dynamics=world.dynamics.requires_grad_(True),
        policy=randomize(PolicyRewardHeads(32, num_actions=4, hidden=16, length=3, bins=21)),
        tokenizer=world.tokenizer,
        objective=DiffusionForcing(),
        optimizer=OptimizerConfig(),
    ).train()
    batch = clips(frames=6)
    batch = replace(batch, frames=batch.frames[:, :5])  # three latents, each followed by two actions

    def losses(places: list[int]) -> list[float]:
        torch.manual_seed(0)
        changed = batch.actions.clone()
        changed[:, places] = (changed[:, places] + 1) % 4
        loss, logs = learner(replace(batch, actions=changed))
        loss.backward()
        return [float(logs[name].detach()) for name in ("next_action_loss", "policy_loss", "dynamics_loss")]

    own, first, second = (losses(places) for places in ([], [4], [5]))  # the actions after the last latent
    assert first[0] != own[0] == second[0]
    assert len({own[1], first[1], second[1]}) == 3 and own[2] == first[2] == second[2]
    assert learner.policy.action.weight.grad.any()
    with pytest.raises(ValueError, match=r"need 2 actions after each, got 5: set data\.frames_per_latent=2"):
        learner(replace(batch, actions=batch.actions[:, :5]))


def test_pretrained_weights_are_loaded_and_agent_tokens_are_new(tmp_path):
    """Only the agent tokens are new, so that the predictions are those of the pretrained world."""
    world = network(agent_tokens=0, kv_heads=1)
    save_component(world, tmp_path / "dynamics")
    torch.manual_seed(5)
    span = {"window": 5, "sink_frames": 1, "memory_frames": 2, "memory_every": 2}  # without weights
    mine = dit(seed=9, grid=(4, 4), channels=12, agent_tokens=1, kv_heads=1, **span)
    tokens = mine.agents.clone()
    learner = module(dynamics=mine, pretrained=str(tmp_path))
    assert all(torch.equal(value, mine.state_dict()[key]) for key, value in world.state_dict().items())
    assert torch.equal(mine.agents, tokens) and all(p.requires_grad for p in mine.parameters())
    assert set(learner.networks()) == {"dynamics", "outcomes", "policy"}


def test_rejects_mismatched_parts_and_data(tmp_path):
    save_component(network(agent_tokens=0), tmp_path / "dynamics")
    mismatches = (({"registers": 9}, "registers=2 there and 9 here"), ({"depth": 2}, "depth=4 there and 2 here"))
    for changes, message in mismatches:
        with pytest.raises(ComponentError, match=message):
            module(dynamics=network(**changes), pretrained=str(tmp_path))
    with pytest.raises(ComponentError, match=r"there is no config\.json"):
        module(pretrained=str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="agent_tokens=0: a policy reads agent tokens"):
        module(dynamics=network(agent_tokens=0))
    with pytest.raises(ValueError, match=r"policy\.num_actions=3 but dynamics\.num_actions=4"):
        module(policy=PolicyRewardHeads(32, num_actions=3))
    with pytest.raises(ValueError, match=r"name them in data\.fields"):
        module(outcomes=False)(clips(rewards=None))
