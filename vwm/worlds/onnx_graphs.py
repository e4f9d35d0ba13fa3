"""A simulator as two ONNX graphs, for runtimes without Python: state in, state out.

A simulator's step is a function of its state, which holds the seed, and the action. So it is one graph, random numbers
included, and an ONNX runtime shows the same frames as Python, up to rounding. Both graphs are made by ``torch.export``,
with a batch of one, and read their weights from one file.

Graph inputs and outputs (h, w: of the world's images; k: frames of a step):

- ``reset``: ``context`` uint8 [1, t, h, w, 3], ``seed`` int64 [1] -> ``frame`` uint8 [1, h, w, 3], ``state_0``, ...
- ``step``: ``action`` int64 [1] or float32 [1, a], ``state_0``, ... -> ``frame`` uint8 [1, h, w, 3], or [1, k, h, w, 3]
  where k is above 1; ``reward`` float32 [1], ``terminated`` bool [1], ``next_0``, ...

A part of the state that a step leaves as it is has no ``next``, and one that no step reads is left out.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from vwm.core.network_simulator import NetworkSimulator
from vwm.core.seeds import fold_in
from vwm.core.states import map_state
from vwm.worlds.onnx_weights import WeightsFile

OPSET = 20
WEIGHTS_FILE = "weights.bin"
CHECKED_STEPS = 8
LARGEST_MEAN_DIFFERENCE = 2.0
"""Of a frame's values from 0 to 255, between the graphs and Python; more is an error of the conversion."""


def export_graphs(simulator: NetworkSimulator, folder: Path) -> float:
    """Write ``reset.onnx``, ``step.onnx`` and ``weights.bin`` of a simulator, and compare them with it.

    Args:
        simulator: a world that shows images and has starts, in float32 on the CPU.
        folder: an existing folder.

    Returns:
        The largest difference between a pixel's value (0 to 255) and Python's, over ``CHECKED_STEPS`` steps.

    Raises:
        ValueError: the packages of vwm[web] are missing, the world shows no images or has no starts, or its graphs
            compute something else.
    """
    _import_onnx()
    if not simulator.spec.observation.is_image or simulator.spec.context.is_vector:
        raise ValueError(f"{simulator.spec.title} shows no images: there is nothing to play")
    if simulator.starts is None or not len(simulator.starts):
        raise ValueError(f"{simulator.spec.title} has no starts: export its run with --data")
    context, action = simulator.starts[:1], example_action(simulator, 0)
    with torch.no_grad():
        state, _ = simulator.reset(context, 0)
    # The exporters take one tensor at several places, such as the empty caches of blocks, for one input or output.
    leaves, structure = tree_flatten(map_state(Tensor.clone, state))
    names = [f"state_{i}" for i in range(len(leaves))]
    with torch.no_grad():
        after = tree_flatten(simulator.advance(tree_unflatten(leaves, structure), action, decode=True)[0])[0]
    changed = [i for i, (old, new) in enumerate(zip(leaves, after, strict=True)) if new is not old]
    step = _convert(
        _Networks(simulator, lambda action, *parts: _advance(simulator, structure, changed, action, parts)),
        (action, *leaves),
        ["action", *names],
        ["frame", "reward", "terminated", *(f"next_{i}" for i in changed)],
    )
    step = _optimize(step, folder)
    needed = _keep_read_states(step)
    reset = _convert(
        _Networks(simulator, lambda context, seed: _reset(simulator, context, seed)),
        (context, torch.zeros(1, dtype=torch.int64)),
        ["context", "seed"],
        ["frame", *names],
    )
    _keep_outputs(reset, {"frame", *needed})
    reset = _optimize(reset, folder)
    with WeightsFile(folder / WEIGHTS_FILE) as weights:
        for name, model in (("reset", reset), ("step", step)):
            weights.take(model)
            (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    return compare_graphs(simulator, folder)


def example_action(simulator: NetworkSimulator, step: int) -> Tensor:
    """Return a valid action, a batch of one; other steps have others."""
    space = simulator.spec.actions
    if space.is_discrete:
        return torch.tensor([step % space.size])
    return space.from_flat(torch.sin(step + 2.0 * torch.arange(space.size))[None])


class _Networks(nn.Module):
    """A function of a simulator as a module whose parameters are the simulator's."""

    def __init__(self, simulator: NetworkSimulator, function: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.function = function
        for name, network in simulator.networks().items():
            self.add_module(name, network)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.function(*inputs)


def _advance(
    simulator: NetworkSimulator, structure: Any, changed: Sequence[int], action: Tensor, parts: Sequence[Tensor]
) -> tuple[Any, ...]:
    state, output = simulator.advance(tree_unflatten(list(parts), structure), action, decode=True)
    leaves = tree_flatten(map_state(Tensor.clone, state))[0]
    return output.frame, output.reward, output.terminated, *(leaves[i] for i in changed)


def _reset(simulator: NetworkSimulator, context: Tensor, seed: Tensor) -> tuple[Any, ...]:
    # What `world_seeds` makes of an integer.
    state, frame = simulator.reset(context, fold_in(seed, torch.zeros_like(seed)))
    return frame, *tree_flatten(map_state(Tensor.clone, state))[0]


def _convert(module: nn.Module, inputs: tuple[Tensor, ...], names: list[str], outputs: list[str]) -> Any:
    """Convert a module to an ``onnx.ModelProto``."""
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(module, inputs, strict=False)
            converted = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=names,
                output_names=outputs,
                optimize=False,  # by onnxruntime, which takes a second instead of a minute
                verbose=False,
                custom_translation_table={torch.ops.aten.kthvalue.default: _kthvalue},
            )
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"torch cannot convert this world to ONNX: {reason}") from error
    assert converted is not None
    return converted.model_proto


def _kthvalue(values: Any, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Any, Any]:
    """torch's ``kthvalue`` with ``keepdim`` in ONNX's operators."""
    from onnxscript import opset20

    op: Any = opset20
    smallest, places = op.TopK(values, op.Constant(value_ints=[k]), axis=dim, largest=0, sorted=1)
    first, end, axis = (op.Constant(value_ints=[number]) for number in (k - 1, k, dim))
    return op.Slice(smallest, first, end, axis), op.Slice(places, first, end, axis)


def _keep_read_states(model: Any) -> set[str]:
    """Drop the parts of the state that no later step reads; return the names of the others."""
    graph, count = model.graph, 0
    while len(graph.output) != count:
        count = len(graph.output)
        read = {name for node in graph.node for name in node.input}
        _keep(graph.input, read | {"action"})
        inputs = {value.name for value in graph.input}
        names = {value.name for value in graph.output}
        _keep_outputs(
            model, {name for name in names if name.replace("next_", "state_") in inputs or "next_" not in name}
        )
    return inputs - {"action"}


def _keep_outputs(model: Any, names: set[str]) -> None:
    """Drop all other outputs, and the nodes that only they need."""
    graph = model.graph
    _keep(graph.output, names)
    needed, kept = set(names), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(name for name in node.input if name)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))


def _keep(values: Any, names: set[str]) -> None:
    kept = [value for value in values if value.name in names]
    del values[:]
    values.extend(kept)


def _optimize(model: Any, folder: Path) -> Any:
    """Fold constants and remove what computes nothing, with onnxruntime's optimizations that every runtime can run."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    path = folder / "optimized.onnx"
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(path)
    path.unlink()
    used = {node.domain for node in optimized.graph.node}
    versions = [entry for entry in optimized.opset_import if entry.domain in used]
    del optimized.opset_import[:]
    optimized.opset_import.extend(versions)
    return optimized


class GraphWorld:
    """A world of ``reset.onnx`` and ``step.onnx`` in onnxruntime, on the CPU.

    Args:
        folder: as ``export_graphs`` wrote it.
    """

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        self._reset, self._step = (
            onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
            for name in ("reset", "step")
        )
        self._state: dict[str, Any] = {}

    def reset(self, context: Tensor, seed: int) -> NDArray[np.uint8]:
        """Show the first frame, uint8 [1, h, w, 3], of a context uint8 [1, t, h, w, 3]."""
        found = _run(self._reset, {"context": context.numpy(), "seed": np.array([seed])})
        frame: NDArray[np.uint8] = found.pop("frame")
        self._state = found
        return frame

    def step(self, action: Tensor) -> dict[str, Any]:
        """Take a step; return ``frame``, ``reward`` and ``terminated``."""
        found = _run(self._step, {"action": action.numpy(), **self._state})
        self._state |= {name.replace("next_", "state_"): found.pop(name) for name in [*found] if "next_" in name}
        return found


def _run(session: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def compare_graphs(simulator: NetworkSimulator, folder: Path, steps: int = CHECKED_STEPS) -> float:
    """Return the largest difference of the graphs' frames (0 to 255) from the simulator's.

    Raises:
        ValueError: the frames of a step are another picture.
    """
    assert simulator.starts is not None
    graphs, context, largest = GraphWorld(folder), simulator.starts[:1], 0.0
    state, frame = simulator.reset(context, 1)
    shown = graphs.reset(context, 1)
    for step in range(steps + 1):
        difference = np.abs(shown.astype(np.int16) - frame.numpy())
        if difference.mean() > LARGEST_MEAN_DIFFERENCE:
            raise ValueError(
                f"{simulator.spec.title}: frame {step} of its graphs differs from Python's by {difference.mean():.1f} "
                "of 255 on average: the conversion to ONNX is wrong; please report this"
            )
        largest = max(largest, float(difference.max()))
        action = example_action(simulator, step)
        state, output = simulator.step(state, action)
        assert output.frame is not None, "a step with decode=True shows frames"
        frame, shown = output.frame, graphs.step(action)["frame"]
    return largest


def _import_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{error.name} is missing: install vwm[web] (onnx, onnxscript, onnxruntime)") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporters' warnings of their own future, and their log, which is long."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
