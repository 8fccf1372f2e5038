"""AEPO's two estimates of the posterior variance, and the calibrated one, where the truth is known (section F.2).

On the toys of ``aepo_toy`` the closed form guides an exact noise network and trained ones. What differs between the lines
of a group is the law of a clean action given its noisy value alone: value and slope of ``Q`` are exact everywhere. With
the exact variance in place of an estimate, what is left are errors of the network, and those of the expansion of ``Q``
(section F.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from raydiff.agents.posterior import Posterior, PosteriorTable
from raydiff.diffusion.vp import Predict
from raydiff.figures import BLUE, GREEN, GREY, INK, VERMILION, new_figure, style
from raydiff.seeds import key_seed
from raydiff.studies.aepo_fits import (
    VP_SCHEDULE,
    Grid,
    Options,
    acted,
    closed_form,
    count,
    distance,
    energy_network,
    exact_network,
    printed,
    trained_network,
)
from raydiff.studies.aepo_toy import TOYS, Toy
from raydiff.studies.computed import Computed, Line, Piece, Told
from raydiff.studies.findings import tally
from raydiff.studies.measures import Column
from raydiff.studies.results import Results, Value

FIRST, TRUE = "posterior_1", "exact variance"
KINDS = (FIRST, "posterior_2", "calibrated", TRUE)
STYLES = dict(zip(KINDS, ((BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), (INK, "D")), strict=True))
LATE = 0.75  # times from here on are called late
OVER_TIME = ("variance", "energy", "guidance")
MEASURES = {
    "variance": Column("error of the variance", 3, False),
    "late": Column("late variance over the exact one", 3, None),
    "energy": Column("error of the energy", 3, False),
    "guidance": Column("error of the guidance", 3, False),
    "law": Column("distance to the exact policy", 3, False),
    "mean": Column("the policy's mean", 3, None),
    "direct": Column("distance, without energy network", 3, False),
}
NOTE = (
    "Errors are means over 64 evenly spaced times: of the variance, in units of the actions' own; of the closed form's "
    "energy, the deviation of its difference from the exact one; of the guidance by an energy network fitted to it, root "
    "mean square of sigma dE/dx, in units of the noise; the last two over noisy actions of the exact policy. Late times "
    "are those above 0.75. Distances are Wasserstein-1, in units of the action. Means over seeds with Student's 95 % "
    "intervals in brackets; one seed has none."
)


def compute(options: Options, part: str, seed: int, told: Told) -> Piece:
    """All estimates with all networks on one toy."""
    toy, own = Toy(TOYS[part], options.beta), key_seed(seed, f"aepo-posterior {part}")
    times = PosteriorTable(VP_SCHEDULE, 1).times
    grid = Grid(toy, times, options.points)
    truth = torch.tensor([toy.variance(VP_SCHEDULE, float(t)) for t in times])
    networks = {"exact network": exact_network(toy)}
    for updates in options.updates:
        networks[_trained(updates)] = trained_network(toy, options, updates, own, told)
    lines = _references(toy, grid, options, part)
    curves = {what: np.zeros((len(networks), len(KINDS), len(times))) for what in OVER_TIME}
    for row, (network, predict) in enumerate(networks.items()):
        table, group = count(predict, toy, options.samples, own), f"{_name(part)}, {network}"
        off = _off(printed(table), truth, toy)
        lines.append(Line(f"{part} {network} printed", "equation 22 as printed", group, {"variance": off}))
        for column, kind in enumerate(KINDS):
            told(row * len(KINDS) + column, len(networks) * len(KINDS))
            posterior = _posterior(table, kind, truth, toy)
            guided = energy_network(predict, posterior, toy, options, own)
            energy, guidance = grid.errors(predict, posterior, guided)
            for what, curve in zip(OVER_TIME, (posterior.variances, energy, guidance), strict=True):
                curves[what][row, column] = curve
            values: dict[str, Value] = {
                "variance": _off(posterior.variances, truth, toy),
                "late": float((posterior.variances / truth)[times > LATE].mean()),
                "energy": float(energy.mean()),
                "guidance": float(guidance.mean()),
                **_law(guided, toy, options),
                "direct": distance(acted(closed_form(predict, posterior, toy), toy, options), toy),
            }
            lines.append(Line(f"{part} {network} {kind}", kind, group, values))
    return Piece(part, seed, lines, {"times": times.numpy(), **curves})


def _off(variances: Tensor, truth: Tensor, toy: Toy) -> float:
    return float((variances - truth).abs().mean()) / toy.behaviour.variance


def _posterior(table: PosteriorTable, kind: str, truth: Tensor, toy: Toy) -> Posterior:
    match kind:
        case "posterior_1" | "posterior_2" | "calibrated":
            return table.posterior(kind)
        case _:
            return Posterior(truth, torch.ones_like(truth), torch.tensor([toy.behaviour.mean]))


def _law(guided: Predict, toy: Toy, options: Options) -> dict[str, Value]:
    action = acted(guided, toy, options)
    return {"law": distance(action, toy), "mean": float(action.mean())}


def _references(toy: Toy, grid: Grid, options: Options, part: str) -> list[Line]:
    """No guidance, and the exact one: what is to be gained, and by how much the sampler alone is off."""
    plain, nothing = exact_network(toy), torch.zeros_like(grid.x)
    without: dict[str, Value] = {
        "energy": float(grid.energy_error(nothing[:, 0]).mean()),
        "guidance": float(grid.guidance_error(nothing).mean()),
        **_law(plain, toy, options),
    }
    exact: dict[str, Value] = {
        "energy": 0.0,
        "guidance": 0.0,
        **_law(lambda x, t: toy.policy.noise(x, *VP_SCHEDULE.levels(t)), toy, options),
    }
    group = f"{_name(part)}, known"
    return [
        Line(f"{part} none", "no guidance", group, without),
        Line(f"{part} exact", "exact guidance", group, exact),
    ]


def findings(results: Results) -> list[str]:
    """For every network: the estimates against the paper's choice, in energy and in the policy's law."""
    lines = []
    for group in dict.fromkeys(row.group for row in results.rows):
        rows = {row.label: row for row in results.group(group)}
        if FIRST in rows:
            rest = [rows[kind] for kind in ("posterior_2", "calibrated") if kind in rows]
            lines += [tally(rest, rows[FIRST], measure, MEASURES) for measure in ("energy", "law", "direct")]
    return [line for line in lines if line]


def _trained(updates: int) -> str:
    return f"{updates:,} updates"


def _name(part: str) -> str:
    return part.replace("-", " ")


# ---------------------------------------------------------------------------------------------------- the figure
def draw(results: Results, pieces: Sequence[Piece]) -> Figure | None:
    """A row for each toy: variance, and errors of energy and guidance over time for the network trained longest, means
    over seeds; and the distance of the policy to the exact one for all networks."""
    parts = list(dict.fromkeys(piece.part for piece in pieces))
    figure = new_figure(16.0, 3.4 * len(parts))
    panels = figure.subplots(len(parts), 4, squeeze=False)
    for row, part in enumerate(parts):
        own = [piece for piece in pieces if piece.part == part]
        times, updates = own[0].arrays["times"], own[0].settings["updates"][-1]
        mean = {what: np.mean([piece.arrays[what][-1] for piece in own], 0) for what in OVER_TIME}
        _over_time(panels[row, 0], times, mean["variance"], f"Variance: {_name(part)}, {_trained(updates)}", "h(t)")
        _over_time(panels[row, 1], times, mean["energy"], "Error of the energy", "deviation")
        _over_time(panels[row, 2], times, mean["guidance"], "Error of the guidance", "in units of the noise")
        for axes in panels[row, 1:3]:
            axes.set_yscale("log")
        _distances(panels[row, 3], results, part)
    panels[0, 1].legend(fontsize=8, frameon=False, loc="upper left")
    return figure


def _over_time(axes: Axes, times: np.ndarray, curves: np.ndarray, title: str, y: str) -> None:
    for kind, curve in zip(KINDS, curves, strict=True):
        axes.plot(times, curve, "--" if kind == TRUE else "-", color=STYLES[kind][0], label=kind, linewidth=1.6)
    style(axes, title, "diffusion time t", y)


def _distances(axes: Axes, results: Results, part: str) -> None:
    """A dot for each network and estimate, a dash for each seed; no guidance and the sampler's own error as lines."""
    groups = dict.fromkeys(row.group for row in results.rows if row.group.startswith(f"{_name(part)}, "))
    networks = [network for group in groups if (network := group.partition(", ")[2]) != "known"]
    for (place, network), (shift, kind) in product(enumerate(networks), enumerate(KINDS)):
        row = results.row(f"{part} {network} {kind}")
        if row is not None:
            values, (colour, marker), at = row.values("law"), STYLES[kind], place + (shift - 1.5) * 0.15
            axes.plot([at] * len(values), values, "_", color=colour, alpha=0.6)
            axes.plot(at, np.mean(values), marker, color=colour, markersize=5)
    for name, label in (("none", "no guidance"), ("exact", "exact guidance")):
        reference = results.row(f"{part} {name}")
        if reference is not None:
            level = reference.values("law")[0]
            axes.axhline(level, color=GREY, linewidth=1, linestyle=":")
            axes.text(len(networks) - 0.5, level, label, fontsize=7, color=GREY, ha="right", va="bottom")
    axes.set_xticks(range(len(networks)), networks)
    axes.set_yscale("log")
    style(axes, "Distance to the exact policy", "", "Wasserstein-1")


TINY = {
    "updates": (20, 60),
    "energy_updates": 20,
    "width": 16,
    "samples": 1024,
    "points": 101,
    "steps": 10,
    "actions": 256,
}
PAPER = {
    "updates": (400, 4000, 40_000),
    "energy_updates": 20_000,
    "width": 256,
    "blocks": 3,
    "samples": 262_144,
}
POSTERIOR = Computed(
    "aepo-posterior",
    "AEPO: Posterior 1, Posterior 2 and the calibrated one, against an exact law over diffusion time.",
    Options,
    {"tiny": TINY, "small": {}, "paper": PAPER},
    lambda _: list(TOYS),
    compute,
    MEASURES,
    findings,
    draw,
    note=NOTE,
)
