"""What the accessors of all issue trackers share: tables of fields, references, refusals.

It owns the translation between a record's fields and the slots of a tracker's objects. It knows no
tracker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from eventsync.engine.accessor import Accessor
from eventsync.errors import ConfigError, DependencyError, RejectedError
from eventsync.records.key import join as join_key
from eventsync.records.key import split as split_key
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest import ABSENT, Answer, Object, Resource, RestAccessor, Service
from eventsync.stores.rest.path import place, put
from eventsync.stores.trackers.slot import Slot

__all__ = ["TrackerAccessor", "sorted_names"]

R = TypeVar("R", bound=Record)


class TrackerAccessor(RestAccessor[R]):
    """Records of one type in an issue tracker: a table, and code only for what is odd.

    ``base``: what the ``./`` stands for in the paths of ``where``.

    A tracker derives a class from this for each kind of record. References to records of the types
    in ``named`` are names in the tracker too, as of an account: they are the record's key, unless
    the identity map says otherwise. Other references are ids of the tracker.
    """

    alters: ClassVar[bool] = False
    tracker: ClassVar[str]
    """The name of the tracker, for messages."""
    shape: ClassVar[type[Record]]
    """The record type whose names the table uses. A type of your own needs a view to these."""
    where: ClassVar[Resource]
    """Where the objects are; names of key fields in its paths are those of ``shape``."""
    keys: ClassVar[tuple[Slot, ...]] = ()
    """The key fields, in their order, of records that are known by a name of their own."""
    slots: ClassVar[Mapping[str, Slot]] = {}
    """The other fields. What is not in it is left out, unless a view says otherwise."""
    refuses: ClassVar[Mapping[str, str]] = {}
    """Why the tracker does not ``create``, ``modify`` or ``destroy`` such objects."""
    destroyer: ClassVar[str] = ""
    """Who may destroy them, if that takes another right than to write them."""
    named: ClassVar[frozenset[str]] = frozenset({"Account", "Group", "Label", "Project"})

    def __init__(
        self,
        record_type: type[R],
        service: Service,
        base: str = "",
        *,
        view: View | None = None,
        identity: IdentityMap | None = None,
    ) -> None:
        own, theirs = record_type.__record__, self.shape.__record__
        if view is None:
            lacks = (name for name in theirs.fields if name not in {*self.slots, *theirs.keys})
            view = View(omit=tuple(name for name in lacks if name in own.fields))
        rename = dict(zip(theirs.keys, own.keys, strict=False)) if self.keys else {}
        super().__init__(
            record_type,
            service,
            self.where.under(base, rename=rename),
            view=view,
            identity=identity,
        )
        stored = self.view.names
        names = zip((stored[name] for name in self.type.keys), self.keys, strict=False)
        self._keys = dict(names)
        fields = {name for field, name in stored.items() if field not in self.type.keys}
        fields |= set(self.view.constant)
        foreign = sorted(fields - set(self.slots))
        if foreign:
            raise ConfigError(
                f"{type(self).__name__} holds no {', '.join(map(repr, foreign))} of "
                f"{self.type.name}",
                hint="leave it out or rename it in the view; it holds "
                + ", ".join(sorted(self.slots)),
            )
        self.held: dict[str, Slot] = {
            **self._keys,
            **{name: slot for name, slot in self.slots.items() if name in fields},
        }
        """By the view's names, the slots of what the view holds."""
        self._types = {name: slot.of for name, slot in self.held.items() if slot.of}
        for field, name in stored.items():
            target = getattr(self.type.fields[field].annotation, "__record__", None)
            if name in self._types and target is not None:
                self._types[name] = target.name

    # -- objects -----------------------------------------------------------------------------------

    def create(self, key: str, members: Mapping[str, Any]) -> Answer:
        self._may("create", key)
        # A new object has nothing where nothing is said.
        said = {name: held for name, held in members.items() if held is not None}
        late = {n: s.new for n, s in self.held.items() if n in said and s.new is not None}
        body = self.fill({name: held for name, held in said.items() if name not in late}, None)
        rest = {name: said[name] for name, new in late.items() if said[name] != new}
        self.fill(rest, None)  # what is rejected is so before anything is created
        self.mark(body, key)
        answer = self.post(key, body)
        if not rest:
            return answer
        if self.identity is not None:
            # From here on it is there, whatever becomes of the rest.
            self.identity.bind(self.type.name, key, self.id_made(answer, members))
        changed = self.modify(key, Object(self.placed(key, self.data_of(answer))), rest)
        return changed if self.resource.returns else answer

    def modify(self, key: str, found: Object, members: Mapping[str, Any]) -> Answer:
        self._may("modify", key)
        for name in members:
            if fixed := self.held[name].fixed:
                raise RejectedError(f"{self.type.name} {key!r} {fixed}")
        return self.send(key, found, self.fill(members, None))

    def send(self, key: str, found: Object, body: dict[str, Any]) -> Answer:
        """Send the body of a change: what changed, and nothing else."""
        path = self.path_of(key)
        assert path is not None
        headers = {"If-Match": found.etag} if found.etag else {}
        return self.sent(self.resource.update, path, body, headers)

    def destroy(self, key: str, found: Object) -> None:
        self._may("destroy", key)
        if not self.destroyer:
            super().destroy(key, found)
            return
        path = self.path_of(key)
        assert path is not None
        if self.service.request("DELETE", path, allow=(403, 404)).status == 403:
            raise RejectedError(
                f"{self.tracker} does not let eventsync delete {self.type.name} {key!r}",
                hint=f"only {self.destroyer} may; it can be closed instead",
            )
        if self.identity is not None:
            self.identity.forget(self.type.name, key)

    def values_in(self, data: dict[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, slot in self.held.items():
            held = place(slot.at).read(data)
            if held is ABSENT and name in self._keys:
                continue  # it was asked for by its key
            value = slot.read(None if held is ABSENT else held)
            if slot.of and value is not None:
                value = self.referred(name, str(value))
            values[name] = value
        return values

    def fill(self, members: Mapping[str, Any], body: dict[str, Any] | None) -> dict[str, Any]:
        sent: dict[str, Any] = {} if body is None else body
        for name, held in members.items():
            slot = self.held.get(name)
            if slot is None:
                continue  # the key, in whose place the tracker has an id
            if held is None and slot.kept:
                raise RejectedError(f"{self.tracker} {slot.kept}")
            if slot.of:
                held = self.reference(name, held)
            if slot.words is not None:
                if held not in slot.words:
                    raise RejectedError(
                        f"{self.tracker} knows no {name} {held!r} of {self.type.name}",
                        hint="it knows " + ", ".join(sorted(map(repr, slot.words))),
                    )
                held = slot.words[held]
            if slot.target:
                put(sent, slot.target, slot.write(held))
        return sent

    def _may(self, what: str, key: str) -> None:
        if what in self.refuses:
            raise RejectedError(
                f"{self.tracker} does not {what} {self.type.name} {key!r}: {self.refuses[what]}"
            )

    # -- references --------------------------------------------------------------------------------

    def depends_on(self, other: Accessor[Any]) -> bool:
        return other.type.name in self._types.values()

    def reference(self, name: str, held: str | None) -> str | None:
        """What the tracker knows the record by that the field ``name`` refers to.

        ``held``: the value of that record's key field. Raises ``DependencyError`` if it is not here
        yet.
        """
        if held is None:
            return None
        key, named = join_key([held]), self.held[name].of in self.named
        id = None if self.identity is None else self.identity.id_of(self._types[name], key)
        if id is None and self.identity is not None and not named:
            # One that others created there, and that was not captured yet.
            begins = self.identity.minted("")
            id = key.removeprefix(begins) if key.startswith(begins) else None
        if id is None and named:
            id = held
        if id is None:
            raise self.missing(name, held)
        return id

    def missing(self, name: str, held: str) -> DependencyError:
        """The error that a record refers to one that is not in the tracker yet."""
        return DependencyError(
            f"{self.type.name}.{name} refers to {self._types[name]} {held!r}, which is not in "
            f"{self.service.url} yet"
        )

    def referred(self, name: str, id: str) -> str | None:
        """The key's value of the record that the tracker knows by ``id``: ``reference`` undone."""
        key = None if self.identity is None else self.identity.key_of(self._types[name], id)
        if key is not None:
            return split_key(key)[0]
        named = self.held[name].of in self.named
        return id if named or self.identity is None else self.identity.minted(id)


def sorted_names(names: Iterable[Any]) -> list[str]:
    """Names in one order, since trackers keep them as a set."""
    return sorted({str(name) for name in names})
