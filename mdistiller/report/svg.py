"""Drawings as SVG that takes the page's text color and font, so that it can be read in the light and in the dark."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any, Callable, Sequence

INK = "#010203"  # written by matplotlib, replaced by the color of the page's text
# readable on white and on near black, and in pairs for readers who see no red or green
SERIES = ("#2f7fd1", "#e07b22", "#2a9d74", "#b65bc7", "#c9a227", "#d6495a", "#7a86b8", "#a0684a", "#3aa7b8", "#7d9a2b")
WIDTH, NARROW, HEIGHT = 380, 300, 270  # pixels of a panel
PIXEL = 72  # per inch in matplotlib's SVG
ID = "PANEL-"  # beginning of the identifiers in a drawing; `page` replaces it, so that they differ between drawings
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "font.size": 12,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",  # letters, not their outlines
    "svg.hashsalt": "mdistiller",
    "text.color": INK,
    "text.parse_math": False,  # a class may be called $\x$
    "xtick.color": INK,
    "xtick.labelsize": 11,
    "ytick.color": INK,
    "ytick.labelsize": 11,
}


def draw(
    paint: Callable[[Any], None],
    width: float = WIDTH,
    height: float = HEIGHT,
    grid: Sequence[int] = (1, 1),
    layout: Any = "constrained",
) -> str:
    """Return a drawing as an SVG element.

    Args:
        paint: a function that draws on matplotlib axes; with a larger `grid` on a flat list of them, row by row.
        width, height: the size of the drawing in pixels.
        grid: the numbers of rows and columns of axes.
        layout: the layout engine of matplotlib; "compressed" for axes with a fixed aspect.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that matplotlib's font lacks; the browser has them
        figure = Figure(figsize=(width / PIXEL, height / PIXEL), dpi=PIXEL, layout=layout)
        axes = figure.subplots(*grid, squeeze=False).flatten()
        paint(axes[0] if len(axes) == 1 else list(axes))
        figure.savefig(buffer, format="svg", dpi=2 * PIXEL, metadata=dict.fromkeys(("Date", "Creator")))
    return _for_page(buffer.getvalue())


def log_scale(axes: Any) -> None:
    """Give the vertical axis a logarithmic scale, with plain numbers: matplotlib's powers of ten need `parse_math`."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    few = high < 100 * low  # then powers of ten alone are too few
    number = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(number)
    axes.yaxis.set_minor_formatter(NullFormatter())
    if few:
        axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))


def _for_page(svg: str) -> str:
    """Return matplotlib's SVG file as an element of a page: its size relative, its identifiers renamed."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", '<svg aria-hidden="true"', 1)
    used = set(re.findall(r'(?:url\(#|href="#)([\w-]+)', svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda found: f' id="{ID}{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)([\w-]+)', rf"\1{ID}\2", svg)
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]*", rf"\1 {FONTS}", svg)
    svg = svg.replace(INK, "currentColor")
    return re.sub(r"\n\s*", "\n", svg)
