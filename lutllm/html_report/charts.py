"""Colours and SVG of the page.

Colours are told apart with every kind of colour vision, and none carries meaning alone: numbers,
words and symbols stand beside them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup, escape

#: Okabe-Ito, in the order parts take them.
PALETTE = ("#0072b2", "#56b4e9", "#009e73", "#f0e442", "#e69f00", "#d55e00", "#cc79a7", "#999999")
SYMBOLS = {"good": "●", "watch": "▲", "bad": "■"}
#: Ends of the scale of errors: pale to dark blue, through lightness that always falls.
_SCALE = ((247, 251, 255), (198, 219, 239), (107, 174, 214), (33, 113, 181), (8, 48, 107))
_LOW, _HIGH = 1e-3, 0.5


def error_colours(error: float) -> tuple[str, str]:
    """Background and text colour of an error, on a logarithmic scale."""
    low, high = math.log(_LOW), math.log(_HIGH)
    place = (math.log(max(error, 1e-12)) - low) / (high - low)
    place = min(max(place, 0.0), 1.0) * (len(_SCALE) - 1)
    index = min(int(place), len(_SCALE) - 2)
    part = place - index
    pairs = zip(_SCALE[index], _SCALE[index + 1], strict=True)
    rgb = [round(a + (b - a) * part) for a, b in pairs]
    light = luminance(rgb) > 0.18
    return f"#{rgb[0]:02x}{rgb[1]:02x}{rgb[2]:02x}", "#000000" if light else "#ffffff"


def luminance(rgb: list[int]) -> float:
    """Relative luminance as in WCAG 2."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@dataclass(frozen=True)
class Point:
    """One artifact of the scatter plot; error: half the length of its bar, 0 for none."""

    label: str
    x: float
    y: float
    error: float = 0.0


class _Frame:
    """The area of a plot: from values to coordinates of the SVG."""

    WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 360, 70, 50, 20, 30

    def __init__(self, points: list[Point]):
        self.x_span = _limits([p.x for p in points])
        self.y_span = _limits([v for p in points for v in (p.y - p.error, p.y + p.error)])

    def across(self, x: float) -> float:
        low, high = self.x_span
        inside = self.WIDTH - self.LEFT - self.RIGHT
        return round(self.LEFT + (x - low) / (high - low) * inside, 1)

    def up(self, y: float) -> float:
        low, high = self.y_span
        inside = self.HEIGHT - self.BOTTOM - self.TOP
        return round(self.HEIGHT - self.BOTTOM - (y - low) / (high - low) * inside, 1)


def scatter(points: list[Point], x_label: str, y_label: str) -> Markup:
    """An SVG scatter plot with labelled points; those that no other beats are joined by a line."""
    frame = _Frame(points)
    best = " ".join(f"{frame.across(p.x)},{frame.up(p.y)}" for p in pareto(points))
    summary = f"{escape(y_label)} against {escape(x_label)}; the table below has the numbers"
    parts = [
        f'<svg viewBox="0 0 {frame.WIDTH} {frame.HEIGHT}" role="img" aria-label="{summary}">',
        *_axes(frame, x_label, y_label),
        f'<polyline points="{best}" class="front"/>',
        *_marks(frame, points),
        "</svg>",
    ]
    return Markup("".join(parts))


def _axes(frame: _Frame, x_label: str, y_label: str) -> list[str]:
    """Grid lines, their values and the names of the axes."""
    right, floor = frame.WIDTH - frame.RIGHT, frame.HEIGHT - frame.BOTTOM
    out = []
    for value in ticks(*frame.y_span):
        y = frame.up(value)
        out.append(f'<line x1="{frame.LEFT}" x2="{right}" y1="{y}" y2="{y}" class="grid"/>')
        out.append(_text(frame.LEFT - 8, y + 4, "end", f"{value:g}"))
    for value in ticks(*frame.x_span):
        out.append(_text(frame.across(value), floor + 20, "middle", f"{value:g}"))
    out.append(_text((frame.LEFT + right) / 2, frame.HEIGHT - 8, "middle", x_label))
    turned = f"translate(16 {frame.HEIGHT / 2}) rotate(-90)"
    out.append(f'<text transform="{turned}" text-anchor="middle">{escape(y_label)}</text>')
    return out


def _marks(frame: _Frame, points: list[Point]) -> list[str]:
    """A dot, a bar of its error and a label for every point."""
    out: list[str] = []
    labels: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        x, y = frame.across(point.x), frame.up(point.y)
        high, low = frame.up(point.y + point.error), frame.up(point.y - point.error)
        out.append(f'<line x1="{x}" x2="{x}" y1="{high}" y2="{low}" class="bar"/>')
        out.append(f'<circle cx="{x}" cy="{y}" r="5" class="dot"/>')
        anchor, shift = ("end", -9) if x > frame.WIDTH * 0.7 else ("start", 9)
        at = free_place(labels, x + shift, y - 8)
        labels.append((x + shift, at))
        out.append(_text(x + shift, at, anchor, point.label))
    return out


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def free_place(taken: list[tuple[float, float]], x: float, y: float) -> float:
    """The height nearest above y where a label at x does not lie on one of those before it."""
    while any(abs(x - other) < 120 and abs(y - height) < 15 for other, height in taken):
        y -= 3
    return round(y, 1)


def pareto(points: list[Point]) -> list[Point]:
    """The points that no other beats in both x and y, by x."""
    out: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, p.y)):
        if not out or point.y < out[-1].y:
            out.append(point)
    return out


def _limits(values: list[float]) -> tuple[float, float]:
    """The span of an axis: a tenth more than that of the values on either side."""
    low, high = min(values), max(values)
    room = (high - low) * 0.1 or max(abs(high), 1.0) * 0.1
    return low - room, high + room


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between low and high, about five."""
    raw = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= raw)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]
