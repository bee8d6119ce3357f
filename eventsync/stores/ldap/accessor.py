"""The accessor of records that are entries of an LDAP directory.

It owns their names and what becomes of them. It knows nothing of other stores.

A directory has neither transactions nor a place for versions, so these are in an index beside it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from string import Formatter
from typing import Any, ClassVar, Final, Literal, TypeVar

from eventsync.engine.accessor import Accessor
from eventsync.errors import ConfigError, RejectedError, StoreUnavailableError
from eventsync.records.key import split as split_key
from eventsync.records.query import Query
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.ldap.attribute import Attributes
from eventsync.stores.ldap.directory import Directory

__all__ = ["LdapAccessor", "escaped"]

R = TypeVar("R", bound=Record)
_SAFE: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
_STATE: Final = "entryCSN"
"""An attribute that every change of an entry alters, of servers that have it."""


def escaped(value: str) -> str:
    """A value as it may stand in a distinguished name (RFC 4514)."""
    return "".join(
        sign if sign in _SAFE else "".join(f"\\{byte:02x}" for byte in sign.encode())
        for sign in value
    )


class LdapAccessor(Accessor[R]):
    """Records of one type as the entries of a directory.

    ``url``: ``ldap://host`` or ``ldaps://host``. ``dn``: how entries are named, with the key fields
    in braces, as ``uid={uid},ou=people,dc=example,dc=org``; the parent has to be there.
    ``object_classes``: of a new entry; entries of the first one are found. ``user``, ``password``:
    to bind with; nobody without. ``tls``: ``"starttls"`` to encrypt an ``ldap://`` connection
    before the password is sent; certificates are checked, against those in ``ca_file`` or the
    system's. ``referrals``: follow the server to others, with the same password. ``timeout``: of a
    connection and of each answer, in seconds. ``page``: how many entries to ask for at once.

    A list of scalars is an attribute with several values, which a directory keeps as a set: a list
    that holds a value twice is refused, and their order may change. An empty list, and an empty
    text where ``None`` is no value, is the absence of the attribute. Attributes that the view does
    not name stay as they are.

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
            raise ConfigError(f"{self.type.name}: object_classes is a list of at least one")
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
        # By key, the state in which an entry was last read here.
        self._states: dict[str, bytes] = {}

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
            raise ConfigError(f"dn={dn!r} has to name {fields}, each once, and nothing else")
        last, name = self._parts[-1]
        self._base = last.partition(",")[2].strip() if name is None else ""
        if not self._base:
            raise ConfigError(
                f"dn={dn!r} does not say below which entry the records are",
                hint="as in uid={uid},ou=people,dc=example,dc=org",
            )
        self._deep = any("," in literal for literal, name in self._parts[1:] if name is not None)

    def dn_of(self, key: str) -> str:
        """The distinguished name of the entry of that key."""
        texts = dict(zip(self.type.keys, split_key(key), strict=True))
        return "".join(
            literal if name is None else literal + escaped(texts[name])
            for literal, name in self._parts
        )

    # -- lifecycle ---------------------------------------------------------------------------------

    def ensure(self) -> None:
        self.ping()

    def ping(self) -> None:
        if self._directory.entry(self._base, ["1.1"]) is None:  # "1.1": no attribute
            raise ConfigError(
                f"{self._directory.url} has no entry {self._base!r}, below which "
                f"{self.type.name} are",
                hint="create it, correct dn=, or let this user read it",
            )

    def close(self) -> None:
        self._directory.close()

    # -- the six -----------------------------------------------------------------------------------

    def add(self, record: R) -> None:
        key, data = record.key, self.record_to_data(record)
        dn = self.dn_of(key)
        given = {name: values for name, values in data.items() if values}
        if self._directory.add(dn, self._classes, given):
            return
        held = self._directory.entry(dn, self._names)
        if held is not None:
            other = self.data_to_record(held).key
            if other != key:
                raise RejectedError(
                    f"the directory takes {dn!r} for the same as the entry of {other!r}",
                    hint="the attribute ignores case or blanks, so keys have to differ in more",
                )
        self.update(record)

    def update(self, record: R) -> None:
        changed = record.changes() if record.is_dirty else record.raw()
        own = [name for name in self.type.keys if name in changed]
        stored = self.view.to_store({n: held for n, held in changed.items() if n not in own})
        state = self._states.pop(record.key, None)
        dn = self.dn_of(record.key)
        only_if = None if state is None else (_STATE, state)
        if stored and not self._directory.replace(dn, self._attributes.encode(stored), only_if):
            raise StoreUnavailableError(
                f"{dn} was changed by somebody else at the same moment", hint="it is tried again"
            )

    def get(self, key: str) -> R | None:
        state = [_STATE] if self._directory.can_assert() else []
        found = self._directory.entry(self.dn_of(key), [*self._names, *state])
        if found is None:
            return None
        record = self.data_to_record(found)
        if record.key != key:
            return None  # the directory ignores case or blanks, we do not
        if found.get(_STATE):
            self._states[key] = found[_STATE][0]
        return record

    def find(self, query: Query) -> Iterable[R]:
        entries = self._directory.entries(
            self._base, self._classes[0], self._names, deep=self._deep
        )
        return query.select(self.read(entries, query))

    def remove(self, key: str) -> None:
        if self.get(key) is not None:
            self._states.pop(key, None)
            self._directory.delete(self.dn_of(key))

    def record_to_data(self, record: R) -> dict[str, list[bytes]]:
        """The values of the entry's attributes, all in lists; an empty one is no attribute."""
        return self._attributes.encode(super().record_to_data(record))

    def data_to_record(self, data: Any) -> R:
        return super().data_to_record(self._attributes.decode(data))
