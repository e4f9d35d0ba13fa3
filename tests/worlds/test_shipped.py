"""The worlds of the repository load by their names and react to actions."""

from pathlib import Path

import pytest
import torch

import vwm

SHIPPED = sorted(p.parent.name for p in (Path(__file__).parents[2] / "bundles").glob("*/model_index.json"))


def test_worlds_are_shipped():
    assert {"coinrun", "carracing", "two_rooms"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_worlds_load_and_their_actions_differ(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # by its name, from anywhere
    world = vwm.load(name, device="cpu")
    discrete = world.spec.actions.kind == "discrete"
    size = world.spec.actions.size if discrete else 2 * world.spec.actions.size
    # Each choice; or each lever pulled to either end, the others at rest.
    levers = torch.tensor(world.spec.actions.rest).repeat(size, 1) if not discrete else None
    if levers is not None:
        levers[torch.arange(size), torch.arange(size) // 2] = torch.tensor([-1.0, 1.0]).repeat(size // 2)
    actions = torch.arange(size) if levers is None else levers
    state, _ = world.reset(world.starts[:1].expand(size, -1, -1, -1, -1), seed=torch.zeros(size, dtype=torch.int64))
    for _ in range(3):
        state, out = world.step(state, actions)
    different = {frame.numpy().tobytes() for frame in out.frame}
    assert len(different) > size // 2
    assert out.frame.float().std() > 10  # a picture, not a plain field
