"""Bytes of shards at remote addresses, read in blocks whose checksums are in the index of the shard.

A shard is what it was when its index was loaded: an object that was replaced since is an error, and bytes that came
damaged are read again. A process keeps the blocks that it read last in memory, of bounded size, because the parts of
an episode that a clip needs lie close together; a ``ShardCache`` also keeps them on disk.
"""

from __future__ import annotations

import base64
import os
import threading
import warnings
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from vwm.core.atomic_files import atomic_write
from vwm.core.remote_files import DamagedBytesError, changed_error, file_state, read_range, retry
from vwm.data.shard_cache import ShardCache, shard_cache_path

BLOCK_BYTES = 1 << 16
"""Size of the blocks that have a checksum; the last one of a shard is shorter."""
CACHED_BYTES = 1 << 20
"""Size of the pieces that a cache on disk keeps, whole blocks."""
MEMORY_BYTES = 32 << 20
"""Size of the blocks that a process keeps in memory."""


def checksum_blocks(file: BinaryIO) -> str:
    """Return the CRC-32 of each block of a file from its start, as base64 of little-endian numbers."""
    file.seek(0)
    sums = [zlib.crc32(block) for block in iter(lambda: file.read(BLOCK_BYTES), b"")]
    return base64.b64encode(np.array(sums, "<u4").tobytes()).decode()


@dataclass(frozen=True)
class RemoteShard:
    """What is known of a shard.

    Attributes:
        size: in bytes.
        tag: its ETag when the index was loaded; empty where the store has none.
        block_sums: checksums of the blocks as the index has them; empty where it has none.
        sums: uint32 [blocks], the same as numbers, or None.
        cache: keeps its bytes on disk; None keeps none.
    """

    size: int
    tag: str
    block_sums: str
    sums: NDArray[np.uint32] | None
    cache: ShardCache | None

    @property
    def piece(self) -> int:
        """Size of the pieces that are read, in bytes."""
        return BLOCK_BYTES if self.cache is None else CACHED_BYTES


PieceKey = tuple[str, str, int, int]
"""Address, ETag, size of pieces and number of a piece."""


class RecentPieces:
    """The pieces that were read last, of bounded size together; safe to use from several threads.

    Args:
        limit: in bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._pieces: OrderedDict[PieceKey, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: PieceKey) -> bytes | None:
        """Return a piece, or None."""
        with self._lock:
            if key in self._pieces:
                self._pieces.move_to_end(key)
            return self._pieces.get(key)

    def put(self, key: PieceKey, data: bytes) -> None:
        """Add a piece, and drop the oldest ones."""
        with self._lock:
            self.size += len(data) - len(self._pieces.pop(key, b""))
            self._pieces[key] = data
            while self.size > self.limit:
                self.size -= len(self._pieces.popitem(last=False)[1])


_SHARDS: dict[str, RemoteShard] = {}
_RECENT = RecentPieces(MEMORY_BYTES)
_TURNS = [threading.Lock() for _ in range(64)]


def know_shard(address: str, size: int, tag: str, block_sums: str, cache: ShardCache | None = None) -> None:
    """Remember a shard as its index describes it, for all reads of this process and of those forked from it.

    Args:
        address: of the shard.
        size: in bytes.
        tag: its ETag, or "".
        block_sums: as ``checksum_blocks`` returns them, or "".
        cache: keeps its bytes on disk.
    """
    known = _SHARDS.get(address)
    if known is not None and (known.size, known.tag, known.block_sums, known.cache) == (size, tag, block_sums, cache):
        return
    sums = np.frombuffer(base64.b64decode(block_sums), "<u4") if block_sums else None
    if sums is not None and len(sums) != -(-size // BLOCK_BYTES):
        sums = None
    _SHARDS[address] = RemoteShard(size, tag, block_sums, sums, cache)


def read_remote_bytes(address: str, offset: int, size: int) -> bytes:
    """Read bytes of a shard.

    Raises:
        FileNotFoundError: the shard was deleted.
        ChangedShardError: it was replaced since its index was loaded.
        StoreError: the store does not give the bytes that were written, in spite of retries.
        ValueError: the shard ends before.
    """
    shard = _SHARDS.get(address)
    if shard is None:
        state = retry(address, "its size", lambda: file_state(address))
        know_shard(address, state.size or 0, state.tag, "")
        shard = _SHARDS[address]
    stop = offset + size
    if stop > shard.size:
        raise ValueError(f"{address}: ends before byte {stop}: download or write this shard again")
    numbers = range(offset // shard.piece, -(-stop // shard.piece))
    pieces = {number: _find_piece(address, shard, number) for number in numbers}
    if None in pieces.values():
        # Threads that read clips of one episode at the same time would each fetch its first block.
        with _TURNS[hash((address, numbers.start)) % len(_TURNS)]:
            pieces |= {number: _find_piece(address, shard, number) for number in numbers if pieces[number] is None}
            for begin, end in _runs([number for number in numbers if pieces[number] is None]):
                data = _fetch(address, shard, begin * shard.piece, min(end * shard.piece, shard.size))
                for number in range(begin, end):
                    piece = data[(number - begin) * shard.piece : (number - begin + 1) * shard.piece]
                    pieces[number] = piece
                    _keep_piece(address, shard, number, piece)
    joined = b"".join(piece for piece in pieces.values() if piece is not None)
    return joined[offset - numbers.start * shard.piece : stop - numbers.start * shard.piece]


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Return consecutive numbers as (first, last + 1)."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs


def _fetch(address: str, shard: RemoteShard, start: int, stop: int) -> bytes:
    """Read bytes from the store and check them; ``start`` is the start of a block."""
    return retry(address, f"bytes {start} to {stop}", lambda: _fetch_once(address, shard, start, stop))


def _fetch_once(address: str, shard: RemoteShard, start: int, stop: int) -> bytes:
    data = read_range(address, start, stop, shard.tag)
    if len(data) == shard.size and stop - start < shard.size:
        _keep_whole_shard(address, shard, data)
        data = data[start:stop]
    elif len(data) != stop - start:
        raise DamagedBytesError(f"{len(data)} bytes came instead of {stop - start}")
    damaged = find_damage(shard, start, data)
    if damaged is None:
        return data
    state = file_state(address)
    if (shard.tag and state.tag != shard.tag) or state.size not in (None, shard.size):
        raise changed_error(address)
    raise DamagedBytesError(
        f"the bytes from {damaged} differ from what the index of the shard says: they were damaged on the way or in "
        "the store, or the shard was written again without its index (delete the .index.json, or upload both again)"
    )


def _keep_whole_shard(address: str, shard: RemoteShard, data: bytes) -> None:
    """Store a shard that came whole, so that it is not sent again for every clip."""
    copy = _whole_copy(address, shard.tag, shard.size)
    try:
        with atomic_write(copy) as file:
            file.write(data)
        place = f"a copy is kept at {copy}"
    except OSError as error:
        place = f"no copy can be kept at {copy} ({error.strerror}), so that it is sent again for every read"
    warnings.warn(f"{address}: the server ignores byte ranges and sent the whole shard; {place}", stacklevel=2)


def _whole_copy(address: str, tag: str, size: int) -> Path:
    """Return where a whole shard is kept, as it is now: its size and tag are part of the name."""
    return shard_cache_path(address, f"{tag} {size}", ".tar")


def _read_whole_copy(address: str, shard: RemoteShard, start: int, size: int) -> bytes | None:
    """Read from the copy of a shard whose server ignores byte ranges; None where there is none."""
    try:
        with _whole_copy(address, shard.tag, shard.size).open("rb") as file:
            return os.pread(file.fileno(), size, start)
    except OSError:
        return None


def find_damage(shard: RemoteShard, start: int, data: bytes) -> int | None:
    """Return the offset in the shard of the first block that differs from its checksum; None where all are right."""
    if shard.sums is None:
        return None
    first = start // BLOCK_BYTES
    for number, begin in enumerate(range(0, len(data), BLOCK_BYTES), first):
        if zlib.crc32(data[begin : begin + BLOCK_BYTES]) != int(shard.sums[number]):
            return number * BLOCK_BYTES
    return None


def _find_piece(address: str, shard: RemoteShard, number: int) -> bytes | None:
    """Return a piece from memory or from the cache on disk; None where neither has it."""
    key = address, shard.tag, shard.piece, number
    recent = _RECENT.get(key)
    if recent is not None:
        return recent
    start = number * shard.piece
    size = min(shard.piece, shard.size - start)
    data = _read_whole_copy(address, shard, start, size)
    if data is None and shard.cache is not None:
        data = shard.cache.read(f"{address}\n{shard.tag}\n{shard.size}", number, size)
    if data is None or len(data) != size or find_damage(shard, start, data) is not None:
        return None
    _RECENT.put(key, data)
    return data


def _keep_piece(address: str, shard: RemoteShard, number: int, data: bytes) -> None:
    _RECENT.put((address, shard.tag, shard.piece, number), data)
    if shard.cache is not None:
        shard.cache.write(f"{address}\n{shard.tag}\n{shard.size}", number, data)


def forget_recent_pieces() -> None:
    """Drop the pieces in memory."""
    global _RECENT
    _RECENT = RecentPieces(MEMORY_BYTES)


def _reset_after_fork() -> None:
    """Give a forked process locks that no thread of its parent holds."""
    global _TURNS
    _TURNS = [threading.Lock() for _ in range(64)]
    forget_recent_pieces()


_TURNS = [threading.Lock() for _ in range(64)]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
