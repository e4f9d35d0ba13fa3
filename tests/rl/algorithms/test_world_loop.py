"""The joint loop: its schedule, its losses, errors, and a run that stopped within an epoch and goes on."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from factories import dynamics, tokenizer
from recording_backend import RecordingBackend
from torch.utils._pytree import tree_leaves

from vwm.cli.main import main
from vwm.core.blocks import find_blocks
from vwm.core.captured_steps import CALLS_BEFORE_CAPTURE
from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.data.clips import ClipBatch
from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.models.diamond.denoiser import DiamondDenoiser
from vwm.models.diamond.module import DiamondModule
from vwm.models.diamond.outcome_model import DiamondOutcomeModel
from vwm.models.genie.module import GenieModule
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.outcome_heads import RewardTerminationHeads
from vwm.nn.training_module import TrainingModule
from vwm.rl.agent import ReplayBatch
from vwm.rl.agent_training import AgentTraining
from vwm.rl.algorithms.actor import ActorConfig
from vwm.rl.algorithms.actor_critic import CriticConfig
from vwm.rl.algorithms.actor_critic_policy import FrameActorCriticPolicy
from vwm.rl.algorithms.imagination_agent import ImaginationAgent, LoopPart, replayed_clips
from vwm.rl.algorithms.policy_objectives import AdvantageObjective
from vwm.rl.algorithms.world_loop import WorldLoop
from vwm.rl.evaluation_log import EvaluationConfig
from vwm.rl.replay_buffer import ReplayBuffer
from vwm.tokenizers.module import TokenizerModule

ENV = GymnasiumEnvSpec("vwm/MinAtar-v0", size=10, time_limit=30, options={"game": "breakout", "scale": 1})
LEVELS = {"depths": [1], "channels": [8], "attention": [False]}
STEPS, PREFILL, EPOCH = 36, 24, 8


def tiny_world(num_actions: int = 3, size: int = 10, schedule: str = "constant") -> DiamondModule:
    return DiamondModule(
        DiamondDenoiser(num_actions, past_frames=2, condition_width=8, **LEVELS),
        OptimizerConfig(lr=1e-3, warmup=2, schedule=schedule),
        (size, size),
        DiamondOutcomeModel(num_actions, (size, size), condition_width=8, lstm_width=8, **LEVELS),
        sampling_steps=1,
    )


tiny_policy = functools.partial(
    FrameActorCriticPolicy,
    conv_channels=4,
    channel_multipliers=(1,),
    width=8,
    actor=ActorConfig(layers=0, entropy_scale=1e-3, unimix=0.0),
    critic=CriticConfig(layers=0, distribution="normal", target_network="none"),
    deterministic=False,
)


def tiny_agent(spaces: EnvSpaces, **changes) -> ImaginationAgent:
    parts = {
        "world_part": LoopPart(updates=2, first_updates=3, batch_size=4, frames=4),
        "policy_part": LoopPart(updates=2, first_epoch=2, batch_size=4, frames=2),
    }
    settings = {"world": tiny_world, "policy": tiny_policy, "objective": AdvantageObjective(), "horizon": 2}
    return ImaginationAgent(spaces, **{**settings, **parts, **changes})


def tiny_training(run: Path, **changes) -> AgentTraining:
    loop = WorldLoop(
        ENV, tiny_agent, num_envs=2, prefill=PREFILL, epoch_decisions=EPOCH, replay_capacity=1000, **changes
    )
    evaluation = EvaluationConfig(every=10_000, episodes=1, video=False)
    return AgentTraining(run, loop, steps=STEPS, evaluation=evaluation, checkpoint_every=10_000, log_every=1)


def spaces(size: int = 10, num_actions: int = 3) -> EnvSpaces:
    return EnvSpaces(ObservationSpace.image(size, size), ActionSpace("discrete", num_actions))


def token_agent() -> ImaginationAgent:
    """An agent whose world is Genie's, with a tokenizer with attention over time that is learned in the loop."""
    optimizer = OptimizerConfig(lr=1e-3, warmup=2)
    return tiny_agent(
        spaces(16, 4),
        tokenizer=lambda: TokenizerModule(tokenizer(), optimizer),
        world=lambda: GenieModule(
            "learned in the loop", dynamics(), optimizer, outcomes=RewardTerminationHeads(16, 16), sampling_steps=1
        ),
        tokenizer_part=LoopPart(batch_size=4, frames=2),
    )


def recorded_steps(steps: int = 6) -> list[tuple[TimeStep, torch.Tensor]]:
    """An episode of one environment that terminates at its last time step, and the actions taken."""
    torch.manual_seed(3)
    return [
        (
            TimeStep(
                torch.randint(256, (1, 10, 10, 3), dtype=torch.uint8),
                torch.randn(1),
                torch.tensor([t == 0]),
                torch.tensor([t == steps - 1]),
                torch.tensor([t == steps - 1]),
            ),
            torch.randint(3, (1,)),
        )
        for t in range(steps)
    ]


def test_replayed_clips_are_those_of_a_recording():
    """What leads from frame to frame in a recording, from a replay in which it arrives with the next frame."""
    steps = recorded_steps()
    replay = ReplayBuffer(10, 1, spaces())
    for step, action in steps:
        replay.add(step, action, {})
    clips = replayed_clips(replay.sample(1, len(steps), single_episode=True))
    assert torch.equal(clips.frames, torch.stack([step.observation for step, _ in steps[:-1]], dim=1))
    assert torch.equal(clips.actions, torch.stack([action for _, action in steps[:-1]], dim=1))
    assert torch.equal(clips.rewards, torch.stack([step.reward for step, _ in steps[1:]], dim=1))
    assert clips.terminated.tolist() == [[False] * 4 + [True]]


def test_the_worlds_update_is_that_of_fit():
    """One update from a replay equals the module's own loss on the same clips, its optimizer and its clipping."""
    torch.manual_seed(0)
    agent = tiny_agent(spaces())
    replay = ReplayBuffer(10, 1, spaces())
    for step, action in recorded_steps():
        replay.add(step, action, {})
    batch = replay.sample(3, 5, single_episode=True)
    torch.manual_seed(0)
    module = tiny_world()
    module.load_state_dict(agent.world.state_dict())
    optimizer, schedule = module.optimizer.build(module, 0)
    for _ in range(3):
        torch.manual_seed(1)
        logs = agent.update_part("world", replayed_clips(batch))
        torch.manual_seed(1)
        clips = ClipBatch(batch.observation[:, :-1], batch.action[:, :-1], batch.reward[:, 1:])
        clips.terminated = batch.is_terminal[:, 1:]
        loss, _ = module.train()(clips)
        assert logs["world_loss"] == loss.item()
        optimizer.zero_grad()
        loss.backward()
        for network in module.networks().values():
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    for name, weight in module.state_dict().items():
        torch.testing.assert_close(agent.world.state_dict()[name], weight, rtol=0, atol=1e-7)


def test_an_update_changes_its_own_part_only():
    torch.manual_seed(0)
    agent = tiny_agent(spaces())
    replay = ReplayBuffer(10, 1, spaces())
    for step, action in recorded_steps():
        replay.add(step, action, {})
    for name, frames in (("world", 4), ("policy", 2)):
        before = {key: value.clone() for key, value in agent.state_dict().items()}
        for _ in range(2):
            agent.update_part(name, replayed_clips(replay.sample(4, frames + 1, single_episode=True)))
        after = agent.state_dict()
        changed = {key.split(".")[1] for key in before if not torch.equal(before[key], after[key]) and "." in key}
        assert changed == {name}


def test_a_world_of_tokens_learns_with_its_tokenizer():
    """Over another family, Genie, whose tokenizer is learned in the loop: each update changes its own part only."""
    torch.manual_seed(0)
    agent = token_agent()
    shared = agent.learners["tokenizer"].tokenizer
    assert agent.world.tokenizer is shared and list(agent.parts) == ["tokenizer", "world", "policy"]
    replay = ReplayBuffer(10, 1, spaces(16, 4))
    for step, action in recorded_steps():
        frames = torch.randint(256, (1, 16, 16, 3), dtype=torch.uint8)
        replay.add(step._replace(observation=frames), action, {})
    for name, part in agent.parts.items():
        before = {key: value.clone() for key, value in agent.state_dict().items()}
        for _ in range(2):
            agent.update_part(name, replayed_clips(replay.sample(4, part.frames + 1, single_episode=True)))
        after = agent.state_dict()
        changed = {key for key in before if not torch.equal(before[key], after[key])} - {"part_updates"}
        in_tokenizer = {key for key in changed if ".tokenizer." in key}
        assert changed and in_tokenizer == (changed if name == "tokenizer" else set())
        assert name == "tokenizer" or {key.split(".")[1] for key in changed} == {name}


def test_a_run_that_stopped_within_an_epoch_equals_an_uninterrupted_one(tmp_path):
    """Also the schedule: how many updates of each part there were, and when decisions were made."""
    whole = tiny_training(tmp_path / "whole", final_epochs=1)
    whole.set_up()
    updates, progress = Counter(), []
    loop = whole.algorithm
    while loop.progress < STEPS:
        if loop.due:
            updates[loop.due[0][0]] += 1
        else:
            progress.append(loop.progress)
        loop.step()
    # Epochs after 24, 32 and 36 decisions, and one more; the policy learns from the second on.
    assert updates == {"world": 3 + 2 + 2 + 2, "policy": 2 + 2 + 2}
    assert progress == list(range(0, STEPS, 2))
    assert loop.epochs == 4 and loop.policy.part_updates.tolist() == [9, 6]

    first = tiny_training(tmp_path / "parts", final_epochs=1)
    first.set_up()
    while first.algorithm.epochs < 2 or len(first.algorithm.due) != 1:
        first.algorithm.step()
    assert first.algorithm.due == [("policy", 2)]
    first.algorithm.step()
    first.save()
    first.algorithm.close()
    torch.manual_seed(99)
    second = tiny_training(tmp_path / "parts", final_epochs=1)
    second.set_up()
    assert second.algorithm.due == [("policy", 1)]
    while second.algorithm.progress < STEPS:
        second.algorithm.step()
    states = [tree_leaves(training.algorithm.state_dict()) for training in (whole, second)]
    assert len(states[0]) == len(states[1]) > 100
    for ours, theirs in zip(*states, strict=True):
        same = torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
        assert same or (isinstance(ours, dict) and str(ours) == str(theirs))
    draws = [training.algorithm.replay.sample(3, 3, single_episode=True) for training in (whole, second)]
    assert torch.equal(draws[0].observation, draws[1].observation)
    for training in (whole, second):
        training.algorithm.close()


def test_a_policy_sees_reconstructions_as_a_rollout_shows_them():
    """A tokenizer with attention over time decodes a frame from those before it; a new episode starts without them."""
    torch.manual_seed(0)
    agent = token_agent()
    for weight in agent.learners["tokenizer"].parameters():
        torch.nn.init.normal_(weight, std=0.3)  # attention in time begins with weights of zero
    seen = []
    act = agent.policy.act
    agent.policy.act = lambda carry, step, explore: (seen.append(step.observation), act(carry, step, explore))[1]
    frames = torch.randint(256, (1, 5, 16, 16, 3), dtype=torch.uint8)
    carry, zero = agent.init_carry(1), torch.zeros(1, dtype=torch.bool)
    for t in range(5):
        step = TimeStep(frames[:, t], torch.zeros(1), torch.tensor([t in (0, 4)]), zero, zero)
        carry = agent.act(carry, step, explore=False).carry
    simulator = agent.simulator()
    together = simulator.reconstruct(frames[:, :4])[1]
    assert torch.equal(torch.stack(seen[:4], dim=1), together)
    assert torch.equal(seen[4], simulator.reconstruct(frames[:, 4:])[1][:, 0])
    alone = simulator.reconstruct(frames[0, :4, None])[1][:, 0]
    assert not torch.equal(alone, together[0])


def test_the_world_learns_ends_at_every_place_and_nothing_after_them(tmp_path):
    """MinAtar's first ball is lost after a few steps, in episodes that may be shorter than the world's clips."""
    training = tiny_training(tmp_path)
    training.algorithm.prefill = 160
    training.set_up()
    loop = training.algorithm
    while not loop.due:
        loop.step()
    part = replace(loop.policy.parts["world"], batch_size=200, frames=11)
    clips = loop._draw_clips("world", part)
    after = clips.terminated.cumsum(1) - clips.terminated.int() > 0
    assert set(range(6)) <= set(clips.terminated.nonzero()[:, 1].tolist())
    assert clips.terminated.sum(1).max() == 1 and torch.equal(clips.rewards.isnan(), after)
    assert not clips.actions[after].any() and clips.actions[~after].any()
    repeated = after[:, 1:] & after[:, :-1]
    assert torch.equal(clips.frames[:, 1:][repeated], clips.frames[:, :-1][repeated])
    within = loop._draw_clips("policy", replace(part, frames=4))
    assert not within.rewards.isnan().any() and not within.terminated[:, :-1].any()
    training.algorithm.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world": lambda: tiny_world(num_actions=4)}, "num_actions of the world's networks to 3"),
        ({"world": lambda: tiny_world(size=12)}, r"observations of \[10, 10, 3\], the world \[12, 12, 3\]"),
        ({"world": lambda: tiny_world(schedule="cosine")}, "optimizer.schedule='cosine'.* of the world"),
        ({"discount": 0.0}, "discount=0.0"),
    ],
)
def test_errors_name_the_setting_and_the_remedy(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_agent(spaces(), **changes)


def test_a_loop_requires_enough_random_decisions(tmp_path):
    training = tiny_training(tmp_path)
    training.algorithm.prefill = 8
    with pytest.raises(ValueError, match="prefill=8 leaves 4 time steps for each of 2"):
        training.set_up()
    training.algorithm.close()
    with pytest.raises(ValueError, match="updates must be 0 or more, got -1"):
        LoopPart(updates=-1)


@pytest.mark.parametrize("name", ["diamond", "iris"])
def test_a_shipped_config_trains_and_its_policy_is_evaluated(name, tmp_path, capsys):
    config = yaml.safe_load(Path(f"configs/agents/{name}_minatar.yaml").read_text())
    loop = config["algorithm"]["init_args"]
    loop |= {"num_envs": 1, "prefill": 12, "epoch_decisions": 6}
    world, part = loop["agent"]["init_args"]["world"]["init_args"], {"updates": 1, "first_updates": 1, "batch_size": 2}
    if name == "diamond":
        for network in ("dynamics", "outcomes"):
            world[network]["init_args"] |= {**LEVELS, "condition_width": 8}
    else:
        loop["agent"]["init_args"]["tokenizer_part"] = {**part, "frames": 2}
    loop["agent"]["init_args"] |= {
        "horizon": 2,
        "world_part": {**part, "frames": 5},
        "policy_part": {**part, "frames": 4},
    }
    config |= {"steps": 12, "log_every": 1, "run": str(tmp_path / "run")}
    config["evaluation"] |= {"episodes": 1, "every": 1000}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    main(["agent", "train", "-c", str(tmp_path / "config.yaml")])
    assert (tmp_path / "run" / "curves.png").is_file()  # of rows that have the numbers of one part each
    main(["agent", "eval", str(tmp_path / "run"), "--episodes", "1"])
    assert "return" in capsys.readouterr().out


@pytest.mark.parametrize(("make", "autocast"), [(lambda: tiny_agent(spaces()), False), (token_agent, True)])
def test_captured_steps_of_the_world_change_nothing(make: Callable[[], ImaginationAgent], autocast: bool) -> None:
    torch.manual_seed(0)
    plain = make()
    fast, backend = copy.deepcopy(plain), RecordingBackend()
    fast.accelerate(backend)
    shape, size = plain.spaces.observation.shape, (plain.batch_size, plain.batch_length)
    carries = [agent.init_carry(2) for agent in (plain, fast)]
    for number in range(CALLS_BEFORE_CAPTURE):
        batch = ReplayBatch(
            torch.randint(256, (*size, *shape), dtype=torch.uint8), torch.randn(size), *torch.zeros(3, *size).bool(),
            torch.randint(plain.spaces.actions.size, size), {}, torch.zeros(size),
        )  # fmt: skip
        step = TimeStep(batch.observation[:2, 0], torch.zeros(2), *torch.zeros(3, 2).bool())
        found = []
        for i, agent in enumerate((plain, fast)):
            torch.manual_seed(number)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                logs = agent.update(batch).logs
            decision = agent.act(carries[i], step, explore=True)
            carries[i] = decision.carry
            found.append([logs, *decision, agent.state_dict()])
        assert all(map(torch.equal, *([torch.as_tensor(x) for x in tree_leaves(part)] for part in found))), number
    assert backend.replays


def test_of_the_modules_of_the_loop_only_blocks_are_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = tiny_training(tmp_path)
    training.set_up()
    agent = training.algorithm.policy = token_agent()
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **settings: compiled.append(module))
    training.algorithm.compile_networks()
    learners = [*find_blocks(agent.learners["tokenizer"]), *find_blocks(agent.learners["world"])]
    assert learners == compiled[: len(learners)] and agent.policy.actor_critic.actor in compiled[len(learners) :]
    assert not any(isinstance(module, TrainingModule) for module in compiled)
    training.algorithm.close()
