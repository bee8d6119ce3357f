"""A folder into which somebody hostile writes: links, pipes and devices are not documents."""

from __future__ import annotations

import os
import socket
import stat
import threading
import tracemalloc

import pytest

from eventsync.changes.clock import Clock
from eventsync.engine.store import Store
from eventsync.errors import RecordError, RejectedError
from eventsync.records.record import Field, Record
from eventsync.stores.files import CsvAccessor, JsonFolderAccessor, JsonLinesAccessor


class Note(Record):
    """A record in a document of its own."""

    id: int = Field(key=True)
    text: str = ""


@pytest.fixture
def folder(tmp_path):
    """Return a folder with one document, beside a private file of another owner."""
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "1.json").write_text('{"id": 1, "text": "one"}')
    (tmp_path / "private").write_text('{"id": 2, "text": "secret"}')
    return folder


def captured(store, unreadable=None):
    """Capture what the store holds; return the keys."""
    return [one.key for part in store.capture(unreadable=unreadable) for one in part]


def link_to_a_private_file(path):
    path.symlink_to(path.parent.parent / "private")


def link_to_nothing(path):
    path.symlink_to(path.parent.parent / "outside")


def link_to_an_endless_device(path):
    path.symlink_to("/dev/zero")


def link_to_itself(path):
    path.symlink_to(path)


def a_pipe(path):
    os.mkfifo(path)


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def a_folder(path):
    path.mkdir()


STRANGE = [
    *(link_to_a_private_file, link_to_nothing, link_to_an_endless_device, link_to_itself),
    *(a_pipe, a_socket, a_folder),
]


@pytest.mark.parametrize("make", STRANGE)
def test_what_is_no_file_is_neither_read_nor_written(folder, make):
    """The record of that name is refused, the others go on, and nothing outside is touched."""
    make(folder / "2.json")
    before = sorted(os.listdir(folder.parent))
    store = Store("notes", JsonFolderAccessor(Note, folder), clock=Clock()).open()
    accessor = store.accessor("Note")
    done = threading.Event()

    def use():
        unreadable = []
        assert captured(store, unreadable.append) == ["1"]
        with pytest.raises(RecordError, match=r"symbolic link|regular file"):
            accessor.get("2")
        with pytest.raises((RecordError, RejectedError)):
            store.add(Note(id=2, text="mine"))
        store.update(Note(id=1, text="new"))
        done.set()

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    assert done.wait(20.0), "the pipe or device blocks the reader"
    assert "new" in (folder / "1.json").read_text()
    assert (folder.parent / "private").read_text() == '{"id": 2, "text": "secret"}'
    assert sorted(os.listdir(folder.parent)) == before


def test_a_private_document_is_private_at_every_moment(folder, monkeypatch):
    """The temporary file of a document of mode 0600 has this mode from the first byte."""
    os.chmod(folder / "1.json", 0o600)
    modes = []
    fsync = os.fsync

    def seen(descriptor):
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    created = []
    opened = os.open

    def opening(path, flags, mode=0o777, **more):
        if str(path).endswith(".tmp"):
            created.append(mode)
        return opened(path, flags, mode, **more)

    store = Store("notes", JsonFolderAccessor(Note, folder), clock=Clock()).open()
    monkeypatch.setattr(os, "fsync", seen)
    monkeypatch.setattr(os, "open", opening)
    store.update(Note(id=1, text="new"))
    assert created == [0o600]
    assert modes[0] == 0o600
    assert stat.S_IMODE((folder / "1.json").stat().st_mode) == 0o600


def test_the_mark_of_an_empty_folder_does_not_follow_a_link(folder):
    """A link in its place does not make eventsync create a file elsewhere."""
    store = Store("notes", JsonFolderAccessor(Note, folder), clock=Clock()).open()
    captured(store)
    (folder / ".eventsync-empty").symlink_to(folder.parent / "outside")
    store.remove(Note(id=1))
    assert not (folder.parent / "outside").exists()


def test_own_files_are_private(tmp_path, folder):
    """Index, broker and spool are readable for their owner only, side files included."""
    from eventsync import Bus
    from eventsync.broker.spool import Spool

    index = tmp_path / "index.db"
    store = Store("notes", JsonFolderAccessor(Note, folder), index=str(index)).open()
    captured(store)
    with Bus(f"sqlite:///{tmp_path / 'broker.db'}") as bus, Spool(tmp_path / "spool.db") as spool:
        bus.declare("notes", ["Note"])
        spool.publish("Note", [])
        files = [*tmp_path.glob("*.db*")]
        assert {"index.db", "broker.db", "spool.db"} <= {path.name for path in files}
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        (CsvAccessor, "a.csv", "id,text\n" + "x\n" * 100_000),
        (JsonLinesAccessor, "a.jsonl", "{\n" * 100_000),
    ],
)
def test_a_file_of_wrong_lines_takes_little_memory(tmp_path, kind, name, text):
    """Each wrong line is named, but its error keeps no frames alive (4 KB each, seconds of GC)."""
    (tmp_path / name).write_text(text)
    accessor = kind(Note, tmp_path / name)
    store = Store("notes", accessor, index=tmp_path / "index.db").open()
    errors = []
    tracemalloc.start()
    assert list(store.find(Note, unreadable=errors.append)) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(errors) == 100_000
    assert peak < 200 * 1024 * 1024
    assert all(error.__traceback__ is None for error in errors[:10])
