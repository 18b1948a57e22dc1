"""Figures as inline SVG, made by hand: no scripts, fonts or external files.

Colors are classes that the page's style sheet defines for light and dark mode. Sizes are in a view box, so a figure
fills its column. Everything shown in color is also given in words or numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from humpback_ray.report.ratings import BINS_PER_POINT, Ratings
from humpback_ray.report.training import ModelRow

POINTS = 300
"""Maximum number of points per curve; longer curves are averaged in groups."""


@dataclass(frozen=True)
class Frame:
    """The plotting area of a figure and the data range it shows."""

    left: float
    top: float
    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        """Place a value on the horizontal axis."""
        low, high = self.x_range
        return round(self.left + (value - low) / ((high - low) or 1) * self.width, 1)

    def y(self, value: float) -> float:
        """Place a value on the vertical axis, which grows upwards."""
        low, high = self.y_range
        return round(self.top + self.height - (value - low) / ((high - low) or 1) * self.height, 1)

    @property
    def bottom(self) -> float:
        """Position of the horizontal axis."""
        return self.top + self.height


def svg(width: int, height: int, label: str, parts: Sequence[Markup]) -> Markup:
    """Wrap parts into a figure; `label` describes it in words."""
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(width, height, label)
    return head + Markup("").join(parts) + Markup("</svg>")


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """Draw a straight line of a style class."""
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(x1, y1, x2, y2, kind)


def words(x: float, y: float, text: str, kind: str = "", anchor: str = "middle") -> Markup:
    """Write a text; `anchor` is start, middle or end."""
    return Markup('<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>').format(x, y, kind, anchor, escape(text))


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Return round numbers from low to high, about `most` + 1 of them."""
    if not math.isfinite(high - low) or high <= low:
        return [low]
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(first * step + index * step, 10) for index in range(int((high - first * step) / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Format a tick's number briefly: 12k, 0.25, 3."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}"


def histogram(found: Ratings) -> Markup:
    """Draw the scores of one round: a bar per quarter point, and the threshold as a line."""
    most = max(found.bins, default=0) or 1
    lowest, highest = found.points[0], found.points[-1]
    frame = Frame(46, 22, 440, 150, (lowest, highest + 1 / BINS_PER_POINT), (0, most))
    parts = [_grid(frame, ticks(0, most))]
    for index, count in enumerate(found.bins):
        low = lowest + index / BINS_PER_POINT
        parts.append(_bar(frame, low, low + 1 / BINS_PER_POINT, count, _keeps(found, low)))
    for point in found.points:
        parts.append(words(frame.x(point), frame.bottom + 15, str(point), "tick"))
    parts.append(words(frame.left + frame.width / 2, frame.bottom + 31, f"score ({lowest} to {highest})", "tick"))
    parts.append(words(4, 12, "pairs", "tick", "start"))
    if found.threshold is not None:
        x = frame.x(min(max(found.threshold, lowest), highest))
        parts.append(line(x, frame.top - 6, x, frame.bottom, "threshold"))
        parts.append(words(x - 4, frame.top - 8, f"kept from {found.threshold:g}", "tick strong", "end"))
    return svg(500, 210, f"Histogram of {found.rated} scores of round {found.round}", parts)


def _keeps(found: Ratings, low: float) -> bool:
    """Tell whether a bar lies right of the threshold; the bar that contains it counts as kept."""
    return found.threshold is not None and low + 1 / BINS_PER_POINT > found.threshold


def _bar(frame: Frame, low: float, high: float, count: int, kept: bool) -> Markup:
    if not count:
        return Markup("")
    top = min(frame.y(count), frame.bottom - 1)
    title = Markup("<title>{} pairs from {} to below {}</title>").format(f"{count:,}", f"{low:g}", f"{high:g}")
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" class="{}">{}</rect>').format(
        frame.x(low) + 0.5, top, round(frame.x(high) - frame.x(low) - 1, 1), round(frame.bottom - top, 1),
        "bar kept" if kept else "bar", title,
    )  # fmt: skip


def _grid(frame: Frame, levels: Sequence[float]) -> Markup:
    parts = []
    for level in levels:
        y = frame.y(level)
        parts.append(line(frame.left, y, frame.left + frame.width, y, "grid"))
        parts.append(words(frame.left - 5, y + 4, number(level), "tick", "end"))
    return Markup("").join(parts)


def loss_curve(model: ModelRow) -> Markup:
    """Draw one model's loss: every step as a thin line, a running mean as a thick one, held-out pairs as rings."""
    points = thin([point for point in model.losses if math.isfinite(point[1])])
    if not points:
        return Markup("")
    held_out = thin([point for point in model.validation if math.isfinite(point[1])])
    losses = [loss for _, loss in [*points, *held_out]]
    frame = Frame(42, 20, 250, 120, (points[0][0], points[-1][0]), _padded(min(losses), max(losses)))
    parts = [_grid(frame, ticks(*frame.y_range, most=3))]
    parts.append(_path(frame, points, "curve thin"))
    parts.append(_path(frame, smooth(points), "curve"))
    for step, loss in held_out:
        title = Markup("<title>validation loss {} at step {}</title>").format(f"{loss:.3f}", f"{step:,.0f}")
        ring = Markup('<circle cx="{}" cy="{}" r="3" class="ring">{}</circle>')
        parts.append(ring.format(frame.x(step), frame.y(loss), title))
    for step in {points[0][0], points[-1][0]}:
        parts.append(words(frame.x(step), frame.bottom + 15, f"{step:,}", "tick"))
    parts.append(words(frame.left + frame.width / 2, frame.bottom + 15, "step", "tick"))
    parts.append(words(4, 11, "loss (nats per output token)", "tick", "start"))
    said = f"Loss of {model.model} from {model.first_loss:.3f} to {model.last_loss:.3f} over {model.steps} steps"
    if held_out:
        said += f"; of held-out pairs from {held_out[0][1]:.3f} to {held_out[-1][1]:.3f}"
    return svg(310, 165, said, parts)


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = (high - low) * 0.06 or max(abs(high) * 0.05, 0.01)
    return max(0.0, low - margin), high + margin


def _path(frame: Frame, points: Sequence[tuple[float, float]], kind: str) -> Markup:
    places = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in points)
    return Markup('<polyline points="{}" class="{}"/>').format(places, kind)


def thin(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Return at most `POINTS` points: means of equal groups, each at its last step; the first step is kept."""
    if len(points) <= POINTS:
        return list(points)
    size = math.ceil(len(points) / (POINTS - 1))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    means = [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]
    return [points[0], *means]


def smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the centered running mean over a tenth of the points, with a narrower window at the ends."""
    half = max(1, len(points) // 20)
    found = []
    for index, (step, _) in enumerate(points):
        reach = min(half, index, len(points) - 1 - index)
        window = points[index - reach : index + reach + 1]
        found.append((step, sum(loss for _, loss in window) / len(window)))
    return found
