"""Learned worlds as environments: what agents see of them, and that a run in them goes on exactly."""

from pathlib import Path

import numpy as np
import pytest
import torch
from factories import diffusion_world, genie

from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.worlds.bundle import save_simulator
from vwm.worlds.simulated_env import SimulatedBatchedEnv, SimulatedEnvSpec


@pytest.fixture
def recording(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "data" / "shard-000000.tar") as writer:
        for key, length in (("a", 9), ("b", 12)):
            writer.write(key, Episode(rng.integers(256, size=(length, 8, 8, 3), dtype=np.uint8)))
    return tmp_path / "data"


def starts(simulator, count: int = 3) -> torch.Tensor:
    height, width = simulator.spec.context.image_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 2, height, width, 3), generator=generator, dtype=torch.uint8)


def open_worlds(seed: int = 0, observe: str = "frame") -> SimulatedBatchedEnv:
    simulator = genie()
    return SimulatedBatchedEnv(simulator, 2, seed, starts(simulator), time_limit=3, observe=observe)


def test_time_steps_equal_those_of_the_simulator() -> None:
    worlds = open_worlds()
    moment = worlds.reset()
    assert moment.is_first.all() and moment.observation.dtype == torch.uint8
    action = torch.tensor([1, 0])
    state = worlds.worlds.current.state
    _, shown = worlds.worlds.simulator.step(state, action)
    after = worlds.step(action)
    assert torch.equal(after.observation, shown.frame) and torch.equal(after.reward, shown.reward)
    assert not after.is_first.any()


def test_a_time_limit_truncates_and_the_next_episode_begins() -> None:
    worlds = open_worlds()
    worlds.reset()
    moments = [worlds.step(torch.zeros(2, dtype=torch.int64)) for _ in range(4)]
    assert [bool(m.is_last.all()) for m in moments] == [False, False, True, False]
    assert not any(m.is_terminal.any() for m in moments)
    assert moments[3].is_first.all() and (moments[3].reward == 0).all()


@pytest.mark.parametrize("observe", ["frame", "latent"])
def test_a_state_goes_on_exactly(observe: str) -> None:
    worlds, other = open_worlds(observe=observe), open_worlds(observe=observe)
    assert worlds.spaces.observation.is_image == (observe == "frame")
    worlds.reset()
    actions = torch.randint(4, (9, 2), generator=torch.Generator().manual_seed(0))
    for action in actions[:4]:
        moment = worlds.step(action)
    again = other.load_state_dict(worlds.state_dict())
    for action in actions[4:]:
        assert all(torch.equal(a, b) for a, b in zip(moment, again, strict=True))
        moment, again = worlds.step(action), other.step(action)


def test_other_seeds_live_otherwise() -> None:
    first, second = open_worlds(0).reset(), open_worlds(1).reset()
    assert not torch.equal(first.observation, second.observation)


def test_a_bundle_is_an_environment(tmp_path, recording) -> None:
    simulator = diffusion_world()
    save_simulator(simulator, tmp_path / "world")
    game = SimulatedEnvSpec(tmp_path / "world", data=str(recording), contexts=5, time_limit=2)
    worlds = game.open(2, seed=0)
    assert len(worlds.worlds.starts) == 5
    moment = worlds.reset()
    assert tuple(moment.observation.shape) == (2, *simulator.spec.context.image_size, 3)
    assert worlds.step(torch.zeros(2, dtype=torch.int64)).is_last.tolist() == [False, False]


def test_worlds_that_disagree_cost_what_they_are_told_to(tmp_path) -> None:
    simulator = diffusion_world(outcomes=True)
    simulator.starts = starts(simulator)
    save_simulator(simulator, tmp_path / "world")
    with torch.no_grad():
        for weight in simulator.dynamics.parameters():
            weight.add_(0.1)
    save_simulator(simulator, tmp_path / "other")
    action = torch.zeros(2, dtype=torch.int64)
    earned = []
    for penalty in (0.0, 3.0):
        worlds = SimulatedEnvSpec(
            tmp_path / "world", ensemble_bundles=(tmp_path / "other",), uncertainty_penalty=penalty
        ).open(2, seed=0)
        worlds.reset()
        earned.append(worlds.step(action).reward)
        uncertainty = worlds.worlds.current.state.uncertainty
    assert (uncertainty > 0).all() and torch.allclose(earned[1], earned[0] - 3 * uncertainty)


def test_rewarded_contexts_require_data_and_a_time_limit(recording, tmp_path) -> None:
    save_simulator(genie(), tmp_path / "world")
    for data, limit in ((str(recording), None), (None, 8)):
        with pytest.raises(ValueError, match=r"rewarded_fraction=0\.5 requires rewards of data within the time limit"):
            SimulatedEnvSpec(tmp_path / "world", data, rewarded_fraction=0.5, time_limit=limit).open(1, seed=0)
