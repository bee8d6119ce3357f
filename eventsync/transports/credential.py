"""Passwords in broker URLs: found and hidden, also in URLs that are written wrongly."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

__all__ = ["masked", "passwords"]

_SCHEME: Final = re.compile(r"[A-Za-z][\w+.-]*")
# What may stand before the credentials in a URL whose scheme is written wrongly: ``redis//u:p@h``.
_BEGINNING: Final = re.compile(r"[\w+.-]*(?::/{0,2}|//)|/+")
_HOSTS: Final = re.compile(r"(?:\[[^\]@]*\]|[^:@/]*)(?::\d*)?(?:,|$)")
_COLON: Final = re.compile(r":(?!\d*(?:[/?,]|$)|//)")


def masked(url: str, mask: str = "**") -> str:
    """Return ``url`` with its password replaced by ``mask``. Accepts any text and never raises.

    Of a text that is not a URL, all that may be credentials is replaced.
    """
    scheme, separator, rest = url.partition("://")
    sound = bool(separator) and _SCHEME.fullmatch(scheme) is not None
    # The last `@`, so that a password that contains an unencoded `@` is hidden, too.
    credentials, at, place = (rest if sound else url).rpartition("@")
    if at and not sound:
        return f"{mask}@{place}"
    if at:
        user, colon, _ = credentials.partition(":")
        return f"{scheme}://{user}{colon}{mask if colon else ''}@{place}"
    if sound:
        hosts = rest.partition("/")[0].partition("?")[0]
        if all(_HOSTS.fullmatch(part) for part in hosts.split(",")):
            return url
        return f"{scheme}://{rest.partition(':')[0]}:{mask}"
    # The host is missing, or this is no URL at all.
    wrong = _COLON.search(url)
    return url if wrong is None else f"{url[: wrong.start()]}:{mask}"


def passwords(url: str) -> list[str]:
    """Return the password in ``url``, as it is written and percent-decoded; empty without one.

    Finds it in a text that is not quite a URL, too.
    """
    scheme, separator, rest = url.partition("://")
    if not (separator and _SCHEME.fullmatch(scheme)):
        beginning = _BEGINNING.match(url)
        rest = url[beginning.end() :] if beginning else url
    found = []
    # The password, or the path, may contain an unencoded `/` or `@`.
    for part in dict.fromkeys((rest, rest.partition("/")[0])):
        credentials, at, _ = part.rpartition("@")
        password = credentials.partition(":")[2] or ("" if separator else credentials)
        if at and password:
            found += [password, unquote(password)]
    return list(dict.fromkeys(found))
