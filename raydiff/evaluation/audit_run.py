"""One audit from end to end: the floor, then each subject beside it, as plain values."""

from __future__ import annotations

from typing import Any

from raydiff.agents.policy import Policy
from raydiff.config import AuditConfig
from raydiff.errors import UserError
from raydiff.evaluation.audit_report import by_step
from raydiff.evaluation.audit_sources import AuditJob, Note, Subject
from raydiff.evaluation.yardstick import Yardstick

STEPS_PER_TRAJECTORY = 4
_MOST_NEIGHBOURS = 2_000


def run_audit(job: AuditJob, most: int, seed: int, note: Note) -> dict[str, Any]:
    """Audit up to ``most`` trajectories of each subject, ``STEPS_PER_TRAJECTORY`` times as many single steps, and as
    many rows for coverage as every subject has. ``note(what, done, total)`` tells of progress.

    Returns ``floor`` and by name ``arms``: what ``Measures.as_record`` says; ``floor`` inside an arm is how the real
    actions fit that arm's policy. ``numerical_floor`` is the error by step of the replay itself.
    """
    parts = len(job.subjects) + 1
    note("auditing", 0, parts)
    fewest = min([len(subject.data.transitions) for subject in job.subjects], default=_MOST_NEIGHBOURS)
    limits = AuditConfig(
        transitions=STEPS_PER_TRAJECTORY * most,
        trajectories=most,
        horizon=job.horizon,
        coverage=min(fewest, STEPS_PER_TRAJECTORY * most, _MOST_NEIGHBOURS),
    )
    yardstick = Yardstick(job.environment, job.real, job.horizon, limits, seed)
    numerical = yardstick.numerical_floor()
    arms: dict[str, Any] = {}
    for done, subject in enumerate(job.subjects, start=1):
        note("auditing", done, parts)
        arms[subject.name] = _audit(yardstick, subject, seed)
    note("auditing", parts, parts)
    yardstick.close()
    return {
        "environment": job.environment,
        "real": job.real_name,
        "horizon": job.horizon,
        "neighbour_rows": limits.coverage,
        "floor": yardstick.floor.as_record(),
        "numerical_floor": by_step(numerical),
        "arms": arms,
    }


def _audit(yardstick: Yardstick, subject: Subject, seed: int) -> dict[str, Any]:
    if subject.acting is None:
        return yardstick.measure(subject.data, seed).as_record()
    policy, delta = Policy.from_blob(subject.acting.policy), subject.acting.delta
    if (policy.spec.observation_size, policy.spec.action_size) != (
        subject.data.trajectories.observation_size,
        subject.data.trajectories.action_size,
    ):
        raise UserError(
            f"The policy is one for {policy.spec.observation_size} observations and {policy.spec.action_size} actions; "
            f"{subject.name} has {subject.data.trajectories.observation_size} and "
            f"{subject.data.trajectories.action_size}. Give the policy of a run in the same environment."
        )
    floor = yardstick.floor_under(policy, delta).as_record()
    same = {key: floor[key] for key in ("deviation", "log_likelihood", "own_log_likelihood")}
    return {
        **yardstick.measure(subject.data, seed, policy, delta).as_record(),
        "policy_version": subject.acting.policy.version,
        "floor": same,
    }
