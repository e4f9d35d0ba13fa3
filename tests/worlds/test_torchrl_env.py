"""The TorchRL interface: its checker, equality with the Gymnasium interface, masked resets and steps, its collector."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from count_world import SIZE, CountWorld
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from vwm.worlds.gymnasium_env import SimulatorVectorEnv

pytest.importorskip("torchrl")
from tensordict import TensorDict, assert_close
from torchrl import collectors
from torchrl.envs.utils import check_env_specs

from vwm.worlds.torchrl_env import SimulatorTorchRLEnv

KINDS = [("discrete", "pictures", "frame"), ("composite", "vectors", "frame"), ("discrete", "latents", "latent")]


def action_tensordict(*indices: int) -> TensorDict:
    return TensorDict({"action": torch.tensor(indices)}, [len(indices)])


def shown_counts(tensordict: TensorDict) -> list[int]:
    return tensordict["pixels"][:, 0, 1, 0].tolist()


@pytest.mark.parametrize(("kind", "shows", "observe"), KINDS)
def test_it_passes_the_torchrl_checker(kind: str, shows: str, observe: str) -> None:
    env = SimulatorTorchRLEnv(CountWorld(kind, shows), 3, max_episode_steps=2, observe=observe)
    check_env_specs(env, break_when_any_done="both")
    check_env_specs(env, seed=0)


def test_specs_follow_the_world() -> None:
    env = SimulatorTorchRLEnv(CountWorld(), 3)
    assert env.batch_size == (3,) and env.device == torch.device("cpu")
    assert env.observation_spec["pixels"].shape == (3, SIZE, SIZE, 3) and env.action_spec.shape == (3,)
    assert env.action_spec.rand().max() <= 3 and env.action_spec.dtype == torch.int64
    first = env.reset()
    assert set(first.keys()) == {"pixels", "done", "terminated", "truncated"} and first["done"].shape == (3, 1)
    output = env.step(first.update(action_tensordict(0, 1, 2)))["next"]
    assert output["reward"].tolist() == [[0.0], [1.0], [2.0]] and output["reward"].dtype == torch.float32
    assert not output["pixels"].is_inference()
    continuous = SimulatorTorchRLEnv(CountWorld("continuous", "vectors"), 2)
    assert continuous.action_spec.shape == (2, 4) and continuous.reset()["observation"].dtype == torch.float32


def test_it_equals_the_gymnasium_interface() -> None:
    env = SimulatorTorchRLEnv(CountWorld(), 3, max_episode_steps=4)
    gymnasium_envs = SimulatorVectorEnv(CountWorld(), 3, max_episode_steps=4, autoreset_mode=AutoresetMode.DISABLED)
    env.set_seed(7)
    tensordict, observations = env.reset(), gymnasium_envs.reset(seed=7)[0]
    actions = np.random.default_rng(0).integers(0, 4, (20, 3))
    for action in actions:
        assert (tensordict["pixels"].numpy() == observations).all()
        step, tensordict = env.step_and_maybe_reset(tensordict.set("action", torch.from_numpy(action)))
        observations, rewards, terminated, truncated, _ = gymnasium_envs.step(action)
        for name, expected in (("reward", rewards), ("terminated", terminated), ("truncated", truncated)):
            assert (step["next", name][:, 0].numpy() == expected).all()
        assert (step["next", "pixels"].numpy() == observations).all()
        assert torch.equal(step["next", "done"], step["next", "terminated"] | step["next", "truncated"])
        if (terminated | truncated).any():
            observations = gymnasium_envs.reset(options={"reset_mask": terminated | truncated})[0]


def test_all_randomness_comes_from_the_seed() -> None:
    env = SimulatorTorchRLEnv(CountWorld(), 2, max_episode_steps=3)

    def run(seed: int) -> TensorDict:
        env.set_seed(seed)
        torch.manual_seed(0)  # TorchRL's random actions
        return env.rollout(10, break_when_any_done=False)

    first = run(5)
    assert_close(first, run(5), rtol=0, atol=0)
    assert not torch.equal(first["pixels"], run(6)["pixels"])


def test_a_reset_mask_resets_only_the_selected_worlds() -> None:
    env = SimulatorTorchRLEnv(CountWorld(), 3)
    with pytest.raises(ResetNeeded, match="all worlds"):
        env.reset(TensorDict({"_reset": torch.tensor([[True], [False], [False]])}, [3]))
    env.reset()
    output = env.step(action_tensordict(3, 2, 1))["next"]
    output["_reset"] = torch.tensor([[False], [True], [False]])
    assert shown_counts(env.reset(output)) == [3, 0, 1]
    assert shown_counts(env.step(action_tensordict(1, 1, 1))["next"]) == [4, 1, 2]


def test_rollouts_distinguish_terminations_from_truncations() -> None:
    env = SimulatorTorchRLEnv(CountWorld(), 2, max_episode_steps=4)
    rollout = env.rollout(10, lambda td: td.set("action", torch.tensor([3, 1])), break_when_any_done=False)
    ends = rollout["next"]
    assert ends["terminated"][0, :, 0].nonzero()[:, 0].tolist() == [2, 5, 8]  # 3, 6, 9: the count passed 7
    assert ends["truncated"][1, :, 0].nonzero()[:, 0].tolist() == [3, 7]
    assert not ends["truncated"][0].any() and not ends["terminated"][1].any()
    assert rollout["pixels"][0, :, 0, 1, 0].tolist() == [0, 3, 6] * 3 + [0]
    assert ends["pixels"][0, :, 0, 1, 0].tolist() == [3, 6, 9] * 3 + [3]


def test_a_step_mask_leaves_the_other_worlds_unchanged() -> None:
    env = SimulatorTorchRLEnv(CountWorld(), 2)
    env.reset()
    env.step(action_tensordict(1, 1))
    output = env.step(action_tensordict(2, 2).set("_step", torch.tensor([True, False])))["next"]
    assert shown_counts(output) == [3, 1] and output["reward"].tolist() == [[3.0], [0.0]]
    assert shown_counts(env.step(action_tensordict(1, 1))["next"]) == [4, 2]
    rollout = env.rollout(
        10, lambda td: td.set("action", torch.tensor([3, 2])), break_when_any_done=False, break_when_all_done=True
    )
    assert rollout.shape == (2, 4) and rollout["next", "pixels"][:, -1, 0, 1, 0].tolist() == [9, 8]


def test_a_fork_continues_exactly_and_independently() -> None:
    env = SimulatorTorchRLEnv(CountWorld(), 2, max_episode_steps=3, observe="latent")
    env.set_seed(0)
    initial = env.reset()
    env.step(initial.clone().update(action_tensordict(1, 2)))
    trajectories = []
    for forked in (env.fork(), env.fork(), env):  # stepping one does not change the next
        current = initial.clone()
        trajectories.append([])
        for step in range(8):
            output, current = forked.step_and_maybe_reset(current.update(action_tensordict(step % 3, 1)))
            trajectories[-1].append(output["next", "observation"])
    stacked = [torch.stack(trajectory) for trajectory in trajectories]
    assert torch.equal(stacked[0], stacked[1]) and torch.equal(stacked[0], stacked[2])


def test_callers_may_modify_returned_tensordicts() -> None:
    env, other = (SimulatorTorchRLEnv(CountWorld(), 2) for _ in range(2))
    for one_env in (env, other):
        one_env.set_seed(0)
    env.reset().zero_()
    other.reset()
    env.step(action_tensordict(1, 2))["next"].fill_("pixels", 9)
    other.step(action_tensordict(1, 2))
    reset_mask = {"_reset": torch.tensor([[True], [False]]), "done": torch.zeros(2, 1, dtype=torch.bool)}
    observations = [one_env.reset(TensorDict(reset_mask, [2]).clone())["pixels"] for one_env in (env, other)]
    assert torch.equal(observations[0][0], observations[1][0])
    assert torch.equal(env.worlds.current.observation, other.worlds.current.observation)


def test_the_torchrl_collector_runs_in_it() -> None:
    collector_class = getattr(collectors, "Collector", None) or collectors.SyncDataCollector  # its name before 0.11
    env = SimulatorTorchRLEnv(CountWorld(shows="vectors"), 3, max_episode_steps=4)
    collector = collector_class(env, None, frames_per_batch=12, total_frames=36)
    batches = [batch.clone() for batch in collector]
    collector.shutdown()
    assert len(batches) == 3 and all(batch.shape == (3, 4) for batch in batches)
    collected = torch.cat(batches, dim=1)
    count, done = collected["observation"][..., 1], collected["next", "done"][..., 0]
    assert torch.equal(collected["next", "reward"][..., 0], count + collected["action"])
    assert not count[:, 1:][done[:, :-1]].any() and done.any()  # a new episode begins after every end
    assert torch.equal(count[:, 1:][~done[:, :-1]], collected["next", "observation"][:, :-1, 1][~done[:, :-1]])


def test_errors_name_the_remedy() -> None:
    with pytest.raises(ResetNeeded, match="reset"):
        SimulatorTorchRLEnv(CountWorld(), 2).step(action_tensordict(0, 0))
    with pytest.raises(ValueError, match="num_envs"):
        SimulatorTorchRLEnv(CountWorld(), 0)
