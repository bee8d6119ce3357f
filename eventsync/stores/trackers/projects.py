"""One accessor for the records of several projects of a tracker."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

from eventsync.engine.accessor import Accessor, Write
from eventsync.engine.change_source import ChangeSource
from eventsync.engine.finding import Finding
from eventsync.engine.webhook import Hint, Webhook, WebhookSource
from eventsync.errors import ConfigError, DependencyError, RecordError, RejectedError
from eventsync.index import Index, IndexTransaction
from eventsync.records.key import join as join_key
from eventsync.records.query import Query
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest import Service
from eventsync.stores.rest.fence import fenced
from eventsync.stores.rest.replica import RestReplica
from eventsync.stores.trackers.project_identity import ProjectIdentity
from eventsync.stores.trackers.tracker import TrackerAccessor

__all__ = ["InProjects"]

R = TypeVar("R", bound=Record)


class InProjects(Accessor[R]):
    """Records of one type in several projects of a tracker, in one store.

    ``kind``: the accessor of one project, for example ``GitHubIssues``. ``projects``: the keys of
    the projects. ``options``: further parameters of ``kind``.

    A record says in its field ``project`` where it is, and a new one where it is to be created; a
    comment is in the project of its issue. A record without a known project is rejected. eventsync
    moves no record to another project: it rejects such a change.

    Where a tracker numbers its objects in each project, the id of a record begins with its project,
    as in ``ann/shop:12``. Records that are identified by their text, such as labels, exist in each
    project, so they need a store for each project.
    """

    replica_class = RestReplica

    def __init__(
        self,
        kind: type[TrackerAccessor[Any]],
        record_type: type[R],
        service: Service,
        projects: Sequence[str],
        *,
        identity: IdentityMap,
        view: View | None = None,
        **options: Any,
    ) -> None:
        name = record_type.__record__.name
        if isinstance(projects, str) or not projects or len(set(projects)) < len(projects):
            raise ConfigError(
                f"{name}: {projects!r} is not a list of different projects",
                hint='pass their keys, as in ["ann/shop", "ann/site"]',
            )
        if kind.keys:
            raise ConfigError(
                f"{name}: each project has {kind.shape.__name__} records of its own, and their "
                "keys do not say of which project they are",
                hint=f"give each project a store of its own for {name}",
            )
        also = {"project"} & kind.shape.__record__.fields.keys()
        view = kind.usual_view(record_type, view, also=also)
        make: Any = kind
        self.parts: dict[str, TrackerAccessor[R]] = {
            project: make(
                record_type,
                service,
                project,
                identity=ProjectIdentity(identity, project, prefixed=kind.numbered_by_project),
                view=view,
                **options,
            )
            for project in projects
        }
        super().__init__(record_type, view=view)
        self.service, self.identity = service, identity
        self._first = next(iter(self.parts.values()))
        for part in self.parts.values():
            part.projects = frozenset(self.parts)
        stored = {stored: field for field, stored in self.view.names.items()}
        self._project = stored.get("project")
        """The name of the field with the project; ``None`` for records that are in an issue."""
        self._within = stored.get("issue")
        if also and self._project is None:
            raise ConfigError(
                f"{name}: the view has no field project, which says where a record is",
                hint='rename a field to it, as in View(rename={"repository": "project"})',
            )
        if self._project is None and self._within is None:
            raise ConfigError(
                f"{name}: the records do not say of which project they are",
                hint=f"give each project a store of its own for {name}",
            )
        # Of the present transaction, by key: the part that holds or took the record.
        self._reading: IndexTransaction | None = None
        self._holding: dict[str, TrackerAccessor[R]] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._first!r}, {list(self.parts)})"

    # -- lifecycle ---------------------------------------------------------------------------------

    def bind(self, index: Index) -> None:
        super().bind(index)
        for part in self.parts.values():
            part.bind(index)

    def ensure(self) -> None:
        for part in self.parts.values():
            part.ensure()

    @fenced
    def findings(self) -> Iterable[Finding]:
        return chain.from_iterable(part.findings() for part in self.parts.values())

    @fenced
    def ping(self) -> None:
        for part in self.parts.values():
            part.ping()

    def close(self) -> None:
        for part in self.parts.values():
            part.close()

    def depends_on(self, other: Accessor[Any]) -> bool:
        return self._first.depends_on(other)

    # -- the six -----------------------------------------------------------------------------------

    @fenced
    def add(self, record: R) -> None:
        part = self._holder(record.key) or self._target(record.key, record.raw())
        part.add(record)

    @fenced
    def update(self, record: R) -> None:
        part = self._holder(record.key) or self._target(record.key, record.raw())
        self._check_stays(part, record.key, record.raw())
        part.update(record)

    @fenced
    def get(self, key: str) -> R | None:
        for part in self._candidates(key):
            record = part.get(key)
            if record is not None:
                return record
        return None

    @fenced
    def find(self, query: Query) -> Iterable[R]:
        return query.select(
            chain.from_iterable(part.records(query) for part in self.parts.values())
        )

    @fenced
    def remove(self, key: str) -> None:
        part = self._holder(key)
        if part is not None:
            part.remove(key)

    @fenced
    def record_to_data(self, record: R) -> Any:
        return self._target(record.key, record.raw()).record_to_data(record)

    @fenced
    def data_to_record(self, data: Any) -> R:
        return self._first.data_to_record(data)

    # -- many at once ------------------------------------------------------------------------------

    @fenced
    def read_rows(
        self, keys: Sequence[str], transaction: IndexTransaction
    ) -> dict[str, Mapping[str, Any]]:
        self._reading, self._holding = transaction, {}
        rows: dict[str, Mapping[str, Any]] = {}
        asked: dict[str, list[str]] = {}
        for key in keys:
            for part in self._candidates(key):
                asked.setdefault(str(part.project_key), []).append(key)
        for project, part in self.parts.items():
            wanted = [key for key in asked.get(project, ()) if key not in rows]
            found = part.read_rows(wanted, transaction)  # also forgets the last transaction
            rows |= found
            self._holding |= dict.fromkeys(found, part)
        return {key: rows[key] for key in keys if key in rows}

    @fenced
    def write_rows(
        self, writes: Sequence[Write], removals: Sequence[str], transaction: IndexTransaction
    ) -> None:
        groups: dict[str, tuple[list[Write], list[str]]] = {name: ([], []) for name in self.parts}
        known = self._holding if self._reading is transaction else {}
        holding: dict[str, TrackerAccessor[R]] = {}
        for write in writes:
            part = known.get(write.key) or self._holder(write.key)
            if part is not None:
                self._check_stays(part, write.key, write.values)
            elif write.whole:
                part = self._target(write.key, write.values)
            else:
                part = self._first  # says that the record disappeared
            holding[write.key] = part
            groups[str(part.project_key)][0].append(write)
        for key in removals:
            part = known.get(key) or self._holder(key)
            if part is not None:
                groups[str(part.project_key)][1].append(key)
        for project, (some, gone) in groups.items():
            if some or gone:
                self.parts[project].write_rows(some, gone, transaction)
        self._holding = holding

    @fenced
    def read_back(
        self, writes: Mapping[str, Mapping[str, Any]], transaction: IndexTransaction
    ) -> Mapping[str, Mapping[str, Any]]:
        holding = self._holding
        rows: dict[str, Mapping[str, Any]] = {}
        for part in self.parts.values():
            if own := {key: writes[key] for key in writes if holding.get(key) is part}:
                rows |= part.read_back(own, transaction)
        rest = [key for key in writes if key not in holding]
        return {**rows, **(self.read_rows(rest, transaction) if rest else {})}

    @fenced
    def changed_since(
        self, mark: str, unreadable: Callable[[RecordError], None] | None
    ) -> tuple[list[str], str] | None:
        marks: dict[str, str] = json.loads(mark) if mark else {}
        keys: dict[str, None] = {}
        for project, part in self.parts.items():
            changed = part.changed_since(marks.get(project, ""), unreadable)
            if changed is None:
                return None
            keys |= dict.fromkeys(changed[0])
            marks[project] = changed[1]
        return list(keys), json.dumps(marks, sort_keys=True)

    # -- webhooks ----------------------------------------------------------------------------------

    @classmethod
    def sources(cls, accessors: Sequence[InProjects[Any]], store: str) -> Sequence[ChangeSource]:
        return [WebhookSource(accessors)]

    def webhook(self) -> Webhook | None:
        return self.service.webhook

    def concerns(self, hint: Hint) -> bool:
        """Return whether a webhook may be about a record of these projects. See ``Hinted``."""
        return any(part.concerns(hint) for part in self.parts.values())

    def hinted_key(self, hint: Hint) -> str | None:
        """Return the key of the record that a webhook is about. See ``Hinted``."""
        keys = (part.hinted_key(hint) for part in self.parts.values() if part.concerns(hint))
        return next((key for key in keys if key is not None), None)

    # -- the project of a record -------------------------------------------------------------------

    def _candidates(self, key: str) -> Iterator[TrackerAccessor[R]]:
        """Yield the parts that may hold a record. Raises ``RecordError``.

        The id says which one it is. A tracker with ids of the whole site, and a creation whose
        answer was lost, leave all of them.
        """
        id = self.identity.id_of(self.type.name, key)
        if id is None and not self.identity.is_open(self.type.name, key):
            return
        if id is None or not self._first.numbered_by_project:
            yield from self.parts.values()
            return
        for project, part in self.parts.items():
            if id.startswith(f"{project}:"):
                yield part
                return
        raise RecordError(
            f"{self.type.name} {key!r} has the id {id}, and {self!r} does not hold that project",
            hint="add the project again; until then the record is neither read nor deleted",
        )

    def _holder(self, key: str) -> TrackerAccessor[R] | None:
        """Return the part that holds a record, ``None`` if none does."""
        found = list(self._candidates(key))
        return next((part for part in found if part.fetch(key) is not None), None)

    def _target(self, key: str, values: Mapping[str, Any]) -> TrackerAccessor[R]:
        """Return the part in which a new record is to be created. Raises ``RejectedError``."""
        if self._project is not None:
            project = values.get(self._project)
            found = None if project is None else self.parts.get(str(project))
            if found is None:
                raise RejectedError(
                    f"{self.type.name} {key!r} names the project {project!r}, which is none of "
                    + ", ".join(map(repr, self.parts)),
                    hint=f"set its field {self._project}, or pass the project to {self!r}; a view "
                    "with where= leaves out records of other projects",
                )
            return found
        issue = values.get(self._within) if self._within is not None else None
        if issue is None:
            raise RejectedError(f"{self.type.name} {key!r} has no issue", hint="set its issue")
        if not self._first.numbered_by_project:
            return self._first
        text, of = join_key([issue]), self._first.target_type("issue")
        id = self.identity.id_of(of, text) or self.identity.id_minted(text) or ""
        for project, part in self.parts.items():
            if id.startswith(f"{project}:"):
                return part
        raise DependencyError(
            f"{self.type.name} {key!r} refers to {of} {issue!r}, which is in no project of "
            f"{self.service.url} that this store holds yet"
        )

    def _check_stays(self, part: TrackerAccessor[R], key: str, values: Mapping[str, Any]) -> None:
        project = None if self._project is None else values.get(self._project)
        if project is not None and str(project) != part.project_key:
            raise RejectedError(
                f"{self.type.name} {key!r} is in the project {part.project_key!r}; eventsync does "
                f"not move it to {str(project)!r}",
                hint=f"move it in {part.tracker}; how that is captured is in the documentation",
            )
