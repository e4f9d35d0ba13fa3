"""The worlds that come with the repository load by their names and answer to their actions."""

from pathlib import Path

import pytest
import torch

import vwm

SHIPPED = sorted(p.parent.name for p in (Path(__file__).parents[2] / "bundles").glob("*/model_index.json"))


def test_a_world_is_shipped():
    assert "coinrun" in SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_world_is_whole_and_its_actions_differ(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # by its name, from anywhere
    world = vwm.load_simulator(name, device="cpu")
    size = world.actions.size
    state, _ = world.reset(world.starts[:1].expand(size, -1, -1, -1, -1), seed=torch.zeros(size, dtype=torch.int64))
    for _ in range(3):
        state, out = world.step(state, torch.arange(size))
    different = {frame.numpy().tobytes() for frame in out.frame}
    assert len(different) > size // 2
    assert out.frame.float().std() > 10  # a picture, not a plain field
