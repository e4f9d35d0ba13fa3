"""Files in a tar, read one at a time by their names."""

from __future__ import annotations

import functools
import tarfile
from pathlib import Path


class TarMembers:
    """The files of a tar by name, without the folders that they lie in. Its list is read at the first use.

    Args:
        path: of the tar.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @functools.cached_property
    def names(self) -> dict[str, tuple[int, int]]:
        """First byte and size of each file.

        Raises:
            ValueError: it is no tar, or a damaged one.
        """
        try:
            with tarfile.open(self.path, "r:") as tar:
                return {Path(m.name).name: (m.offset_data, m.size) for m in tar if m.isfile()}
        except (tarfile.TarError, OSError, EOFError) as error:
            raise ValueError(f"{self.path}: is no tar, or a damaged one ({error})") from error

    def read(self, name: str) -> bytes:
        """Return a file.

        Raises:
            ValueError: it is missing or cut off.
        """
        if name not in self.names:
            raise ValueError(f"{self.path.name}: has no {name}")
        start, size = self.names[name]
        with self.path.open("rb") as file:
            file.seek(start)
            content = file.read(size)
        if len(content) != size:
            raise ValueError(f"{self.path.name}: {name} is cut off")
        return content
