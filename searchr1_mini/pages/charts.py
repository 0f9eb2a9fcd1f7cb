"""Line charts as SVG text, drawn by hand: no script, no request, readable in dark mode."""

from __future__ import annotations

import math
from html import escape
from itertools import pairwise
from typing import NamedTuple

from searchr1_mini.storage.printable import one_line

Series = dict[str, list[tuple[float, float]]]
Bands = dict[str, list[tuple[float, float, float]]]
# two lines of the same dash differ in lightness too, so that no eye needs hue; style.css has those of dark mode
COLORS = ("#0072b2", "#d55e00", "#00805d", "#7c3aed", "#5c3a00", "#0b3b44", "#701040", "#20262e")
DASHES = ("none", "7 3", "2 3", "9 3 2 3")
MARGIN_TOP, MARGIN_BOTTOM = 40, 40
DIGIT, LETTER, SAMPLE = 7.7, 8.2, 26  # widths in px: of a tick's character, of a name's (bold), of the line before it
MOST_DECADES = 9  # of a log axis; what is smaller stands on its edge


class Chart(NamedTuple):
    """One chart of a picture, see `line_chart`."""

    series: Series
    title: str
    unit: str
    bands: Bands | None = None
    is_log: bool = False


def html_text(text: str) -> str:
    """Escapes foreign text for HTML and SVG, on one line: no markup, no attribute, and no character that XML forbids."""
    return escape(one_line(text))


def ticks(low: float, high: float, n: int = 5, least: float = 0.0) -> list[float]:
    """Chooses about `n` round numbers that cover [low, high], at least `least` apart."""
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / n))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= n)
    step = max(step, least)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def decades(low: float, high: float) -> list[float]:
    """Powers of ten that cover [low, high], both above 0, every second one where they are many; the low end may be cut."""
    last = math.ceil(math.log10(high) - 1e-9)
    first = max(min(math.floor(math.log10(low) + 1e-9), last - 1), last - MOST_DECADES)
    every = 1 + (last - first > 6)
    return [10.0**power for power in range(last - every * -(-(last - first) // every), last + 1, every)]


def line_chart(
    series: Series,
    title: str,
    x_label: str,
    y_label: str,
    *,
    width: int = 460,
    height: int = 280,
    at: tuple[int, int] = (0, 0),
    bands: Bands | None = None,
    is_log: bool = False,
) -> str:
    """Draws a `<g>` with one chart: grid, axes with units, and each line named beside its end, with a sample of it.

    Args:
        series: name -> points (x, y), x ascending; a name without points is not drawn but keeps its color.
        at: where its left upper corner goes.
        bands: name -> (x, low, high), shaded behind the line of that name.
        is_log: whether y is drawn on a log axis; a point at or below 0 has no place there, and is left out.
    """
    bands = bands or {}
    styles = dict(zip(series, range(len(series)), strict=True))
    is_log = is_log and any(y > 0 for line in series.values() for _, y in line)
    if is_log:
        series = {name: [(x, y) for x, y in line if y > 0] for name, line in series.items()}
    series = {name: line for name, line in series.items() if line}
    points = [point for line in series.values() for point in line]
    points += [(x, y) for name in series for x, *ends in bands.get(name, ()) for y in ends if y > 0 or not is_log]
    highest = max(y for _, y in points)
    ys = decades(min(y for _, y in points), highest) if is_log else ticks(min(0.0, *(y for _, y in points)), highest)

    labels = [line_label(name, line[-1][1], int((width / 2 - SAMPLE - 8) / LETTER)) for name, line in series.items()]
    left = 26 + DIGIT * max(len(f"{y:.4g}") for y in ys)
    right = width - SAMPLE - 8 - LETTER * max(map(len, labels))
    bottom = height - MARGIN_BOTTOM
    n_ticks = min(max(int((right - left) / 55), 2), 5)
    last_x = max(x for x, _ in points)
    xs = ticks(min(x for x, _ in points), last_x, n_ticks, least=1)
    xs, end = ([x for x in xs if x <= last_x], last_x) if xs[0] < last_x else (xs, xs[-1])

    def px(x: float) -> float:
        return left + (x - xs[0]) / (end - xs[0]) * (right - left)

    def py(y: float) -> float:
        low, high, y = (math.log10(max(value, ys[0])) for value in (ys[0], ys[-1], y)) if is_log else (ys[0], ys[-1], y)
        return MARGIN_TOP + (1 - (y - low) / (high - low)) * (bottom - MARGIN_TOP)

    out = [f'<g transform="translate({at[0]},{at[1]})" font-size="12">']
    out.append(f'<text x="{left:.1f}" y="22" class="title" font-size="14" font-weight="600">{html_text(title)}</text>')
    for y in ys:
        out.append(f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{py(y):.1f}" y2="{py(y):.1f}" class="grid"/>')
        out.append(f'<text x="{left - 6:.1f}" y="{py(y) + 4:.1f}" text-anchor="end">{y:.4g}</text>')
    for x in xs:
        out.append(f'<text x="{px(x):.1f}" y="{bottom + 16}" text-anchor="middle">{x:.4g}</text>')
    out.append(f'<text x="{(left + right) / 2:.1f}" y="{height - 6}" text-anchor="middle">{html_text(x_label)}</text>')
    middle = (MARGIN_TOP + bottom) / 2
    out.append(
        f'<text transform="translate(14,{middle:.1f}) rotate(-90)" text-anchor="middle">{html_text(y_label)}</text>'
    )
    heights = spread([py(line[-1][1]) for line in series.values()], bottom - 3)
    for (name, line), label, label_y in zip(series.items(), labels, heights, strict=True):
        style = styles[name]
        out.append(f'<g class="s{style % len(COLORS)}" color="{COLORS[style % len(COLORS)]}">')
        dashes = DASHES[(style + style // len(COLORS)) % len(DASHES)]  # other ones when the colors come round again
        dash = f'stroke="currentColor" stroke-width="2" stroke-dasharray="{dashes}"'
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in line)
        out.append(f'<polyline points="{path}" fill="none" {dash} stroke-linejoin="round"/>')
        if band := bands.get(name):
            band = [one for one in band if one[2] > 0 or not is_log]
            edge = [(x, low) for x, low, _ in band] + [(x, high) for x, _, high in reversed(band)]
            corners = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in edge)
            out.append(f'<polygon points="{corners}" fill="currentColor" opacity="0.12"/>')
        for x, y in line:  # shown by the browser where the pointer rests
            told = html_text(f"{name} {y:.4g} at {x:.4g}".strip())
            out.append(f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="7" opacity="0"><title>{told}</title></circle>')
        x, y = line[-1]
        out.append(f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="3" fill="currentColor"/>')
        out.append(
            f'<line x1="{right + 6:.1f}" x2="{right + 22:.1f}" y1="{label_y:.1f}" y2="{label_y:.1f}" {dash}/></g>'
        )
        out.append(f'<text x="{right + SAMPLE:.1f}" y="{label_y + 4:.1f}" class="name">{html_text(label)}</text>')
    return "\n".join([*out, "</g>"])


def line_label(name: str, value: float, most: int) -> str:
    """Writes a line's name and last value in so many characters; of a name that is too long, the start."""
    shown, name = f"{value:.3g}", one_line(name)
    room = most - len(shown) - 1
    return f"{name if len(name) <= room else name[: max(room - 2, 0)] + '..'} {shown}".strip()


def spread(heights: list[float], lowest: float, gap: float = 14.0) -> list[float]:
    """Returns the same heights, moved apart where labels would overlap: down, and up again from `lowest` (y grows down)."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    moved = list(heights)
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    for index in reversed(order):
        moved[index] = min(moved[index], lowest)
        lowest = moved[index] - gap
    return moved


def picture(charts: list[Chart], title: str, width: int = 460) -> str:
    """Draws a whole SVG for a page of its own: charts two in a row, on a white card."""
    height = 280
    drawn = [
        line_chart(chart.series, chart.title, "training step", chart.unit, width=width, height=height, bands=chart.bands,
                   at=(index % 2 * width, index // 2 * height), is_log=chart.is_log)
        for index, chart in enumerate(charts)
    ]  # fmt: skip
    size = 2 * width, (len(charts) + 1) // 2 * height
    card = f'<rect width="{size[0]}" height="{size[1]}" rx="8" fill="#fff"/>'
    style = "text{fill:#1f2430}.grid{stroke:#dfe3e8}.name{font-weight:600}"
    return svg("\n".join([card, *drawn]), *size, title, style) + "\n"


def svg(body: str, width: int, height: int, title: str, style: str) -> str:
    """Draws a whole SVG with a title for those who do not see it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="system-ui, -apple-system, Segoe UI, sans-serif"><title>{html_text(title)}</title>'
        f"{f'<style>{style}</style>' if style else ''}\n{body}\n</svg>"
    )
