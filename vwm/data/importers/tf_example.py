"""TensorFlow's record files and ``tf.train.Example`` messages, read without TensorFlow or protobuf.

A record is its length (uint64), a checksum of the length, its bytes and a checksum of these. An Example is a protobuf
message: ``features`` (1) is a map (1) of names (1) to features (2), each a list of bytes (1), float (2) or int64 (3).
Checksums of lengths are tested, those of contents are not; encoded pictures fail on their own.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FeatureValues = list[bytes] | NDArray[np.float32] | NDArray[np.int64]
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def find_records(file: Path) -> list[tuple[int, int]]:
    """Return first byte and size of each record of a file.

    Raises:
        ValueError: the file is damaged, cut off, or of another kind.
    """
    places: list[tuple[int, int]] = []
    size = file.stat().st_size
    with file.open("rb") as stream:
        position = 0
        while position < size:
            header = stream.read(12)
            length, checksum = struct.unpack("<QI", header) if len(header) == 12 else (0, -1)
            if checksum != _masked_crc32c(header[:8]):
                raise ValueError(f"{file.name}: is no file of TensorFlow records, or damaged at byte {position}")
            if position + 16 + length > size:
                raise ValueError(f"{file.name}: is cut off within record {len(places)}")
            places.append((position + 12, length))
            position += 16 + length
            stream.seek(position)
    return places


def map_record(file: Path, place: tuple[int, int]) -> memoryview:
    """Return a record of ``find_records``; parts that are not used are not read from disk."""
    start, size = place
    with file.open("rb") as stream:
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))[start : start + size]


def parse_example(record: memoryview | bytes, wanted: set[str]) -> dict[str, FeatureValues]:
    """Return features of an Example by name.

    Args:
        record: the message.
        wanted: names of features; others are skipped.

    Raises:
        ValueError: it is no such message.
    """
    found: dict[str, FeatureValues] = {}
    try:
        for number, features in _fields(memoryview(record)):
            for key, entry in _fields(features) if number == 1 else ():
                parts = dict(_fields(entry)) if key == 1 else {}
                name = bytes(parts.get(1, b"")).decode()
                if name in wanted and 2 in parts:
                    found[name] = _parse_feature(parts[2])
    except (IndexError, struct.error, TypeError, UnicodeDecodeError) as error:
        raise ValueError("is no tf.train.Example, or a damaged one") from error
    return found


def _parse_feature(content: memoryview) -> FeatureValues:
    for kind, values in _fields(content):
        items = [item for number, item in _fields(values) if number == 1]
        if kind == 1:
            return [bytes(item) for item in items]
        if kind == 2:  # packed into one field, or a field each
            return np.frombuffer(b"".join(items), "<f4").astype(np.float32)
        if kind == 3:
            return np.concatenate([_varints(item) for item in items] or [np.zeros(0, np.int64)])
    return []


def _fields(content: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield number and content of each field: bytes, or those of a fixed number, or the int of a varint."""
    position = 0
    while position < len(content):
        tag, position = _read_varint(content, position)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, position = _read_varint(content, position)
            yield number, value
            continue
        if kind not in (_FIXED64, _BYTES, _FIXED32):
            raise TypeError(f"wire type {kind}")
        if kind == _BYTES:
            size, position = _read_varint(content, position)
        else:
            size = 8 if kind == _FIXED64 else 4
        if position + size > len(content):
            raise IndexError("a field ends behind its message")
        yield number, content[position : position + size]
        position += size


def _read_varint(content: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise IndexError("a varint of more than ten bytes")


def _varints(item: memoryview | int) -> NDArray[np.int64]:
    """Return the numbers of a packed list, or of one that is not packed."""
    if isinstance(item, int):
        return np.array([item], np.uint64).view(np.int64)
    content = np.frombuffer(item, np.uint8)
    last = np.flatnonzero(content < 128)
    if not len(content):
        return np.zeros(0, np.int64)
    if not len(last) or last[-1] != len(content) - 1:
        raise IndexError("a varint is cut off")
    first = np.concatenate([[0], last[:-1] + 1])
    values = np.zeros(len(first), np.uint64)
    for k in range(int((last - first).max()) + 1):
        longer = first + k <= last
        values[longer] |= (content[first[longer] + k].astype(np.uint64) & np.uint64(127)) << np.uint64(7 * k)
    return values.view(np.int64)


def _masked_crc32c(content: bytes) -> int:
    """Return the checksum of TensorFlow's records: CRC-32C, rotated and shifted by a constant."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 & -(crc & 1))
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
