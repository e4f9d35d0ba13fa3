"""The files of checkpoint folders, on disk or in an object store (s3://, gs://), with their checksums."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import fsspec

from vwm.core.atomic_files import atomic_write
from vwm.core.remote_files import is_remote, open_file_system, retry
from vwm.runs.checkpoints import CheckpointError

Result = TypeVar("Result")
INDEX = "index.json"
BLOCK = 2**24
"""Bytes that are read at once to compare checksums."""
OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs")
"""Protocols of stores that have no folders; to make one would make a bucket."""
Parts = Callable[[], Iterator[bytes | memoryview]]
"""Gives the content of a file, again for each attempt to write it."""


class FolderFiles:
    """The files of one folder.

    What a store refuses for a moment is tried again, see ``vwm.core.remote_files``. A file that is missing or damaged
    is a CheckpointError; a store that cannot be reached is a StoreError.

    Args:
        address: a local path or an address of fsspec.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        protocol = fsspec.core.split_protocol(address)[0] if is_remote(address) else "file"
        self.is_local = protocol in ("file", "local")
        self.has_folders = protocol not in OBJECT_STORES
        self.files: Any = fsspec.filesystem("file") if self.is_local else open_file_system(address)
        self.path = str(self.files._strip_protocol(address)).rstrip("/")

    def place(self, name: str) -> str:
        """Return the path of a file in the folder, for ``files``."""
        return f"{self.path}/{name}"

    def names(self) -> list[str]:
        """Return the names of the files and folders in the folder; none where there is no folder.

        Raises:
            FileNotFoundError: there is no such bucket.
            StoreError: the store cannot be asked.
        """
        try:
            found = self._try("the list of its files", lambda: self.files.ls(self.path, detail=False))
        except FileNotFoundError as error:
            if "no such bucket" in str(error):
                raise
            return []
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def has(self, name: str) -> bool:
        """Whether the folder has a file. Raises StoreError."""
        try:
            self._try(name, lambda: self.files.info(self.place(name)))
        except FileNotFoundError:
            return False
        return True

    def make(self) -> None:
        """Make the folder, where it is missing and the place has folders."""
        if self.has_folders:
            self.files.makedirs(self.path, exist_ok=True)

    def check_writable(self) -> None:
        """Write and remove a small file. Raises OSError: what would fail at the first save, with its cause."""
        self.make()
        self.write("write-test", lambda: iter([b"vwm"]))
        self.remove("write-test")

    def remove(self, name: str) -> None:
        """Remove a file or folder, if it is there."""

        def remove() -> None:
            with suppress(FileNotFoundError):
                self.files.rm(self.place(name), recursive=True)

        self._try(name, remove, "removed")

    def write(self, name: str, parts: Parts) -> dict[str, int]:
        """Write a file that is there as a whole or not at all; return its size and checksum."""
        if not self.is_local:
            return self._try(name, lambda: self._upload(name, parts), "written")
        with atomic_write(self.place(name)) as file:
            return _copy(parts, file)

    def _upload(self, name: str, parts: Parts) -> dict[str, int]:
        file = self.files.open(self.place(name), "wb")
        try:
            written = _copy(parts, file)
            file.close()
        except BaseException:
            with suppress(Exception):
                file.discard()
            with suppress(AttributeError):
                file.closed = True  # or else the garbage collection would upload what there is
            raise
        return written

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Read a part of a file.

        Raises:
            CheckpointError: it is missing or shorter.
            StoreError: the store cannot be reached.
        """
        stop = None if length is None else start + length
        if start == stop:
            return b""
        data = self._read(name, start, stop)
        if length is not None and len(data) != length:
            raise CheckpointError(f"{self.address}/{name}: is cut off ({len(data)} of {length} bytes at {start})")
        return data

    def check(self, name: str, expected: Mapping[str, int]) -> None:
        """Compare the size and all bytes of a file with what the index says. Raises CheckpointError, StoreError."""
        try:
            size = int(self._try(name, lambda: self.files.info(self.place(name)))["size"])
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.address}/{name}: is missing") from error
        if size != expected["bytes"]:
            raise CheckpointError(
                f"{self.address}/{name}: is cut off or foreign (it has {size} bytes, not {expected['bytes']})"
            )
        checksum = 0
        for start in range(0, size, BLOCK):
            checksum = zlib.crc32(self._read(name, start, min(start + BLOCK, size)), checksum)
        if checksum != expected["crc32"]:
            raise CheckpointError(f"{self.address}/{name}: is damaged (its checksum is another one)")

    def read_json(self, name: str) -> Any:
        """Read a JSON file. Raises CheckpointError where it is missing, ValueError where it is none, StoreError."""
        return json.loads(self.read(name))

    def _read(self, name: str, start: int, stop: int | None) -> bytes:
        try:
            data: bytes = self._try(name, lambda: self.files.cat_file(self.place(name), start=start, end=stop))
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.address}/{name}: is missing") from error
        except OSError as error:
            if not self.is_local:
                raise
            raise CheckpointError(f"{self.address}/{name}: cannot be read ({error})") from error
        return data

    def _try(self, what: str, action: Callable[[], Result], verb: str = "read") -> Result:
        """Do something, again where the store failed and may not fail the next time."""
        return action() if self.is_local else retry(self.address, what, action, verb)


def _copy(parts: Parts, file: Any) -> dict[str, int]:
    size, checksum = 0, 0
    for part in parts():
        file.write(part)
        size, checksum = size + len(part), zlib.crc32(part, checksum)
    return {"bytes": size, "crc32": checksum}
