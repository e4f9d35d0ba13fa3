"""TorchRL's face: its own checker, the Gymnasium face as the oracle, resets and steps under masks, its collector."""

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

KINDS = [("discrete", "pictures", "frame"), ("continuous", "vectors", "frame"), ("discrete", "latents", "latent")]


def actions(*each: int) -> TensorDict:
    return TensorDict({"action": torch.tensor(each)}, [len(each)])


def counts(shown: TensorDict) -> list[int]:
    return shown["pixels"][:, 0, 1, 0].tolist()


@pytest.mark.parametrize(("kind", "shows", "observe"), KINDS)
def test_torchrls_checker_finds_nothing(kind: str, shows: str, observe: str) -> None:
    env = SimulatorTorchRLEnv(CountWorld(kind, shows), 3, max_episode_steps=2, observe=observe)
    check_env_specs(env, break_when_any_done="both")
    check_env_specs(env, seed=0)


def test_spaces() -> None:
    env = SimulatorTorchRLEnv(CountWorld(), 3)
    assert env.batch_size == (3,) and env.device == torch.device("cpu")
    assert env.observation_spec["pixels"].shape == (3, SIZE, SIZE, 3) and env.action_spec.shape == (3,)
    assert env.action_spec.rand().max() <= 3 and env.action_spec.dtype == torch.int64
    first = env.reset()
    assert set(first.keys()) == {"pixels", "done", "terminated", "truncated"} and first["done"].shape == (3, 1)
    shown = env.step(first.update(actions(0, 1, 2)))["next"]
    assert shown["reward"].tolist() == [[0.0], [1.0], [2.0]] and shown["reward"].dtype == torch.float32
    assert not shown["pixels"].is_inference()
    continuous = SimulatorTorchRLEnv(CountWorld("continuous", "vectors"), 2)
    assert continuous.action_spec.shape == (2, 4) and continuous.reset()["observation"].dtype == torch.float32


def test_worlds_live_as_behind_the_gymnasium_face() -> None:
    ours = SimulatorTorchRLEnv(CountWorld(), 3, max_episode_steps=4)
    theirs = SimulatorVectorEnv(CountWorld(), 3, max_episode_steps=4, autoreset_mode=AutoresetMode.DISABLED)
    ours.set_seed(7)
    here, there = ours.reset(), theirs.reset(seed=7)[0]
    choices = np.random.default_rng(0).integers(0, 4, (20, 3))
    for chosen in choices:
        assert (here["pixels"].numpy() == there).all()
        shown, here = ours.step_and_maybe_reset(here.set("action", torch.from_numpy(chosen)))
        there, rewards, terminated, truncated, _ = theirs.step(chosen)
        for name, expected in (("reward", rewards), ("terminated", terminated), ("truncated", truncated)):
            assert (shown["next", name][:, 0].numpy() == expected).all()
        assert (shown["next", "pixels"].numpy() == there).all()
        assert torch.equal(shown["next", "done"], shown["next", "terminated"] | shown["next", "truncated"])
        if (terminated | truncated).any():
            there = theirs.reset(options={"reset_mask": terminated | truncated})[0]


def test_everything_random_comes_from_the_seed() -> None:
    env = SimulatorTorchRLEnv(CountWorld(), 2, max_episode_steps=3)

    def run(seed: int) -> TensorDict:
        env.set_seed(seed)
        torch.manual_seed(0)  # TorchRL's random actions
        return env.rollout(10, break_when_any_done=False)

    first = run(5)
    assert_close(first, run(5), rtol=0, atol=0)
    assert not torch.equal(first["pixels"], run(6)["pixels"])


def test_a_mask_resets_some_worlds() -> None:
    env = SimulatorTorchRLEnv(CountWorld(), 3)
    with pytest.raises(ResetNeeded, match="all worlds"):
        env.reset(TensorDict({"_reset": torch.tensor([[True], [False], [False]])}, [3]))
    env.reset()
    shown = env.step(actions(3, 2, 1))["next"]
    shown["_reset"] = torch.tensor([[False], [True], [False]])
    assert counts(env.reset(shown)) == [3, 0, 1]
    assert counts(env.step(actions(1, 1, 1))["next"]) == [4, 1, 2]


def test_rollouts_distinguish_terminations_from_truncations() -> None:
    env = SimulatorTorchRLEnv(CountWorld(), 2, max_episode_steps=4)
    rollout = env.rollout(10, lambda td: td.set("action", torch.tensor([3, 1])), break_when_any_done=False)
    ends = rollout["next"]
    assert ends["terminated"][0, :, 0].nonzero()[:, 0].tolist() == [2, 5, 8]  # 3, 6, 9: the count passed 7
    assert ends["truncated"][1, :, 0].nonzero()[:, 0].tolist() == [3, 7]
    assert not ends["truncated"][0].any() and not ends["terminated"][1].any()
    assert rollout["pixels"][0, :, 0, 1, 0].tolist() == [0, 3, 6] * 3 + [0]
    assert ends["pixels"][0, :, 0, 1, 0].tolist() == [3, 6, 9] * 3 + [3]


def test_worlds_that_are_not_to_step_stand_still() -> None:
    env = SimulatorTorchRLEnv(CountWorld(), 2)
    env.reset()
    env.step(actions(1, 1))
    shown = env.step(actions(2, 2).set("_step", torch.tensor([True, False])))["next"]
    assert counts(shown) == [3, 1] and shown["reward"].tolist() == [[3.0], [0.0]]
    assert counts(env.step(actions(1, 1))["next"]) == [4, 2]
    whole = env.rollout(
        10, lambda td: td.set("action", torch.tensor([3, 2])), break_when_any_done=False, break_when_all_done=True
    )
    assert whole.shape == (2, 4) and whole["next", "pixels"][:, -1, 0, 1, 0].tolist() == [9, 8]


def test_a_fork_continues_exactly_and_independently() -> None:
    env = SimulatorTorchRLEnv(CountWorld(), 2, max_episode_steps=3, observe="latent")
    env.set_seed(0)
    here = env.reset()
    env.step(here.clone().update(actions(1, 2)))
    lives = []
    for each in (env.fork(), env.fork(), env):  # what became of one leaves the next as it was
        now = here.clone()
        lives.append([])
        for step in range(8):
            shown, now = each.step_and_maybe_reset(now.update(actions(step % 3, 1)))
            lives[-1].append(shown["next", "observation"])
    stacked = [torch.stack(life) for life in lives]
    assert torch.equal(stacked[0], stacked[1]) and torch.equal(stacked[0], stacked[2])


def test_what_is_returned_is_the_callers_to_change() -> None:
    env, other = (SimulatorTorchRLEnv(CountWorld(), 2) for _ in range(2))
    for each in (env, other):
        each.set_seed(0)
    env.reset().zero_()
    other.reset()
    env.step(actions(1, 2))["next"].fill_("pixels", 9)
    other.step(actions(1, 2))
    some = {"_reset": torch.tensor([[True], [False]]), "done": torch.zeros(2, 1, dtype=torch.bool)}
    shown = [each.reset(TensorDict(some, [2]).clone())["pixels"] for each in (env, other)]
    assert torch.equal(shown[0][0], shown[1][0])
    assert torch.equal(env.worlds.current.observation, other.worlds.current.observation)


def test_torchrls_collector_runs_in_it() -> None:
    collect = getattr(collectors, "Collector", None) or collectors.SyncDataCollector  # its name before 0.11
    env = SimulatorTorchRLEnv(CountWorld(shows="vectors"), 3, max_episode_steps=4)
    collector = collect(env, None, frames_per_batch=12, total_frames=36)
    batches = [batch.clone() for batch in collector]
    collector.shutdown()
    assert len(batches) == 3 and all(batch.shape == (3, 4) for batch in batches)
    played = torch.cat(batches, dim=1)
    count, done = played["observation"][..., 1], played["next", "done"][..., 0]
    assert torch.equal(played["next", "reward"][..., 0], count + played["action"])
    assert not count[:, 1:][done[:, :-1]].any() and done.any()  # an episode begins after each that ended
    assert torch.equal(count[:, 1:][~done[:, :-1]], played["next", "observation"][:, :-1, 1][~done[:, :-1]])


def test_errors_name_the_remedy() -> None:
    with pytest.raises(ResetNeeded, match="reset"):
        SimulatorTorchRLEnv(CountWorld(), 2).step(actions(0, 0))
    with pytest.raises(ValueError, match="num_envs"):
        SimulatorTorchRLEnv(CountWorld(), 0)
