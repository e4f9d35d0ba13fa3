"""A joint loop that begins with an offline result: its world, its policy, its recording, and a run that stopped."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from button_game import record
from factories import diffusion_world, dit
from torch.utils._pytree import tree_leaves

from vwm.core.components import ComponentError
from vwm.data.clips import ClipBatch
from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.models.dit.agent_module import DiTAgentModule
from vwm.models.dit.objectives import DiffusionForcing
from vwm.models.dit.policy_heads import PolicyRewardHeads
from vwm.models.dit.sampling import DiffusionSampling
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.outcome_heads import RewardTerminationHeads
from vwm.rl.agent_training import AgentTraining
from vwm.rl.algorithms.actor_critic import CriticConfig
from vwm.rl.algorithms.actor_critic_policy import ClonedActorCriticPolicy
from vwm.rl.algorithms.encoded_env import EncodedEnvSpec
from vwm.rl.algorithms.imagination import ImaginationLearning, ImaginationRolloutConfig
from vwm.rl.algorithms.imagination_agent import ImaginationAgent, LoopPart
from vwm.rl.algorithms.policy_objectives import PMPOObjective
from vwm.rl.algorithms.recorded_share import RecordedShare, join_clips
from vwm.rl.algorithms.world_loop import WorldLoop
from vwm.rl.evaluation_log import EvaluationConfig
from vwm.worlds.bundle import load_simulator, save_simulator

ENV = GymnasiumEnvSpec("Buttons-v0", size=8)
SMALL = {"width": 16, "depth": 2, "window": 3}
STEPS, EPOCH = 28, 14
make_policy = functools.partial(ClonedActorCriticPolicy, critic=CriticConfig(width=16, layers=1))


@pytest.fixture(scope="module")
def offline(tmp_path_factory) -> Path:
    """A bundle with agent tokens, the recording, and a run that has improved the cloned policy in imagination."""
    folder = tmp_path_factory.mktemp("offline")
    world = diffusion_world(sampling=DiffusionSampling(steps=2, context_noise=0.0), agent_tokens=1, **SMALL)
    torch.manual_seed(2)
    world.outcomes = RewardTerminationHeads(width=16, hidden=16).eval()
    world.policy = PolicyRewardHeads(16, 4, hidden=16, length=2, bins=11).eval()
    torch.nn.init.normal_(world.policy.action.weight)
    save_simulator(world, folder / "bundle")
    record(folder / "data")
    learning = ImaginationLearning(
        folder / "bundle",
        str(folder / "data"),
        make_policy,
        PMPOObjective(),
        rollouts=ImaginationRolloutConfig(batch_size=8, horizon=2),
    )
    evaluation = EvaluationConfig(10_000, episodes=1, env=ENV, video=False)
    training = AgentTraining(folder / "run", learning, 32, evaluation=evaluation, checkpoint_every=10_000)
    training.set_up()
    learning.step()
    training.save()
    return folder


def make_world(offline: Path, **changes) -> DiTAgentModule:
    return DiTAgentModule(
        dynamics=dit(grid=(8, 8), patch_size=2, **{"agent_tokens": 1, **SMALL}),
        policy=PolicyRewardHeads(16, 4, hidden=16, length=2, bins=11),
        pretrained=str(offline / "bundle"),
        tokenizer=str(offline / "bundle"),
        objective=DiffusionForcing(),
        optimizer=OptimizerConfig(lr=1e-3, warmup=2, schedule="constant"),
        outcomes=RewardTerminationHeads(width=16, hidden=16),
        context="noisy",
        context_noise=0.0,
        sampling_steps=2,
        **changes,
    )


def make_training(offline: Path, run: Path, **changes) -> AgentTraining:
    agent = functools.partial(
        ImaginationAgent,
        world=functools.partial(make_world, offline),
        policy=make_policy,
        objective=PMPOObjective(),
        world_part=LoopPart(updates=2, batch_size=4, frames=4),
        policy_part=LoopPart(updates=2, batch_size=4, frames=2),
        horizon=2,
        exploration=0.25,
        observe="features",
        pretrained_policy=offline / "run",
    )
    recording = RecordedShare(str(offline / "data"), 0.5, rewarded_fraction=0.5)
    settings = {"num_envs": 2, "prefill": 0, "epoch_decisions": EPOCH, "recording": recording, "replay_capacity": 100}
    loop = WorldLoop(ENV, agent, **{**settings, **changes})
    evaluation = EvaluationConfig(every=10_000, episodes=2, video=False)
    return AgentTraining(run, loop, STEPS, evaluation=evaluation, checkpoint_every=10_000, log_every=1)


def test_it_begins_with_the_offline_world_and_policy(offline, tmp_path):
    """Weights, and what the policy does in the real environment before anything was learned online."""
    training = make_training(offline, tmp_path)
    training.set_up()
    agent, bundle = training.algorithm.policy, load_simulator(offline / "bundle", "cpu")
    for name, network in bundle.networks().items():
        trained = agent.world.tokenizer if name == "tokenizer" else agent.world.networks()[name]
        for key, weight in network.state_dict().items():
            assert torch.equal(trained.state_dict()[key], weight), (name, key)
    state = torch.load(offline / "run" / "checkpoints" / "last.ckpt", weights_only=True)["algorithm"]["policy"]
    assert state.keys() == agent.policy.state_dict().keys()
    assert all(torch.equal(state[key], weight) for key, weight in agent.policy.state_dict().items())
    actors = [agent.policy.actor_critic.actor.heads, agent.world.policy]
    assert not torch.equal(actors[0].action.weight, actors[1].action.weight)  # imagination has changed the clone

    policy = make_policy(bundle, EncodedEnvSpec(ENV, offline / "bundle").open(1, 0).spaces)
    policy.load_state_dict(state)
    real, encoded = ENV.open(2, seed=5), EncodedEnvSpec(ENV, offline / "bundle").open(2, seed=5)
    time_step, other_step = real.reset(), encoded.reset()
    carry, other_carry = agent.init_carry(2), policy.init_carry(2)
    for _ in range(16):  # past the window, and into a third episode
        action, carry, _ = agent.act(carry, time_step, explore=False)
        other_action, other_carry, _ = policy.act(other_carry, other_step, explore=False)
        features = agent._simulators[0].features(carry[0].state)
        torch.testing.assert_close(features, other_step.observation, rtol=0, atol=1e-5)
        assert torch.equal(action, other_action)
        time_step, other_step = real.step(action), encoded.step(other_action)
    assert training.algorithm.evaluates_first
    training.algorithm.close()


def test_updates_take_their_share_of_recorded_clips(offline, tmp_path):
    """Those of the world and of the policy; the tokenizer stays, and the policy is kept close to the clone as it is."""
    training = make_training(offline, tmp_path)
    training.set_up()
    loop, agent = training.algorithm, training.algorithm.policy
    while not loop.due:
        loop.step()
    assert loop.progress == EPOCH - 2 and loop.due == [("world", 2), ("policy", 2)]
    recorded = loop.recorded["world"]
    # Three episodes of 12 frames that ended: clips of the world may begin with any frame and run past the end.
    frames = {clip.numpy().tobytes() for clip in recorded._read(range(36)).frames}
    for name in ("world", "policy"):
        clips = loop._draw_clips(name, agent.parts[name])
        assert clips.frames.shape[:2] == clips.terminated.shape == (4, agent.parts[name].frames)
        happened = clips.terminated.cumsum(dim=1) - clips.terminated.int() == 0
        assert torch.equal(clips.rewards[happened], (clips.actions == 2)[happened].float())
        assert clips.rewards[~happened].isnan().all() and not clips.actions[~happened].any()
    drawn = [clip.numpy().tobytes() in frames for clip in loop._draw_clips("world", agent.parts["world"]).frames]
    assert drawn == [False, False, True, True]
    places = {name: loop.recorded[name].sample_clips(64).terminated.nonzero()[:, 1].unique() for name in agent.parts}
    assert {name: found.tolist() for name, found in places.items()} == {"world": [0, 1, 2, 3], "policy": [1]}

    before = {key: value.clone() for key, value in agent.state_dict().items()}
    for _ in range(3):
        loop.step()
    changed = {key for key, value in agent.state_dict().items() if not torch.equal(before[key], value)}
    assert "learners.world.dynamics.agents" in changed
    assert any(key.startswith("learners.policy.actor_critic.target_critic") for key in changed)
    assert not [key for key in changed if ".tokenizer." in key]
    prior, clone = agent.policy.prior_actor.heads.state_dict(), agent.world.policy.state_dict()
    assert all(torch.equal(prior[key], clone[key]) for key in clone)
    assert any(key.startswith("learners.policy.prior_actor") for key in changed)
    loop.close()


def test_a_run_that_stopped_within_an_episode_and_an_epoch_equals_an_uninterrupted_one(offline, tmp_path):
    whole = make_training(offline, tmp_path / "whole")
    whole.set_up()
    while whole.algorithm.progress < STEPS:
        whole.algorithm.step()
    stops = [lambda loop: loop.progress == 10, lambda loop: loop.due == [("world", 1), ("policy", 2)]]
    stops += [lambda loop: loop.epochs == 1 and loop.progress == 18, lambda loop: loop.progress >= STEPS]
    for stop in stops:
        torch.manual_seed(99)
        parts = make_training(offline, tmp_path / "parts")
        parts.set_up()
        while not stop(parts.algorithm):
            parts.algorithm.step()
        parts.save()
        parts.algorithm.close()
    states = [tree_leaves(training.algorithm.state_dict()) for training in (whole, parts)]
    assert len(states[0]) == len(states[1]) > 100
    for ours, theirs in zip(*states, strict=True):
        same = torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
        assert same or (isinstance(ours, dict) and str(ours) == str(theirs))
    exported, agent = parts.export_simulator(best=False, title="online", fps=15.0, contexts=2), whole.algorithm.policy
    assert exported.starts.shape[0] == 2
    for name, network in agent.world.networks().items():
        weights = exported.networks()[name].state_dict()
        assert all(torch.equal(weights[key], weight) for key, weight in network.state_dict().items())
    whole.algorithm.close()


def test_recorded_clips_may_lack_ends_and_some_of_their_actions():
    frames, numbers = torch.zeros(2, 3, 8, 8, 3, dtype=torch.uint8), torch.arange(6).reshape(2, 3)
    replayed = ClipBatch(frames, numbers, numbers.float(), terminated=torch.ones(2, 3, dtype=torch.bool))
    recorded = ClipBatch(frames[:1], numbers[:1], numbers[:1].float(), labeled=torch.tensor([False]))
    joined = join_clips(replayed, recorded)
    assert torch.equal(joined.actions, torch.cat((numbers, numbers[:1]))) and joined.frames.shape[0] == 3
    assert joined.terminated.tolist() == [[True] * 3] * 2 + [[False] * 3]
    assert joined.labeled.tolist() == [True, True, False]
    assert join_clips(replayed, ClipBatch(frames, numbers, numbers.float())).labeled is None


def test_errors_name_the_setting_and_the_remedy(offline, tmp_path):
    with pytest.raises(ValueError, match=r"epoch_decisions=8 leaves 4 time steps .* raise epoch_decisions"):
        make_training(offline, tmp_path, epoch_decisions=8).set_up()
    with pytest.raises(ValueError, match=r"recording.fraction must lie between 0 and 1, got 1.0: set recording=null"):
        RecordedShare("data", fraction=1.0)
    record(tmp_path / "other", size=16)
    with pytest.raises(ValueError, match=r"frames \[16, 16, 3\] .* the environment \[8, 8, 3\]"):
        make_training(offline, tmp_path, recording=RecordedShare(str(tmp_path / "other"))).set_up()
    with pytest.raises(FileNotFoundError):
        training = make_training(offline, tmp_path)
        training.algorithm.make_agent.keywords["pretrained_policy"] = tmp_path / "none"
        training.set_up()
    with pytest.raises(ComponentError, match="length=2 there and 3 here"):
        torch.manual_seed(0)
        DiTAgentModule(
            dynamics=dit(grid=(8, 8), patch_size=2, **{"agent_tokens": 1, **SMALL}),
            policy=PolicyRewardHeads(16, 4, hidden=16, length=3, bins=11),
            pretrained=str(offline / "bundle"),
            tokenizer=str(offline / "bundle"),
            objective=DiffusionForcing(),
            optimizer=OptimizerConfig(),
        )
