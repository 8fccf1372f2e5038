"""The studies of DyDiff: its ablations of M, L, eta, alpha and the filter, and its figures 4 and 7."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from raydiff.config import Config
from raydiff.studies.api import Condition, Scale, Study
from raydiff.studies.findings import sweep, tally
from raydiff.studies.results import Results

PRESET = "dydiff/maze2d-umaze.yaml"
LEAN = {"generator.count": 1, "generator.refine_when_idle": False, "refiner.count": 0}
SCALES = {
    "tiny": Scale(PRESET, {**LEAN, "scale": "tiny"}),
    "small": Scale(PRESET, {**LEAN, "scale": "small"}),
    "paper": Scale(PRESET),
}
COLUMNS = ("score", "error", "log_likelihood", "legal")


def _along(
    name: str, key: str, letter: str, values: Callable[[Config], Sequence[float]]
) -> Callable[[Config], Sequence[Condition]]:
    """One condition per value of a setting."""

    def conditions(config: Config) -> Sequence[Condition]:
        return [
            Condition(f"{name}-{value:g}", f"{letter} = {value:g}", "DyDiff", {key: value}, x=float(value))
            for value in values(config)
        ]

    return conditions


def _swept(*measures: str) -> Callable[[Results], list[str]]:
    def findings(results: Results) -> list[str]:
        lines = [sweep(results.group("DyDiff"), measure) for measure in measures]
        return [line for line in lines if line]

    return findings


def fractions(config: Config) -> Sequence[Condition]:
    """At alpha = 1 nothing is generated."""
    mixed = _along("alpha", "replay.real_fraction", "alpha", lambda _: (0.0, 0.2, 0.4, 0.6, 0.8))
    return [*mixed(config), Condition("alpha-1", "alpha = 1, real data alone", "DyDiff", {"generator.count": 0}, x=1.0)]


def _lengths(config: Config) -> Sequence[int]:
    """Windows of an eighth, a quarter and half of the length, and the whole; the U-Net halves them twice."""
    return [length for part in (8, 4, 2, 1) if (length := config.denoiser.length // part) >= 4]


def filters(config: Config) -> Sequence[Condition]:
    return [Condition(name, name, "filter", {"generator.filter": name}) for name in ("none", "hardmax", "softmax")]


def filter_findings(results: Results) -> list[str]:
    none = results.row("none")
    return [line for line in [tally(results.group("filter"), none)] if line] if none is not None else []


def models(config: Config) -> Sequence[Condition]:
    """The states of the one-step model's rollouts (M = 0) and of the trajectory model for the same actions."""
    group: dict[str, dict[str, Any]] = {
        "one-step model": {"dydiff.iterations": 0},
        "trajectory model": {"dydiff.iterations": 1, "dydiff.update": "replace"},
    }
    return [Condition(name.replace(" ", "-"), name, name, values) for name, values in group.items()]


def model_findings(results: Results) -> list[str]:
    rollout, other = results.row("one-step-model"), results.row("trajectory-model")
    if rollout is None or other is None:
        return []
    lines = [tally([other], rollout, "error")]
    pairs = list(zip(other.series("error_by_step"), rollout.series("error_by_step"), strict=False))
    below = [step for step, (ours, theirs) in enumerate(pairs, 1) if ours.value < theirs.value]
    if pairs:
        lines.append(
            f"The trajectory model's error is below that of the one-step model's rollouts at {len(below)} of "
            f"{len(pairs)} steps" + (f", the first of them step {below[0]}." if below else ".")
        )
    return [line for line in lines if line]


def _study(name: str, title: str, conditions: Any, findings: Any, columns: tuple[str, ...], x: str = "") -> Study:
    return Study(f"dydiff-{name}", f"DyDiff: {title}", conditions, findings, SCALES, columns, x)


ITERATIONS = _study(
    "iterations",
    "score and error by the number M of refinement iterations (figure 7).",
    _along("iterations", "dydiff.iterations", "M", lambda _: (0, 1, 2, 3, 4)),
    _swept("score", "error", "log_likelihood"),
    (*COLUMNS, "error_by_step"),
    "iterations M",
)
LENGTH = _study(
    "length",
    "score and error by the length L of the trajectories.",
    _along("length", "denoiser.length", "L", _lengths),
    _swept("score", "error"),
    COLUMNS,
    "rows L",
)
KEEP = _study(
    "keep",
    "score by the share eta of trajectories that the filter keeps.",
    _along("keep", "generator.keep", "eta", lambda _: (0.2, 0.4, 0.6, 0.8, 1.0)),
    _swept("score"),
    COLUMNS,
    "share kept eta",
)
REAL_FRACTION = _study(
    "real-fraction",
    "score by the share alpha of real data in each batch.",
    fractions,
    _swept("score"),
    COLUMNS,
    "real share alpha",
)
FILTER = _study("filter", "no filter, hardmax and softmax.", filters, filter_findings, COLUMNS)
FIGURE_4 = _study(
    "figure4",
    "error by step of a one-step model's rollouts and of the trajectory model.",
    models,
    model_findings,
    ("error", "error_by_step", "log_likelihood"),
)
STUDIES = (ITERATIONS, LENGTH, KEEP, REAL_FRACTION, FILTER, FIGURE_4)
