"""The worlds of the repository load by their names and react to actions."""

from pathlib import Path

import pytest
import torch

import vwm

SHIPPED = sorted(p.parent.name for p in (Path(__file__).parents[2] / "bundles").glob("*/model_index.json"))


def test_the_repository_ships_bundles():
    assert {"boxing", "carracing", "carracing_packed", "coinrun", "freeway", "two_rooms"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_worlds_load_and_react_to_actions(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # bundles are found by name from any folder
    world = vwm.load(name, device="cpu")
    discrete = world.spec.actions.kind == "discrete"
    num_actions = world.spec.actions.size if discrete else 2 * world.spec.actions.size
    # Each discrete action; or each dimension at its minimum and maximum, the others at rest.
    commands = torch.tensor(world.spec.actions.rest).repeat(num_actions, 1) if not discrete else None
    if commands is not None:
        commands[torch.arange(num_actions), torch.arange(num_actions) // 2] = torch.tensor([-1.0, 1.0]).repeat(
            num_actions // 2
        )
    actions = torch.arange(num_actions) if commands is None else commands
    state, _ = world.reset(
        world.starts[:1].expand(num_actions, -1, -1, -1, -1), seed=torch.zeros(num_actions, dtype=torch.int64)
    )
    for _ in range(3):
        state, out = world.step(state, actions)
    different = {frame.numpy().tobytes() for frame in out.frame}
    assert len(different) > num_actions // 2
    assert out.frame.float().std() > 10  # an image, not a constant color


def test_shipped_freeway_rewards_crossings_only():
    world = vwm.load("freeway", device="cpu")
    starts = world.starts[[7, 11]]  # the chicken is two and three lanes from the other side
    returns = {}
    for name in ("UP", "NOOP"):
        state, _ = world.reset(starts, seed=torch.arange(len(starts)))
        action = torch.full((len(starts),), world.spec.actions.names.index(name))
        returns[name] = torch.zeros(len(starts))
        for _ in range(20):
            state, out = world.step(state, action)
            returns[name] += out.reward
    assert returns["UP"].max() > 0.8
    assert returns["NOOP"].abs().max() < 0.3
