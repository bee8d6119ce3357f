"""Redis keys of records, made from a pattern like ``customer:{id}``, and back.

No two records share a Redis key. Characters of a record's key that could be taken for a part of the
pattern are percent-escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from string import Formatter
from typing import Final
from urllib.parse import unquote

from eventsync.errors import ConfigError, RecordError
from eventsync.records import key as keys
from eventsync.records.record import RecordType

__all__ = ["KeyPattern"]

_WHOLE: Final = "key"
_GLOB: Final = re.compile(r"([*?\[\]\\^-])")


class KeyPattern:
    """The pattern of the Redis keys of one record type. Immutable, hence thread-safe.

    ``{name}`` is replaced by a key field, ``{key}`` by the record's whole key; ``{{`` and ``}}``
    are literal braces. Literal braces are a hash tag of Redis Cluster, as in
    ``{{crm}}:customer:{id}``. Braces in a record's key are always escaped, so no record leaves its
    hash slot.

    ``tag``: the hash tag that all names share, or ``None``. ``glob``: a glob that all names match.
    """

    def __init__(self, text: str, record_type: RecordType) -> None:
        """Raise ``ConfigError`` for a pattern that could give two records the same name."""
        self.text: Final = text
        self._type = record_type
        self._literals, names = self._parsed()
        whole = names == [_WHOLE] and _WHOLE not in record_type.keys
        if not whole and sorted(names) != sorted(record_type.keys):
            fields = " and ".join(f"{{{name}}}" for name in record_type.keys)
            raise self._error(
                f"it must contain {{key}} once, or {fields} once each, and no other field",
                hint="write literal braces, as of a cluster's hash tag, twice: {{crm}}",
            )
        self._order = [record_type.keys.index(name) for name in names] if not whole else []
        self._check_between()
        special = set("{}") if whole else set("{}%")
        special |= {c for part in self._literals[1:-1] for c in part if not c.isalnum()}
        self._special = re.compile(f"[{re.escape(''.join(sorted(special)))}]")
        kept = f"([^{re.escape(''.join(sorted(special - {'%'})))}]*)"
        self._name = re.compile(kept.join(map(re.escape, self._literals)), re.DOTALL)
        self.tag: Final = self._tag()
        self.glob: Final = "*".join(_GLOB.sub(r"\\\1", part) for part in self._literals)
        self.name: Final[Callable[[str], str]] = self._whole_name if whole else self._fields_name

    def key(self, name: str) -> str | None:
        """Return the key of the record of that name; ``None`` if it is no record of this type."""
        text = self._key_text(name)
        if text is None:
            return None
        try:
            self._type.key_values(text)
        except RecordError:
            return None
        return text if self.name(text) == name else None

    def other_form(self, name: str) -> str | None:
        """Return the key that ``name`` holds in a form in which eventsync does not write it.

        Return ``None`` if there is none. For example ``customer:007`` holds the key 7 of a number.
        """
        text = self._key_text(name)
        try:
            parts = [] if text is None else keys.split(text)
            if text is None or len(parts) != len(self._type.keys):
                return None
            key = self._type.key_text(dict(zip(self._type.keys, parts, strict=True)))
        except RecordError:
            return None
        return key if key != text else None

    def _key_text(self, name: str) -> str | None:
        match = self._name.fullmatch(name)
        if match is None:
            return None
        if not self._order:
            return match[1].replace("%7B", "{").replace("%7D", "}")
        parts = [""] * len(self._order)
        for place, part in zip(self._order, match.groups(), strict=True):
            parts[place] = unquote(part, errors="replace")
        return keys.join(parts)

    def _whole_name(self, key: str) -> str:
        first, last = self._literals
        return f"{first}{self._special.sub(_escaped, key)}{last}"

    def _fields_name(self, key: str) -> str:
        parts = keys.split(key)
        name = self._literals[0]
        for place, literal in zip(self._order, self._literals[1:], strict=True):
            name += self._special.sub(_escaped, parts[place]) + literal
        return name

    def _parsed(self) -> tuple[list[str], list[str]]:
        """Return the texts around the fields (one more than fields), and the fields."""
        literals, names = [""], []
        try:
            for literal, name, spec, conversion in Formatter().parse(self.text):
                literals[-1] += literal
                if name is not None:
                    if spec or conversion:
                        raise self._error(f"{name!r} takes neither a format nor a conversion")
                    names.append(name)
                    literals.append("")
        except ValueError as error:
            raise self._error(str(error)) from None
        return literals, names

    def _check_between(self) -> None:
        for part in self._literals[1:-1]:
            if not any(not c.isalnum() and c not in "%{}" for c in part):
                raise self._error(
                    "between two fields there must be a character that is no letter or digit",
                    hint="write it like visit:{place}:{number}",
                )

    def _tag(self) -> str | None:
        """Return what Redis Cluster hashes of a name: the content of the first pair of braces."""
        template = "\0".join(self._literals)
        start = template.find("{")
        end = template.find("}", start + 1)
        tag = template[start + 1 : end] if 0 <= start < end else ""
        return tag if tag and "\0" not in tag else None

    def _error(self, message: str, *, hint: str = "") -> ConfigError:
        return ConfigError(
            f"the key pattern {self.text!r} of {self._type.name}: {message}", hint=hint
        )


def _escaped(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode())
