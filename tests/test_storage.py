"""Where bodies wait: in memory, then on disk, within one budget."""

import io
import tempfile

import pytest

from hop.storage import Storage


def test_a_small_body_stays_in_memory():
    storage = Storage(body_memory=10, total_memory=100, total_disk=100)
    body = storage.open()
    assert body.write(b"abc")
    assert body.write(b"def")
    assert (storage.free("memory"), storage.free("disk"), body.size) == (94, 100, 6)
    assert body.rewind().read() == b"abcdef"


def test_a_large_body_moves_to_disk_whole():
    storage = Storage(body_memory=4, total_memory=100, total_disk=100)
    body = storage.open()
    for piece in (b"abc", b"def", b"ghi"):
        assert body.write(piece)
    assert (storage.free("memory"), storage.free("disk")) == (100, 91)
    file = body.rewind()
    assert file.read() == b"abcdefghi"
    assert file.fileno() >= 0


def test_bodies_share_the_memory():
    storage = Storage(body_memory=10, total_memory=12, total_disk=100)
    first, second = storage.open(), storage.open()
    assert first.write(b"x" * 10)
    assert second.write(b"yyy")
    assert (storage.free("memory"), storage.free("disk")) == (2, 97)


@pytest.mark.parametrize("before", [b"", b"ab"])
def test_no_room_keeps_nothing_and_passes(before):
    storage = Storage(body_memory=10, total_memory=10, total_disk=0)
    other, body = storage.open(), storage.open()
    assert body.write(before)
    assert other.write(b"x" * (10 - len(before)))
    assert not body.write(b"y")
    assert storage.free("memory") == 0
    other.close()
    assert body.write(b"y")
    assert body.rewind().read() == before + b"y"


def test_no_room_on_disk():
    storage = Storage(body_memory=2, total_memory=100, total_disk=5)
    body = storage.open()
    assert body.write(b"abc")
    assert not body.write(b"def")
    assert storage.free("disk") == 2
    assert body.write(b"de")
    assert body.rewind().read() == b"abcde"


@pytest.mark.parametrize("size", [3, 30])
def test_close_gives_everything_back_once(size):
    storage = Storage(body_memory=10, total_memory=100, total_disk=100)
    body = storage.open()
    body.write(b"x" * size)
    body.close()
    body.close()
    assert (storage.free("memory"), storage.free("disk")) == (100, 100)


def test_the_disk_budget_is_half_of_what_is_free(tmp_path):
    storage = Storage(directory=str(tmp_path))
    assert storage.free("disk") > 0
    body = storage.open()
    assert body.write(b"x" * (storage.body_memory + 1))
    assert list(tmp_path.iterdir()) == []  # the file has no name: nobody can leave it behind


class Disk:
    """Files for which there are `free` bytes in all; a nearly full one takes part of a piece."""

    def __init__(self, path, free):
        self.path, self.free = path, free

    def open(self, **options):
        assert options["buffering"] == 0
        if self.free is None:
            raise OSError("no descriptor")
        disk = self

        class File(io.FileIO):
            def write(self, data):
                room = disk.free - self.tell()
                if room <= 0:
                    raise OSError("no space left on device")
                return super().write(data[:room])

        return File(self.path, "w+")


@pytest.fixture
def disk(tmp_path, monkeypatch):
    disk = Disk(tmp_path / "body", free=None)
    monkeypatch.setattr(tempfile, "TemporaryFile", disk.open)
    return disk


@pytest.mark.parametrize("free", [None, 0, 1, 5])
def test_a_full_disk_is_no_room_and_loses_nothing(disk, free):
    disk.free = free
    storage = Storage(body_memory=4, total_memory=100, total_disk=100)
    body = storage.open()
    assert body.write(b"abc")
    assert not body.write(b"def")
    assert (storage.free("memory"), storage.free("disk"), body.size) == (97, 100, 3)
    assert body.write(b"d")  # it is small enough for memory
    disk.free = 100
    assert body.write(b"ef")
    assert (storage.free("memory"), storage.free("disk")) == (100, 94)
    disk.free = 7
    assert not body.write(b"ghi")
    assert (storage.free("disk"), body.size) == (94, 6)
    disk.free = 100
    assert body.write(b"ghi")
    assert body.rewind().read() == b"abcdefghi"


def test_what_never_came_to_disk_is_read_from_memory(disk):
    disk.free = 0
    storage = Storage(body_memory=4, total_memory=100, total_disk=100)
    body = storage.open()
    assert body.write(b"abcd")
    assert not body.write(b"e")
    assert body.rewind().read() == b"abcd"
    body.close()
    assert (storage.free("memory"), storage.free("disk")) == (100, 100)
