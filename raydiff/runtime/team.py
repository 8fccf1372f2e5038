"""Which workers a run has, and what the method and the guidance let the conductor ask of them: rules of the
configuration alone, stated once."""

from __future__ import annotations

from raydiff.config import Config

ACTING = ("pets", "dydiff")
"""Methods whose trajectories consist of the policy's own actions, whatever the guidance."""

SECTIONS = {"learner": "learner", "evaluator": "evaluation", "generator": "generator", "refiner": "refiner",
            "auditor": "audit"}  # fmt: skip
"""Sections of the configuration by role, in the order in which workers start."""


def follows_policy(config: Config) -> bool:
    """Whether what is generated depends on the policy of the moment, so that it can be out of date."""
    method, guided = config.generator.method, config.guidance.kind != "none"
    return method in ACTING or (method == "pgd" and guided)


def guided(config: Config, first: bool) -> bool:
    """Whether a shard (``first``: of the warm-up) is made for the policy. Where its actions are taken as they are,
    nothing is made without it."""
    acting = config.generator.method in ACTING
    return acting or (follows_policy(config) and (not first or config.replay.warmup_guidance))


def refines(config: Config) -> bool:
    """Whether stored trajectories can be brought up to a newer policy: those of pgd by guidance, those of dydiff by
    more of its own iterations. Single transitions (synther) and rollouts (pets) are made anew instead."""
    return config.generator.method != "pets" and follows_policy(config)


def steers(config: Config) -> bool:
    """Whether the strength of the guidance follows its target (``guidance.automatic``) instead of being given."""
    return bool(
        config.guidance.automatic
        and config.guidance.kind == "policy"
        and config.generator.method == "pgd"
        and config.generator.count
    )


def counts(config: Config) -> dict[str, int]:
    """Workers of one learner by role, in the order of ``SECTIONS``; those who make synthetic data or look after them
    only where some are made."""
    producing = config.generator.count > 0
    return {
        "learner": 1,
        "evaluator": config.evaluation.count,
        "generator": config.generator.count,
        "refiner": config.refiner.count if producing and refines(config) else 0,
        "auditor": config.audit.count if producing else 0,
    }


def workers(config: Config) -> dict[str, list[str]]:
    """Their names (``generator/1``) by role."""
    return {role: [f"{role}/{number}" for number in range(count)] for role, count in counts(config).items()}
