"""The picture of who was busy when: one line per worker, grouped by arm, over seconds from the start.

The upper panel is the whole run; the lower one is a few seconds from the middle of it, in which single calls can be
told apart. Both show calls as the workers timed them, so a gap is time in which that worker had nothing to do; the
upper one cannot show gaps far below the width of a pixel, and joins calls across them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from raydiff.figures import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION, arm_style, new_figure, pretty, style
from raydiff.metrics import Record, select
from raydiff.timeline import Interval, interval, training_span, union

SHARED = "shared"  # the group of what belongs to no arm

KINDS = {
    "pretraining": GREY,
    "learner chunk": BLUE,
    "new block": GREEN,
    "refreshed block": ORANGE,
    "evaluation": PURPLE,
    "audit": SKY,
}

_ROLES = ("pretrain", "learner", "generator", "refiner", "auditor", "evaluator")
_ZOOM_CALLS = 8  # blocks per generator that the close-up aims to show
_MOST_INCHES = 16.0
_SMALLEST_GAPS = 5_000  # gaps below this part of the whole run, a quarter of a pixel, are not drawn


@dataclass
class Row:
    """One worker of one arm: its calls by kind, in seconds from the start, and the moments it was lost."""

    arm: str
    worker: str
    bars: dict[str, list[Interval]] = field(default_factory=dict)
    lost: list[float] = field(default_factory=list)

    def add(self, kind: str, pair: Interval) -> None:
        self.bars.setdefault(kind, []).append(pair)

    def span(self) -> Interval | None:
        pairs = [pair for group in self.bars.values() for pair in group]
        return (min(p[0] for p in pairs), max(p[1] for p in pairs)) if pairs else None


def rows(records: list[Record], arms: list[str]) -> list[Row]:
    """The lines of the picture: shared work first, then arm by arm in the order in which they began."""
    origin = _origin(records)
    found: dict[tuple[str, str], Row] = {}
    pretraining = [r["time"]["at"] for r in select(records, "pretrain") if (r.get("time") or {}).get("at") is not None]
    if len(pretraining) > 1:
        row = found.setdefault((SHARED, "pretrainer"), Row(SHARED, "pretrainer"))
        row.add("pretraining", (min(pretraining) - origin, max(pretraining) - origin))
    for record in records:
        kind, pair = _kind(record), interval(record)
        if kind is None or pair is None:
            continue
        arm, worker = record.get("arm") or SHARED, str(record["time"].get("worker") or record["kind"])
        row = found.setdefault((arm, worker), Row(arm, worker))
        row.add(kind, (pair[0] - origin, pair[1] - origin))
    for record in select(records, "event"):
        at, key = (record.get("time") or {}).get("at"), (record.get("arm") or SHARED, str(record.get("worker")))
        if record.get("event") == "worker_lost" and at is not None and key in found:
            found[key].lost.append(at - origin)
    begins = {arm: min(_begin(row) for row in found.values() if row.arm == arm) for arm in {k[0] for k in found}}
    groups = sorted(begins, key=lambda arm: (arm != SHARED, begins[arm], arms.index(arm) if arm in arms else -1))
    return sorted(found.values(), key=lambda row: (groups.index(row.arm), _role(row.worker), _natural(row.worker)))


def timeline(records: list[Record], arms: list[str]) -> Figure | None:
    """The whole run as a Gantt chart, with a close-up of concurrent generation where there was any."""
    lines = rows(records, arms)
    if not lines:
        return None
    close = _close_up(records, arms, _origin(records))
    below = [row for row in lines if close is not None and row.arm == close[0]]
    heights = [1.3 + 0.27 * len(lines)] + ([1.3 + 0.27 * len(below)] if below else [])
    figure = new_figure(10.4, min(sum(heights) + 0.4, _MOST_INCHES))
    grid = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    style(grid[0], "Who was busy when: the whole run", "seconds from the start", "")
    end = max(span[1] for row in lines if (span := row.span()) is not None)
    _draw(grid[0], lines, arms, gap=end / _SMALLEST_GAPS)
    grid[0].set_xlim(0, end * 1.005)
    if close is not None and below:
        arm, start, end = close
        title = f"Close-up: {pretty(arm)}, {end - start:.3g} s from the middle of its training"
        style(grid[1], title, "seconds from the start", "")
        _draw(grid[1], below, arms)
        grid[1].set_xlim(start, end)
        corner = (start, lines.index(below[0]) - 0.5)
        grid[0].add_patch(
            Rectangle(corner, end - start, len(below), fill=False, edgecolor=INK, linewidth=1.3, zorder=5)
        )
    used = {kind for row in lines for kind in row.bars}
    handles: list[Any] = [Patch(color=colour, label=kind) for kind, colour in KINDS.items() if kind in used]
    if any(row.lost for row in lines):
        handles.append(_cross(grid[0]))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 7), frameon=False, fontsize=9)
    return figure


def _draw(axes: Axes, lines: list[Row], arms: list[str], gap: float | None = None) -> None:
    """Bars of every line, and behind the lines of one arm its shade and its name at the right.

    With a ``gap`` (seconds) bars that are closer to each other are joined; without one every call has an edge.
    """
    edges = gap is None
    for place, row in enumerate(lines):
        for kind, calls in row.bars.items():
            pairs = calls if gap is None else _joined(calls, gap)
            axes.broken_barh(
                [(start, end - start) for start, end in pairs], (place - 0.36, 0.72), facecolors=KINDS[kind],
                edgecolors="white" if edges else "none", linewidth=0.6 if edges else 0.0, snap=edges, zorder=3,
            )  # fmt: skip
        axes.plot(row.lost, [place] * len(row.lost), "x", color=VERMILION, markersize=7, markeredgewidth=2, zorder=6)
    for arm in dict.fromkeys(row.arm for row in lines):
        places = [place for place, row in enumerate(lines) if row.arm == arm]
        spans = [span for row in lines if row.arm == arm and (span := row.span()) is not None]
        start, end = min(s[0] for s in spans), max(s[1] for s in spans)
        colour = GREY if arm == SHARED else arm_style(arm, arms)[0]
        corner, height = (start, places[0] - 0.5), len(places)
        axes.add_patch(Rectangle(corner, end - start, height, facecolor=colour, alpha=0.12, linewidth=0, zorder=1))
        axes.text(
            1.008, (places[0] + places[-1]) / 2, pretty(arm), transform=axes.get_yaxis_transform(),
            va="center", fontsize=9, color=INK, fontweight="bold",
        )  # fmt: skip
        if places[0] > 0:
            axes.axhline(places[0] - 0.5, color=GREY, linewidth=0.6)
    size = 9 if len(lines) <= 30 else 6
    axes.set_yticks(range(len(lines)), [row.worker for row in lines], fontsize=size)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _joined(calls: list[Interval], gap: float) -> list[Interval]:
    """Sorted intervals, those with less than ``gap`` between them made one."""
    return [(start, end - gap) for start, end in union((start, end + gap) for start, end in calls)]


def _cross(axes: Axes) -> Any:
    return axes.plot([], [], "x", color=VERMILION, markersize=7, markeredgewidth=2, label="worker lost")[0]


def _close_up(records: list[Record], arms: list[str], origin: float) -> tuple[str, float, float] | None:
    """Arm, start and end of the close-up: the first arm with blocks made while it was training."""
    for arm in arms:
        span = training_span(records, arm)
        pairs = [pair for record in select(records, "block", arm) if (pair := interval(record)) is not None]
        if span is None:
            continue
        inside = sorted(end - start for start, end in pairs if start < span[1] and end > span[0])
        if inside:
            middle = (span[0] + span[1]) / 2 - origin
            half = min(inside[len(inside) // 2] * _ZOOM_CALLS, span[1] - span[0]) / 2
            return (arm, middle - half, middle + half) if half > 0 else None
    return None


def _origin(records: list[Record]) -> float:
    """The first moment of any record, in seconds since the epoch."""
    times = [r.get("time") or {} for r in records]
    moments = [time[key] for time in times for key in ("start", "at", "end") if time.get(key) is not None]
    return min(moments, default=0.0)


def _kind(record: Record) -> str | None:
    if record.get("kind") == "block":
        return "new block" if record.get("parent_block") is None else "refreshed block"
    return {"train": "learner chunk", "evaluate": "evaluation", "audit": "audit"}.get(str(record.get("kind")))


def _begin(row: Row) -> float:
    span = row.span()
    return span[0] if span is not None else 0.0


def _role(worker: str) -> int:
    """Place of a worker's role from the top, by the role's name wherever it stands in the worker's."""
    return next((place for place, role in enumerate(_ROLES) if role in worker), len(_ROLES))


def _natural(worker: str) -> tuple[int, str]:
    """Numbered workers in the order of their numbers: generator 2 before generator 10."""
    digits = "".join(character for character in worker if character.isdigit())
    return (int(digits) if digits else 0, worker)
