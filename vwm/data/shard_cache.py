"""A cache on disk of pieces of remote shards, with a size limit, that many processes share and that kills do not harm.

Each piece is a file with a checksum, written under a temporary name and renamed. Its name holds a hash of the address,
ETag and size of its shard, so that pieces of an object that was replaced are never read again. The pieces that were not
read for the longest time are removed where a new one would exceed the limit.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vwm.core.atomic_files import process_runs
from vwm.core.folder_lock import make_folder

FREE_SHARE = 0.1
"""Share of the limit that is made free at once, so that the folder is not searched for every new piece."""
SUM_BYTES = 4


@dataclass(frozen=True)
class ShardCache:
    """A cache in a folder.

    Args:
        folder: of the pieces; several runs may share it.
        limit: of all its files together, in bytes.
    """

    folder: Path
    limit: int

    def read(self, file: str, number: int, size: int) -> bytes | None:
        """Return a piece; None where it is not there, cut off or damaged (it is removed then).

        Args:
            file: what the piece is of: address, ETag and size.
            number: of the piece.
            size: of the piece, in bytes.
        """
        path = self._path(file, number)
        try:
            data = path.read_bytes()
            os.utime(path)  # the time of the last use
        except OSError:
            return None
        piece, stored = data[:-SUM_BYTES], data[-SUM_BYTES:]
        if len(piece) == size and stored == _checksum(file, number, piece):
            return piece
        path.unlink(missing_ok=True)
        return None

    def write(self, file: str, number: int, piece: bytes) -> None:
        """Keep a piece. A disk that is full or not writable is a warning: the cache only saves time."""
        path = self._path(file, number)
        temporary = self.folder / f".{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            if not self._reserve(len(piece) + SUM_BYTES):
                return
            path.parent.mkdir(exist_ok=True)
            temporary.write_bytes(piece + _checksum(file, number, piece))
            temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            warnings.warn(f"{self.folder}: the cache of shards keeps nothing ({error.strerror})", stacklevel=2)

    def _path(self, file: str, number: int) -> Path:
        name = hashlib.blake2b(file.encode(), digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name[2:]}-{number}"

    def _reserve(self, size: int) -> bool:
        """Count a new file before it is written, and remove old ones for it; False where it exceeds the limit."""
        if size > self.limit:
            return False
        with self._lock() as total_file:
            text = total_file.read_text() if total_file.exists() else ""
            total = int(text) if text.isdigit() else self.limit
            if total + size > self.limit:
                total = self._evict(size)
            # A process that is killed before it writes leaves a total that is too large: the next search corrects it.
            total_file.write_text(str(total + size))
        return True

    def _evict(self, size: int) -> int:
        """Remove the pieces that were not used for the longest time, and return the size of what remains, in bytes."""
        found: list[tuple[int, int, Path]] = []
        total = 0
        for path in (*self.folder.glob("*/*-*"), *self.folder.glob(".*.tmp")):
            with suppress(OSError):  # another process has just renamed or removed it
                if path.suffix == ".tmp" and not _writer_runs(path):
                    path.unlink()
                    continue
                state = path.stat()
                total += state.st_size
                if path.suffix != ".tmp":
                    found.append((state.st_mtime_ns, state.st_size, path))
        goal = max(0, int(self.limit * (1 - FREE_SHARE)) - size)
        for _, bytes_of_file, path in sorted(found):
            if total <= goal:
                break
            path.unlink(missing_ok=True)
            total -= bytes_of_file
        return total

    @contextmanager
    def _lock(self) -> Iterator[Path]:
        """Hold the lock of the folder, which ends with its process, and give the file with the size of all pieces."""
        make_folder(self.folder)
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield self.folder / ".total"


def user_cache() -> Path:
    """Return the folder of vwm in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vwm"


def shard_cache_path(shard: str, state: str = "", suffix: str = ".index.json") -> Path:
    """Return the path in the user's cache of a file that belongs to a shard, or to one state of it."""
    return user_cache() / "shards" / (hashlib.blake2b((shard + state).encode(), digest_size=16).hexdigest() + suffix)


def _checksum(file: str, number: int, piece: bytes) -> bytes:
    return zlib.crc32(piece, zlib.crc32(f"{file}\n{number}".encode())).to_bytes(SUM_BYTES, "little")


def _writer_runs(temporary: Path) -> bool:
    """Whether the process that writes a temporary file has not ended."""
    number = temporary.name.split(".")[1]
    return number.isdigit() and process_runs(int(number))
