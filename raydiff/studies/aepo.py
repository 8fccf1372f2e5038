"""AEPO's own studies on runs: rescaling against the guidance degree, the two parameters that matter, and the critics.

All on real data alone, as in the paper (its figures 2 to 6 and appendix H). Guidance degree and rescaling change nothing
in training, so runs of the same seed differ in how they act alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raydiff.config import Config
from raydiff.studies.api import Condition, Scale, Study
from raydiff.studies.findings import sweep, tally
from raydiff.studies.results import Results

PRESET = "aepo/maze2d-umaze.yaml"
REAL = {"generator.count": 0}
SMALL = {
    "learner.updates": 10_000,
    "learner.batch_size": 128,
    "learner.hidden": [128, 128],
    "learner.tau": 0.02,
    "learner.aepo.energy": "direct",
    "learner.aepo.expectile": 0.9,
    "learner.aepo.beta": 30.0,
    "learner.aepo.behaviour_share": 0.2,
    "learner.aepo.behaviour_learning_rate": 0.001,
    "learner.aepo.critic_share": 0.7,
    "evaluation.every": 10_000,
    "evaluation.final_episodes": 50,
}
"""Few updates: most go to the critics, whose values are still small, so beta is large; and the closed form itself guides,
for a network fitted to it needs longer than there is."""

DEGREES = (0.5, 1.0, 2.0, 5.0)
THIRDS = (1, 2, 3, 4, 5)  # of the preset's beta of 3, which makes the paper's values
EXPECTILES = (0.5, 0.6, 0.7, 0.8, 0.9)
CRITICS = {"iql": "expectiles", "cql": "conservative penalty", "isql": "in-support softmax"}


def _scales(own: Mapping[str, Any] | None = None) -> dict[str, Scale]:
    return {
        "tiny": Scale(PRESET, {**REAL, "scale": "tiny"}),
        "small": Scale(PRESET, {**REAL, "scale": "small", **SMALL, **(own or {})}),
        "paper": Scale(PRESET, REAL),
    }


# ------------------------------------------------------------------------------------- rescaling and guidance degree
def degrees(config: Config) -> Sequence[Condition]:
    """Guidance degrees with and without rescaling, and none at all."""
    key = "learner.aepo.guidance_scale"
    return [
        Condition("none", "omega = 0", "no guidance", {key: 0.0}, x=0.0),
        *(
            Condition(
                f"{name}-{degree:g}",
                f"omega = {degree:g}",
                group,
                {key: degree, "learner.aepo.rescale": rescale},
                x=degree,
            )
            for rescale, name, group in ((False, "plain", "not rescaled"), (True, "rescaled", "rescaled"))
            for degree in DEGREES
        ),
    ]


def degree_findings(results: Results) -> list[str]:
    """How each moves with the degree, both against no guidance, and rescaling against none at every degree."""
    lines = [sweep(results.group(group), "score") for group in ("not rescaled", "rescaled")]
    none = results.row("none")
    if none is not None:
        lines.append(tally(results.group("not rescaled", "rescaled"), none))
    for row in results.group("not rescaled"):
        lines.append(tally([other for other in results.group("rescaled") if other.x == row.x], row))
    return [line for line in lines if line]


# ---------------------------------------------------------------------------------------------- beta and expectile
def betas(config: Config) -> Sequence[Condition]:
    return _along("beta", "beta", [config.learner.aepo.beta * thirds / 3 for thirds in THIRDS])


def expectiles(config: Config) -> Sequence[Condition]:
    return _along("expectile", "tau", EXPECTILES)


def _along(option: str, letter: str, values: Sequence[float]) -> Sequence[Condition]:
    key = f"learner.aepo.{option}"
    return [
        Condition(f"{option}-{value:g}", f"{letter} = {value:g}", "AEPO", {key: value}, x=value) for value in values
    ]


def sweep_findings(results: Results) -> list[str]:
    line = sweep(results.group("AEPO"), "score")
    return [line] if line else []


# ------------------------------------------------------------------------------------------------------- the critics
def critics(config: Config) -> Sequence[Condition]:
    return [Condition(name, label, "critics", {"learner.aepo.critic": name}) for name, label in CRITICS.items()]


def critic_findings(results: Results) -> list[str]:
    published = results.row("iql")
    line = tally(results.group("critics"), published) if published is not None else ""
    return [line] if line else []


RESCALE = Study(
    "aepo-rescale",
    "AEPO: score by guidance degree, with and without rescaling (figures 2 to 5).",
    degrees,
    degree_findings,
    _scales(),
    ("score",),
    "guidance degree omega",
)
BETA = Study(
    "aepo-beta",
    "AEPO: score by the inverse temperature beta (figure 6).",
    betas,
    sweep_findings,
    _scales(),
    ("score",),
    "inverse temperature beta",
)
EXPECTILE = Study(
    "aepo-expectile",
    "AEPO: score by the expectile tau of the value regression (figure 6).",
    expectiles,
    sweep_findings,
    _scales(),
    ("score",),
    "expectile tau",
)
CRITIC = Study(
    "aepo-critics",
    "AEPO: critics by expectiles, with a conservative penalty, and by in-support softmax (appendix H).",
    critics,
    critic_findings,
    _scales({"data.transitions": 20_000, "learner.aepo.support_actions": 8}),
    ("score", "seconds"),
)
STUDIES = (RESCALE, BETA, EXPECTILE, CRITIC)
