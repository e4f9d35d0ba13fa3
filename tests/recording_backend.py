"""A stand-in for CUDA graphs on a CPU: it records the operations of a function and runs them again, and nothing else.

Like a graph it reads and writes the tensors that it saw, so that Python's branches, numbers and loops stay as they
were, and like a capture it fails where a value is read in Python, or where Python's numbers become a tensor by a copy
from the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST_READS = {"_local_scalar_dense", "nonzero", "is_nonzero", "item"}
HOST_COPIES = {"lift_fresh"}


def one_hot(index: Tensor, num_classes: int) -> Tensor:
    """Torch's, which reads the indices to check them on a CPU, but not on a GPU."""
    return (index[..., None] == torch.arange(num_classes)).long()


class _Record(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in HOST_READS:
            raise RuntimeError(f"{func} reads a value while a graph is captured")
        if func.overloadpacket.__name__ in HOST_COPIES:
            raise RuntimeError(f"{func} copies a value from the host while a graph is captured")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result, torch.is_grad_enabled()))
        return result


class RecordingBackend:
    """See ``vwm.core.captured_steps.CaptureBackend``. It counts captures and replays."""

    def __init__(self) -> None:
        self.captures = 0
        self.replays = 0

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Run a function, as ``CUDAGraphs`` does, and record it, with gradients or without as it is called."""
        self.captures += 1
        function()
        inference = torch.is_inference_mode_enabled()
        with mock.patch.object(functional, "one_hot", one_hot), _Record() as record:
            function()

        def replay() -> None:
            self.replays += 1
            # What was recorded lies below autograd; kernels still ask for the mode of gradients.
            with torch.inference_mode(inference), torch._C._AutoDispatchBelowAutograd():
                for func, args, kwargs, result, gradients in record.calls:
                    with torch.set_grad_enabled(gradients):
                        again = func(*args, **kwargs)
                    for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                        if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                            old.copy_(new.view(old.shape))  # products of vectors change a result's shape in place

        return replay
