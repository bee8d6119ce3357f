"""A seeded mutator: hostile inputs made from valid samples, by bytes, as JSON and as msgpack.

It is plain code and no library, because a property-testing library makes a few hundred inputs a
second, and this makes tens of thousands.
"""

from __future__ import annotations

import json
import random
from typing import Any

import msgpack

LARGEST = 300 * 1024

_TOKENS = [
    *(b"\x00", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\n", b"\r\n"),
    *(b"\t", b'"', b"'", b"\\", b"\\u0000", b"\\ud800", b"[", b"]", b"{", b"}", b"{}", b"[]"),
    *(b",", b";", b":", b"://", b"/", b"//", b"?", b"#", b"@", b"%", b"%00", b"%zz", b"&", b"="),
    *(b"<", b">", b"rel=next", b"-", b"--", b"+", b"0", b"-0", b"1e9999999999999999999", b"NaN"),
    *(b"Infinity", b"1e400", b"-1e-400", b"99999", b"65536", b"18446744073709551616", b"null"),
    *(b"true", b"9" * 5000, b"[" * 900, b'{"a":' * 900, b"_", b"%_", b"\\%", b"*", b"$", b"."),
    *("\u2028".encode(), "\u0661".encode(), "\U0001f600".encode(), b"\x1b[2J", b"\xc2\x9b"),
    *(b"=1+1", b"\\N", b"\\\\N", b"http://h:99999/", b"http://[::1", b"10000-01-01", b"24:00"),
    *(b"0001-01-01T00:00:00+23:59", b"9999-12-31T23:59:59-23:59", b"sqlite:", b"redis://"),
]
_RAW = [
    *("1e9999999999999999999", "-1e-9999999999999999999", "1e400", "NaN", "-Infinity", "-0.0"),
    *("9" * 5000, "0." + "1" * 5000, "[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900),
    *('{"a":1,"a":2}', '"\\ud800"', "1E+2", "0.1", "1e15"),
]
_TEXTS = [
    *("", "a", "\0", "\x1b[31m", "\x9b", "x" * 600, "%", "_", "\\", "a/b", "%2F", "%zz", "..", "."),
    *("NaN", "1e9999999999999999999", "1e400", "2026-01-01", "10000-01-01", "24:00:00"),
    *("2026-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"),
    *("http://h:99999/", "http://[::1", "//evil/", "\ud800", "\u2028", "[" * 900, "{}", "[]"),
    *("9" * 5000, "=1+1", "true", "null", "$re", "$like", "$and", "%a%a%a%a%a%b", "\U0001f600"),
]
_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**30, 0.5, 1e308),
    *([], {}, [None], {"": None}, [[]], [{}], {"a": {"b": []}}, ["a", 1], {"type": "decimal"}),
]


class Mutator:
    """Makes inputs from samples; equal seeds make equal inputs."""

    def __init__(self, seed: int | str) -> None:
        self.random = random.Random(seed)

    def input(self, samples: list[bytes], form: str) -> bytes:
        """Return a new input. ``form``: ``bytes``, ``json`` or ``msgpack``, that of the samples."""
        draw = self.random
        raw = draw.choice(samples)
        if form != "bytes" and draw.random() < 0.7:
            raw = self._structured(raw, form)
            if draw.random() < 0.8:
                return raw[:LARGEST]
        return self._bytes(raw, samples)[:LARGEST]

    def _bytes(self, raw: bytes, samples: list[bytes]) -> bytes:
        draw = self.random
        made = bytearray(raw)
        for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
            at = draw.randint(0, len(made))
            end = min(len(made), at + draw.choice((0, 1, 1, 2, 4, 16)))
            act = draw.randrange(100)
            if act < 35:
                made[at:end] = draw.choice(_TOKENS)
            elif act < 55:
                made[at:end] = draw.randbytes(end - at or 1)
            elif act < 70:
                del made[at:end]
            elif act < 80 and made:
                made[draw.randrange(len(made))] ^= 1 << draw.randrange(8)
            elif act < 88:
                other = draw.choice(samples)
                start = draw.randint(0, len(other))
                made[at:] = other[start:]
            elif act < 93:
                del made[at:]
            elif act < 99 or draw.random() < 0.9:
                made[at:end] = bytes(made[at:end]) * draw.choice((2, 3, 17))
            else:  # large and repetitive: what takes quadratic time shows here
                part = bytes(made[at:end]) or draw.choice(_TOKENS)
                made[at:end] = part * (draw.choice((10_000, LARGEST)) // len(part))
        return bytes(made)

    def _structured(self, raw: bytes, form: str) -> bytes:
        if form == "json":
            literals: list[str] = []
            changed = self._changed(json.loads(raw), literals, form)
            text = json.dumps(changed, ensure_ascii=self.random.random() < 0.5)
            for number, literal in enumerate(literals):
                text = text.replace(f'"@@{number}@@"', literal)
            return text.encode("utf-8", "surrogatepass")
        try:
            tree = msgpack.unpackb(raw, strict_map_key=False)
            return bytes(
                msgpack.packb(self._changed(tree, [], form), unicode_errors="surrogatepass")
            )
        except (ValueError, TypeError, OverflowError):
            return raw

    def _changed(self, tree: Any, literals: list[str], form: str) -> Any:
        """Return the tree with one to three of its nodes replaced, doubled, renamed or removed."""
        for _ in range(self.random.choice((1, 1, 2, 3))):
            tree = self._once(tree, literals, form)
        return tree

    def _once(self, node: Any, literals: list[str], form: str) -> Any:
        draw = self.random
        if isinstance(node, dict) and node and draw.random() < 0.9:
            name = draw.choice([*node])
            act = draw.random()
            if act < 0.1:
                return {key: value for key, value in node.items() if key != name}
            if act < 0.2:
                return {**node, draw.choice(_TEXTS): node[name]}
            if act < 0.25:
                return {draw.choice(_TEXTS) if key == name else key: v for key, v in node.items()}
            return {**node, name: self._once(node[name], literals, form)}
        if isinstance(node, list) and node and draw.random() < 0.9:
            at = draw.randrange(len(node))
            act = draw.random()
            if act < 0.1:
                return node[:at] + node[at + 1 :]
            if act < 0.2:
                return node[:at] + [node[at]] * draw.choice((2, 3, 100)) + node[at:]
            return [*node[:at], self._once(node[at], literals, form), *node[at + 1 :]]
        return self._value(literals, form)

    def _value(self, literals: list[str], form: str) -> Any:
        draw = self.random
        act = draw.random()
        if act < 0.4:
            return draw.choice(_TEXTS)
        if act < 0.7:
            value = draw.choice(_VALUES)
            return value if form == "json" or type(value) is not int or value < 2**64 else 2**63
        if form == "json":
            literals.append(draw.choice(_RAW))
            return f"@@{len(literals) - 1}@@"
        if act < 0.8:
            return draw.choice([float("nan"), float("inf"), b"", b"\xff" * 16, b"a" * 40])
        payload = draw.choice([b"", b"1", b"1e9999999999999999999", b"9" * 5000, draw.randbytes(8)])
        return msgpack.ExtType(draw.randrange(0, 128), payload)
