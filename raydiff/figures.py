"""The pictures of a run over learner updates: scores of every arm, and how true and how fresh the synthetic data were.

Every function returns a ``Figure`` (or None where the records hold nothing to draw) and changes no global state of
matplotlib. Colours are those of Okabe and Ito, told apart by colour-blind readers; shapes repeat what colours say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from raydiff.evaluation.statistics import over_seeds
from raydiff.files import whole_file
from raydiff.metrics import Record, select

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
GREY, INK, FAINT = "#767676", "#222222", "#dddddd"

FIXED = {"guided": (BLUE, "o"), "real_only": (VERMILION, "s"), "unguided": (GREEN, "^")}
OTHERS = ((PURPLE, "D"), (ORANGE, "v"), (SKY, "P"), (INK, "X"))

SCALE_NAMES = {"normalized": "normalised score", "raw": "return"}

# Values that span more than this factor are drawn on a logarithmic axis.
_FAR_BELOW = 1e3
_LOG_SPREAD = 20.0


def run_arms(records: list[Record], scores: Mapping[str, Any]) -> list[str]:
    """All arms of a run: guided and real_only first, the others as they come; behaviour is none.

    ``scores`` is ``summary["scores"]``, and may be empty.
    """
    names = [*scores, *(record.get("arm") for record in records)]
    unique = [name for name in dict.fromkeys(names) if name and name != "behaviour"]
    first = [name for name in ("guided", "real_only") if name in unique]
    return first + [name for name in unique if name not in first]


def arm_style(name: str, arms: list[str]) -> tuple[str, str]:
    """Colour and marker of an arm, the same in every picture of the run."""
    if name in FIXED:
        return FIXED[name]
    others = [arm for arm in arms if arm not in FIXED]
    return OTHERS[others.index(name) % len(OTHERS)]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches, drawn by Agg whatever the user's own backend is."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def style(axes: Axes, title: str, x: str, y: str) -> None:
    """The look that all panels share: two spines, a faint grid, a title that says what is shown."""
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.set_xlabel(x, fontsize=10, color=INK)
    axes.set_ylabel(y, fontsize=10, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def save(figure: Figure, path: Path, dpi: int = 150) -> None:
    """Write a PNG atomically, without metadata that changes from one version to the next."""
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=dpi, metadata={"Software": None})


# -------------------------------------------------------------------------------------------------- learning curves


def score_scale(records: list[Record]) -> str:
    """``normalized`` where the run's environment has reference scores, else ``raw``: the key of what is drawn."""
    scored = (r for r in select(records, "evaluate") if (r.get("normalized") or {}).get("mean") is not None)
    return "normalized" if next(scored, None) is not None or not select(records, "evaluate") else "raw"


def evaluations(records: list[Record], arm: str, scale: str) -> list[Record]:
    """One evaluation per update, in order; the final one stands for its update, else the one written last. Where
    several seeds were trained at once it is their mean, with its interval over them, and ``seeds`` has those of each."""
    chosen: dict[int, dict[int | None, Record]] = {}
    for record in select(records, "evaluate", arm):
        if (record.get(scale) or {}).get("mean") is None:
            continue
        seeds = chosen.setdefault(record["update"], {})
        before = seeds.get(record.get("seed"))
        if before is None or record.get("final") or not before.get("final"):
            seeds[record.get("seed")] = record
    return [_over_seeds(chosen[update], scale) for update in sorted(chosen)]


def _over_seeds(seeds: Mapping[int | None, Record], scale: str) -> Record:
    """The evaluations of all seeds after one update as one."""
    records = list(seeds.values())
    if len(records) == 1:
        return records[0]
    means = {seed: record[scale]["mean"] for seed, record in seeds.items()}
    return {**records[0], scale: over_seeds(list(means.values())), "seeds": means}


def learning_curves(records: list[Record], arms: list[str], scores: Mapping[str, Any]) -> Figure | None:
    """Score against updates for every arm (the return where no normalised score exists), and the final scores.

    ``scores`` is ``summary["scores"]``; it gives the behaviour line and the final panel, and may be empty.
    """
    scale = score_scale(records)
    curves = {arm: points for arm in arms if (points := evaluations(records, arm, scale))}
    finals = final_scores(curves, scores, arms, scale)
    if not curves and not finals:
        return None
    figure = new_figure(9.6, 4.6)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3.0, 0.55 + 0.3 * max(len(finals), 1)))
    for arm, points in curves.items():
        colour, marker = arm_style(arm, arms)
        updates = [point["update"] for point in points]
        values = [point[scale] for point in points]
        mean = [value["mean"] for value in values]
        low = [bound(value, "low") for value in values]
        high = [bound(value, "high") for value in values]
        left.plot(updates, mean, color=colour, marker=marker, markersize=4.5, linewidth=1.8, label=pretty(arm))
        left.fill_between(updates, low, high, color=colour, alpha=0.13, linewidth=0)
        for seed in points[-1].get("seeds", ()):
            own = [point.get("seeds", {}).get(seed, float("nan")) for point in points]
            left.plot(updates, own, color=colour, linewidth=0.8, alpha=0.5)
    style(left, "Score while learning", "learner updates", SCALE_NAMES[scale])
    left.xaxis.set_major_formatter(FuncFormatter(thousands))
    style(right, "Final policy", "", "")
    _draw_finals(right, finals, arms)
    behaviour = (scores.get("behaviour") or {}).get(scale) or {}
    if behaviour.get("mean") is not None:
        for axes in (left, right):
            axes.axhline(behaviour["mean"], color=GREY, linestyle=(0, (5, 3)), linewidth=1.3, label="behaviour")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), 6) or 1, frameon=False, fontsize=9
    )
    left.text(
        0.01, 0.985, f"bands and bars: interval over {spread_of(records, arms)}",
        transform=left.transAxes, fontsize=8, color=GREY, va="top",
        bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip
    left.margins(y=0.12)
    return figure


def spread_of(records: list[Record], arms: list[str]) -> str:
    """What the intervals of the arms' scores run over, in words."""
    seeds = {arm: len({r.get("seed") for r in select(records, "evaluate", arm)}) for arm in arms}
    several = {arm: count for arm, count in seeds.items() if count > 1}
    if not several:
        return "episodes of one seed"
    counts = " or ".join(f"{count}" for count in sorted(set(several.values())))
    alone = [pretty(arm) for arm, count in seeds.items() if count == 1]
    return f"{counts} seeds" + (
        f" (of {', '.join(alone)}: over episodes of one seed)" if alone else "; thin lines: each"
    )


def final_scores(
    curves: Mapping[str, list[Record]], scores: Mapping[str, Any], arms: list[str], scale: str
) -> dict[str, Mapping[str, Any]]:
    """Final score of each arm: the summary's, else that of its final evaluation."""
    finals: dict[str, Mapping[str, Any]] = {}
    for arm in arms:
        given = (scores.get(arm) or {}).get(scale)
        own = [point[scale] for point in curves.get(arm, []) if point.get("final")]
        if given and given.get("mean") is not None:
            finals[arm] = given
        elif own:
            finals[arm] = own[-1]
    return finals


def _draw_finals(axes: Axes, finals: Mapping[str, Mapping[str, Any]], arms: list[str]) -> None:
    for place, (arm, value) in enumerate(finals.items()):
        colour, marker = arm_style(arm, arms)
        mean = value["mean"]
        errors = [[max(mean - bound(value, "low"), 0.0)], [max(bound(value, "high") - mean, 0.0)]]
        axes.errorbar([place], [mean], yerr=errors, color=colour, marker=marker, markersize=7, capsize=4, linewidth=1.8)
        axes.annotate(
            f"{mean:.1f}", (place, bound(value, "high")), xytext=(0, 5), textcoords="offset points",
            ha="center", fontsize=9, color=INK,
        )  # fmt: skip
    axes.set_xticks(range(len(finals)), [pretty(arm) for arm in finals], rotation=35, ha="right", fontsize=9)
    axes.set_xlim(-0.6, max(len(finals), 1) - 0.4)
    axes.grid(visible=False, axis="x")
    if not finals:
        axes.text(0.5, 0.5, "none yet", transform=axes.transAxes, ha="center", color=GREY, fontsize=9)


# --------------------------------------------------------------------------------------------------- synthetic data


def synthetic_data(
    records: list[Record], arms: list[str], max_lag: float | None = None, floor: float | None = None
) -> Figure | None:
    """How on-policy, how true and how fresh the synthetic data were, over learner updates.

    ``max_lag`` is the configured limit. ``floor`` is the audit's own error on real data as a share of persistence,
    where it was measured.
    """
    panels: list[Callable[[Axes], None]] = []
    if any(r.get("deviation") is not None for r in select(records, "block")):
        panels.append(lambda axes: _draw_deviation(axes, records, arms))
    if any(error_ratio(r) is not None for r in select(records, "audit")):
        panels.append(lambda axes: _draw_dynamics(axes, records, arms, floor))
    if any(_lag(r) is not None for r in select(records, "train")):
        panels.append(lambda axes: _draw_lag(axes, records, arms, max_lag))
    if not panels:
        return None
    figure = new_figure(9.6, 0.5 + 2.9 * len(panels))
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, draw in zip(grid, panels, strict=True):
        draw(axes)
        size = 9 if len(axes.get_legend_handles_labels()[1]) <= 11 else 6.5
        axes.legend(loc="upper left", bbox_to_anchor=(1.005, 1.02), frameon=False, fontsize=size, borderaxespad=0)
    for axes in grid[:-1]:
        axes.set_xlabel("")
    grid[-1].xaxis.set_major_formatter(FuncFormatter(thousands))
    return figure


def _draw_deviation(axes: Axes, records: list[Record], arms: list[str]) -> None:
    style(axes, "Synthetic actions: distance from the policy they were made for", "learner updates",
          "mean squared deviation")  # fmt: skip
    drawn: list[float] = []
    for arm in arms:
        blocks = [r for r in select(records, "block", arm) if r.get("deviation") is not None]
        fresh = [r for r in blocks if r.get("parent_block") is None]
        groups = {
            "warm-up": [r for r in fresh if is_warmup(r)],
            "new": [r for r in fresh if not is_warmup(r)],
            "refreshed": [r for r in blocks if r.get("parent_block") is not None],
        }
        for name, group in groups.items():
            _scatter(axes, arm, name, [(r["update"], r["deviation"]) for r in group], arms)
            drawn += [r["deviation"] for r in group]
    rescale(axes, drawn)


def is_warmup(record: Record) -> bool:
    """An unguided block that arrived before the learner's first chunk ended."""
    return record["update"] == 0 and record.get("guidance", "none") == "none"


def _draw_dynamics(axes: Axes, records: list[Record], arms: list[str], floor: float | None) -> None:
    style(axes, "Synthetic dynamics: one-step error in the simulator", "learner updates", "error / persistence error")
    drawn: list[float] = []
    for arm in arms:
        audits = [(r, ratio) for r in select(records, "audit", arm) if (ratio := error_ratio(r)) is not None]
        for name, refreshed in (("new", False), ("refreshed", True)):
            points = [(r["update"], ratio) for r, ratio in audits if bool(r.get("refreshed")) is refreshed]
            _scatter(axes, arm, name, points, arms)
            drawn += [ratio for _, ratio in points]
    if floor is not None:
        axes.axhline(floor, color=GREY, linestyle=(0, (5, 3)), linewidth=1.3, label=f"floor: real data, {floor:.1g}")
        if floor * _FAR_BELOW > min(drawn):  # an exact simulator's floor is zero to the eye: the axis need not reach it
            drawn.append(floor)
    if max(drawn) > 0.5:
        axes.axhline(1.0, color=INK, linewidth=1.0, label="persistence")
    rescale(axes, drawn)


def _draw_lag(axes: Axes, records: list[Record], arms: list[str], limit: float | None) -> None:
    style(axes, "Policy lag of the sampled batch", "learner updates", "updates behind")
    for arm in arms:
        lags: dict[float, list[tuple[float, float]]] = {}  # of one seed or several
        for record in select(records, "train", arm):
            if (lag := _lag(record)) is not None:
                lags.setdefault(record["update"], []).append(lag)
        if not lags:
            continue
        updates = sorted(lags)
        mean = [sum(own for own, _ in lags[update]) / len(lags[update]) for update in updates]
        worst = [max(top for _, top in lags[update]) for update in updates]
        colour = arm_style(arm, arms)[0]
        axes.plot(updates, mean, color=colour, linewidth=1.8, label=f"{pretty(arm)}: mean")
        axes.plot(updates, worst, color=colour, linewidth=1.0, alpha=0.55, label=f"{pretty(arm)}: max")
    if limit is not None:
        axes.axhline(limit, color=GREY, linestyle=(0, (5, 3)), linewidth=1.3, label="limit")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(thousands))


def _scatter(axes: Axes, arm: str, name: str, points: list[tuple[float, float]], arms: list[str]) -> None:
    """Points of one group: new ones filled, refreshed ones hollow triangles, the warm-up hollow grey squares."""
    if not points:
        return
    colour = arm_style(arm, arms)[0]
    look = {
        "new": {"marker": "o", "markerfacecolor": colour, "markeredgecolor": "white", "markeredgewidth": 0.5},
        "refreshed": {"marker": "^", "markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": 1.2},
        "warm-up": {"marker": "s", "markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": 1.2},
    }[name]
    line = Line2D(*zip(*points, strict=True), linestyle="none", markersize=6, label=f"{pretty(arm)}: {name}", **look)  # type: ignore[arg-type]
    axes.add_line(line)
    axes.autoscale_view()


def rescale(axes: Axes, values: list[float]) -> None:
    """Logarithmic where the values span more than a factor of twenty, else linear from zero."""
    if values and min(values) > 0 and max(values) / min(values) > _LOG_SPREAD:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, 1.1 * max(values, default=1.0) or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(5))


def error_ratio(record: Record) -> float | None:
    """One-step error of an audited block, as a share of the error of predicting no change."""
    error, persistence = record.get("dynamics_error"), record.get("persistence_error")
    return error / persistence if error is not None and persistence else None


def _lag(record: Record) -> tuple[float, float] | None:
    lag = record.get("lag") or {}
    mean, worst = lag.get("mean"), lag.get("max")
    return (mean, worst) if mean is not None and worst is not None else None


def bound(value: Mapping[str, Any], key: str) -> float:
    """A bound of an interval, or the mean where there is none (a single episode has no interval)."""
    found = value.get(key)
    return float(value["mean"] if found is None else found)


def pretty(arm: str) -> str:
    """The name of an arm in words."""
    return arm.replace("_", " ")


def thousands(value: float, _: int | None = None) -> str:
    """A tick of an axis of counts."""
    return f"{value:,.0f}"
