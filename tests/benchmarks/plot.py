"""Pictures of figures, as SVG of a few KB: bars in groups, and lines over time.

It knows nothing of what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

__all__ = ["Bars", "Lines", "Panel", "svg"]

_WIDTH = 760
_LETTER = 7.2
"""How wide a letter is, at most, on the average."""
_RIGHT = 90
_BAR = 13
_COLOURS = ("#2f6f9f", "#e08a3c", "#5c9e5c", "#b0567a", "#7a6cb0", "#8c8c8c")
_INK = "#333333"
_RULE = "#dddddd"


@dataclass(frozen=True)
class Bars:
    """Bars from left to right: of each group one for each series that it has.

    ``logarithmic``: where values lie too far apart. ``target``: a line that they are to reach, or
    to stay below.
    """

    title: str
    groups: Mapping[str, Mapping[str, float]]
    digits: int = 0
    logarithmic: bool = False
    target: float | None = None


@dataclass(frozen=True)
class Lines:
    """Lines through points, both axes with their unit."""

    title: str
    lines: Mapping[str, Sequence[Sequence[float]]]
    across: str
    digits: int = 0


Panel = Bars | Lines


def svg(panels: Iterable[Panel]) -> str:
    """One picture, the panels one below the other."""
    parts: list[str] = []
    top = 10.0
    for panel in panels:
        drawn, height = _bars(panel, top) if isinstance(panel, Bars) else _lines(panel, top)
        parts += drawn
        top += height + 14
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top:.0f}"'
        f' viewBox="0 0 {_WIDTH} {top:.0f}" font-family="system-ui, sans-serif" font-size="12"'
        f' fill="{_INK}">\n<rect width="100%" height="100%" fill="#ffffff"/>'
    )
    return "\n".join([head, *parts, "</svg>\n"])


def _bars(panel: Bars, top: float) -> tuple[list[str], float]:
    names = list(dict.fromkeys(name for group in panel.groups.values() for name in group))
    colours = _coloured(names)
    parts, at = _heading(panel.title, colours, top)
    values = [value for group in panel.groups.values() for value in group.values()]
    left = 20 + _LETTER * max(map(len, panel.groups), default=0)
    held = values + ([panel.target] if panel.target else [])
    span = _Span(held, panel.logarithmic, _WIDTH - left - _RIGHT)
    first = at
    for label, group in panel.groups.items():
        middle = at + _BAR * len(group) / 2 + 4
        parts.append(_text(left - 8, middle, label, "end"))
        for name, value in group.items():
            width = span.of(value)
            parts.append(
                f'<rect x="{left:.0f}" y="{at:.0f}" width="{width:.1f}" height="{_BAR - 2}"'
                f' fill="{colours[name]}"/>'
            )
            shown = f"{value:,.{panel.digits}f}"
            parts.append(_text(left + width + 4, at + _BAR - 3, shown, size=10))
            at += _BAR
        at += 7
    if panel.target:
        x = left + span.of(panel.target)
        parts.append(_line(x, first - 4, x, at - 4, dashed=True))
    parts.append(_line(left, first - 4, left, at - 4))
    return parts, at - top


class _Span:
    """How long the bar of a value is."""

    def __init__(self, values: Sequence[float], logarithmic: bool, width: float) -> None:
        self._width = width
        positive = [value for value in values if value > 0]
        self._logarithmic = logarithmic and bool(positive)
        self._most = max(positive, default=1.0)
        # A decade below the least, so that its bar is seen too.
        self._least = min(positive, default=1.0) / 10

    def of(self, value: float) -> float:
        if value <= 0:
            return 0.0
        share = value / self._most
        if self._logarithmic:
            share = math.log(value / self._least) / math.log(self._most / self._least)
        return share * self._width


def _lines(panel: Lines, top: float) -> tuple[list[str], float]:
    colours = _coloured(list(panel.lines))
    parts, at = _heading(panel.title, colours, top)
    height, left, right = 150.0, 60.0, 20.0
    points = [point for line in panel.lines.values() for point in line]
    across = max((x for x, _ in points), default=1.0) or 1.0
    up = max((y for _, y in points), default=1.0) * 1.1 or 1.0
    scale_x, scale_y = (_WIDTH - left - right) / across, height / up
    bottom = at + height
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = bottom - share * height
        parts.append(_line(left, y, _WIDTH - right, y))
        shown = f"{share * up:,.{panel.digits}f}"
        parts.append(_text(left - 6, y + 4, shown, "end", size=10))
        x = left + share * (_WIDTH - left - right)
        shown = f"{share * across:,.{0 if across >= 10 else 1}f}"
        parts.append(_text(x, bottom + 14, shown, "middle", size=10))
    for name, line in panel.lines.items():
        path = " ".join(f"{left + x * scale_x:.0f},{bottom - y * scale_y:.1f}" for x, y in line)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-width="1.5"/>'
        )
    parts.append(_text(_WIDTH - right, bottom + 28, panel.across, "end", size=10))
    return parts, bottom + 30 - top


def _coloured(names: Sequence[str]) -> dict[str, str]:
    return {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}


def _heading(title: str, colours: Mapping[str, str], top: float) -> tuple[list[str], float]:
    """The title, and what the colours stand for where there are several; where it goes on."""
    parts = [_text(10, top + 14, title, weight="bold")]
    if len(colours) < 2:
        return parts, top + 28
    x = 10.0
    for name, colour in colours.items():
        parts.append(
            f'<rect x="{x:.0f}" y="{top + 22:.0f}" width="10" height="10" fill="{colour}"/>'
        )
        parts.append(_text(x + 14, top + 31, name, size=11))
        x += 30 + 6.5 * len(name)
    return parts, top + 46


def _text(
    x: float, y: float, text: str, anchor: str = "start", *, size: int = 0, weight: str = ""
) -> str:
    more = f' font-size="{size}"' if size else ""
    more += f' font-weight="{weight}"' if weight else ""
    more += f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:.0f}" y="{y:.0f}"{more}>{escape(text)}</text>'


def _line(x: float, y: float, to_x: float, to_y: float, *, dashed: bool = False) -> str:
    more = ' stroke-dasharray="4 3"' if dashed else ""
    colour = _INK if dashed else _RULE
    return (
        f'<line x1="{x:.0f}" y1="{y:.0f}" x2="{to_x:.0f}" y2="{to_y:.0f}" stroke="{colour}"{more}/>'
    )
