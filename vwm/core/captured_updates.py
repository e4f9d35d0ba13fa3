"""Accelerated learning: an update of weights is recorded once as a graph of kernels, and launched as a whole.

Where ``captured_steps`` makes a function of a graph, an update changes things in place: weights, buffers and the states
of optimizers. Such a graph reads a batch from fixed memory, changes what the plain update changes, and leaves its
results in fixed memory. Capturing runs the update several times, which is undone, random generators included, so that
captured updates and plain ones can follow each other in any order, as where a run resumes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from vwm.core.captured_steps import CaptureBackend, RecentCaptures, generators_kept
from vwm.core.static_memory import Layout, StaticBuffer, copy_tensors, split_tensors, tensor_shapes

MAX_CAPTURED_UPDATES = 4
"""Number of captured functions and shapes; of more, the one that was used least recently is dropped."""

Update = Callable[[Any], Any]
"""From nested tensors, such as a batch, to nested tensors, such as losses; it changes weights in place."""

_deferred_checks: ContextVar[dict[str, Tensor] | None] = ContextVar("deferred_checks", default=None)


def defer_check(numbers: Mapping[str, Tensor]) -> bool:
    """Return whether an update is being captured, which cannot read numbers but returns them, to be checked then.

    Args:
        numbers: tensors [] that must be finite, by name.
    """
    deferred = _deferred_checks.get()
    if deferred is not None:
        deferred.update(numbers)
    return deferred is not None


class _CapturedUpdate:
    """One update for one shape of its arguments.

    Args:
        update: the function.
        backend: what captures it.
        inputs: the tensors of its arguments.
        layout: what else they are made of.
        changed: all tensors that it changes in place; they stay where they are.
    """

    def __init__(
        self, update: Update, backend: CaptureBackend, inputs: list[Tensor], layout: Layout, changed: list[Tensor]
    ) -> None:
        self.update = update
        self.layout = layout
        self.changed = changed
        self.inputs = StaticBuffer(inputs)
        copy_tensors(self.inputs.tensors, inputs)
        self.before, first = ([tensor.detach().clone() for tensor in changed] for _ in range(2))
        self.results: StaticBuffer | None = None
        try:
            with generators_kept():
                self.replay = backend.capture(self._run)
        finally:  # of several runs, ``before`` has only what preceded the last one
            with torch.no_grad():
                copy_tensors(changed, first)

    def _run(self) -> None:
        """Compute the update: what is captured."""
        torch.clear_autocast_cache()  # it would hold weights that an earlier run has cast, and then changed
        with torch.no_grad():
            copy_tensors(self.before, self.changed)
        checks: dict[str, Tensor] = {}
        token = _deferred_checks.set(checks)
        try:
            returned = self.update(self.layout.join(self.inputs.tensors))
        finally:
            _deferred_checks.reset(token)
        results, self.result_layout = split_tensors((returned, checks))
        if self.results is None:
            self.results = StaticBuffer(results)
        with torch.no_grad():
            copy_tensors(self.results.tensors, results)
        torch.clear_autocast_cache()

    def __call__(self, inputs: list[Tensor]) -> tuple[Any, dict[str, Tensor]]:
        """Make the update; return its results, and the numbers to check."""
        assert self.results is not None
        with torch.no_grad():
            copy_tensors(self.inputs.tensors, inputs)
        self.replay()
        result: tuple[Any, dict[str, Tensor]] = self.result_layout.join(
            tensor.clone() for tensor in self.results.tensors
        )
        return result

    def undo(self) -> None:
        """Return everything that the last run changed to what it was."""
        with torch.no_grad():
            copy_tensors(self.changed, self.before)


class CapturedUpdates:
    """Makes updates from captured graphs; they change what the plain function changes.

    An update with the shapes of its arguments is captured at its third call, when all states of its optimizers exist.
    Where that fails, the plain function is computed from then on, and one warning says why. One that changes tensors
    which have been replaced since, as by loading a checkpoint, or depends on other settings, is captured again.

    Args:
        backend: what captures.
        changed: returns all tensors that the updates change in place: weights, buffers, states of optimizers.
        settings: returns the numbers that the updates depend on and that are no tensors, such as learning rates.
    """

    def __init__(
        self,
        backend: CaptureBackend,
        changed: Callable[[], Sequence[Tensor]],
        settings: Callable[[], Hashable] = lambda: None,
    ) -> None:
        self.backend = backend
        self.changed = changed
        self.settings = settings
        self.captured: RecentCaptures[_CapturedUpdate] = RecentCaptures(MAX_CAPTURED_UPDATES)
        self.failed: set[Hashable] = set()
        self.last: _CapturedUpdate | None = None

    def __call__(self, name: Hashable, update: Update, inputs: Any) -> tuple[Any, dict[str, Tensor]]:
        """Compute ``update(inputs)``; return its results, and the numbers that it gave to ``defer_check``.

        Args:
            name: with the shapes of the tensors it identifies the function, also in warnings.
            update: the function; it depends on nothing but its arguments, on what it changes and on weights, never
                reads the value of a tensor in Python, and draws random numbers from torch's generator only.
            inputs: nested tensors on one device.
        """
        self.last = None
        if name in self.failed:
            return update(inputs), {}
        tensors, layout = split_tensors(inputs)
        changed = list(self.changed())
        places = tuple(tensor.data_ptr() for tensor in changed)
        key = (name, layout, tensor_shapes(tensors), places, self.settings())
        try:
            if key not in self.captured and self.captured.is_frequent(key):
                self.captured.keep(key, _CapturedUpdate(update, self.backend, tensors, layout, changed))
        except RuntimeError as error:
            self.failed.add(name)
            warnings.warn(f"{name} is not accelerated: {type(error).__name__}: {error}", stacklevel=3)
        if key not in self.captured:
            return update(inputs), {}
        self.captured.move_to_end(key)
        self.last = self.captured[key]
        return self.last(tensors)

    def undo(self) -> None:
        """Return everything that the last update changed to what it was, where it was captured."""
        if self.last is not None:
            self.last.undo()
