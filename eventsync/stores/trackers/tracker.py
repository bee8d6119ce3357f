"""The base class of all tracker accessors, with slots, references and refused operations."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final, TypeVar

from eventsync.engine.accessor import Accessor
from eventsync.engine.finding import Finding
from eventsync.engine.webhook import Hint
from eventsync.errors import ConfigError, DependencyError, RecordError, RejectedError, shown
from eventsync.records.key import join as join_key
from eventsync.records.key import split as split_key
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest import ABSENT, Answer, Object, Resource, RestAccessor, Service
from eventsync.stores.rest.object import if_match
from eventsync.stores.rest.path import place, put
from eventsync.stores.rest.service import OF_ONE_WRITE
from eventsync.stores.rest.unreadable import Unreadable
from eventsync.stores.trackers.slot import Slot

__all__ = ["NUMBER", "TrackerAccessor", "sorted_names"]

R = TypeVar("R", bound=Record)


_TOLD: Final = frozenset(
    {"project", "author", "url", "archived", "tags", "created", "updated"}
    | {"avatar", "public", "owner", "parent"}
)
"""The fields of the shared record types that a view holds only if it names them."""
NUMBER: Final = re.compile(r"[0-9]+")
"""The form of ids that are numbers."""
_PROJECT: Final = Slot(at="", to="")


class TrackerAccessor(RestAccessor[R]):
    """Records of one type in an issue tracker, described by a table of slots.

    ``base``: replaces the ``.`` in paths of ``where`` that begin with ``./``. ``new``: by path, the
    values that each new object gets, for members that the tracker requires and no field holds.

    A tracker has a subclass for each record type. Its class attributes hold the table, and it
    overrides methods only where the tracker differs. If a field refers to a record of a type in
    ``named``, the tracker holds a name in this place, such as a login name. The name is the key of
    the record, unless the identity map has another name for this key. In other references, the
    tracker holds an id that it has assigned.
    """

    alters: ClassVar[bool] = False
    absent_is_none: ClassVar[bool] = False
    tracker: ClassVar[str]
    """The name of the tracker, for error messages."""
    shape: ClassVar[type[Record]]
    """The record type whose field names the table uses.

    To use another record type, pass a view that renames its fields to these names."""
    where: ClassVar[Resource]
    """The paths of the objects in the REST API. They contain the key fields as ``shape`` names
    them.
    """
    keys: ClassVar[tuple[Slot, ...]] = ()
    """The slots of the key fields, in order. Empty if the tracker assigns ids to the objects."""
    slots: ClassVar[Mapping[str, Slot]] = {}
    """The slots of the fields outside the key, by name. The default view omits all other fields."""
    told: ClassVar[Mapping[str, Slot]] = {}
    """The slots of the fields that the tracker alone decides, by name.

    They are read if the view names them, and never written: what other stores say is ignored here.
    A view that does not name its fields one by one (``only``) omits them."""
    extra: ClassVar[Mapping[str, Slot]] = {}
    """The slots of fields that are read and written if the view names them, by name."""
    project_key: str | None = None
    """The key of the project of all objects, if there is one: the value of field ``project``."""
    projects: frozenset[str] = frozenset()
    """The keys of all projects in the store, if ``InProjects`` holds several."""
    id_form: ClassVar[re.Pattern[str]] = re.compile(r"\w[\w-]*", re.ASCII)
    """The form of the ids that the tracker assigns."""
    numbered_by_project: ClassVar[bool] = True
    """Whether ids are unique only within a project, not in the whole tracker."""
    refuses: ClassVar[Mapping[str, str]] = {}
    """The operations that the tracker does not offer, each with the reason.

    The operations are ``create``, ``modify`` and ``destroy``."""
    destroyer: ClassVar[str] = ""
    """Who may delete such objects, for an error. Empty if the right to write them is enough."""
    named: ClassVar[frozenset[str]] = frozenset({"Account", "Group", "Label", "Project"})
    """The names of record types whose records the tracker identifies by a name, not by an id."""

    def writes_whole(self, *, new: bool) -> bool:
        return False  # some members are set by further requests

    def __init__(
        self,
        record_type: type[R],
        service: Service,
        base: str = "",
        *,
        view: View | None = None,
        identity: IdentityMap | None = None,
        new: Mapping[str, Any] | None = None,
    ) -> None:
        own, shared = record_type.__record__, self.shape.__record__
        view = self.usual_view(record_type, view)
        rename = dict(zip(shared.keys, own.keys, strict=False)) if self.keys else {}
        super().__init__(
            record_type,
            service,
            replace(self.where.under(base, rename=rename), new={**self.where.new, **(new or {})}),
            view=view,
            identity=identity,
        )
        stored = self.view.names
        names = zip((stored[name] for name in self.type.keys), self.keys, strict=False)
        self._keys = dict(names)
        fields = {name for field, name in stored.items() if field not in self.type.keys}
        fields |= set(self.view.constant)
        known = {**self.slots, **self.extra, **self.told}
        if self.project_key is not None and "project" in shared.fields:
            known["project"] = _PROJECT
        unknown = sorted(fields - set(known))
        if unknown:
            raise ConfigError(
                f"{type(self).__name__} has no place for {self.type.name}."
                + f" and {self.type.name}.".join(unknown),
                hint="omit or rename the field in the view; the tracker has a place for "
                + ", ".join(sorted(known)),
            )
        self.view_slots: dict[str, Slot] = {
            **self._keys,
            **{name: slot for name, slot in known.items() if name in fields},
        }
        """The slots of all fields in the view, also of the key, by the names that the view gives
        them.
        """
        self._told = {"project", *self.told} - {*self.slots, *self.extra}
        self._types = {name: slot.of for name, slot in self.view_slots.items() if slot.of}
        for field, name in stored.items():
            target = getattr(self.type.fields[field].annotation, "__record__", None)
            if name in self._types and target is not None:
                self._types[name] = target.name

    @classmethod
    def usual_view(
        cls, record_type: type[Record], view: View | None, *, also: Collection[str] = ()
    ) -> View:
        """Return a view without the fields that the tracker decides, unless it names them.

        ``view``: a view, or ``None`` for one of all fields that the tracker holds. ``also``: fields
        of ``shape`` that the tracker decides, and the view has.
        """
        own, shared = record_type.__record__.fields, cls.shape.__record__
        if view is None:
            lacks = {name for name in shared.fields if name not in {*cls.slots, *shared.keys}}
            view = View(omit=[name for name in own if name in lacks - set(also)])
        elif view.only is None:
            named = {*(view.rename or ()), *(view.convert or ()), *(view.where or ()), *also}
            left_out = (_TOLD & shared.fields.keys() & own.keys()) - named - cls.slots.keys()
            view = replace(view, omit=(*(view.omit or ()), *sorted(left_out)))
        if also and view.only is None:
            view = replace(view, omit=(), only=[name for name in own if name not in view.omit])
        return view

    def target_type(self, name: str) -> str:
        """Return the name of the record type to which the field of this name refers."""
        return self._types[name]

    # -- lifecycle ---------------------------------------------------------------------------------

    def ensure(self) -> None:
        super().ensure()
        self._check_ids()
        self._check_place()

    def findings(self) -> Iterable[Finding]:
        return ()  # the slots say what a missing member means

    def _check_place(self) -> None:
        """Raise ``ConfigError`` if the numbers in the identity map are those of another project."""
        if self.identity is None or self.keys or not self.project_key:
            return
        if not self.numbered_by_project or self.identity.whole is not self.identity:
            return
        name, place = self.type.name, self.identity.place(self.type.name)
        if place is None:
            self.identity.set_place(name, self.project_key)
        elif place.lower() != self.project_key.lower():
            raise ConfigError(
                f"{self.identity!r} has the numbers of {name} records in the project {place!r}; in "
                f"{self.project_key!r} they are those of other objects",
                hint="use an identity map and a version index of its own for each project; if the "
                f"project was renamed, call identity.set_place({name!r}, {self.project_key!r})",
            )

    def _check_ids(self) -> None:
        """Raise ``ConfigError`` if the identity map is one of more, or of fewer, projects."""
        if self.identity is None or self.keys or self.project_key is None:
            return
        if not self.numbered_by_project:
            return
        several = self.identity.whole is not self.identity
        colons = (self.resource.within is not None) + several
        for id in self.identity.ids(self.type.name):
            if id.count(":") != colons:
                wrong = "does not say in which project it is" if several else "names a project"
                raise ConfigError(
                    f"{self.identity!r} has the id {id} of a {self.type.name}, which {wrong}: a "
                    f"store of {'one project' if several else 'several projects'} has written it",
                    hint="use an identity map and a version index of its own for this store",
                )

    # -- webhooks ----------------------------------------------------------------------------------

    def concerns(self, hint: Hint) -> bool:
        if hint.what not in (self.shape.__record__.name, self.type.name):
            return False
        if not hint.place or self.project_key is None:
            return True
        return hint.place.lower() == self.project_key.lower()

    def hinted_key(self, hint: Hint) -> str | None:
        if hint.id and len(self.keys) == 1 == len(self.type.keys):
            return self.type.key_of(hint.id)
        return super().hinted_key(hint)

    # -- objects -----------------------------------------------------------------------------------

    def create(self, key: str, members: Mapping[str, Any]) -> Answer:
        self._check_allowed("create", key)
        # A new object has no values unless the request sets them, so None need not be sent.
        given = {name: value for name, value in members.items() if value is not None}
        preset = {n: s.new for n, s in self.view_slots.items() if n in given and s.new is not None}
        body = self.fill({name: v for name, v in given.items() if name not in preset}, None)
        rest = {name: given[name] for name, new in preset.items() if given[name] != new}
        self.fill(rest, None)  # raises RejectedError before anything is created
        self.complete_new(body)
        self.mark(body, key)
        answer = self.post(key, body)
        if not rest:
            return answer
        if self.identity is not None:
            # The object exists now, even if the second request fails.
            self.identity.bind(self.type.name, key, self.id_made(answer, members))
        changed = self.modify(key, Object(self.placed(key, self.data_of(answer))), rest)
        return changed if self.resource.returns else answer

    def modify(self, key: str, found: Object, members: Mapping[str, Any]) -> Answer:
        for name in self._told & set(members):
            self._check_project(name, members[name])
        members = {name: value for name, value in members.items() if name not in self._told}
        if not members:
            return Answer(204, {}, b"", self.service.url)  # nothing that the tracker takes
        self._check_allowed("modify", key)
        for name in members:
            if fixed := self.view_slots[name].fixed:
                raise RejectedError(f"{self.type.name} {key!r} {fixed}")
        return self.send(key, found, self.fill(members, None))

    def send(self, key: str, found: Object, body: dict[str, Any]) -> Answer:
        """Send the request that changes an object, and return the answer.

        ``found``: the object as it was read. ``body``: the changed members only.
        """
        return self.sent(self.resource.update, self.known_path(key), body, if_match(found))

    def destroy(self, key: str, found: Object) -> None:
        self._check_allowed("destroy", key)
        if not self.destroyer:
            super().destroy(key, found)
            return
        answer = self.service.request("DELETE", self.known_path(key), allow=OF_ONE_WRITE | {403})
        if answer.status == 403:
            raise RejectedError(
                f"{self.tracker} does not let eventsync delete {self.type.name} {key!r}",
                hint=f"only {self.destroyer} may delete it; it can be closed instead",
            )
        if answer.status not in (404, 410):
            self.accepted("DELETE", answer)
        self.forget(key)

    def among(
        self, found: Iterable[dict[str, Any]], matches: Callable[[dict[str, Any]], bool]
    ) -> Object | None:
        """Return the first matching object of a list, for objects that cannot be read one by one.

        Raises ``RecordError`` if none matches and one is unreadable, because that one may match.
        """
        unreadable: RecordError | None = None
        for data in found:
            if isinstance(data, Unreadable):
                unreadable = data.error
            elif matches(data):
                return Object(data)
        if unreadable is not None:
            raise unreadable
        return None

    def is_partial(self, data: dict[str, Any]) -> bool:
        return False  # trackers leave out members without a value, and list whole objects

    def values_in(self, data: dict[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, slot in self.view_slots.items():
            if slot is _PROJECT:
                values[name] = self.project_key
                continue
            found = place(slot.at).read(data)
            if found is ABSENT and (name in self._keys or not _is_none(data, slot)):
                continue  # the object does not contain the value
            value = self._read(name, slot, None if found is ABSENT else found)
            if slot.of and value is not None:
                value = self.referred(name, str(value))
            values[name] = value
        return values

    def _read(self, name: str, slot: Slot, value: Any) -> Any:
        try:
            return slot.read(value)
        except Exception as error:
            raise RecordError(
                f"{self.type.name}.{name}: the value {shown(value)} at {slot.at!r} in the answer "
                f"of {self.tracker} cannot be read: {type(error).__name__}: {error}"
            ) from error

    def fill(self, members: Mapping[str, Any], body: dict[str, Any] | None) -> dict[str, Any]:
        filled: dict[str, Any] = {} if body is None else body
        for name, value in members.items():
            slot = self.view_slots.get(name)
            if slot is None:
                continue  # a key field, for which the tracker has an id
            if name in self._told:
                self._check_project(name, value)
                continue
            if value is None and slot.kept:
                raise RejectedError(f"{self.tracker} {slot.kept}")
            if slot.of:
                value = self.reference(name, value)
            if slot.words is not None:
                if value not in slot.words:
                    raise RejectedError(
                        f"{self.tracker} knows no {name} {value!r} of {self.type.name}",
                        hint="use one of " + ", ".join(sorted(map(repr, slot.words))),
                    )
                value = slot.words[value]
            if slot.target:
                put(filled, slot.target, slot.write(value))
        return filled

    def _check_project(self, name: str, value: Any) -> None:
        if name == "project" and value is not None and value != self.project_key:
            raise RejectedError(
                f"a {self.type.name} of the project {value!r} does not belong in {self!r}, which "
                f"holds those of {self.project_key!r}",
                hint=f'give the view where={{"project": {self.project_key!r}}}',
            )

    def _check_allowed(self, operation: str, key: str) -> None:
        if operation in self.refuses:
            raise RejectedError(
                f"{self.tracker} does not {operation} {self.type.name} {key!r}: "
                f"{self.refuses[operation]}"
            )

    # -- references --------------------------------------------------------------------------------

    def depends_on(self, other: Accessor[Any]) -> bool:
        return other.type.name in self._types.values()

    def reference(self, name: str, value: str | None) -> str | None:
        """Return the name or id that the tracker has for the record to which a field refers.

        ``name``: the name of the field. ``value``: the key of the record, or ``None``, which is
        returned as it is. Raises ``DependencyError`` if the tracker does not hold the record yet.
        """
        if value is None:
            return None
        key, named = join_key([value]), self.view_slots[name].of in self.named
        known = self._map_for(name)
        id = None if known is None else known.id_of(self._types[name], key)
        if id is None and known is not None and not named:
            # The record may not be captured yet; then its key is made from the id in the tracker.
            id = known.id_minted(key)
            if id is not None and not self.id_form.fullmatch(id):
                id = None  # no id of this tracker; in a path, it could lead to another object
            if id is None and known.whole.id_of(self._types[name], key) is not None:
                raise RejectedError(
                    f"{self.type.name}.{name} refers to {self._types[name]} {value!r}, which is "
                    f"not in the project {self.project_key!r}",
                    hint=f"use one of this project; {self.tracker} links none of another",
                )
        if id is None and named:
            id = value
        if id is None:
            raise self.missing(name, value)
        return id

    def _map_for(self, name: str) -> IdentityMap | None:
        """Return the identity map for a field: names are the same in all projects, ids are not."""
        if self.identity is None or self.view_slots[name].of not in self.named:
            return self.identity
        return self.identity.whole

    def missing(self, name: str, value: str) -> DependencyError:
        """Return the error for a reference to a record that is not in the tracker yet.

        ``name``: the field with the reference. ``value``: the key of the missing record.
        """
        return DependencyError(
            f"{self.type.name}.{name} refers to {self._types[name]} {value!r}, which is not in "
            f"{self.service.url} yet"
        )

    def referred(self, name: str, id: str) -> str | None:
        """Return the key of the record to which a field refers; the inverse of ``reference``.

        ``name``: the name of the field. ``id``: the name or id in the tracker.
        """
        known = self._map_for(name)
        key = None if known is None else known.key_of(self._types[name], id)
        if key is not None:
            return split_key(key)[0]
        named = self.view_slots[name].of in self.named
        return id if named or self.identity is None else split_key(self.identity.minted(id))[0]


def _is_none(data: Any, slot: Slot) -> bool:
    """Return whether a member that is not in an object is known to have no value."""
    for name in slot.at.split("."):
        if data is None:
            return True  # null in place of the object with the member
        if not isinstance(data, dict) or name not in data:
            return slot.omitted
        data = data[name]
    return data is None


def sorted_names(names: Iterable[Any]) -> list[str]:
    """Return the names sorted and without duplicates, because trackers do not keep their order."""
    return sorted({str(name) for name in names})
