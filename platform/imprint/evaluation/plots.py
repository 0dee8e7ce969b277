"""Plots of a comparison as SVG: identity against prompt with the Pareto front, and against what it costs."""

from __future__ import annotations

import io

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from imprint.evaluation.comparison import IDENTITY, LABELS, PROMPT, Comparison, Entry

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#333333")
"""Okabe and Ito's, which most eyes can tell apart, yellow for brown."""
_MARKERS = "osD^vP*X"


def pareto_plot(
    comparison: Comparison, *, horizontal: str = PROMPT, vertical: str = IDENTITY, log: bool = False
) -> str:
    """An SVG of two scores with the intervals of both, numbered as in tables; empty where no entry has both.

    The line joins those that no other beats in both. On a logarithmic axis, which is for costs, there is no such line,
    and entries of no cost are left out.
    """
    chosen = [
        (number, entry)
        for number, entry in enumerate(comparison.entries, start=1)
        if entry.estimate(horizontal) is not None
        and entry.estimate(vertical) is not None
        and (not log or entry.estimate(horizontal).mean > 0)  # type: ignore[union-attr]
    ]
    if not chosen:
        return ""
    figure = Figure(figsize=(8.6, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for number, entry in chosen:
        _point(axes, number, entry, horizontal, vertical)
    if not log:
        front = [entry for name in comparison.pareto(horizontal, vertical) for _, entry in chosen if entry.name == name]
        middles = [(entry.estimate(horizontal), entry.estimate(vertical)) for entry in front]
        axes.plot([x.mean for x, _ in middles if x], [y.mean for _, y in middles if y], color="#999999", linewidth=1,
                  zorder=1)  # fmt: skip
    if vertical == IDENTITY:
        for value, text in ((comparison.floor, "another subject"), (comparison.ceiling, "another real picture")):
            if value is not None:
                axes.axhline(value, color="#bbbbbb", linestyle="--", linewidth=1, zorder=0)
                axes.text(0.995, value, text, transform=axes.get_yaxis_transform(), fontsize=8, color="#666666",
                          ha="right", va="bottom")  # fmt: skip
    if log:
        axes.set_xscale("log")
    axes.set_xlabel(LABELS[horizontal])
    axes.set_ylabel(LABELS[vertical])
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    return _svg(figure)


def _point(axes: Axes, number: int, entry: Entry, horizontal: str, vertical: str) -> None:
    x, y = entry.estimate(horizontal), entry.estimate(vertical)
    assert x is not None and y is not None
    colour, marker = _COLOURS[(number - 1) % len(_COLOURS)], _MARKERS[(number - 1) // len(_COLOURS) % len(_MARKERS)]
    axes.errorbar(
        x.mean, y.mean, xerr=[[x.mean - x.low], [x.high - x.mean]], yerr=[[y.mean - y.low], [y.high - y.mean]],
        fmt=marker, color=colour, ecolor=f"{colour}66", elinewidth=1, markersize=6, label=f"{number}  {entry.label}",
    )  # fmt: skip
    axes.annotate(str(number), (x.mean, y.mean), xytext=(5, 4), textcoords="offset points", fontsize=8, color=colour)


def _svg(figure: Figure) -> str:
    """The element alone, the same bytes for the same figure."""
    FigureCanvasSVG(figure)
    out = io.StringIO()
    with rc_context({"svg.hashsalt": "imprint", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
