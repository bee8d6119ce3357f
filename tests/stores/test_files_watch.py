"""Watched files as hints, with other programs as the writers."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from support.records import Product

from eventsync.engine.store import Store
from eventsync.errors import StoreUnavailableError
from eventsync.index import FileIndex
from eventsync.stores.files import CsvAccessor, JsonFolderAccessor, JsonLinesAccessor
from eventsync.stores.files import watch as module
from eventsync.stores.files.folder import file_name
from eventsync.stores.files.watch import FileWatch, file_system
from eventsync.testing import FakeBus, SourceContract
from eventsync.testing.sources import _Observer


def save(path, text):
    """Save a file as most editors do: write another one, and rename it."""
    partial = path.with_name(f"{path.name}.tmp~")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


class TestFolder(SourceContract):
    """The suite of change sources on folders of documents."""

    kind = "watch"
    complete = installs = False

    def accessor(self, record_type, folder):
        return JsonFolderAccessor(record_type, folder / record_type.__record__.name)

    def path(self, folder, edit, key):
        type = edit.record_type.__record__
        try:
            name = file_name(type.key_text(key))
        except Exception:  # no key: any name does
            name = "somebody.json"
        return folder / type.name / name

    def edit(self, folder, *edits):
        for edit in edits:
            document = {}
            if edit.key is not None:
                old = self.path(folder, edit, edit.key)
                document = json.loads(old.read_text(encoding="utf-8"))
                if edit.values is None or edit.record_type.__record__.keys[-1] in edit.values:
                    old.unlink()
            if edit.values is not None:
                document |= edit.values
                path = self.path(folder, edit, {**(edit.key or {}), **edit.values})
                path.parent.mkdir(exist_ok=True)
                save(path, json.dumps(document))


class _SingleFile(SourceContract):
    kind = "watch"
    complete = installs = False

    def accessor(self, record_type, folder):
        return self.kind_of_file(record_type, self.path(folder, record_type))

    def path(self, folder, record_type):
        return folder / f"{record_type.__record__.name}{self.suffix}"

    def edit(self, folder, *edits):
        by_type = {}
        for edit in edits:
            by_type.setdefault(edit.record_type, []).append(edit)
        for record_type, some in by_type.items():
            names = record_type.__record__.keys
            path = self.path(folder, record_type)
            rows = {self.same(row, names): row for row in self.read(path)}
            for edit in some:
                row = {} if edit.key is None else rows.pop(self.same(edit.key, names))
                if edit.values is not None:
                    row = {**row, **edit.values}
                    rows[self.same(row, names)] = row
            self.write(path, list(rows.values()), record_type)

    def same(self, row, names):
        return tuple(str(row[name]) for name in names)


class TestJsonLines(_SingleFile):
    """The suite of change sources on files of JSON lines, written anew in place."""

    kind_of_file = JsonLinesAccessor
    suffix = ".jsonl"

    def read(self, path):
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]

    def write(self, path, rows, record_type):
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows) or "\n")


class TestCsv(_SingleFile):
    """The suite of change sources on CSV files, saved by renaming."""

    kind_of_file = CsvAccessor
    suffix = ".csv"
    unreadable = None  # an empty cell is an empty text

    def read(self, path):
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def write(self, path, rows, record_type):
        names = list(record_type.__record__.fields)
        partial = path.with_name("partial.tmp")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            for row in rows:
                texts = (
                    {True: "true", False: "false"}.get(row[n], row[n])
                    if isinstance(row[n], bool)
                    else row[n]
                    for n in names
                )
                writer.writerow(["" if value is None else value for value in texts])
        partial.replace(path)


class Watching:
    """A store that captures what is written to its files."""

    def __init__(self, accessor, folder, *, polling=None, monkeypatch=None):
        self.bus = FakeBus()
        self.store = Store(
            "site",
            accessor,
            index=FileIndex(folder / "versions.db"),
            publisher=self.bus,
            capture="watch",
            capture_every=60.0,
        ).open()
        self.source = FileWatch([accessor], polling=polling)
        self.follower = self.store.follower(self.bus, _Observer(), source=self.source)
        self.follower.open()

    def until(self, check, seconds=10.0):
        deadline = time.monotonic() + seconds
        while not check():
            assert time.monotonic() < deadline, [(c.op, c.key) for c in self.bus.changes()]
            self.follower.step(0.2)

    def keys(self):
        return [change.key for change in self.bus.changes()]

    def close(self):
        self.follower.close()
        self.store.close()


@pytest.fixture
def watching(tmp_path):
    made = []

    def make(accessor, **options):
        made.append(Watching(accessor, tmp_path, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def document(number, name="Ada"):
    return json.dumps({"id": number, "name": name, "price": None})


def test_a_hint_is_captured_within_a_moment(tmp_path, watching):
    one = watching(JsonFolderAccessor(Product, tmp_path / "docs"))
    times = []
    for number in range(20):
        began = time.perf_counter()
        save(tmp_path / "docs" / f"{number}.json", document(number))
        one.until(lambda number=number: len(one.keys()) > number)
        times.append(time.perf_counter() - began)
    assert sorted(times)[10] < 0.5


def test_a_document_with_another_name(tmp_path, watching):
    """The key is in it: a new key there is a delete and a put, and so is its removal."""
    folder = tmp_path / "docs"
    folder.mkdir()
    save(folder / "lamp of Ada.json", document(5))
    save(folder / "1.json", document(1))
    one = watching(JsonFolderAccessor(Product, folder))
    save(folder / "lamp of Ada.json", document(5, "Bob"))
    one.until(lambda: one.keys() == ["5"])
    save(folder / "lamp of Ada.json", document(6, "Bob"))
    one.until(lambda: sorted(one.keys()) == ["5", "5", "6"])
    (folder / "lamp of Ada.json").unlink()
    one.until(lambda: sorted(one.keys()) == ["5", "5", "6", "6"])


def test_a_link_is_not_followed(tmp_path, watching):
    secret = tmp_path / "secret.json"
    secret.write_text(document(7, "secret"))
    one = watching(JsonFolderAccessor(Product, tmp_path / "docs"))
    (tmp_path / "docs" / "7.json").symlink_to(secret)
    save(tmp_path / "docs" / "8.json", document(8))
    one.until(lambda: one.keys() == ["8"])
    assert list(one.store.unreadable_records.of("Product")) == ["7"]


def test_a_linked_file_is_watched_where_it_is(tmp_path, watching):
    """A CSV file may be a link, which is followed: events come from the folder of its target."""
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "list.csv"
    target.write_text("id,name,price\n1,Ada,\n")
    (tmp_path / "list.csv").symlink_to(target)
    one = watching(CsvAccessor(Product, tmp_path / "list.csv"))
    target.write_text("id,name,price\n1,Ada,\n2,Bob,\n")
    one.until(lambda: one.keys() == ["2"])


def test_only_what_changed_in_a_file_is_read(tmp_path, watching):
    path = tmp_path / "list.csv"
    rows = [f"{number},Ada,\n" for number in range(1000)]
    path.write_text("id,name,price\n" + "".join(rows))
    one = watching(CsvAccessor(Product, path))
    rows[500] = "500,Bob,\n"
    path.write_text("id,name,price\n" + "".join(rows))
    changes = one.source.changes("-", wait=5.0)
    assert {type: list(keys) for type, keys in changes.keys.items()} == {"Product": ["500"]}


def test_a_file_that_is_emptied_before_it_is_written(tmp_path, watching):
    """Many programs do that. The empty file in between is no loss of all records."""
    path = tmp_path / "list.csv"
    path.write_text("id,name,price\n1,Ada,\n")
    one = watching(CsvAccessor(Product, path))
    list(one.store.capture())
    one.bus.envelopes.clear()
    path.write_text("")
    for _ in range(5):
        one.follower.step(0.1)
    path.write_text("id,name,price\n1,Ada,\n2,Bob,\n")
    one.until(lambda: one.keys() == ["2"])


def test_a_folder_that_is_replaced(tmp_path, watching):
    """The new one is not watched, so the source is opened again."""
    folder = tmp_path / "docs"
    one = watching(JsonFolderAccessor(Product, folder))
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(StoreUnavailableError, match=r"replaced|cannot be watched"):
        one.until(lambda: False)
    one.follower.open()
    save(folder / "1.json", document(1))
    one.until(lambda: one.keys() == ["1"])


def test_a_folder_that_is_replaced_by_one_with_the_same_inode(tmp_path, watching, monkeypatch):
    """Many file systems give the inode of a removed folder to the next one."""
    monkeypatch.setattr(os.path, "samestat", lambda one, other: True)
    folder = tmp_path / "docs"
    one = watching(JsonFolderAccessor(Product, folder))
    folder.rename(tmp_path / "old")
    shutil.rmtree(tmp_path / "old")
    folder.mkdir()
    with pytest.raises(StoreUnavailableError, match="replaced"):
        one.until(lambda: False)


def test_a_burst_of_events_makes_all_be_read(tmp_path, watching, monkeypatch):
    """The system drops events when too many wait, deletes included."""
    monkeypatch.setattr(module, "_longest_burst", lambda: 20)
    one = watching(JsonFolderAccessor(Product, tmp_path / "docs"))
    save(tmp_path / "docs" / "900.json", document(900))
    one.until(lambda: one.keys() == ["900"])
    for number in range(100):
        save(tmp_path / "docs" / f"{number}.json", document(number))
    one.until(lambda: one.follower._observer.wholes)
    one.until(lambda: not one.follower.copies and len(one.keys()) == 101)


def test_polling(tmp_path, watching):
    """As on a network file system."""
    one = watching(JsonFolderAccessor(Product, tmp_path / "docs"), polling=True)
    assert "polling" in one.source.state().details[str(tmp_path / "docs")]
    save(tmp_path / "docs" / "1.json", document(1))
    one.until(lambda: one.keys() == ["1"])
    os.unlink(tmp_path / "docs" / "1.json")
    save(tmp_path / "docs" / "2.json", document(2))
    one.until(lambda: sorted(one.keys()) == ["1", "1", "2"])


def test_own_writes_are_not_published(tmp_path, watching):
    one = watching(JsonLinesAccessor(Product, tmp_path / "list.jsonl"))
    one.store.add([Product(id=number, name="Ada") for number in range(10)])
    one.bus.envelopes.clear()
    with (tmp_path / "list.jsonl").open("a") as file:
        file.write(document(50) + "\n")
    one.until(lambda: one.keys() == ["50"])


def test_file_systems_are_told_apart():
    assert file_system("/proc/self") == "proc"
    assert file_system("/")


def test_without_the_library_the_error_names_the_extra(tmp_path):
    code = (
        "import sys; sys.modules['watchfiles'] = None\n"
        "from eventsync import Field, Record, Store\n"
        "from eventsync.stores.files import JsonFolderAccessor\n"
        "class P(Record):\n    id: int = Field(key=True)\n"
        f"s = Store('s', JsonFolderAccessor(P, {str(tmp_path)!r}), capture='watch')\n"
        "print([str(f.text) for f in s.change_source().findings()])\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'eventsync[watch]'" in ran.stdout
