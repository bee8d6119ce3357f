"""The accessor of records that are entries of an LDAP directory.

A directory has no transactions and no place for versions, so the store keeps the versions in a
version index outside the directory.
"""

from __future__ import annotations

import datetime as dt
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from string import Formatter
from typing import Any, ClassVar, Final, Literal, TypeVar
from uuid import UUID

from eventsync.engine.accessor import Accessor
from eventsync.engine.change_source import ChangeSource
from eventsync.engine.finding import Finding, Level
from eventsync.engine.isolation import concerns_all, record_error
from eventsync.errors import (
    ConfigError,
    RecordError,
    StoreUnavailableError,
    UniqueError,
    shown,
)
from eventsync.records.key import split as split_key
from eventsync.records.query import Query
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.ldap.attribute import Attributes
from eventsync.stores.ldap.directory import Directory, Found
from eventsync.stores.ldap.schema import STATE, AttributeNames, Schema
from eventsync.stores.ldap.sync import LdapSync

__all__ = ["LdapAccessor", "escaped"]

R = TypeVar("R", bound=Record)
_STAMPS: Final = ("entryCSN", "whenChanged", "modifyTimestamp")
"""The attributes that say when an entry was written, the best first: of OpenLDAP, of Active
Directory, which cannot search for the next one, and of any server (RFC 4512)."""
# Writes that run at the same time become visible in another order than that of their times.
_OVERLAP: Final = dt.timedelta(seconds=5)
_SAFE: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


def escaped(value: str) -> str:
    """Return a value with escapes, so that a distinguished name can contain it (RFC 4514)."""
    return "".join(
        sign if sign in _SAFE else "".join(f"\\{byte:02x}" for byte in sign.encode())
        for sign in value
    )


def _earlier(stamp: str) -> str:
    """Return the value of the same attribute a little before."""
    digits, rest = stamp[:14], stamp[14:]
    try:
        moment = dt.datetime.strptime(digits, "%Y%m%d%H%M%S") - _OVERLAP
    except ValueError:
        return stamp
    fraction = ".000000Z#000000#000#000000" if "#" in rest else rest or "Z"
    return f"{moment:%Y%m%d%H%M%S}{fraction}"


class LdapAccessor(Accessor[R]):
    """Records of one type as the entries of a directory.

    ``url``: ``ldap://host`` or ``ldaps://host``. ``dn``: the pattern of the distinguished name of
    an entry, with the key fields in braces, for example ``uid={uid},ou=people,dc=example,dc=org``.
    The parent entry must exist. ``object_classes``: the object classes of a new entry; ``find``
    returns the entries of the first class. ``user``, ``password``: the credentials for the bind;
    without them, the bind is anonymous. ``tls``: pass ``"starttls"`` to encrypt an ``ldap://``
    connection before the password is sent. ``ca_file``: the certificates to trust instead of those
    of the system. ``referrals``: follow referrals to other servers, and send them the same
    password. ``timeout``: the seconds to wait for a connection and for each answer. ``page``: how
    many entries one request asks for.

    A list of scalars is stored as an attribute with several values. A directory treats these values
    as a set: their order may change, and a list that holds a value twice is rejected. An empty list
    is stored as the absence of the attribute. An empty text in a field that is not optional is
    stored in the same way. Attributes that the view does not name stay as they are.

    The store needs a version index: ``Store(..., index=FileIndex(...))``.
    """

    atomic: ClassVar[bool] = False

    def __init__(
        self,
        record_type: type[R],
        url: str,
        *,
        dn: str,
        object_classes: Sequence[str],
        user: str | None = None,
        password: str | None = None,
        tls: Literal["starttls"] | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        referrals: bool = False,
        timeout: float = 10.0,
        page: int = 500,
        view: View | None = None,
    ) -> None:
        super().__init__(record_type, view=view)
        if not object_classes or isinstance(object_classes, str):
            raise ConfigError(
                f"{self.type.name}: object_classes={object_classes!r} names no object class",
                hint='pass a list with at least one, as in ["inetOrgPerson"]',
            )
        self._classes = list(object_classes)
        self._directory = Directory(
            url,
            user=user,
            password=password,
            starttls=tls == "starttls",
            ca_file=None if ca_file is None else os.fspath(ca_file),
            referrals=referrals,
            timeout=timeout,
            page=page,
        )
        self._parse(dn)
        self._attributes = Attributes(self.view)
        self._names = list(self.view.names.values())
        # Names that differ only in case are one attribute at every server.
        AttributeNames([*self._names, *self.view.constant], Schema(), owner=self.type.name)
        self._known: AttributeNames | None = None
        # By key: the value of the attribute STATE when this accessor last read the entry.
        self._states: dict[str, bytes] = {}
        # The attribute that says when an entry was written. "" if that is not known yet.
        self._stamp: str | None = ""
        # What ``changed_since`` has told last: its mark, and the stamps of the latest entries.
        self._told: tuple[str, dict[str, str]] = "", {}
        # By key, the form of the key in which the last ``find`` met the entry.
        self._others: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"LdapAccessor({self.type.name}, {self._directory.url!r}, {self._base!r})"

    def _parse(self, dn: str) -> None:
        try:
            self._parts = [(literal, name) for literal, name, *_ in Formatter().parse(dn)]
        except ValueError as error:
            raise ConfigError(f"dn={dn!r}: {error}") from None
        names = [name for _, name in self._parts if name is not None]
        if sorted(names) != sorted(self.type.keys):
            fields = " and ".join(f"{{{name}}}" for name in self.type.keys)
            raise ConfigError(f"dn={dn!r} must name {fields}, each once, and no other field")
        last, name = self._parts[-1]
        self._base = last.partition(",")[2].strip() if name is None else ""
        if not self._base:
            raise ConfigError(
                f"dn={dn!r} names no parent entry",
                hint="add the parent, as in uid={uid},ou=people,dc=example,dc=org",
            )
        self._deep = any("," in literal for literal, name in self._parts[1:] if name is not None)

    def dn_of(self, key: str) -> str:
        """Return the distinguished name of the entry for a key."""
        texts = dict(zip(self.type.keys, split_key(key), strict=True))
        return "".join(
            literal if name is None else literal + escaped(texts[name])
            for literal, name in self._parts
        )

    # -- lifecycle ---------------------------------------------------------------------------------

    def ensure(self) -> None:
        self.ping()

    def findings(self) -> Iterator[Finding]:
        schema = Schema(*self._directory.schema(self._base))
        if not schema.is_known:
            yield Finding(
                Level.NOTE,
                self.type.name,
                "this user may not read the directory's schema, so names of attributes are not "
                "checked; let it read the subschema entry",
            )
        for name in self.type.keys:
            attribute = self.view.names[name]
            if self.type.fields[name].type is str and schema.ignores_case(attribute):
                yield Finding(
                    Level.NOTE,
                    self.type.name,
                    f"the key attribute {attribute} ignores case: of two records whose keys differ "
                    "only in case, the later one is rejected",
                )

    def ping(self) -> None:
        if self._directory.entry(self._base, ["1.1"]) is None:  # "1.1": no attribute
            raise ConfigError(
                f"{self._directory.url}: no entry {self._base!r}, the parent of all "
                f"{self.type.name} records",
                hint="create it, correct dn=, or give this user the right to read it",
            )
        self._known = None  # the schema may have changed
        self._attribute_names()

    def _attribute_names(self) -> AttributeNames:
        """Return the attributes of the view, with the names that this server has for them.

        Raises ``ConfigError`` if the server declares no attribute with one of the names.
        """
        if self._known is None:
            self._known = AttributeNames(
                [*self._names, *self.view.constant],
                Schema(*self._directory.schema(self._base)),
                classes=self._classes[:1],  # an entry of others need not have the other classes
                owner=self.type.name,
            )
        return self._known

    def close(self) -> None:
        self._directory.close()

    # -- foreign writes ----------------------------------------------------------------------------

    @classmethod
    def sources(cls, accessors: Sequence[LdapAccessor[Any]], store: str) -> Sequence[ChangeSource]:
        return [LdapSync(accessors)]

    def stamp(self) -> str | None:
        """Return the attribute that says when an entry was written; ``None`` if there is none."""
        if self._stamp == "":
            found = self._directory.entry(self._base, list(_STAMPS)) or {}
            names = {name.lower() for name, values in found.items() if values}
            self._stamp = next((name for name in _STAMPS if name.lower() in names), None)
        return self._stamp

    def present_keys(self) -> set[str]:
        """Return the keys of all entries whose key can be read."""
        names = [self.view.names[name] for name in self.type.keys]
        found = self._directory.entries(self._base, self._classes[0], names, deep=self._deep)
        keys = (self._readable_key(self._named(data)) for data in found)
        return {key for key in keys if key is not None}

    def _named(self, found: Found) -> Found:
        """Return those key attributes that were found, under the names that the view has."""
        there = {name.lower(): values for name, values in found.items()}
        names = [self.view.names[name] for name in self.type.keys]
        return {name: there[name.lower()] for name in names if name.lower() in there}

    def changed_since(
        self, mark: str, unreadable: Callable[[RecordError], None] | None
    ) -> tuple[list[str], str] | None:
        stamp = self.stamp()
        if stamp is None:
            return None
        latest, _, _ = mark.partition(" ")
        told_mark, told = self._told
        if mark != told_mark:
            told = {}  # another process has gone on, or what was told last was not captured
        keys: dict[str, None] = {}
        stamps: dict[str, str] = {}
        since = (stamp, _earlier(latest)) if latest else None
        names = [self.view.names[name] for name in self.type.keys]
        for data in self._directory.entries(
            self._base, self._classes[0], [*names, stamp], deep=self._deep, since=since
        ):
            values = [v for name, v in data.items() if name.lower() == stamp.lower() and v]
            written = values[0][0].decode(errors="replace") if values else ""
            try:
                key = self.key_in(self._named(data))
            except Exception as error:
                if concerns_all(error) or unreadable is None:
                    raise
                unreadable(record_error(error, f"an entry below {self._base}"))
                continue
            stamps[key] = written
            latest = max(latest, written)
            if told.get(key) != written:
                keys[key] = None
        if keys:
            # Another mark each time, so that ``told`` is known to be captured.
            mark = f"{latest} {secrets.token_hex(4)}"
        floor = _earlier(latest)
        self._told = mark, {key: one for key, one in stamps.items() if one >= floor}
        return list(keys), mark

    # -- the six -----------------------------------------------------------------------------------

    def add(self, record: R) -> None:
        self._attribute_names()
        self._refuse(record.key)
        key, data = record.key, self.record_to_data(record)
        dn = self.dn_of(key)
        present = {name: values for name, values in data.items() if values}
        if self._directory.add(dn, self._classes, present):
            return
        existing = self._directory.entry(dn, self._names)
        if existing is not None:
            other = self.data_to_record(existing).key
            if other != key:
                raise UniqueError(
                    f"{dn!r} is already the entry of {self.type.name} {other!r}: the directory "
                    "considers both names the same",
                    hint="the naming attribute ignores case or blanks; use keys that differ in "
                    "more than these",
                )
        self.update(record)

    def update(self, record: R) -> None:
        self._attribute_names()
        changed = record.changes() if record.is_dirty else record.raw()
        own = [name for name in self.type.keys if name in changed]
        stored = self.view.to_store({n: value for n, value in changed.items() if n not in own})
        state = self._states.pop(record.key, None)
        dn = self.dn_of(record.key)
        only_if = None if state is None else (STATE, state)
        attributes = self._attributes.encode(stored)
        if stored and not self._directory.replace(dn, attributes, only_if):
            self.get(record.key)
            if self._states.pop(record.key, None) != state:
                raise StoreUnavailableError(
                    f"{dn}: another client changed the entry at the same moment",
                    hint="the change is retried",
                )
            # OpenLDAP's overlay ``unique`` answers that no assertion holds when an attribute that
            # it guards is written. The entry is unchanged, so it is written without an assertion.
            self._directory.replace(dn, attributes, None)

    def get(self, key: str) -> R | None:
        self._attribute_names()
        self._refuse(key)
        state = [STATE] if self._directory.can_assert() else []
        found = self._directory.entry(self.dn_of(key), [*self._names, *state])
        if found is None:
            return None
        record = self.data_to_record(found)
        if record.key != key:
            # A directory ignores case and blanks in names. Keys that differ in these are distinct.
            return None
        for name, values in found.items():
            if name.lower() == STATE.lower() and values:
                self._states[key] = values[0]
        return record

    def find(self, query: Query) -> Iterable[R]:
        self._attribute_names()
        self._others.clear()
        entries = self._directory.entries(
            self._base, self._classes[0], self._names, deep=self._deep
        )
        return query.select(self.read(entries, query))

    def remove(self, key: str) -> None:
        if self.get(key) is not None:
            self._states.pop(key, None)
            self._directory.delete(self.dn_of(key))

    def record_to_data(self, record: R) -> dict[str, list[bytes]]:
        """Return the list of values of each attribute. An empty list stands for no attribute."""
        return self._attributes.encode(super().record_to_data(record))

    def key_in(self, data: Any) -> str:
        names = [self.view.names[name] for name in self.type.keys]
        values = self._attributes.decode({name: data[name] for name in names})
        return super().key_in(values)

    def data_to_record(self, data: Any) -> R:
        found: Found = self._attribute_names().renamed(data)
        record = super().data_to_record(self._attributes.decode(found))
        for name, text in zip(self.type.keys, split_key(record.key), strict=True):
            values = [
                one.decode(errors="replace") for one in found.get(self.view.names[name]) or ()
            ]
            varies = self.type.fields[name].type in (int, UUID) and name not in self.view.convert
            # A directory itself ignores case in most names.
            if varies and text.casefold() not in map(str.casefold, values):
                self._others[record.key] = ", ".join(map(shown, values))
                self._refuse(record.key)
        return record

    def _refuse(self, key: str) -> None:
        """Raise ``RecordError`` if ``find`` met the entry of ``key`` under another form of it."""
        if key in self._others:
            raise RecordError(
                f"{self.type.name} {key!r} stands in the directory under the key "
                f"{self._others[key]}, but eventsync writes {self.dn_of(key)!r}: it would add a "
                "second entry",
                hint="rename the entry, or declare the key field as str",
            )
