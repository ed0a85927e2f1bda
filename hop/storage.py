# Tangled from notebooks/06_engine.ipynb. Edit the notebook.
"""Where request bodies wait: in memory first, then on disk, and never more than was allowed."""

import io
import shutil
import tempfile
import threading
from typing import BinaryIO

__all__ = ["Storage", "StoredBody"]


class Storage:
    """The budget for all bodies together, in bytes.

    A body stays in memory up to `body_memory` while all bodies there stay below `total_memory`;
    then it moves to a temporary file, while all files stay below `total_disk` (by default half of
    what was free when the storage was made).
    """

    def __init__(
        self,
        *,
        body_memory: int = 512 << 10,
        total_memory: int = 256 << 20,
        total_disk: int | None = None,
        directory: str | None = None,
    ) -> None:
        self.body_memory = body_memory
        self.directory = directory or tempfile.gettempdir()
        if total_disk is None:
            total_disk = shutil.disk_usage(self.directory).free // 2
        self._lock = threading.Lock()
        self._free = {"memory": total_memory, "disk": total_disk}

    def open(self) -> "StoredBody":
        """A new, empty body."""
        return StoredBody(self)

    def free(self, place: str) -> int:
        """Bytes left of the budget for "memory" or "disk"."""
        return self._free[place]

    def take(self, place: str, size: int) -> bool:
        """Reserve `size` bytes; False, and nothing reserved, when they are not there."""
        with self._lock:
            if self._free[place] < size:
                return False
            self._free[place] -= size
            return True

    def give(self, place: str, size: int) -> None:
        """Give reserved bytes back."""
        with self._lock:
            self._free[place] += size


class StoredBody:
    """One body while it arrives. Close it to give its share of the budget back."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._memory = io.BytesIO()
        self._file: io.FileIO | None = None
        self._filed = 0
        self.size = 0

    def write(self, data: bytes) -> bool:
        """Keep `data`; False, and nothing kept, when there is no room at the moment."""
        size, storage = len(data), self._storage
        small = not self._filed and self.size + size <= storage.body_memory
        if small and storage.take("memory", size):
            self._memory.write(data)
        elif not self._spill(data):
            return False
        self.size += size
        return True

    def _spill(self, data: bytes) -> bool:
        """Put `data` into the file, behind what was in memory; False when there is no room."""
        data = self._memory.getvalue() + data
        if not self._storage.take("disk", len(data)):
            return False
        if not self._append(data):
            self._storage.give("disk", len(data))
            return False
        if not self._filed:
            self._storage.give("memory", self.size)
            self._memory = io.BytesIO()
        self._filed += len(data)
        return True

    def _append(self, data: bytes) -> bool:
        """Write to the end of the file; False, and the file as it was, when the disk is full."""
        try:
            if self._file is None:
                folder = self._storage.directory
                self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
            if self._file.write(data) == len(data):
                return True
        except OSError:
            pass
        if self._file is not None:
            self._file.truncate(self._filed)
            self._file.seek(self._filed)
        return False

    def rewind(self) -> BinaryIO:
        """The body from its beginning, for `wsgi.input`; it is complete by then."""
        if self._file is None or not self._filed:
            self._memory.seek(0)
            return self._memory
        self._file.seek(0)
        return io.BufferedReader(self._file)

    def close(self) -> None:
        """Forget the body; closing twice is harmless."""
        self._memory.close()
        if self._file is not None:
            self._file.close()
        self._storage.give("memory", self.size - self._filed)
        self._storage.give("disk", self._filed)
        self.size = self._filed = 0
