"""Files that other programs and people write: what they put there is kept, and stops nothing else.

Each test writes to the files with an editor's means, beside an open store.
"""

from __future__ import annotations

import csv
import datetime as dt
import json
import os
import shutil
from decimal import Decimal
from typing import Any

import pytest

from eventsync.changes.change import BaseState
from eventsync.changes.clock import Version
from eventsync.changes.stamp import PATCH
from eventsync.engine.apply import apply
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.errors import (
    DependencyError,
    RecordError,
    StoreUnavailableError,
    SuspiciousReadError,
)
from eventsync.index import FileIndex
from eventsync.records.query import Query
from eventsync.records.record import Field, Record
from eventsync.stores.files import CsvAccessor, JsonFolderAccessor, JsonLinesAccessor
from eventsync.testing.fake import FakeBus
from eventsync.testing.harness import changed, put

DEEP = "[" * 900 + "]" * 900
LONG = "12345678901234567.12345"


class Thing(Record):
    id: int = Field(key=True)
    name: str = ""
    price: Decimal = Decimal(0)
    size: float = 0.0
    tags: list[str] = Field(default_factory=list)
    more: Any = None


class Note(Record, rule="field"):
    id: int = Field(key=True)
    a: str = ""
    b: str = ""


def folder_of(path, record_type=Thing):
    return JsonFolderAccessor(record_type, path / "things")


def lines_of(path, record_type=Thing):
    return JsonLinesAccessor(record_type, path / "things.jsonl")


def table_of(path, record_type=Thing):
    return CsvAccessor(record_type, path / "things.csv")


def write_folder(path, *texts):
    """Write documents as an editor does, each named after its place."""
    (path / "things").mkdir(exist_ok=True)
    for number, text in enumerate(texts, start=1):
        (path / "things" / f"{number}.json").write_text(text)


def write_lines(path, *texts):
    (path / "things.jsonl").write_text("".join(f"{text}\n" for text in texts))


def write_table(path, *rows):
    """Write rows of a spreadsheet; a dict says which cells are not the usual ones."""
    usual = {"name": "", "price": "0", "size": "0", "tags": "[]", "more": ""}
    with (path / "things.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", *usual])
        writer.writeheader()
        for number, row in enumerate(rows, start=1):
            writer.writerow({"id": number, **usual, **row})


def captured(store):
    """What a capture finds: the keys, and the errors of what cannot be read."""
    errors = []
    keys = [change.key for changes in store.capture(unreadable=errors.append) for change in changes]
    return keys, [str(error) for error in errors]


# -- one record never stops another ---------------------------------------------------------------

BAD_JSON = [
    ("more", "1e9999999999999999999"),
    ("price", "1e9999999999999999999"),
    ("price", "1e-9999999999999999999"),
    ("id", "1e9999999999999999999"),
    ("more", DEEP),
    ("tags", '{"a":' * 900 + "1" + "}" * 900),
    ("more", "[" * 40 + "]" * 40),
    ("more", "9" * 5000),
    ("more", "1." + "1" * 100_000),
    ("size", "1e400"),
    ("more", "NaN"),
    ("more", '"\\ud800"'),
    ("tags", "[" * 100_000),
]


@pytest.mark.parametrize(
    ("write", "accessor"), [(write_folder, folder_of), (write_lines, lines_of)]
)
@pytest.mark.parametrize(("member", "text"), BAD_JSON, ids=[f"{m}-{t[:9]}" for m, t in BAD_JSON])
def test_a_json_value_that_cannot_be_held_affects_its_record_only(
    tmp_path, write, accessor, member, text
):
    """A number beyond every type, a deep list or a broken one: its record alone is passed over."""
    bad = f'{{"id":2,"{member}":{text}}}' if member != "id" else f'{{"id":{text}}}'
    write(tmp_path, '{"id":1}', bad, '{"id":3}')
    with Store("plain", accessor(tmp_path)) as store:
        keys, errors = captured(store)
        assert keys == ["1", "3"]
        assert len(errors) == 1
        assert "2.json" in errors[0] or "line 2" in errors[0]
        if member != "id" and text != "[" * 100_000:
            assert "Thing '2'" in errors[0]
        query = Query.parse(store.accessor(Thing).type, unreadable=lambda error: None)
        assert [thing.id for thing in store.accessor(Thing).find(query)] == [1, 3]
        assert captured(store)[0] == []  # nothing of it counts as deleted


BAD_CELLS = [
    ("tags", DEEP),
    ("more", DEEP),
    ("more", "1e9999999999999999999"),
    ("more", '{"a": 1e9999999999999999999}'),
    ("tags", "[broken"),
    ("tags", ""),
    ("price", "1e9999999999999999999"),
    ("price", "1e99999"),
    ("price", "1" * 1100),
    ("size", "1e400"),
    ("id", "9" * 5000),
    ("id", "9" * 513),
]


@pytest.mark.parametrize(("column", "text"), BAD_CELLS, ids=[f"{c}-{t[:9]}" for c, t in BAD_CELLS])
def test_a_cell_that_cannot_be_held_affects_its_record_only(tmp_path, column, text):
    """The same in a cell of a CSV file, be it JSON or plain text."""
    write_table(tmp_path, {}, {column: text}, {})
    with Store("plain", table_of(tmp_path)) as store:
        keys, errors = captured(store)
        assert keys == ["1", "3"]
        assert len(errors) == 1
        assert "line 3" in errors[0]
        if column != "id":
            assert "Thing '2'" in errors[0]


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling link", "forbidden"])
def test_a_document_that_is_no_readable_file_affects_its_record_only(tmp_path, kind, monkeypatch):
    """A folder, a pipe, a link to nothing or a forbidden file is no failure of the whole store."""
    write_folder(tmp_path, '{"id":1}', '{"id":2}', '{"id":3}')
    path = tmp_path / "things" / "2.json"
    with Store("plain", folder_of(tmp_path)) as store:
        assert captured(store) == (["1", "2", "3"], [])
        if kind == "forbidden":
            real = os.access
            monkeypatch.setattr(os, "access", lambda p, m: p != path and real(p, m))
        else:
            path.unlink()
            if kind == "folder":
                path.mkdir()
            elif kind == "pipe":
                os.mkfifo(path)
            else:
                path.symlink_to(tmp_path / "nowhere")
        assert captured(store)[0] == []  # above all no delete
        clock = store.clock
        changes = [put(Thing(id=n, name="new"), clock.tick()) for n in (1, 2, 3)]
        outcomes = [settled.outcome for settled in apply(store, changes, clock=clock)]
        assert outcomes == [Outcome.APPLIED, Outcome.REJECTED, Outcome.APPLIED]


# -- values arrive as they were --------------------------------------------------------------------

FOREIGN = [
    LONG,
    "1e9999999999999999999",
    "0.1000000000000000055511151231257827",
    "123456789012345678901234567890",
    DEEP,
    "NaN",
    '"\\ud800"',
    '{"exact": 12345678901234567.12345, "list": [1e400, 1.5]}',
]


@pytest.mark.parametrize(
    ("write", "accessor"), [(write_folder, folder_of), (write_lines, lines_of)]
)
@pytest.mark.parametrize("text", FOREIGN, ids=[text[:9] for text in FOREIGN])
def test_members_of_others_keep_every_digit(tmp_path, write, accessor, text):
    """A member that the view does not name is written back as it was, whatever it holds."""
    write(tmp_path, f'{{"id": 1, "name": "old", "theirs": {text}}}', '{"id": 2}')
    with Store("plain", accessor(tmp_path)) as store:
        assert captured(store) == (["1", "2"], [])
        store.update(Thing(id=1, name="new"))
        assert store.get(Thing, 1).name == "new"
    written = tmp_path / "things.jsonl" if write is write_lines else tmp_path / "things/1.json"
    found = written.read_text()
    assert '"name": "new"' in found
    as_it_was = json.dumps(json.loads(text)) if "list" in text else text
    numbers = LONG if "list" in text else as_it_was
    assert numbers in found
    with Store("plain", accessor(tmp_path)) as store:
        assert captured(store) == ([], [])


@pytest.mark.parametrize("accessor", [folder_of, lines_of, table_of])
@pytest.mark.parametrize(
    "value",
    [Decimal(LONG), {"a": [Decimal(LONG), 1.5, 1]}, Decimal("1E+400"), 10**40, -0.5],
    ids=str,
)
def test_numbers_in_undeclared_values_are_not_rounded(tmp_path, accessor, value):
    """A number that a float would round is read and written as a decimal with all its digits."""
    with Store("plain", accessor(tmp_path)) as store:
        store.add(Thing(id=1, more=value))
    with Store("plain", accessor(tmp_path)) as store:
        found = store.get(Thing, 1).raw()["more"]
        assert found == value
        assert type(found) is type(value)
        assert captured(store) == ([], [])


def test_a_long_number_of_others_is_read_with_all_its_digits(tmp_path):
    """A foreign number in an undeclared member is published as it stands there."""
    write_folder(tmp_path, f'{{"id": 1, "more": {{"n": {LONG}, "f": 0.1}}, "size": {LONG}}}')
    with Store("plain", folder_of(tmp_path)) as store:
        (changes,) = store.capture()
        assert changes[0].data["more"] == {"n": Decimal(LONG), "f": 0.1}
        assert changes[0].data["size"] == float(LONG)  # declared as a float


@pytest.mark.parametrize("accessor", [folder_of, lines_of, table_of])
def test_the_second_half_past_two_in_october(tmp_path, accessor):
    """A datetime in a repeated hour keeps its instant, in a field and in a key."""
    from zoneinfo import ZoneInfo

    class Event(Record):
        at: dt.datetime = Field(key=True, zoned=True)
        ends: dt.datetime = Field(zoned=True)
        others: dict[str, dt.datetime] = Field(default_factory=dict)
        listed: list[dt.datetime] = Field(default_factory=list)

    berlin = ZoneInfo("Europe/Berlin")
    moments = [dt.datetime(2024, 10, 27, 2, 30, fold=fold, tzinfo=berlin) for fold in (0, 1)]
    instants = [moment.astimezone(dt.UTC) for moment in moments]
    with Store("plain", accessor(tmp_path, Event)) as store:
        store.add([Event(at=m, ends=m, others={"a": m}, listed=[m, moments[0]]) for m in moments])
        found = sorted(event.ends.astimezone(dt.UTC) for event in store.find(Event))
        assert found == instants
        second = store.get(Event, moments[1])
        assert second.ends.astimezone(dt.UTC) == instants[1]
        assert second.others["a"].astimezone(dt.UTC) == instants[1]
        assert [each.astimezone(dt.UTC) for each in second.listed] == [instants[1], instants[0]]
        assert captured(store) == ([], [])


# -- a CSV file with an open cell ------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "\n", "\n3,Cy,\n"])
def test_nothing_is_appended_to_an_open_cell(tmp_path, end):
    """A quote that nothing closes holds up new records, with its line named, and nothing else."""
    path = tmp_path / "notes.csv"
    path.write_text("id,a,b\n1,Ada,\n2,Bob,\n")
    with Store("plain", CsvAccessor(Note, path)) as store:
        assert captured(store) == (["1", "2"], [])
        broken = f'id,a,b\n1,Ada,\n2,"Bob,{end}'
        path.write_text(broken)
        with pytest.raises(DependencyError, match=r"line 3: a quote \(\"\) opens a cell"):
            store.add(Note(id=4, a="Dan"))
        assert path.read_text() == broken
        clock = store.clock
        changes = [put(Note(id=n, a="new"), clock.tick()) for n in (1, 2, 4)]
        store.capture_before(changes, FakeBus())
        outcomes = [settled.outcome for settled in apply(store, changes, clock=clock)]
        assert outcomes == [Outcome.APPLIED, Outcome.HELD, Outcome.HELD]
        assert path.read_text() == broken.replace("1,Ada", "1,new")
        keys, errors = captured(store)
        assert keys == []
        assert "line 3" in errors[0]
        path.write_text(path.read_text().replace('2,"Bob,' + end, "2,Bob,\n"))
        outcomes = [settled.outcome for settled in apply(store, changes, clock=clock)]
        assert outcomes == [Outcome.DUPLICATE, Outcome.APPLIED, Outcome.APPLIED]
        assert path.read_text() == "id,a,b\n1,new,\n2,new,\n4,new,\n"


def test_nothing_is_appended_to_half_a_line(tmp_path):
    """The last line of JSON lines that somebody is still writing is not ended by eventsync."""
    path = tmp_path / "notes.jsonl"
    path.write_text('{"id": 1}\n{"id": 2, "a": "B')
    with Store("plain", JsonLinesAccessor(Note, path)) as store:
        assert captured(store)[0] == ["1"]
        with pytest.raises(DependencyError, match="line 2"):
            store.add(Note(id=4, a="Dan"))
        assert path.read_text() == '{"id": 1}\n{"id": 2, "a": "B'


# -- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["01", " 1", "+1"])
def test_a_key_stays_as_somebody_wrote_it(tmp_path, text):
    """A row whose key is written in another way is the same record, and its cell stays."""
    path = tmp_path / "notes.csv"
    path.write_text(f"id,a,b\n{text},Ada,\n")
    with Store("plain", CsvAccessor(Note, path)) as store:
        assert captured(store) == (["1"], [])
        store.update(Note(id=1, a="new"))
        assert path.read_text() == f"id,a,b\n{text},new,\n"


@pytest.mark.parametrize("text", ["01", " 1", "+1"])
def test_two_rows_of_one_key_are_refused(tmp_path, text):
    """Two rows that the key takes for one are neither read nor written, and are named."""
    path = tmp_path / "notes.csv"
    content = f"id,a,b\n1,Ada,\n{text},Bob,\n2,Cy,\n"
    path.write_text(content)
    with Store("plain", CsvAccessor(Note, path)) as store:
        keys, errors = captured(store)
        assert keys == ["2"]
        assert "lines 2 and 3: Note '1' stands there twice" in errors[0]
        clock = store.clock
        (settled,) = apply(store, [put(Note(id=1, a="new"), clock.tick())], clock=clock)
        assert settled.outcome is Outcome.REJECTED
        assert path.read_text() == content


def test_a_file_system_that_ignores_case(tmp_path):
    """Where two names are one document, its record is read, and no other record overwrites it.

    Links stand for the names that such a file system takes for the same.
    """

    class Person(Record):
        name: str = Field(key=True)
        city: str = ""

    folder = tmp_path / "people"
    folder.mkdir()
    (folder / "ADA.json").write_text('{"name": "ADA", "city": "Rome"}')
    os.link(folder / "ADA.json", folder / "ada.json")
    with Store("plain", JsonFolderAccessor(Person, folder)) as store:
        with pytest.raises(RecordError, match="a file system that ignores case"):
            store.add(Person(name="ada", city="Oslo"))
        assert json.loads((folder / "ADA.json").read_text())["city"] == "Rome"
        # A document of the key "bob" under the name BOB.json, which bob.json opens, too.
        (folder / "BOB.json").write_text('{"name": "bob", "city": "Rome"}')
        os.link(folder / "BOB.json", folder / "bob.json")
        store.update(Person(name="bob", city="Oslo"))
        assert store.get(Person, "bob").city == "Oslo"


# -- absence is not a delete -----------------------------------------------------------------------


@pytest.mark.parametrize("index", ["inside", "outside"])
@pytest.mark.parametrize("loss", ["emptied", "unmounted"])
def test_a_folder_without_documents_is_no_delete(tmp_path, loss, index):
    """A folder that lost all its documents is a failure, also before a change is applied."""
    versions = FileIndex(tmp_path / "versions.db") if index == "outside" else None
    folder = tmp_path / "things"
    with Store("plain", JsonFolderAccessor(Thing, folder), index=versions) as store:
        store.add([Thing(id=n) for n in (1, 2)])
        saved = {path.name: path.read_text() for path in folder.glob("*.json")}
        if loss == "emptied":
            for path in folder.glob("*.json"):
                path.unlink()
        elif index == "outside":
            shutil.rmtree(folder)
            folder.mkdir()
        else:
            pytest.skip("the index is lost with the folder")
        with pytest.raises(StoreUnavailableError, match="although it held records before"):
            captured(store)
        with pytest.raises(StoreUnavailableError):
            store.replicas["Thing"].capture(["1"], None)
        clock = store.clock
        with pytest.raises(StoreUnavailableError):
            apply(store, [put(Thing(id=3), clock.tick())], clock=clock)
        for name, text in saved.items():
            (folder / name).write_text(text)
        assert captured(store) == ([], [])


def test_a_folder_whose_records_were_all_deleted_says_so(tmp_path):
    """The mark of a folder emptied on purpose lets the deletes through; a new document ends it."""
    folder = tmp_path / "things"
    with Store("plain", JsonFolderAccessor(Thing, folder)) as store:
        store.add([Thing(id=n) for n in (1, 2)])
        for path in folder.glob("*.json"):
            path.unlink()
        (folder / ".eventsync-empty").touch()
        assert captured(store) == (["1", "2"], [])
        store.add(Thing(id=1))
        assert not (folder / ".eventsync-empty").exists()
        store.remove(Thing(id=1))
        assert captured(store) == ([], [])
        store.add(Thing(id=1))
        assert captured(store) == ([], [])


@pytest.mark.parametrize("accessor", [table_of, lines_of])
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", None], ids=["empty", "bom", "missing"])
def test_an_emptied_file_is_no_delete(tmp_path, accessor, content):
    """A file that holds nothing any more is a failure, also with a byte order mark."""
    with Store("plain", accessor(tmp_path)) as store:
        store.add([Thing(id=n) for n in (1, 2)])
        (path,) = tmp_path.glob("things.*")
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        with pytest.raises(StoreUnavailableError, match="although it held records before"):
            captured(store)
        with pytest.raises(StoreUnavailableError):
            store.replicas["Thing"].capture(["1"], None)


def test_a_folder_that_cannot_be_listed_is_no_delete(tmp_path, monkeypatch):
    """A folder without the right to read it is a failure of the store."""
    with Store("plain", folder_of(tmp_path)) as store:
        store.add([Thing(id=n) for n in (1, 2)])

        def forbidden(path):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "scandir", forbidden)
        with pytest.raises(StoreUnavailableError, match="permission denied"):
            captured(store)


def test_most_documents_gone_is_suspicious(tmp_path):
    """A folder that lost many of its documents asks first."""
    with Store("plain", folder_of(tmp_path)) as store:
        store.add([Thing(id=n) for n in range(20)])
        for number in range(15):
            (tmp_path / "things" / f"{number}.json").unlink()
        with pytest.raises(SuspiciousReadError):
            captured(store)


# -- a patch changes the fields it names -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "lines", "table"])
def test_a_patch_leaves_what_somebody_edits_meanwhile(tmp_path, kind, monkeypatch):
    """An edit of another field between reading and writing survives, and is captured later."""
    from eventsync.stores.files import disk

    accessor = {"folder": folder_of, "lines": lines_of, "table": table_of}[kind](tmp_path, Note)
    with Store("plain", accessor) as store:
        store.add([Note(id=1, a="a", b="b"), Note(id=2)])
        paths = list(tmp_path.glob("things.*")) or [tmp_path / "things" / "1.json"]
        real, done = disk.replace, []

        def replace(path, *args, **kwargs):
            if not done:
                done.append(path)
                text = paths[0].read_text()
                new = text.replace("1,a,b", "1,a,edited").replace('"b": "b"', '"b": "edited"')
                paths[0].write_text(new)
            return real(path, *args, **kwargs)

        monkeypatch.setattr(disk, "replace", replace)
        store.update(Note(id=1, a="patched", b="b"))
        note = store.get(Note, 1)
        assert (note.a, note.b) == ("patched", "edited")
        (changes,) = store.capture()
        assert changes[0].data == {"b": "edited"}


@pytest.mark.parametrize("kind", ["folder", "lines", "table"])
def test_a_patch_leaves_what_somebody_edited_before(tmp_path, kind):
    """A patch carries the fields beside it; an edit of one of them, not captured yet, stays."""
    accessor = {"folder": folder_of, "lines": lines_of, "table": table_of}[kind](tmp_path, Note)
    with Store("plain", accessor) as store:
        now = int(store.clock.now() * 1000)
        first, later = Version.of(now - 5000, 0, 1), Version.of(now - 4000, 0, 1)
        apply(store, [put(Note(id=1, a="a", b="b"), first)], clock=store.clock)
        path = (list(tmp_path.glob("things.*")) or [tmp_path / "things" / "1.json"])[0]
        text = path.read_text()
        path.write_text(text.replace("1,a,b", "1,a,edited").replace('"b": "b"', '"b": "edited"'))
        patch = changed(Note, "1", PATCH, later, {"a": "new"})
        patch.known = BaseState(store.index.scan("Note")[0][1].stamp, {"b": "b"}, {})
        apply(store, [patch], clock=store.clock)
        note = store.get(Note, 1)
        assert (note.a, note.b) == ("new", "edited")
        (changes,) = store.capture()
        assert changes[0].data == {"b": "edited"}


def test_an_unreadable_record_error_is_a_record_error(tmp_path):
    """``get`` of a record that cannot be read says which it is."""
    write_folder(tmp_path, f'{{"id": 1, "more": {DEEP}}}')
    with (
        Store("plain", folder_of(tmp_path)) as store,
        pytest.raises(RecordError, match="Thing '1': more"),
    ):
        store.get(Thing, 1)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("notes.csv", "id,a,b\n{form},theirs,\n"),
        ("notes.jsonl", '{{"id": "{form}", "a": "theirs", "b": ""}}\n'),
        ("notes/{form}.json", '{{"id": 7, "a": "theirs", "b": ""}}'),
        ("notes/7.json", '{{"id": "{form}", "a": "theirs", "b": ""}}'),
    ],
)
@pytest.mark.parametrize("form", ["007", "+7", "07"])
def test_a_key_in_another_form_is_written_where_it_stands(tmp_path, name, text, form):
    """No second row or document is added for the number 7, and the form is kept."""
    path = tmp_path / name.format(form=form)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text.format(form=form), encoding="utf-8")
    kinds = {".csv": CsvAccessor, ".jsonl": JsonLinesAccessor}
    accessor = kinds.get(path.suffix, JsonFolderAccessor)
    where = path if path.suffix in kinds else path.parent
    with Store("plain", accessor(Note, where), index=FileIndex(tmp_path / "v.db")) as store:
        assert [change.key for changes in store.capture() for change in changes] == ["7"]
        note = store[Note, 7]
        note.a = "ours"
        store.update(note)
        assert not any(store.capture())
        assert [one.a for one in store.find(Note)] == ["ours"]
        store.remove(note)
        assert not any(store.find(Note))
    after = path.read_text(encoding="utf-8") if path.exists() else ""
    assert "ours" not in after
