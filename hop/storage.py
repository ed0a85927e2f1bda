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
        self._file: BinaryIO = io.BytesIO()
        self._place = "memory"
        self.size = 0

    def write(self, data: bytes) -> bool:
        """Keep `data`; False, and nothing kept, when there is no room at the moment."""
        size = len(data)
        if self._place == "memory":
            fits = self.size + size <= self._storage.body_memory
            if not (fits and self._storage.take("memory", size)) and not self._move(size):
                return False
        elif not self._storage.take("disk", size):
            return False
        self._file.write(data)
        self.size += size
        return True

    def rewind(self) -> BinaryIO:
        """The body from its beginning, for `wsgi.input`."""
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Forget the body; closing twice is harmless."""
        self._file.close()
        self._storage.give(self._place, self.size)
        self.size = 0

    def _move(self, more: int) -> bool:
        """Move what is in memory to a file, if the disk has room for it and for `more` bytes."""
        if not self._storage.take("disk", self.size + more):
            return False
        file: BinaryIO = tempfile.TemporaryFile(dir=self._storage.directory)  # noqa: SIM115
        self._file.seek(0)
        shutil.copyfileobj(self._file, file)
        self._storage.give("memory", self.size)
        self._file, self._place = file, "disk"
        return True
