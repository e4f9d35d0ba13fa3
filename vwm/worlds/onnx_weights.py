"""One file for the weights of several ONNX graphs: equal ones are stored once, in float16 where that is exact.

Shipped bundles store float16, which Python computes with in float32. A graph does the same: its weights are stored in
float16 with a cast, which runtimes compute once, when they load the graph.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

SMALLEST = 1024
"""Bytes of the smallest weights that move to the file; smaller ones stay in the graph."""
_ALIGNMENT = 64


class WeightsFile:
    """The file, open for writing.

    Args:
        path: to write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._offsets: dict[bytes, int] = {}

    def take(self, model: Any) -> None:
        """Move the weights of an ``onnx.ModelProto`` to the file, and let the model refer to it; in place."""
        from onnx import TensorProto, helper, numpy_helper

        casts = []
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.nbytes < SMALLEST:
                continue
            name, stored = tensor.name, _in_float16(values)
            if stored is not values:
                tensor.name = f"{name}_float16"
                casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
            tensor.data_type = helper.np_dtype_to_tensor_dtype(stored.dtype)
            self._refer(tensor, stored)
        for node in reversed(casts):
            model.graph.node.insert(0, node)

    def _refer(self, tensor: Any, values: NDArray[Any]) -> None:
        from onnx import TensorProto

        data = np.ascontiguousarray(values).tobytes()
        for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "external_data"):
            tensor.ClearField(field)
        tensor.data_location = TensorProto.EXTERNAL
        places = {"location": self.path.name, "offset": self._place(data), "length": len(data)}
        for key, value in places.items():
            tensor.external_data.add(key=key, value=str(value))

    def _place(self, data: bytes) -> int:
        """Return where the data stand in the file; written where they are new."""
        digest = hashlib.sha256(data).digest()
        if digest not in self._offsets:
            self._file.write(bytes(-self._file.tell() % _ALIGNMENT))
            self._offsets[digest] = self._file.tell()
            self._file.write(data)
        return self._offsets[digest]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _in_float16(values: NDArray[Any]) -> NDArray[Any]:
    """Return float32 values as float16 where none changes, else as they are."""
    if values.dtype != np.float32:
        return values
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), values) else values
