"""A world's ONNX graphs in onnxruntime show what its simulator shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import diffusion_world, genie
from simulator_kinds import SIMULATORS, actions, contexts

from vwm.worlds.onnx_graphs import GraphWorld, compare_graphs, export_graphs

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'vwm[web]'")
WORLDS = {
    **SIMULATORS,
    "genie-vq": lambda: genie(codebook=36, depth=1),
    "dit": lambda: diffusion_world(outcomes=True, action_dims=3, depth=2),
}
KINDS = {"genie-vq": {"steps": 2}, "dit": {"steps": 1}, "mdn-rnn": {}, "rssm": {}, "jepa": {}}


def world_with_starts(kind: str):
    world = WORLDS[kind]()
    world.starts = contexts(world, 2, world.spec.context_frames)
    return world


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Export the graphs of a world, once."""

    @cache
    def export(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("graphs")
        assert export_graphs(world_with_starts(kind).with_sampling(**KINDS[kind]), folder) <= 1
        return folder

    return export


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_show_the_same_frames_rewards_and_ends(kind: str, export: Callable[[str], Path]) -> None:
    world = world_with_starts(kind).with_sampling(**KINDS[kind])
    graphs, context = GraphWorld(export(kind)), world.starts[1:]
    state, frame = world.reset(context, 7)
    shown = graphs.reset(context, 7)
    for step in range(5):
        assert np.abs(shown.astype(int) - frame.numpy()).max() <= 1
        action = actions(world, 1, step)
        state, output = world.step(state, action)
        found = graphs.step(action)
        frame, shown = output.frame, found["frame"]
        assert found["reward"] == pytest.approx(output.reward.numpy(), rel=1e-4, abs=1e-4)
        assert found["terminated"].tolist() == output.terminated.tolist()


def test_weights_are_stored_once_and_in_float16_where_that_is_exact(tmp_path: Path) -> None:
    world = world_with_starts("mdn-rnn")
    for weight in world.dynamics.parameters():
        weight.data = weight.data.half().float()
    assert export_graphs(world, tmp_path) <= 1
    models = [onnx.load(tmp_path / f"{name}.onnx", load_external_data=False) for name in ("reset", "step")]
    tensors = [tensor for model in models for tensor in model.graph.initializer if tensor.external_data]
    places = {next(e.value for e in tensor.external_data if e.key == "offset"): tensor for tensor in tensors}
    assert len(places) < len(tensors)  # both graphs read the same
    stored = {onnx.TensorProto.FLOAT: 0, onnx.TensorProto.FLOAT16: 0}
    for tensor in places.values():
        stored[tensor.data_type] += math.prod(tensor.dims)
    assert stored[onnx.TensorProto.FLOAT16] >= max(weight.numel() for weight in world.dynamics.parameters())
    assert stored[onnx.TensorProto.FLOAT] >= max(weight.numel() for weight in world.tokenizer.parameters())
    size = 2 * stored[onnx.TensorProto.FLOAT16] + 4 * stored[onnx.TensorProto.FLOAT]
    assert size <= (tmp_path / "weights.bin").stat().st_size <= size + 64 * len(places)


def test_graphs_of_another_world_are_refused(export: Callable[[str], Path]) -> None:
    world = world_with_starts("jepa")
    with torch.no_grad():
        for weight in world.decoder.parameters():
            weight.mul_(-1)
    with pytest.raises(ValueError, match=r"frame 0 of its graphs differs from Python's by .* of 255"):
        compare_graphs(world, export("jepa"))


def test_worlds_that_cannot_be_exported_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="shows no images"):
        export_graphs(SIMULATORS["rssm-of-vectors"](), tmp_path)
    world = SIMULATORS["rssm"]()
    world.starts = None
    with pytest.raises(ValueError, match="has no starts"):
        export_graphs(world, tmp_path)
    world = world_with_starts("mdn-rnn")
    monkeypatch.setattr(type(world), "advance", branch_on_value(type(world).advance))
    with pytest.raises(ValueError, match=r"torch cannot convert this world to ONNX: .*data-dependent"):
        export_graphs(world, tmp_path)
    assert not list(tmp_path.iterdir())


def branch_on_value(advance):
    """Make a step that reads a number in Python, as graphs cannot."""

    def branched(self, state, action, decode):
        return advance(self, state, action if action.sum() > 0 else action + 0, decode)

    return branched
