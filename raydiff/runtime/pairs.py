"""Which learner can be the target of which generator, and what a generator takes for its policy: stated once.

Most pairs work. Those that do not are refused by ``check_pair`` before anything starts, and the tables of
docs/learners.md (section P) are written by the functions at the end, so that they say the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, get_args

import torch

from raydiff.config import Config, GuidanceConfig
from raydiff.config_learner import LearnerConfig
from raydiff.diffusion.vp import VP
from raydiff.errors import UserError
from raydiff.presets import load_config
from raydiff.runtime.team import refines

LEARNERS: tuple[str, ...] = get_args(LearnerConfig.model_fields["algorithm"].annotation)
MODES: tuple[str, ...] = get_args(GuidanceConfig.model_fields["mode"].annotation)

BY_OWN_SCORE = "pgd, policy by own_score"

GENERATORS: dict[str, dict[str, object]] = {
    "pgd, unguided": {"guidance.kind": "none"},
    "pgd, policy": {"guidance.kind": "policy"},
    BY_OWN_SCORE: {"guidance.kind": "policy", "guidance.diffusion_policy": "own_score"},
    "pgd, value": {"guidance.kind": "value"},
    "pgd, analytic_energy": {"guidance.kind": "analytic_energy"},
    "synther": {"generator.method": "synther"},
    "dydiff": {"generator.method": "dydiff"},
    "pets": {"generator.method": "pets"},
}
"""Generators by the name of their column, as settings. Modes of guidance by the policy do not differ in this."""


class Target(NamedTuple):
    """What stands for the policy of a learner: in guidance by the policy, and where its own actions are taken
    (``pets``, ``dydiff``). A ``deterministic`` one has no variance: guidance gives it ``guidance.delta``. One that is
    ``sampled`` by diffusion has no density in closed form."""

    deterministic: bool
    sampled: bool
    score: str
    actions: str


_ACTION = Target(True, False, "Gaussian of `guidance.delta` round its action", "its action")
_GAUSSIAN = Target(False, False, "its own Gaussian", "drawn from its Gaussian")
_SQUASHED = Target(False, False, "Gaussian with the mean and variance of its actions", "drawn from that Gaussian")
_CHAIN = "`surrogate`: Gaussian of `guidance.delta` round the action of its deterministic path; `own_score`: "
_SAMPLER = "drawn by its sampler"

TARGETS: dict[str, Target] = {
    "td3_bc": _ACTION,
    "iql": _GAUSSIAN,
    "swg": Target(True, True, f"{_CHAIN}refused (1)", _SAMPLER),
    "cql": _SQUASHED,
    "rebrac": _ACTION,
    "diffusion_ql": Target(True, True, f"{_CHAIN}its noise network's, with enough noise levels (3)", _SAMPLER),
    "aepo": Target(True, True, f"{_CHAIN}its noise network's and its energy's", _SAMPLER),
    "qgpo": Target(True, True, f"{_CHAIN}its noise network's and its energy's", _SAMPLER),
}


def check_pair(config: Config) -> None:
    """Raise ``UserError`` where the learner cannot be the target of the configured generator."""
    why = refusal(config)
    if why is not None:
        raise UserError(why)


def refusal(config: Config) -> str | None:
    """Why the learner and the generator do not go together, in a sentence and what to do; None where they do, or where
    nothing is generated."""
    if not config.generator.count:
        return None
    return next((why for rule in (_no_next_action, _no_own_score, _coarse_levels) if (why := rule(config))), None)


def _no_next_action(config: Config) -> str | None:
    """ReBRAC's penalty in the target needs what came after each transition (section H.5)."""
    if not config.learner.needs_next_action or config.rows >= 3:
        return None
    return (
        f"learner.algorithm={config.learner.algorithm} needs the action that follows each transition, but "
        f"generator.method={config.generator.method} makes single transitions here, which have none. Generate "
        "trajectories of more rows, set learner.rebrac.critic_penalty=0, or set generator.count=0."
    )


def _no_own_score(config: Config) -> str | None:
    if not _by_own_score(config) or config.learner.algorithm != "swg":
        return None
    return (
        "guidance.diffusion_policy=own_score needs the score of actions, but learner.algorithm=swg denoises pairs of "
        "action and weight, whose score says nothing of the action alone. Set guidance.diffusion_policy=surrogate."
    )


def _coarse_levels(config: Config) -> str | None:
    """The lowest noise level of a chain of few steps is wide, and nothing is known of the law below it."""
    if not _by_own_score(config) or config.learner.algorithm != "diffusion_ql":
        return None
    lowest = lowest_width(config.learner.diffusion_ql.levels)
    if lowest <= config.guidance.delta:
        return None
    needed = next(levels for levels in range(1, 10_000) if lowest_width(levels) <= config.guidance.delta)
    return (
        f"guidance.diffusion_policy=own_score sees the policy of learner.algorithm=diffusion_ql through the "
        f"{config.learner.diffusion_ql.levels} noise levels of its chain, of which the lowest blurs actions by "
        f"{lowest:.2g}, more than guidance.delta={config.guidance.delta:g}. Set guidance.diffusion_policy=surrogate, "
        f"learner.diffusion_ql.variant=efficient, or learner.diffusion_ql.steps={needed} or more."
    )


def _by_own_score(config: Config) -> bool:
    guidance = config.guidance
    policy = guidance.kind == "policy" and guidance.diffusion_policy == "own_score"
    return policy and config.generator.method == "pgd"


def lowest_width(levels: int) -> float:
    """``sigma / alpha`` at the first of the noise levels of Diffusion-QL."""
    alpha, sigma = VP("discrete", levels).levels(torch.ones((), dtype=torch.float64))
    return float(sigma / alpha)


# ---------------------------------------------------------------------------------------------------- documentation


def pairs() -> Iterator[tuple[str, str, Config]]:
    """Every learner with every generator, by name, at default settings otherwise."""
    for learner in LEARNERS:
        for generator, settings in GENERATORS.items():
            values = {"learner.algorithm": learner, **settings}
            yield learner, generator, load_config(None, [f"{key}={value}" for key, value in values.items()])


def reasons() -> list[str]:
    """Why pairs do not go together, each reason once."""
    found = (refusal(config) for _, _, config in pairs())
    return list(dict.fromkeys(why for why in found if why is not None))


def pairs_table() -> str:
    """A table in Markdown: a row for each learner and one on refreshing, a column for each generator; numbers are those
    of ``reasons_list``."""
    notes, last = reasons(), ["refreshed"]
    rows: dict[str, list[str]] = {learner: [f"`{learner}`"] for learner in LEARNERS}
    for learner, generator, config in pairs():
        why = refusal(config)
        cell = "yes" if why is None else f"no ({notes.index(why) + 1})"
        rows[learner].append("closed form" if generator == BY_OWN_SCORE and not TARGETS[learner].sampled else cell)
        if learner == LEARNERS[0]:
            last.append("yes" if refines(config) else "made anew")
    return _table(["learner", *GENERATORS], [*rows.values(), last])


def reasons_list() -> str:
    """``reasons`` as a numbered list in Markdown."""
    return "\n".join(f"{number}. {why}" for number, why in enumerate(reasons(), start=1))


def targets_table() -> str:
    """A table in Markdown of ``TARGETS``."""
    head = ["learner", "policy score (`pgd`)", "actions (`dydiff`, `pets`)"]
    return _table(head, [[f"`{name}`", target.score, target.actions] for name, target in TARGETS.items()])


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
