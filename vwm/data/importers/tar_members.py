"""Files in a tar, read one at a time by their names."""

from __future__ import annotations

import functools
import tarfile
from pathlib import Path


class TarMembers:
    """The files of a tar by name, without the folders that they lie in. Its list is read at the first use.

    Of a damaged tar, the files before the damage are listed; one that is cut off is an error when it is read.

    Args:
        path: of the tar.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def names(self) -> dict[str, tuple[int, int]]:
        """First byte and size of each file."""
        return self._listed[0]

    @property
    def damage(self) -> str:
        """What is wrong with the tar, in words; empty where nothing is."""
        return self._listed[1]

    @functools.cached_property
    def _listed(self) -> tuple[dict[str, tuple[int, int]], str]:
        names: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(self.path, "r:") as tar:
                for member in tar:
                    if member.isfile():
                        names[Path(member.name).name] = (member.offset_data, member.size)
                if tar.offset + tarfile.BLOCKSIZE > self.path.stat().st_size:  # tarfile takes this for the end
                    return names, f"{self.path}: is cut off"
        except (tarfile.TarError, OSError, EOFError) as error:
            return names, f"{self.path}: is no tar, or a damaged one ({error})"
        return names, ""

    def read(self, name: str) -> bytes:
        """Return a file.

        Raises:
            ValueError: it is missing or cut off.
        """
        if name not in self.names:
            raise ValueError(self.damage or f"{self.path.name}: has no {name}")
        start, size = self.names[name]
        with self.path.open("rb") as file:
            file.seek(start)
            content = file.read(size)
        if len(content) != size:
            raise ValueError(f"{self.path.name}: {name} is cut off")
        return content
