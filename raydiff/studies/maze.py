"""How many generated trajectories of a maze stay out of its walls, by method and guidance strength."""

from __future__ import annotations

from collections.abc import Sequence

from raydiff.config import Config
from raydiff.studies.api import Condition, Scale, Study
from raydiff.studies.findings import tally
from raydiff.studies.results import Results

PRESET = "pgd/maze2d-umaze.yaml"
LEAN = {"generator.count": 1, "generator.refine_when_idle": False, "refiner.count": 0}


def conditions(config: Config) -> Sequence[Condition]:
    """Each method with the preset of its own; the rollouts of the one-step model as long as the windows."""
    guided = [
        Condition(f"guided-{s:g}", f"score_exact, strength {s:g}", "guided", {"guidance.strength": s})
        for s in (0.5, 2.0, 8.0)
    ]
    pets = {"rollout.horizon": config.denoiser.length - 1}
    return [
        Condition("unguided", "unguided", "unguided", {"guidance.kind": "none"}),
        *guided,
        Condition("paper", "paper, strength 0.25", "guided", {"guidance.mode": "paper", "guidance.strength": 0.25}),
        Condition("synther", "SynthER", "SynthER", preset="synther/maze2d-umaze.yaml"),
        Condition("pets", f"PETS, {pets['rollout.horizon']} steps", "PETS", pets, preset="pets/maze2d-umaze.yaml"),
        Condition("dydiff", "DyDiff", "DyDiff", preset="dydiff/maze2d-umaze.yaml"),
    ]


def findings(results: Results) -> list[str]:
    unguided = results.row("unguided")
    if unguided is None:
        return []
    rest = [row for row in results.rows if row.runs]
    lines = [tally(rest, unguided, "legal"), tally(rest, unguided, "score")]
    return [line for line in lines if line]


LEGAL = Study(
    "maze-legal",
    "Share of generated trajectories that pass through no wall of maze2d-umaze, by method.",
    conditions,
    findings,
    {
        "tiny": Scale(PRESET, {**LEAN, "scale": "tiny"}),
        "small": Scale(PRESET, {**LEAN, "scale": "small"}),
        "paper": Scale(PRESET),
    },
    ("legal", "error", "score"),
)
