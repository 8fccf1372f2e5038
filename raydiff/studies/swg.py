"""Self-weighted guidance on runs: its weights (table 3, D.4) and its guidance scale (tables 8 and 9, D.3).

On real data alone, as in the paper. The guidance scale acts in sampling alone, so each policy is trained once and
played at every scale. As in the paper a scale is chosen on the scores that are reported, which favours every weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from raydiff.config import Config
from raydiff.studies.api import Condition, Scale, Study
from raydiff.studies.findings import best, named, sweep, tally
from raydiff.studies.results import Results

PRESET = "swg/maze2d-umaze.yaml"
REAL = {"generator.count": 0, "refiner.count": 0, "data.transitions": 100_000}
SMALL = {
    "learner.updates": 16_000,
    "learner.batch_size": 128,
    "learner.hidden": [128, 128],
    "learner.tau": 0.02,
    "learner.swg.critic_share": 0.6,
    "evaluation.every": 16_000,
    "evaluation.final_episodes": 25,
}
"""Most of it for the critics: before they know the way, their weights lead nowhere."""

SCALES = (1.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0)
FEW_SCALES = (1.0, 5.0, 15.0)
WEIGHTS: dict[str, dict[str, Any]] = {
    "smooth expectile": {"learner.swg.weight": "smooth_expectile"},
    "hard expectile": {"learner.swg.weight": "expectile"},
    "exponential": {"learner.swg.weight": "exponential"},
    "linex": {"learner.swg.weight": "linex"},
}
"""tau 0.7 (0.9 for AntMaze), slope 3, temperature 3 with weights from 0.001 to 80, alpha 1: the learner's defaults."""


def _played(weights: Sequence[str], scales: Sequence[float]) -> Callable[[Config], Sequence[Condition]]:
    """A run of each weight at the first scale, whose policy is played at the others."""

    def conditions(config: Config) -> Sequence[Condition]:
        found = []
        for weight in weights:
            start = weight.replace(" ", "-")
            source, label = f"{start}-{scales[0]:g}", f"rho = {scales[0]:g}"
            own = {**WEIGHTS[weight], "learner.swg.guidance_scale": scales[0]}
            found.append(Condition(source, label, weight, own, x=scales[0]))
            for scale in scales[1:]:
                changed = {"guidance_scale": scale}
                name, label = f"{start}-{scale:g}", f"rho = {scale:g}"
                found.append(Condition(name, label, weight, changed, x=scale, played_from=source))
        return found

    return conditions


def weight_findings(results: Results) -> list[str]:
    """Every weight at its best scale, and the others against the best of all."""
    tops = [row for weight in WEIGHTS if (row := best(results.group(weight))) is not None]
    top = best(tops)
    if top is None:
        return []
    lines = [f"Each weight at its best of {len(FEW_SCALES)} scales: {'; '.join(named(row) for row in tops)}."]
    return [line for line in [*lines, tally(tops, top)] if line]


def scale_findings(results: Results) -> list[str]:
    """How the score moves with the scale, and every scale against the best."""
    lines = []
    for weight in WEIGHTS:
        rows, top = results.group(weight), best(results.group(weight))
        if top is not None:
            lines += [sweep(rows, "score"), tally(rows, top)]
    return [line for line in lines if line]


_SIZES = {
    "tiny": Scale(PRESET, {**REAL, "data.transitions": 4000, "scale": "tiny"}),
    "small": Scale(PRESET, {"scale": "small", **REAL, **SMALL}),
    "paper": Scale(PRESET, {"generator.count": 0, "refiner.count": 0}),
}
WEIGHT = Study(
    "swg-weights",
    "Self-weighted guidance: the weight of an action, each at several guidance scales (table 3).",
    _played(list(WEIGHTS), FEW_SCALES),
    weight_findings,
    _SIZES,
    ("score",),
)
GUIDANCE = Study(
    "swg-guidance",
    "Self-weighted guidance: the guidance scale rho (tables 8 and 9).",
    _played(("smooth expectile", "hard expectile"), SCALES),
    scale_findings,
    _SIZES,
    ("score",),
    x="guidance scale rho",
)
STUDIES = (WEIGHT, GUIDANCE)
