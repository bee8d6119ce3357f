"""The accessor of records that are entries of an LDAP directory.

A directory has no transactions and no place for versions, so the store keeps the versions in a
version index outside the directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from string import Formatter
from typing import Any, ClassVar, Final, Literal, TypeVar
from uuid import UUID

from eventsync.engine.accessor import Accessor
from eventsync.engine.finding import Finding, Level
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

__all__ = ["LdapAccessor", "escaped"]

R = TypeVar("R", bound=Record)
_SAFE: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


def escaped(value: str) -> str:
    """Return a value with escapes, so that a distinguished name can contain it (RFC 4514)."""
    return "".join(
        sign if sign in _SAFE else "".join(f"\\{byte:02x}" for byte in sign.encode())
        for sign in value
    )


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
