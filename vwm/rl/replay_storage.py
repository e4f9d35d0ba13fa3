"""Where a replay buffer keeps the values of a field: in arrays of this process or of a file, or on a device.

Legend: n environments, m time steps kept of each, b sequences drawn, t their length. A flat index is n's times m plus
m's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class ReplayField(Protocol):
    """The values of a field, [n, m, ...]."""

    shape: tuple[int, ...]
    """Of a value."""

    def write(self, position: int, values: Tensor) -> None:
        """Store the values [n, ...] of a time step."""
        ...

    def read(self, indices: NDArray[np.int64]) -> Tensor:
        """Return the values at flat indices [b, t]: [b, t, ...]."""
        ...

    def overwrite(self, indices: Tensor, values: Tensor) -> None:
        """Store values [b, t, ...] at flat indices [b, t], of which some may be equal: the last value counts."""
        ...

    def dump(self, times: NDArray[np.int64]) -> NDArray[Any]:
        """Return the values of given positions, [n, k, ...]."""
        ...

    def restore(self, times: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Store what ``dump`` returned."""
        ...


class HostField:
    """A field in an array of this process, or of a file.

    Args:
        count, size: n and m.
        shape, dtype: of a value.
        file: where the array lies; None for this process's memory.
    """

    def __init__(
        self, count: int, size: int, shape: tuple[int, ...], dtype: torch.dtype, file: Path | None = None
    ) -> None:
        kind = torch.zeros((), dtype=dtype).numpy().dtype
        self.shape = shape
        self.array: NDArray[Any]
        if file is None:
            self.array = np.zeros((count, size, *shape), kind)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            self.array = np.lib.format.open_memmap(file, mode="w+", dtype=kind, shape=(count, size, *shape))
        self.flat = self.array.reshape(-1, *shape)

    def write(self, position: int, values: Tensor) -> None:
        """See ``ReplayField.write``."""
        self.array[:, position] = values.detach().cpu().numpy()

    def read(self, indices: NDArray[np.int64]) -> Tensor:
        """See ``ReplayField.read``."""
        return torch.from_numpy(self.flat[indices])

    def overwrite(self, indices: Tensor, values: Tensor) -> None:
        """See ``ReplayField.overwrite``."""
        self.flat[indices.cpu().numpy()] = values.detach().cpu().numpy()

    def dump(self, times: NDArray[np.int64]) -> NDArray[Any]:
        """See ``ReplayField.dump``."""
        array: NDArray[Any] = self.array[:, times]
        return array

    def restore(self, times: NDArray[np.int64], values: NDArray[Any]) -> None:
        """See ``ReplayField.restore``."""
        self.array[:, times] = values


class DeviceField:
    """A field in the memory of a device, where it is also read.

    Args:
        count, size: n and m.
        shape, dtype: of a value.
        device: the device.
    """

    def __init__(self, count: int, size: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self.values = torch.zeros((count, size, *shape), dtype=dtype, device=device)
        self.flat = self.values.flatten(0, 1)

    def write(self, position: int, values: Tensor) -> None:
        """See ``ReplayField.write``."""
        self.values[:, position] = values.detach().to(self.values.device)

    def read(self, indices: NDArray[np.int64]) -> Tensor:
        """See ``ReplayField.read``."""
        return self.flat[torch.from_numpy(indices).to(self.flat.device)]

    def overwrite(self, indices: Tensor, values: Tensor) -> None:
        """See ``ReplayField.overwrite``; equal indices are resolved before, since a device writes in any order."""
        flat = indices.cpu().numpy().ravel()
        _, from_end = np.unique(flat[::-1], return_index=True)
        last = len(flat) - 1 - from_end
        places, chosen = (torch.from_numpy(where).to(self.flat.device) for where in (flat[last], last))
        values = values.detach().to(self.flat).flatten(0, 1)
        self.flat.index_copy_(0, places, values[chosen])

    def dump(self, times: NDArray[np.int64]) -> NDArray[Any]:
        """See ``ReplayField.dump``."""
        array: NDArray[Any] = self.values[:, torch.from_numpy(times).to(self.flat.device)].cpu().numpy()
        return array

    def restore(self, times: NDArray[np.int64], values: NDArray[Any]) -> None:
        """See ``ReplayField.restore``."""
        where = torch.from_numpy(times).to(self.flat.device)
        self.values[:, where] = torch.from_numpy(values).to(self.values)


def bytes_of_field(steps: int, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Return the memory that a field needs for a number of time steps."""
    return steps * int(np.prod(shape)) * dtype.itemsize
