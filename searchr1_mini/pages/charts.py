"""Line charts as SVG text, drawn by hand: no script, no request, readable in dark mode."""

from __future__ import annotations

import math
from html import escape
from itertools import pairwise

from searchr1_mini.storage.printable import one_line

Series = dict[str, list[tuple[float, float]]]
Bands = dict[str, list[tuple[float, float, float]]]
COLOURS = ("#0072b2", "#d55e00", "#00805d", "#7c3aed", "#a96b00", "#0e7490", "#be185d", "#4d5562")
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 52, 124, 40, 40


def html_text(text: str) -> str:
    """Foreign text for HTML and SVG, on one line: no markup, no attribute, and no character that XML forbids."""
    return escape(one_line(text))


def ticks(low: float, high: float, n: int = 5, least: float = 0.0) -> list[float]:
    """About `n` round numbers that cover [low, high], at least `least` apart."""
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / n))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= n)
    step = max(step, least)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


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
) -> str:
    """A `<g>` with one chart: grid, axes with units, and each line named at its end.

    Args:
        series: name -> points (x, y), x ascending; a name without points is not drawn but keeps its colour.
        at: where its left upper corner goes.
        bands: name -> (x, low, high), shaded behind the line of that name.
    """
    bands = bands or {}
    colours = dict(zip(series, COLOURS * len(series), strict=False))
    series = {name: line for name, line in series.items() if line}
    points = [point for line in series.values() for point in line]
    points += [(x, y) for band in bands.values() for x, *ends in band for y in ends]
    xs = ticks(min(x for x, _ in points), max(x for x, _ in points), least=1)
    ys = ticks(min(0.0, *(y for _, y in points)), max(y for _, y in points))
    inner_width, inner_height = width - MARGIN_LEFT - MARGIN_RIGHT, height - MARGIN_TOP - MARGIN_BOTTOM

    def px(x: float) -> float:
        return MARGIN_LEFT + (x - xs[0]) / (xs[-1] - xs[0]) * inner_width

    def py(y: float) -> float:
        return MARGIN_TOP + (1 - (y - ys[0]) / (ys[-1] - ys[0])) * inner_height

    out = [f'<g transform="translate({at[0]},{at[1]})" font-size="12">']
    out.append(
        f'<text x="{MARGIN_LEFT}" y="22" class="title" font-size="14" font-weight="600">{html_text(title)}</text>'
    )
    for y in ys:
        out.append(
            f'<line x1="{MARGIN_LEFT}" x2="{width - MARGIN_RIGHT}" y1="{py(y):.1f}" y2="{py(y):.1f}" class="grid"/>'
        )
        out.append(f'<text x="{MARGIN_LEFT - 6}" y="{py(y) + 4:.1f}" text-anchor="end">{y:.4g}</text>')
    for x in xs:
        out.append(f'<text x="{px(x):.1f}" y="{height - MARGIN_BOTTOM + 16}" text-anchor="middle">{x:.4g}</text>')
    middle = MARGIN_LEFT + inner_width / 2
    out.append(f'<text x="{middle}" y="{height - 6}" text-anchor="middle">{html_text(x_label)}</text>')
    out.append(
        f'<text transform="translate(14,{MARGIN_TOP + inner_height / 2}) rotate(-90)" text-anchor="middle">{html_text(y_label)}</text>'
    )
    heights = spread([py(line[-1][1]) for line in series.values()], height - MARGIN_BOTTOM)
    for (name, line), label_y in zip(series.items(), heights, strict=True):
        colour = colours[name]
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in line)
        out.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"/>'
        )
        if band := bands.get(name):
            edge = [(x, low) for x, low, _ in band] + [(x, high) for x, _, high in reversed(band)]
            corners = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in edge)
            out.append(f'<polygon points="{corners}" fill="{colour}" opacity="0.12"/>')
        for x, y in line:  # shown by the browser where the pointer rests
            told = html_text(f"{name} {y:.4g} at {x:.4g}".strip())
            out.append(f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="7" opacity="0"><title>{told}</title></circle>')
        x, y = line[-1]
        out.append(f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="3" fill="{colour}"/>')
        label = f"{name} {y:.3g}".strip()
        out.append(
            f'<text x="{px(x) + 8:.1f}" y="{label_y + 4:.1f}" fill="{colour}" class="name">{html_text(label)}</text>'
        )
    return "\n".join([*out, "</g>"])


def spread(heights: list[float], lowest: float, gap: float = 14.0) -> list[float]:
    """The same heights, moved apart where labels would overlap: down, and up again from `lowest` (y grows down)."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    moved = list(heights)
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    for index in reversed(order):
        moved[index] = min(moved[index], lowest)
        lowest = moved[index] - gap
    return moved


def picture(charts: list[tuple[Series, str, str, Bands]], title: str, width: int = 460) -> str:
    """A whole SVG for a page of its own: charts (lines, title, unit, bands) two in a row, on a white card."""
    height = 280
    drawn = [
        line_chart(series, name, "training step", unit, width=width, height=height, bands=bands,
                   at=(index % 2 * width, index // 2 * height))
        for index, (series, name, unit, bands) in enumerate(charts)
    ]  # fmt: skip
    size = 2 * width, (len(charts) + 1) // 2 * height
    card = f'<rect width="{size[0]}" height="{size[1]}" rx="8" fill="#fff"/>'
    style = "text:not(.name){fill:#1f2430}.grid{stroke:#dfe3e8}.name{font-weight:600}"
    return svg("\n".join([card, *drawn]), *size, title, style) + "\n"


def svg(body: str, width: int, height: int, title: str, style: str) -> str:
    """A whole SVG with a title for those who do not see it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="system-ui, -apple-system, Segoe UI, sans-serif"><title>{html_text(title)}</title>'
        f"{f'<style>{style}</style>' if style else ''}\n{body}\n</svg>"
    )
