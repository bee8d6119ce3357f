"""The scope of a signing key: the changes that may be signed with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Final

from eventsync.changes.change import Change
from eventsync.changes.stamp import DELETE, PATCH, PUT
from eventsync.errors import ConfigError, EnvelopeError, ValueRefusedError, shown

__all__ = ["KeyScope"]

_OPS: Final = frozenset({PUT, PATCH, DELETE})


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyScope:
    """The changes that may be signed with a key. ``None`` in a part means no limit.

    ``types``: the record types. ``ops``: the operations, of ``put``, ``patch`` and ``delete``.
    ``sources``: the stores or producers that a change may name as its origin. ``fields``: the
    fields that a put or patch may hold, by record type; the key fields of a put count, too. A
    record type that is not in the mapping has no limit.

    ``bool()`` is false if there is no limit at all.
    """

    types: frozenset[str] | None = None
    ops: frozenset[str] | None = None
    sources: frozenset[str] | None = None
    fields: Mapping[str, frozenset[str]] | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, part.name) is not None for part in fields(self))

    def __str__(self) -> str:
        return " ".join(self._words())

    @classmethod
    def parse(cls, words: list[str], kid: str) -> KeyScope:
        """Return the scope that words such as ``types=Customer,Order`` and ``ops=put`` describe.

        Fields are written ``fields=Customer.name,Customer.city``. ``kid``: the id of the key, for
        errors. Raises ``ConfigError`` if a word is not of this form or occurs twice.
        """
        given: dict[str, frozenset[str]] = {}
        names = [part.name for part in fields(cls)]
        for number, word in enumerate(words, 1):
            name, equals, listed = word.partition("=")
            if not equals or name not in names or name in given or not all(listed.split(",")):
                # The error does not show the word: after a stray space it may be the key itself.
                raise ConfigError(
                    f"limit {number} of the signing key {kid!r} is wrong",
                    hint=f"after the key write each of {', '.join(names)} at most once, for "
                    "example types=Customer,Order ops=put,patch fields=Customer.name sources=crm",
                )
            given[name] = frozenset(listed.split(","))
        unknown = given.get("ops", _OPS) - _OPS
        if unknown:
            raise ConfigError(
                f"the signing key {kid!r} is limited to the operation {min(unknown)!r}, which does "
                "not exist",
                hint="operations are put, patch and delete",
            )
        of_type: dict[str, frozenset[str]] = {}
        for pair in sorted(given.pop("fields", ())):
            type_, dot, name = pair.rpartition(".")
            if not dot or not type_ or not name:
                raise ConfigError(
                    f"the signing key {kid!r} is limited to the field {pair!r} of no record type",
                    hint="write the type and the field, for example fields=Customer.name",
                )
            of_type[type_] = of_type.get(type_, frozenset()) | {name}
        return cls(**given, fields=MappingProxyType(of_type) if of_type else None)

    def refusal(self, change: Change, kid: str) -> EnvelopeError | None:
        """Return why ``change`` is not in this scope, or ``None`` if it is. Pure.

        ``kid``: the id of the key, for the error. Its ``reason`` is ``not-permitted``.
        """
        for what, value, allowed in (
            ("record type", change.type, self.types),
            ("operation", change.op, self.ops),
            ("source", change.source, self.sources),
        ):
            if allowed is not None and value not in allowed:
                return _not_permitted(kid, f"the {what} {shown(value)}", allowed)
        if self.fields is None or change.type not in self.fields:
            return None
        allowed = self.fields[change.type]
        for name in _written(change):
            if name not in allowed:
                return _not_permitted(kid, f"the field {shown(name)} of {change.type}", allowed)
        return None

    def _words(self) -> list[str]:
        words = [
            f"{name}={','.join(sorted(part))}"
            for name in ("types", "ops", "sources")
            if (part := getattr(self, name)) is not None
        ]
        if self.fields is not None:
            pairs = [f"{type_}.{n}" for type_, names in self.fields.items() for n in names]
            words.append(f"fields={','.join(sorted(pairs))}")
        return words


def _written(change: Change) -> list[str]:
    """Return the names of the fields that ``change`` may write in some store.

    The fields in the base state of a patch count, because a store that lacks the record takes them.
    """
    try:
        names = [*(change.data or {})]
    except ValueRefusedError:
        names = []  # nothing can be read from the body, so nothing is written
    return names + ([] if change.known is None else [*change.known.values])


def _not_permitted(kid: str, what: str, allowed: frozenset[str]) -> EnvelopeError:
    return EnvelopeError(
        f"the key {kid!r} may not sign changes with {what}",
        reason="not-permitted",
        hint=f"it may sign {', '.join(sorted(allowed))}; sign with another key, or widen the "
        "limits of this one",
    )
