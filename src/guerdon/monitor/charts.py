"""Small pictures for a page without scripts: line charts as inline SVG, images as PNG data addresses.

Colours are CSS classes (``c0`` to ``c4``), so that the page decides what they are in light and in dark; from the sixth
line on, dashes (``d1``, ``d2``) tell lines of one colour apart. Every label is escaped.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

COLORS, DASHES = 5, 3
# More points than pixels tell nothing: a longer series is drawn as the mean of as many stretches, and their range.
POINTS = 100
# Up to so many points are worth a dot each.
DOTTED = 12
# What is smaller counts as 0, for its logarithm does not exist.
TINY = 1e-200
WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 30


@dataclass(frozen=True)
class Series:
    """A line: points in order of x; a point whose y is None or not finite is left out.

    Attributes:
        color: which of the page's colours and dashes, counted from 0.
        band: (low, high) around each point, shown as a shade; the range that condensing hides by default.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    color: int = 0
    band: Sequence[tuple[float, float]] | None = None

    @property
    def style(self) -> str:
        """CSS classes of the line and of its entry in a legend."""
        return f"c{self.color % COLORS} d{self.color // COLORS % DASHES}"

    @property
    def last(self) -> float | None:
        """The last finite y."""
        return next((y for y in reversed(self.y) if y is not None and math.isfinite(y)), None)


@dataclass(frozen=True)
class Marker:
    """Something that happened at one x: an alarm."""

    x: float
    label: str
    severity: str = "warning"


@dataclass(frozen=True)
class _Point:
    """A stretch of a series: the mean of its points, the range they span, and where it lies."""

    x: float
    y: float
    low: float
    high: float
    where: str


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    markers: Sequence[Marker] = (),
    x_label: str = "step",
    y_range: tuple[float, float] | None = None,
    x_range: tuple[float, float] | None = None,
) -> Markup:
    """Draw lines over a common axis, with ticks at round numbers and the values of each x on hover.

    Args:
        label: what the picture shows, for those who can't see it.
        markers: vertical lines.
        y_range: what the axis spans at least; the data's own range by default.
        x_range: what the axis spans at least.

    Returns:
        one ``<svg>``; empty markup when no series has a finite point.
    """
    lines = [(s, _condensed(s)) for s in series]
    lines = [(s, points) for s, points in lines if points]
    if not lines:
        return Markup("")
    every = [p for _, points in lines for p in points]
    xs = [p.x for p in every] + list(x_range or ())
    ys = [v for p in every for v in (p.low, p.high)] + list(y_range or ())
    x_ticks = ticks(min(xs), max(xs), 6, whole=True)
    y_ticks = ticks(min(ys), max(ys), 5)
    across = _Scale((min(xs), max(xs)), (LEFT, WIDTH - RIGHT))
    up = _Scale((min(y_ticks[0], *ys), max(y_ticks[-1], *ys)), (HEIGHT - BOTTOM, TOP))
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">',
        *_axes(x_ticks, y_ticks, across, up, x_label),
        *(_line(s, points, across, up) for s, points in lines),
        *_hover(lines, across, x_label),
        *(_marker(m, across) for m in markers if min(xs) <= m.x <= max(xs)),
        "</svg>",
    ]
    return Markup("".join(parts))


def ticks(low: float, high: float, wanted: int, *, whole: bool = False) -> list[float]:
    """Round numbers 1, 2 or 5 times a power of ten apart that reach from ``low`` to ``high``.

    The outermost lie inside the range for ``whole`` numbers (an axis of steps), else at it or just outside.
    """
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size + TINY:
        pad = 0.1 * size
        low, high = (low - pad, high + pad) if pad > TINY and not whole else (low, low + 1)
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    if whole:
        step = max(1.0, step)
        first, last = math.ceil(low / step), math.floor(high / step)
    else:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, last + 1)] or [math.ceil(low)]


def compact(x: float | None) -> str:
    """A number in about three digits: ``0.413``, ``1.20``, ``7``, ``12.3k``, ``4.1e-05``; ``–`` for none."""
    if x is None:
        return "–"
    size = abs(x)
    if not size < 1e12:
        return f"{x:.3g}"
    for limit, unit, name in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= limit:
            return f"{x / unit:.3g}{name}"
    if size >= 1000 or x == int(x):
        return f"{x:.0f}"
    return f"{x:#.3g}".rstrip(".") if size >= 1 else f"{x:.3f}" if size >= 1e-3 else f"{x:.1e}"


def number(x: float | None) -> str:
    """A number as ``compact`` writes it, with a true minus."""
    return compact(x).replace("-", "−", 1) if x is not None and x < 0 else compact(x)


def signed(x: float) -> str:
    """A number that shows its sign also where it is positive."""
    return number(x) if x < 0 else f"+{compact(x)}"


def span(ends: tuple[float, float] | None) -> str:
    """A range as ``−0.5 to 1``, or the one number that it holds as far as it is shown; ``–`` for none."""
    if ends is None:
        return "–"
    low, high = (number(x) for x in ends)
    return low if low == high else f"{low} to {high}"


def png(pixels: Sequence[float], height: int, width: int) -> str:
    """A grey-scale picture as a ``data:`` address; 0 is black and 1 white, what lies outside is cut.

    Args:
        pixels: height * width numbers, row by row.
    """
    levels = bytes(round(255 * min(1.0, max(0.0, p))) if math.isfinite(p) else 0 for p in pixels)
    rows = b"".join(b"\0" + levels[r * width : (r + 1) * width] for r in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return "data:image/png;base64," + base64.b64encode(data).decode()


class _Scale:
    """A linear map from data to pixels."""

    def __init__(self, domain: tuple[float, float], pixels: tuple[float, float]) -> None:
        self.low, self.span = domain[0], (domain[1] - domain[0]) or 1.0
        self.start, self.length = pixels[0], pixels[1] - pixels[0]

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / self.span * self.length, 1)


def _condensed(series: Series) -> list[_Point]:
    """At most ``POINTS`` stretches of the finite points."""
    bands = series.band or [None] * len(series.y)
    found = zip(series.x, series.y, bands, strict=True)
    points = [(float(x), float(y), _sound(band, y)) for x, y, band in found if y is not None and math.isfinite(y)]
    stretch = max(1, math.ceil(len(points) / POINTS))
    out = []
    for first in range(0, len(points), stretch):
        part = points[first : first + stretch]
        mean = sum(y for _, y, _ in part) / len(part)
        low, high = min(band[0] for *_, band in part), max(band[1] for *_, band in part)
        where = f"{part[0][0]:.10g}" + (f" to {part[-1][0]:.10g}" if len(part) > 1 else "")
        out.append(_Point((part[0][0] + part[-1][0]) / 2, mean, low, high, where))
    return out


def _sound(band: tuple[float, float] | None, y: float) -> tuple[float, float]:
    """The band of a point; where none is known, the point itself."""
    return band if band is not None and all(map(math.isfinite, band)) else (y, y)


def _axes(x_ticks: Sequence[float], y_ticks: Sequence[float], across: _Scale, up: _Scale, x_label: str) -> list[str]:
    parts = []
    for value in y_ticks:
        y = up(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5}" text-anchor="end">{_tick(value)}</text>')
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    for value in x_ticks:
        x = across(value)
        parts.append(f'<text class="tick" x="{x}" y="{base + 14}" text-anchor="middle">{_tick(value)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 2}" text-anchor="middle">{escape(x_label)}</text>')
    return parts


def _tick(value: float) -> str:
    """A tick's label: no more digits than it needs, at most seven characters, a true minus sign."""
    if value != 0 and abs(value) < 1e-3:
        digits, _, power = f"{value:.1e}".partition("e")
        text = f"{digits.removesuffix('.0')}e{int(power)}"
    else:
        text = f"{value:.5g}" if abs(value) < 1e4 else compact(value)
    return text.replace("-", "−", 1) if value < 0 else text


def _line(series: Series, points: Sequence[_Point], across: _Scale, up: _Scale) -> str:
    color = series.style
    parts = []
    if any(p.high > p.low for p in points):
        upper = [f"{across(p.x)},{up(p.high)}" for p in points]
        lower = [f"{across(p.x)},{up(p.low)}" for p in reversed(points)]
        parts.append(f'<polygon class="band {color}" points="{" ".join(upper + lower)}"/>')
    path = " ".join(f"{across(p.x)},{up(p.y)}" for p in points)
    parts.append(f'<polyline class="line {color}" points="{path}"/>')
    if len(points) <= DOTTED:
        parts += [f'<circle class="dot {color}" cx="{across(p.x)}" cy="{up(p.y)}" r="2.5"/>' for p in points]
    return "".join(parts)


def _marker(marker: Marker, across: _Scale) -> str:
    x = across(marker.x)
    return (
        f'<g class="marker {escape(marker.severity)}"><line x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        f'<path d="M{x - 4},{TOP - 8}h8l-4,8z"/><title>{escape(marker.label)}</title></g>'
    )


def _hover(lines: Sequence[tuple[Series, Sequence[_Point]]], across: _Scale, x_label: str) -> list[str]:
    """One invisible column per x that names the values there."""
    texts: dict[float, list[str]] = {}
    for series, points in lines:
        for p in points:
            span = f" ({compact(p.low)} to {compact(p.high)})" if p.high > p.low else ""
            texts.setdefault(p.x, [f"{x_label} {p.where}"]).append(f"{series.name}: {compact(p.y)}{span}")
    xs = sorted(texts)
    edges = [LEFT, *((across(a) + across(b)) / 2 for a, b in pairwise(xs)), WIDTH - RIGHT]
    down = HEIGHT - BOTTOM - TOP
    return [
        f'<path class="hit" d="M{left:.1f} {TOP}h{right - left:.1f}v{down}h{left - right:.1f}z">'
        f"<title>{escape(chr(10).join(texts[x]))}</title></path>"
        for x, left, right in zip(xs, edges[:-1], edges[1:], strict=True)
    ]
