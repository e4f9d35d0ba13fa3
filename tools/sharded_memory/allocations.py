"""What a process of ``tools/sharded_memory`` allocates: what malloc has given out and not got back.

torch's CPU allocator takes all memory from malloc. The record of torch's profiler misses what threads of gloo free.
"""

from __future__ import annotations

import ctypes
import gc
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from torch.utils._python_dispatch import TorchDispatchMode

FIRST, LAST = 2, 4
"""Steps that are measured; before them, optimizer states, averages and caches come to be."""


class _MallocState(ctypes.Structure):
    """``struct mallinfo2`` of the GNU C library."""

    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")),
    )


_read_state = ctypes.CDLL(None).mallinfo2
_read_state.restype = _MallocState


def allocated() -> int:
    """Return the bytes that malloc has given out, in all arenas and in maps of their own."""
    state = _read_state()
    return int(state.uordblks + state.hblkhd)


class PeakMemory(TorchDispatchMode):
    """Looks for the peak of ``allocated`` after every operation, when its inputs and its outputs exist."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self.operation = ""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """See ``TorchDispatchMode``."""
        out = func(*args, **(kwargs or {}))
        size = allocated()
        if size > self.peak:
            self.peak, self.operation = size, str(func)
        return out


class MeasureSteps(L.Callback):
    """Writes what this rank allocates in the steps ``FIRST`` to ``LAST`` to ``memory-RANK.json`` of the run.

    In the steps after them, in which nothing is measured otherwise, it looks at the resident set of the process.
    """

    allocated_before = 0
    resident_before = 0

    def __init__(self) -> None:
        self.memory = PeakMemory()
        self.measured: dict[str, Any] = {}

    @classmethod
    def start(cls) -> None:
        """Count from here."""
        gc.collect()
        cls.allocated_before, cls.resident_before = allocated(), resident("VmRSS")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == FIRST:
            self.measured["between steps"] = allocated() - self.allocated_before
            self.memory.__enter__()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == LAST + 1:
            self.memory.__exit__(None, None, None)
            self.measured |= {"peak": self.memory.peak - self.allocated_before, "at": self.memory.operation}
            Path("/proc/self/clear_refs").write_text("5")  # forgets the most that was resident so far
        if trainer.global_step > LAST:
            self.measured |= {"steps": trainer.global_step, "resident": resident("VmHWM") - self.resident_before}
            path = Path(trainer.default_root_dir) / f"memory-{trainer.global_rank}.json"
            path.write_text(json.dumps(self.measured))


def resident(name: str) -> int:
    """Return the resident set of this process, ``VmRSS``, or the most it was, ``VmHWM``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [kilobytes] = [line.split()[1] for line in lines if line.startswith(name)]
    return 1024 * int(kilobytes)
