"""Charts as SVG in a page: no script, no network, light and dark by the page's own colours. Pure.

Colours are CSS variables of the page: `--ink`, `--faint`, `--rule`, and `--s0` to `--s7` of the series.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

COLOURS: Final = 8
WIDTH: Final = 720
LEFT, RIGHT, TOP, BOTTOM = 74, 22, 18, 54
CHARACTER: Final = 7.2  # width of a letter of a label, pixels


@dataclass(frozen=True)
class Point:
    """One mark.

    Attributes:
        x, y: where.
        title: what is shown when the mouse rests on it.
        label: text beside it.
    """

    x: float
    y: float
    title: str
    label: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one colour.

    Attributes:
        name: in the legend.
        points: in order of x.
        colour: 0 to 7.
    """

    name: str
    points: tuple[Point, ...]
    colour: int


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: before it.
        value: its length, >= 0.
        text: behind it.
        title: what is shown when the mouse rests on it.
        colour: 0 to 7.
    """

    label: str
    value: float
    text: str
    title: str
    colour: int


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        title: with the unit.
        low, high: its range.
        ticks: where it has marks.
        logarithmic: whether equal lengths are equal ratios.
    """

    title: str
    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Where a value lies, 0 at the low end to 1 at the high end."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def linear_axis(title: str, values: Sequence[float], *, least_span: float = 0.0) -> Axis:
    """An axis around values, with room at both ends and round ticks.

    Args:
        title: with the unit.
        values: that must lie on it, at least one.
        least_span: it is no shorter than this: small differences shall not look large.
    """
    low, high = min(values), max(values)
    missing = max(0.0, least_span - (high - low), 1e-9 if high == low else 0.0)
    low, high = low - missing / 2, high + missing / 2
    room = 0.08 * (high - low)
    low, high = low - room, high + room
    step = _round_step((high - low) / 5)
    ticks = tuple(
        round(step * number, 10) for number in range(math.ceil(low / step), math.floor(high / step) + 1)
    )
    return Axis(title, low, high, ticks)


def logarithmic_axis(title: str, values: Sequence[float], *, ticks: Sequence[float] | None = None) -> Axis:
    """An axis of ratios around positive values.

    Args:
        title: with the unit.
        values: that must lie on it, at least one, all > 0.
        ticks: where it has marks; None: at 1, 2, 5 times powers of ten.
    """
    low, high = min(values) / 1.25, max(values) * 1.25
    if ticks is None:
        ticks = _log_ticks(low, high)
    return Axis(title, low, high, tuple(ticks), logarithmic=True)


def line_chart(series: Sequence[Series], x: Axis, y: Axis, *, name: str, height: int = 360) -> str:
    """Lines through points, with a legend.

    Args:
        series: what is drawn.
        x: horizontal.
        y: vertical.
        name: what it shows, for those who cannot see it.
        height: pixels.
    """
    frame = _Frame(x, y, height)
    parts = [frame.axes()]
    for one in series:
        places = [frame.place(point) for point in one.points]
        path = " ".join(f"{across:.1f},{down:.1f}" for across, down in places)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="var(--s{one.colour})" stroke-width="2"/>'
        )
        parts += [
            _mark(place, one.colour, point.title) for place, point in zip(places, one.points, strict=True)
        ]
    return _legend(series) + frame.svg(parts, name)


def scatter_chart(
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    name: str,
    level: tuple[float, str] | None = None,
    height: int = 360,
) -> str:
    """Points with labels beside them.

    Args:
        series: what is drawn.
        x: horizontal.
        y: vertical.
        name: what it shows, for those who cannot see it.
        level: a height with a dashed line, and what it is.
        height: pixels.
    """
    frame = _Frame(x, y, height)
    parts = [frame.axes()]
    taken: list[tuple[float, float, float, float]] = []
    if level is not None:
        down = frame.down(level[0])
        wide = CHARACTER * len(level[1])
        near = [frame.across(point.x) < LEFT + wide + 12 for one in series for point in one.points]
        left = WIDTH - RIGHT - wide - 6 if any(near) else LEFT + 6
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down:.1f}" y2="{down:.1f}" class="level"/>'
            f'<text x="{left:.1f}" y="{down - 6:.1f}" class="faint">{escape(level[1])}</text>'
        )
        taken.append((left, down - 20, left + wide, down))
        taken.append((LEFT, down - 2, WIDTH - RIGHT, down + 2))
    places = [(one, point, *frame.place(point)) for one in series for point in one.points]
    taken += [(across - 7, down - 7, across + 7, down + 7) for _, _, across, down in places]
    for one, point, across, down in places:
        parts.append(_mark((across, down), one.colour, point.title))
        if point.label:
            box = _free_place(point.label, across, down, taken, height)
            taken.append(box)
            middle = (box[1] + box[3]) / 2
            if abs(middle - down) > 20:
                parts.append(
                    f'<line x1="{across:.1f}" y1="{down:.1f}" x2="{(box[0] + box[2]) / 2:.1f}" '
                    f'y2="{box[3] if middle < down else box[1]:.1f}" class="rule"/>'
                )
            parts.append(f'<text x="{box[0]:.1f}" y="{box[3] - 4:.1f}">{escape(point.label)}</text>')
    return frame.svg(parts, name)


def bar_chart(bars: Sequence[Bar], *, name: str) -> str:
    """Horizontal bars from zero.

    Args:
        bars: from the top, at least one.
        name: what it shows, for those who cannot see it.
    """
    step, thickness = 28, 18
    left = min(300.0, 12 + CHARACTER * max(len(bar.label) for bar in bars))
    room = WIDTH - left - 12 - CHARACTER * max(len(bar.text) for bar in bars)
    most = max(bar.value for bar in bars) or 1.0
    parts = []
    for number, bar in enumerate(bars):
        top = 6 + number * step
        width = max(1.0, room * bar.value / most)
        parts.append(
            f"<g><title>{escape(bar.title)}</title>"
            f'<text x="{left - 8:.1f}" y="{top + 14}" text-anchor="end">{escape(bar.label)}</text>'
            f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{thickness}" rx="3" '
            f'fill="var(--s{bar.colour})"/>'
            f'<text x="{left + width + 6:.1f}" y="{top + 14}">{escape(bar.text)}</text></g>'
        )
    return _svg(parts, name, 12 + step * len(bars))


class _Frame:
    """The plane between two axes."""

    def __init__(self, x: Axis, y: Axis, height: int) -> None:
        self.x, self.y, self.height = x, y, height

    def across(self, value: float) -> float:
        return LEFT + self.x.share(value) * (WIDTH - LEFT - RIGHT)

    def down(self, value: float) -> float:
        return self.height - BOTTOM - self.y.share(value) * (self.height - TOP - BOTTOM)

    def place(self, point: Point) -> tuple[float, float]:
        return self.across(point.x), self.down(point.y)

    def axes(self) -> str:
        floor, right = self.height - BOTTOM, WIDTH - RIGHT
        lines = []
        for tick in self.y.ticks:
            down = self.down(tick)
            lines.append(
                f'<line x1="{LEFT}" x2="{right}" y1="{down:.1f}" y2="{down:.1f}" class="rule"/>'
                f'<text x="{LEFT - 8}" y="{down + 4:.1f}" text-anchor="end" class="faint">{number_text(tick)}</text>'
            )
        for tick in self.x.ticks:
            across = self.across(tick)
            lines.append(
                f'<line x1="{across:.1f}" x2="{across:.1f}" y1="{floor}" y2="{floor + 5}" class="axis"/>'
                f'<text x="{across:.1f}" y="{floor + 20}" text-anchor="middle" class="faint">{number_text(tick)}</text>'
            )
        middle = (TOP + floor) / 2
        return "".join(lines) + (
            f'<line x1="{LEFT}" x2="{right}" y1="{floor}" y2="{floor}" class="axis"/>'
            f'<text x="{(LEFT + right) / 2}" y="{self.height - 10}" text-anchor="middle" class="faint">'
            f"{escape(self.x.title)}</text>"
            f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle" class="faint">'
            f"{escape(self.y.title)}</text>"
        )

    def svg(self, parts: Sequence[str], name: str) -> str:
        return _svg(parts, name, self.height)


def _svg(parts: Sequence[str], name: str, height: float) -> str:
    return (
        f'<div class="chart"><svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(name)}">'
        f"{''.join(parts)}</svg></div>"
    )


def _legend(series: Sequence[Series]) -> str:
    entries = [
        f'<span><svg width="16" height="16" viewBox="-8 -8 16 16" aria-hidden="true">'
        f"{_mark((0, 0), one.colour, '')}</svg>{escape(one.name)}</span>"
        for one in series
    ]
    return f'<p class="legend">{"".join(entries)}</p>'


def _mark(place: tuple[float, float], colour: int, title: str) -> str:
    """Told apart by shape too, for those who do not see the colours."""
    x, y = place
    shape, where = (
        ("circle", f'cx="{x:.1f}" cy="{y:.1f}" r="5"'),
        ("rect", f'x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9"'),
        ("path", f'd="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"'),
        ("path", f'd="M{x:.1f} {y - 6:.1f}l6 10h-12z"'),
    )[colour % 4]
    return f'<{shape} {where} fill="var(--s{colour})"><title>{escape(title)}</title></{shape}>'


def _free_place(
    label: str, across: float, down: float, taken: Sequence[tuple[float, float, float, float]], height: int
) -> tuple[float, float, float, float]:
    """A box for a label near its point that hides no other: right, left, then ever farther above and below."""
    width, tall = CHARACTER * len(label), 17.0
    sides = (across + 10, across - 10 - width, across - width / 2)
    for away in (0, 18, -18, 36, -36, 54, -54, 72, -72):
        for left in sides if away == 0 else (sides[2], *sides[:2]):
            box = (left, down + away - tall / 2, left + width, down + away + tall / 2)
            inside = box[0] >= LEFT and box[2] <= WIDTH - 2 and box[1] >= 2 and box[3] <= height - BOTTOM
            clear = all(
                box[2] <= other[0] or other[2] <= box[0] or box[3] <= other[1] or other[3] <= box[1]
                for other in taken
            )
            if inside and clear and not (away == 0 and left == sides[2]):
                return box
    return (sides[0], down - tall / 2, sides[0] + width, down + tall / 2)


def number_text(value: float) -> str:
    """A number for people: separators, no noise of floating point."""
    if value and abs(value) < 0.001:
        return f"{value:.0e}"
    return f"{value:,.10g}" if abs(value) >= 1 else f"{value:.4g}"


def _round_step(wanted: float) -> float:
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= wanted * 0.999)


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 8:
            break
    return ticks
