"""Several tasks in one network: what reads agent tokens depends on the task, and frames do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from factories import dit

from vwm.core.components import ComponentError
from vwm.core.family import ExportSettings
from vwm.data.clip_folders import make_clip_dataset
from vwm.data.clips import ClipBatch, collate_clips
from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.models.dit.agent_module import DiTAgentModule
from vwm.models.dit.objectives import DiffusionForcing
from vwm.models.dit.policy_heads import PolicyRewardHeads
from vwm.models.dit.simulator import DiTSimulator
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.outcome_heads import RewardTerminationHeads
from vwm.tokenizers.pixel_tokenizer import PixelTokenizer
from vwm.worlds.bundle import load_simulator, save_simulator
from vwm.worlds.families import find_family

FIELDS = ("frames", "actions", "rewards", "terminated", "task")
DARK, BRIGHT = 40, 215


def make_module(**changes) -> DiTAgentModule:
    torch.manual_seed(0)
    settings = {"agent_tokens": 1, "num_tasks": 2, "num_actions": 2, "width": 16, "depth": 2, "registers": 1}
    network = {key: changes.pop(key) for key in list(changes) if key in settings}
    dynamics = dit(grid=(2, 2), channels=12, **{**settings, **network})
    if dynamics.tasks is not None:
        torch.nn.init.zeros_(dynamics.tasks)  # as they begin, which the factory has changed
    return DiTAgentModule(
        dynamics=dynamics,
        policy=PolicyRewardHeads(16, num_actions=2, hidden=16, length=1, bins=21),
        tokenizer=PixelTokenizer((4, 4), patch_size=2),
        objective=DiffusionForcing(),
        optimizer=OptimizerConfig(),
        outcomes=RewardTerminationHeads(width=16, hidden=16, bins=21),
        **{"context": "noisy", "context_noise": 0.05, "sampling_steps": 1, **changes},
    )


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> list[str]:
    """Two players of the same random frames: one presses where it is bright, the other where it is dark.

    A press there is rewarded; the last of 5 players' episodes presses at random, so that rewards depend on actions.
    """
    folders = []
    for task, pressed in enumerate((BRIGHT, DARK)):
        folder, rng = tmp_path_factory.mktemp(f"task{task}"), np.random.default_rng(0)
        with ShardWriter(folder / "shard-000000.tar") as writer:
            for key in range(10):
                levels = rng.choice([DARK, BRIGHT], 16)
                actions = (levels == pressed).astype(np.int64) if key % 5 else rng.integers(2, size=16)
                frames = np.broadcast_to(levels[:, None, None, None].astype(np.uint8), (16, 4, 4, 3))
                rewards = (actions & (levels == pressed)).astype(np.float32)
                writer.write(f"episode-{key}", Episode(np.ascontiguousarray(frames), actions, rewards))
        folders.append(str(folder))
    return folders


def clips_of(recordings: list[str], count: int, length: int = 4) -> ClipBatch:
    data = make_clip_dataset(recordings, length, fields=FIELDS)
    return collate_clips([data[0, int(i)] for i in torch.randperm(len(data))[:count]])


def simulator_of(module: DiTAgentModule) -> DiTSimulator:
    settings = ExportSettings(title="tasks", fps=15.0, context_frames=1, starts=None, recording={})
    return find_family(module).make_simulator(module, settings)


def test_clips_say_which_data_set_they_are_from(recordings):
    torch.manual_seed(0)
    clips = clips_of(recordings, 40)
    pressed = torch.tensor([BRIGHT, DARK])[clips.task]
    rewarded = (clips.actions == 1) & (clips.frames[:, :, 0, 0, 0] == pressed[:, None])
    assert clips.task.dtype == torch.int64 and set(clips.task.tolist()) == {0, 1}
    assert torch.equal(clips.rewards, rewarded.float())
    weighted = make_clip_dataset({recordings[1]: 3, recordings[0]: 1}, 4, fields=("frames", "task"))
    assert [int(weighted[0, i]["task"]) for i in range(80)].count(0) == 60  # the first one named


def test_features_of_a_task_in_training_equal_those_of_play_and_frames_do_not_depend_on_it(tmp_path):
    """Streaming equals parallel; and a network whose tasks are new computes what it did without."""
    module = make_module(context_noise=0.0).eval()
    torch.nn.init.normal_(module.dynamics.tasks)
    frames = torch.randint(256, (3, 5, 4, 4, 3), dtype=torch.uint8)
    actions, task = torch.randint(2, (3, 5)), torch.tensor([0, 1, 1])
    seen = []
    module.policy.policy_body.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach()))
    module(ClipBatch(frames, actions, rewards=torch.zeros(3, 5), task=task))
    save_simulator(simulator_of(module).with_sampling(task=1), tmp_path / "bundle")
    worlds = [simulator_of(module), load_simulator(tmp_path / "bundle", "cpu")]
    shown = []
    for number, world in enumerate(worlds):
        state, _ = world.reset(frames[:, :2], 0, actions[:, :1])
        for i in range(2, 5):
            state = world.observe(state, actions[:, i - 1], frames[:, i])
        of_task = task == number
        torch.testing.assert_close(world.features(state)[of_task], seen[0][of_task, -1], rtol=0, atol=1e-5)
        shown.append(world.step(state, actions[:, -1])[1].frame)
    assert torch.equal(*shown)
    assert not torch.equal(*(world.features(world.reset(frames[:, :1])[0]) for world in worlds))

    untasked = make_module(num_tasks=0, pretrained=str(tmp_path / "bundle"), context_noise=0.0)
    save_simulator(simulator_of(untasked), tmp_path / "untasked")
    begun = make_module(pretrained=str(tmp_path / "untasked"), context_noise=0.0)
    assert torch.equal(begun.policy.policy_body[0].weight, module.policy.policy_body[0].weight)
    again = make_module(pretrained=str(tmp_path / "bundle"), context_noise=0.0)
    assert torch.equal(again.dynamics.tasks, module.dynamics.tasks) and not begun.dynamics.tasks.any()
    features = [simulator_of(m).features(simulator_of(m).reset(frames[:, :2])[0]) for m in (untasked, begun)]
    assert torch.equal(*features)


def test_one_network_learns_the_players_and_the_rewards_of_both_tasks(recordings):
    torch.manual_seed(0)
    module = make_module()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    clips = clips_of(recordings, 80)
    for i in range(80):
        part = slice(i % 4 * 20, i % 4 * 20 + 20)
        batch = ClipBatch(**{name: value[part] for name, value in vars(clips).items() if value is not None})
        optimizer.zero_grad()
        module(batch)[0].backward()
        optimizer.step()
    assert module.dynamics.tasks.abs().min() > 0
    frames = torch.tensor([BRIGHT, DARK], dtype=torch.uint8)[:, None, None, None, None].expand(2, 1, 4, 4, 3)
    for task, wanted in enumerate(([1, 0], [0, 1])):
        world = simulator_of(module.eval()).with_sampling(task=task)
        state, _ = world.reset(frames)
        with torch.no_grad():
            assert module.policy.policy(world.features(state)).argmax(-1).tolist() == wanted
        _, pressed = world.step(state, torch.ones(2, dtype=torch.int64))
        _, released = world.step(state, torch.zeros(2, dtype=torch.int64))
        torch.testing.assert_close(pressed.reward, torch.tensor(wanted).float(), rtol=0, atol=0.35)
        torch.testing.assert_close(released.reward, torch.zeros(2), rtol=0, atol=0.35)


def test_errors_name_the_setting_and_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"num_tasks=2 .* set agent_tokens to 1 or more"):
        dit(num_tasks=2)
    with pytest.raises(ValueError, match=r"task=2 must be one of the 2 .*dynamics.num_tasks"):
        make_module(task=2)
    module = make_module()
    with pytest.raises(ValueError, match="task=5 must be one of the 2"):
        simulator_of(module).with_sampling(task=5)
    frames = torch.zeros(1, 3, 4, 4, 3, dtype=torch.uint8)
    batch = ClipBatch(frames, torch.zeros(1, 3).long(), rewards=torch.zeros(1, 3), task=torch.tensor([2]))
    with pytest.raises(ValueError, match=r"a clip has task 2, and dynamics.num_tasks=2"):
        module(batch)
    save_simulator(simulator_of(module), tmp_path / "bundle")
    index = tmp_path / "bundle" / "model_index.json"
    index.write_text(index.read_text().replace('"task": 0', '"task": 7'))
    with pytest.raises((ValueError, ComponentError), match="task=7"):
        load_simulator(tmp_path / "bundle", "cpu")
