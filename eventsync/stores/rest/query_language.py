"""Text in query languages: a key must not end the quotation that it stands in."""

from __future__ import annotations

__all__ = ["jql", "phrase"]


def jql(text: str) -> str:
    """Return a text as a string of Jira's query language (JQL), quotation marks included."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    for sign, code in (("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        escaped = escaped.replace(sign, code)
    return f'"{escaped}"'


def phrase(text: str) -> str:
    """Return a text as a phrase of a search engine, quotation marks included.

    GitHub's search and others have no way to escape a quotation mark, so it is replaced by a blank.
    The search may find more objects than the one, which is chosen by its marker.
    """
    plain = "".join(" " if sign in '"\\' or not sign.isprintable() else sign for sign in text)
    return f'"{plain}"'
