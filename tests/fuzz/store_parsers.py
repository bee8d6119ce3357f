"""The parsers of what stores hold and services answer."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2 as httpx
from fuzz.parser import Parser
from fuzz.record_parsers import VALUES, Thing

from eventsync import Field, Record
from eventsync.cli.record_files import Format, read_lines
from eventsync.errors import RecordError
from eventsync.monitoring.worker_status import read_states
from eventsync.records.query import Query
from eventsync.stores.files import CsvAccessor, JsonFolderAccessor, JsonLinesAccessor
from eventsync.stores.identity import IdentityMap
from eventsync.stores.json_values import parse, parse_value, with_floats
from eventsync.stores.redis.codec import HashCodec, JsonCodec
from eventsync.stores.rest import Cursor, Links, NextLink, Numbers, Resource, RestAccessor, Service
from eventsync.stores.rest.pace import Throttle
from eventsync.stores.trackers import github, gitlab, jira

_FOLDER = tempfile.TemporaryDirectory()
_PATH = Path(_FOLDER.name)


def _ignore(_: RecordError) -> None:
    """Take the error of one unreadable record."""


def _found(accessor: Any) -> None:
    for record in accessor.find(Query.parse(accessor.type, unreadable=_ignore)):
        record.raw()


_LINES = JsonLinesAccessor(Thing, _PATH / "things.jsonl")
_CSV = CsvAccessor(Thing, _PATH / "things.csv")
_DOCUMENTS = JsonFolderAccessor(Thing, _PATH / "things")
_HASH, _JSON = HashCodec(_LINES.view), JsonCodec(_LINES.view)


def _file(accessor: Any, path: Path) -> Callable[[bytes], None]:
    path.parent.mkdir(exist_ok=True)
    accessor.ensure()

    def parse_file(raw: bytes) -> None:
        path.write_bytes(raw)
        _found(accessor)

    return parse_file


def _imported(format: Format) -> Callable[[bytes], None]:
    def parse_import(raw: bytes) -> None:
        for line in read_lines(BytesIO(raw), format, Thing):
            str(line.error)

    return parse_import


def _redis_hash(raw: bytes) -> None:
    cells = dict(zip(_LINES.view.names.values(), raw.split(b"\n"), strict=False))
    Thing.load(_LINES.view.to_record(_HASH.decode(cells)), partial=True)


def _redis_json(raw: bytes) -> None:
    Thing.load(_LINES.view.to_record(_JSON.decode(_JSON.members(raw))), partial=True)


def _json(raw: bytes) -> None:
    text = raw.decode("utf-8", "surrogateescape")
    with_floats(parse_value(text))
    parse(text)


class Note(Record):
    id: str = Field(key=True)
    name: str = ""
    size: float | None = None


class _Answers:
    """The answers of a service: an input says what they are."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = [b""]
        self.headers: list[tuple[bytes, bytes]] = []
        self.status = 200
        self.count = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = self.bodies[min(self.count, len(self.bodies) - 1)]
        self.count += 1
        status = self.status if self.count <= 20 else 404
        return httpx.Response(status, headers=self.headers, stream=httpx.ByteStream(body))

    def serve(self, service: Service) -> Any:
        """Let a service get these answers instead of asking a server."""
        client = httpx.Client(transport=httpx.MockTransport(self), trust_env=False)
        service._client = lambda: client  # type: ignore[method-assign]
        return service


_ANSWERS = _Answers()
_SERVICE = _ANSWERS.serve(Service("http://service.example"))


def _ask(
    accessor: Any, bodies: list[bytes], headers: list[tuple[bytes, bytes]], status: int
) -> None:
    _ANSWERS.bodies, _ANSWERS.headers = bodies, headers
    _ANSWERS.status, _ANSWERS.count = status, 0
    accessor.service.pace = Throttle(None, 1)
    _found(accessor)


def _rest(pages: Any, items: str = "/notes") -> Any:
    return RestAccessor(Note, _SERVICE, Resource(items=items, item="/notes/{key}", pages=pages))


_PLAIN = _rest(Links(size=2))
_PAGED = [
    _rest(Links(size=2, items="d")),
    _rest(NextLink(items="d", at="next")),
    _rest(Numbers(items="d", total="total", size=2)),
    _rest(Cursor(items="d", at="next")),
]


def _answer(raw: bytes) -> None:
    _ask(_PLAIN, [raw], [], 200)


def _failure(raw: bytes) -> None:
    """Read an answer with a status and headers of the service's choice."""
    status, _, rest = raw.partition(b"\n")
    pause, _, body = rest.partition(b"\n")
    number = int(status) if status.isdigit() and len(status) == 3 else 503
    headers = [] if b"\r" in pause or b"\0" in pause else [(b"retry-after", pause)]
    _ask(_PLAIN, [body], headers, min(max(number, 200), 599))


def _link(raw: bytes) -> None:
    header = raw.replace(b"\n", b" ").replace(b"\r", b" ")
    _ask(_PLAIN, [b'[{"id":"a"},{"id":"b"}]'], [(b"link", header)], 200)


def _pages(raw: bytes) -> None:
    for accessor in _PAGED:
        _ask(accessor, [raw], [], 200)


def _tracker(accessor: Any) -> Callable[[bytes], None]:
    def parse_answers(raw: bytes) -> None:
        try:
            answers = json.loads(raw)
        except (ValueError, RecursionError):
            answers = []
        single = not isinstance(answers, list) or len(answers) < 2
        bodies = [raw[1:-1]] if single else [
            json.dumps(answer).encode("utf-8", "surrogatepass") for answer in answers
        ]  # fmt: skip
        _ask(accessor, bodies, [], 200)

    return parse_answers


def _trackers() -> list[Parser]:
    samples = json.loads((Path(__file__).parent / "answers.json").read_text(encoding="utf-8"))
    identity = IdentityMap(_PATH / "ids.db", name="tracker")
    services: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
        "gitlab": (gitlab, gitlab.GitLabService("t", url="http://service.example"), ("acme/shop",)),
        "github": (github, github.GitHubService("t", url="http://service.example"), ("ann/shop",)),
        "jira": (jira, jira.JiraService("http://service.example", "u", "t"), ("SHOP",)),
    }
    parsers = []
    for name, answers in samples.items():
        kind, _, title = name.partition(".")
        module, service, place = services[kind]
        made = getattr(module, title)
        record = made.shape
        if title in ("GitLabProjects", "GitHubGroups", "GitHubMembers", "GitHubProjects"):
            place = ("acme",)
        bound = any(word in title for word in ("Issues", "Comments", "Milestones"))
        options = {"identity": identity} if bound else {}
        for arguments in (place, ()):
            try:
                accessor = made(record, _ANSWERS.serve(service), *arguments, **options)
            except TypeError:
                continue
            break
        parsers.append(
            Parser(
                name=f"tracker-{title}",
                parse=_tracker(accessor),
                samples=[json.dumps(answers).encode()],
                form="json",
                weight=0.02,
            )
        )
    return parsers


def _states(raw: bytes) -> None:
    folder = _PATH / "states"
    folder.mkdir(exist_ok=True)
    (folder / "worker-crm-1.json").write_bytes(raw)
    for state in read_states(folder):
        state.get("pid")


def _cells() -> list[bytes]:
    _PATH.joinpath("things.csv").unlink(missing_ok=True)
    _CSV.add(Thing(**VALUES))
    _LINES.add(Thing(**VALUES))
    return [(_PATH / name).read_bytes() for name in ("things.csv", "things.jsonl")]


_TABLE, _LINE = _cells()
_LISTED = b'[{"id":"a","name":"n","size":1.5},{"id":"b"}]'
_WITH_PAGES = b'{"d":[{"id":"a","name":"n"},{"id":"b"}],"next":"/notes?page=2","total":9}'
_STATE = json.dumps(
    {"pid": 1, "store": "crm", "started": 1.0, "written": 1.0, "doing": "x", "silence": 0.1,
     "messages": 1, "in_hand": 0, "lag": 0.0, "outcomes": {"applied": 1}, "memory": 1}
).encode()  # fmt: skip
_HASH_VALUES = b"\n".join(
    kept or b"" for kept in _HASH.encode(_LINES.view.to_store(VALUES)).values()
)
_JSON_TEXT = _JSON.text(_JSON.encode(_LINES.view.to_store(VALUES)))

PARSERS = [
    Parser(name="json", parse=_json, samples=[_LINE.strip(), _JSON_TEXT], form="json"),
    Parser(
        name="json-document",
        parse=_file(_DOCUMENTS, _PATH / "things" / "7.json"),
        samples=[_LINE],
        form="json",
        weight=0.2,
    ),
    Parser(
        name="json-lines",
        parse=_file(_LINES, _PATH / "things.jsonl"),
        samples=[_LINE, _LINE * 2 + b"\n"],
        weight=0.2,
    ),
    Parser(
        name="json-line",
        parse=_file(_LINES, _PATH / "things.jsonl"),
        samples=[_LINE],
        form="json",
        weight=0.2,
    ),
    Parser(
        name="csv",
        parse=_file(_CSV, _PATH / "things.csv"),
        samples=[_TABLE, _TABLE.replace(b"\n", b"\r\n")],
        weight=0.3,
    ),
    Parser(name="import-json", parse=_imported(Format.JSONL), samples=[_LINE], form="json"),
    Parser(name="import-csv", parse=_imported(Format.CSV), samples=[_TABLE], weight=0.3),
    Parser(name="redis-hash", parse=_redis_hash, samples=[_HASH_VALUES]),
    Parser(name="redis-json", parse=_redis_json, samples=[_JSON_TEXT], form="json"),
    Parser(name="rest-answer", parse=_answer, samples=[_LISTED], form="json", weight=0.1),
    Parser(
        name="rest-failure",
        parse=_failure,
        samples=[b'429\n5\n{"message":"slow"}', b"500\nFri, 31 Dec 2026 23:59:59 GMT\nx"],
        weight=0.1,
    ),
    Parser(
        name="rest-link",
        parse=_link,
        samples=[
            b'<http://service.example/notes?page=2>; rel="next", <x>; rel=last',
            b'</notes?page=2>; title="a"; rel=next',
        ],
        weight=0.1,
    ),
    Parser(name="rest-pages", parse=_pages, samples=[_WITH_PAGES], form="json", weight=0.05),
    Parser(name="state-file", parse=_states, samples=[_STATE], form="json", weight=0.3),
    *_trackers(),
]
