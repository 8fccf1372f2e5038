"""Diffusion-QL's full chain against the one-step estimate (EDP): what an update costs, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence

from raydiff.config import Config
from raydiff.studies.api import Condition, Scale, Study
from raydiff.studies.findings import tally
from raydiff.studies.results import Results

PRESET = "diffusion_ql/maze2d-umaze.yaml"
REAL = {"generator.count": 0}
STEPS = (5, 15)


def variants(config: Config) -> Sequence[Condition]:
    """The chain as published and three times as long; the estimate with as many sampler steps as published, and as many
    as the published chain has."""
    full = [
        Condition(
            f"full-{steps}",
            f"{steps} steps",
            "full chain",
            {"learner.diffusion_ql.variant": "full", "learner.diffusion_ql.steps": steps},
        )
        for steps in STEPS
    ]
    efficient = [
        Condition(
            f"edp-{steps}",
            f"{steps} sampler steps",
            "EDP",
            {"learner.diffusion_ql.variant": "efficient", "learner.diffusion_ql.solver_steps": steps},
        )
        for steps in reversed(STEPS)
    ]
    return full + efficient


def findings(results: Results) -> list[str]:
    """The estimate against the chain as published, in score and in time."""
    published = results.row(f"full-{STEPS[0]}")
    if published is None:
        return []
    rest = [row for row in results.rows if row.runs]
    lines = [tally(rest, published, measure) for measure in ("score", "update_ms")]
    return [line for line in lines if line]


EDP = Study(
    "diffusion-ql-edp",
    "Diffusion-QL: gradients through the full chain against the one-step estimate (EDP).",
    variants,
    findings,
    {
        "tiny": Scale(PRESET, {**REAL, "scale": "tiny"}),
        "small": Scale(PRESET, {**REAL, "scale": "small", "evaluation.every": 3000, "evaluation.final_episodes": 25}),
        "paper": Scale(PRESET, REAL),
    },
    ("score", "update_ms", "seconds"),
)
