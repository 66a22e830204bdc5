"""Figures of the report: mean recall over trainable parameters, pairs and seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from polyalign.evaluation.results import Run
from polyalign.evaluation.tables import counted
from polyalign.experiments.significance import Comparison, Method, grouped
from polyalign.utils import storage
from polyalign.utils.text import clean, safe_stem

# Colours of Okabe and Ito (2008) for colour-blind readers, without yellow, and four more. The numbers of colours and of
# shapes have no common factor, so that 88 methods look different.
_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    *("#888888", "#882255", "#999933", "#332288"),
)
_SHAPES = "osD^v<PX"
_HEIGHT_INCHES = 4.4
_PANEL_INCHES = 4.4

Style = dict[str, str]


def names(comparison: Comparison) -> dict[str, str]:
    """Return the file name of each figure by its description, for comparisons that are shown together.

    Under a budget of time or memory there is no figure over pairs.
    """
    kind = "-compute" if comparison.of_compute else "" if comparison.has_pairs else "-no-pairs"
    stem = safe_stem(f"{comparison.lang}-{comparison.gallery.gallery}-{'-'.join(comparison.recipes)}{kind}")
    pairs = {"Mean recall against pairs": f"{stem}-pairs.png"} if _has_lines(comparison) else {}
    return {
        "Mean recall against trainable parameters": f"{stem}-parameters.png",
        **pairs,
        "Mean recall against seconds of training": f"{stem}-seconds.png",
    }


def _has_lines(comparison: Comparison) -> bool:
    return comparison.has_pairs and not comparison.of_compute


def clock(comparison: Comparison) -> str:
    """Return what ``cost_seconds`` measures in these runs."""
    devices = {run.device for run in comparison.runs}
    if devices == {"cpu"}:
        return "processor time over all threads"
    return "processor time without a GPU, else elapsed time" if "cpu" in devices else "elapsed time"


def together(found: Sequence[Comparison]) -> list[list[Comparison]]:
    """Group comparisons that share language, gallery, recipes and kind of budget; each group is shown together."""
    terms = attrgetter("lang", "gallery.gallery", "recipes", "of_compute", "has_pairs")
    return list(grouped(found, terms).values())


def draw(found: Sequence[Comparison], folder: Path) -> list[Path]:
    """Draw the figures of all comparisons and return their paths.

    A method has the same colour and marker in all of them.
    """
    methods = sorted({method.name for comparison in found for method in comparison.methods})
    styles = {
        name: {"color": _COLOURS[i % len(_COLOURS)], "marker": _SHAPES[i % len(_SHAPES)]}
        for i, name in enumerate(methods)
    }
    written = []
    for own in together(found):
        with rc_context({"text.parse_math": False}):  # a dollar sign in a name is no formula
            drawn = [
                _scatter(own, styles, lambda run: run.trainable, "trainable parameters"),
                *([_lines(own, styles)] if _has_lines(own[0]) else []),
                _scatter(own, styles, lambda run: run.cost_seconds, f"seconds ({clock(own[0])})"),
            ]
        for name, figure in zip(names(own[0]).values(), drawn, strict=True):
            storage.write(folder / name, partial(figure.savefig, format="png", dpi=110))
            written.append(folder / name)
    return written


def _scatter(found: Sequence[Comparison], styles: dict[str, Style], of: Callable[[Run], float], what: str) -> Figure:
    """Draw one panel per budget, one point per method."""
    figure, panels = _panels(len(found), found)
    methods = [method for comparison in found for method in comparison.methods]
    for comparison, panel in zip(found, panels, strict=True):
        for method in comparison.methods:
            _point(panel, [method.mean(of)], [method], styles[method.name])
        _dress(panel, comparison, methods, clean(f"{comparison.budget}, {_seeds(comparison)}", 60), what)
    return _with_legend(figure, panels)


def _lines(found: Sequence[Comparison], styles: dict[str, Style]) -> Figure:
    """Draw mean recall over the number of pairs, one line per method."""
    figure, (panel,) = _panels(1, found)
    every = [method for comparison in found for method in comparison.methods]
    by_name = grouped(every, lambda method: method.name)
    for place, (name, methods) in enumerate(sorted(by_name.items())):
        methods.sort(key=lambda method: method.runs[0].pairs)
        aside = 1 + 0.02 * (place - len(by_name) / 2)  # keeps intervals from overlapping
        _point(panel, [aside * method.runs[0].pairs for method in methods], methods, styles[name])
    _dress(panel, found[0], every, _seeds(*found), "training pairs (points shifted slightly)")
    return _with_legend(figure, [panel])


def _panels(count: int, found: Sequence[Comparison]) -> tuple[Figure, list[Axes]]:
    comparison = found[0]
    width = max(_PANEL_INCHES * count, 1.5 * _PANEL_INCHES)
    longest = max(len(method.name) for one in found for method in one.methods)
    width += 0.09 * max(0, min(longest, 60) - 30)  # of the legend
    figure = Figure(figsize=(width, _HEIGHT_INCHES), layout="constrained")
    title = clean(f"{comparison.lang}: {comparison.gallery.gallery}, recipe {comparison.recipe}", 100)
    figure.suptitle(title, fontsize=12)
    row = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    return figure, list(row)


def _point(panel: Axes, x: Sequence[float], methods: Sequence[Method], style: Style) -> None:
    means = [method.scores[-1] for method in methods]
    values = [100 * score.value for score in means]
    below = [100 * (score.value - score.low) for score in means]
    above = [100 * (score.high - score.value) for score in means]
    look = {"markersize": 8, "markeredgecolor": "white", "capsize": 2, "elinewidth": 1, "linewidth": 1.3}
    panel.errorbar(x, values, yerr=[below, above], label=_label(methods[0].name), **style, **look)  # type: ignore[arg-type]


def _label(name: str) -> str:
    """Return a name for the legend, which leaves out labels that begin with an underscore."""
    return clean(name, 60).replace("_", "\u2009_", 1) if name.startswith("_") else clean(name, 60)


def _dress(panel: Axes, comparison: Comparison, methods: Sequence[Method], title: str, what: str) -> None:
    chance = 100 * float(comparison.gallery.chance().mean())
    panel.axhline(chance, color="#555555", linestyle=":", linewidth=1, label="chance")
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))  # 500, 20k, 3M
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel(what)
    covers = ",\nor ".join(sorted({method.covers for method in methods}, reverse=True))
    panel.set_ylabel(f"mean recall, percent\n(95 % intervals over {covers})")
    panel.set_title(title, fontsize=10)
    panel.grid(visible=True, color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.label_outer()


def _with_legend(figure: Figure, panels: Sequence[Axes]) -> Figure:
    """Start all panels at zero, and add one legend for all of them."""
    panels[0].set_ylim(bottom=0)
    shown: dict[str, Artist] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            shown[label] = handle[0] if isinstance(handle, ErrorbarContainer) else handle
    order = sorted(shown, key=lambda label: (label == "chance", label))
    figure.legend([shown[label] for label in order], order, loc="outside right center", fontsize=9, frameon=False)
    return figure


def _seeds(*found: Comparison) -> str:
    fewest, *_, most = sorted({len(comparison.seeds) for comparison in found}) * 2
    return counted(most, "seed") if fewest == most else f"{fewest} to {counted(most, 'seed')}"
