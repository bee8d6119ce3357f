"""The attribute names of a directory: one attribute has several names, in any case.

``sn``, ``SN``, ``surname`` and ``2.5.4.4`` are one attribute. A server answers with the name that
it prefers, not with the one that was requested (RFC 4512, section 2.5).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from eventsync.errors import ConfigError, RecordError

try:
    from ldap3.core.exceptions import LDAPException
    from ldap3.protocol.rfc4512 import AttributeTypeInfo, ObjectClassInfo
except ImportError as error:  # pragma: no cover - the message is all there is to it
    raise ConfigError("the LDAP store needs ldap3", hint="pip install 'eventsync[ldap]'") from error

__all__ = ["STATE", "AttributeNames", "Schema"]

STATE: Final = "entryCSN"
"""An attribute that changes whenever an entry changes. Some servers do not have it."""
_BINARY: Final = "binary"
_RANGE: Final = "range="


class Schema:
    """The attribute types and object classes that a server declares. Immutable.

    ``types``, ``classes``: the values of ``attributeTypes`` and ``objectClasses`` of the subschema
    entry; empty if the server does not show them.
    """

    def __init__(self, types: Sequence[bytes] = (), classes: Sequence[bytes] = ()) -> None:
        self._types = {
            name.lower(): info
            for info in _parsed(AttributeTypeInfo, types)
            for name in (info.oid, *(info.name or ()))
        }
        self._canonical = {name: info.oid for name, info in self._types.items()}
        self._classes = {
            name.lower(): info
            for info in _parsed(ObjectClassInfo, classes)
            for name in (info.oid, *(info.name or ()))
        }

    @property
    def is_known(self) -> bool:
        """Return whether the server lets the user read its attribute types."""
        return bool(self._canonical)

    def declares(self, name: str) -> bool:
        """Return whether the server declares the attribute with this name."""
        return _split(name)[0] in self._canonical

    def identity(self, name: str) -> str:
        """Return a text that is the same for all names of one attribute, options included."""
        base, options = _split(name)
        return ";".join([self._canonical.get(base, base), *sorted(options)])

    def ignores_case(self, name: str) -> bool:
        """Return whether two values of an attribute that differ only in case are equal."""
        seen: set[str] = set()
        waiting = [_split(name)[0]]
        while waiting:
            base = waiting.pop()
            info = None if base in seen else self._types.get(base)
            seen.add(base)
            if info is None:
                continue
            if info.equality:
                # RFC 4517 names these rules caseIgnoreMatch, caseIgnoreIA5Match and so on.
                return any("caseignore" in rule.lower() for rule in info.equality)
            waiting += [superior.lower() for superior in info.superior or ()]
        return False

    def required(self, classes: Iterable[str]) -> set[str]:
        """Return the identities of the attributes that each entry of these classes has."""
        found: set[str] = set()
        waiting, seen = [name.lower() for name in classes], set()
        while waiting:
            name = waiting.pop()
            info = None if name in seen else self._classes.get(name)
            seen.add(name)
            if info is not None:
                found.update(map(self.identity, info.must_contain or ()))
                waiting += [superior.lower() for superior in info.superior or ()]
        return found


class AttributeNames:
    """The attributes that a view names, and how to find them in the answer of a server.

    ``names``: the view's names. Raises ``ConfigError`` if two of them are one attribute, or if the
    server declares no attribute of a name: it would be read as blank. ``classes``: the object
    classes that every entry has. ``owner``: the record type, for messages.
    """

    def __init__(
        self, names: Sequence[str], schema: Schema, *, classes: Sequence[str] = (), owner: str
    ) -> None:
        required = schema.required(classes)
        self._required = [name for name in names if schema.identity(name) in required]
        self._schema = schema
        self._owner = owner
        self._names: dict[str, str] = {}
        unknown = [repr(n) for n in names if schema.is_known and not schema.declares(n)]
        if unknown:
            raise ConfigError(
                f"{owner}: the directory declares no attribute {' and '.join(unknown)}, so all "
                "entries would be read without a value",
                hint="correct the name in the view (rename=), or add it to the directory's schema",
            )
        for name in names:
            other = self._names.setdefault(schema.identity(name), name)
            if other != name:
                raise ConfigError(
                    f"{owner}: {other!r} and {name!r} are one attribute in the directory",
                    hint="name each attribute once in the view",
                )

    def renamed(self, found: Mapping[str, list[bytes]]) -> dict[str, list[bytes]]:
        """Return the attributes of an entry by the view's names; others keep their names.

        Raises ``RecordError`` if the answer cannot be the whole entry: the server returned only a
        part of the values of an attribute, or no value of one that every such entry has.
        """
        result: dict[str, list[bytes]] = {}
        for name, values in found.items():
            base, options = _split(name)
            part = next((option for option in options if option.startswith(_RANGE)), None)
            own = self._names.get(self._schema.identity(name))
            if own is None:
                # Options that describe the transfer of an attribute, not another attribute.
                plain = [o for o in options if o != _BINARY and o != part]
                own = self._names.get(self._schema.identity(";".join([base, *plain])))
            if own is not None and part is not None:
                raise RecordError(
                    f"{self._owner}: the server returned only a part of the values of {own!r} "
                    f"({part}), because an entry has too many",
                    hint="raise the server's limit (MaxValRange in Active Directory), or leave "
                    "the field out of the view",
                )
            if own is None and not options and not self._schema.is_known and base != STATE.lower():
                raise RecordError(
                    f"{self._owner}: the server returned the attribute {name!r}, which is another "
                    "name of one that was requested",
                    hint=f"use {name!r} in the view (rename=), or let eventsync's user read the "
                    "server's schema",
                )
            result[name if own is None else own] = values
        for name in self._required:
            if not result.get(name):
                raise RecordError(
                    f"{self._owner}: an entry has no value of {name!r}, although its object "
                    "class requires one",
                    hint="give eventsync's user the right to read this attribute",
                )
        return result


def _parsed(kind: Any, definitions: Iterable[bytes]) -> Iterator[Any]:
    for definition in definitions:
        try:
            yield from kind.from_definition([definition.decode()]).values()
        except (ValueError, LDAPException):
            continue  # an unusual definition; its attribute is known by the name requested


def _split(name: str) -> tuple[str, list[str]]:
    """Return the attribute type in lower case, and the options of an attribute description."""
    base, *options = name.lower().split(";")
    return base, options
