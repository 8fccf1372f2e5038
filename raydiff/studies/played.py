"""Conditions that need no run of their own: the last policies of another's runs, played with other settings.

Guidance scales and temperatures act in sampling alone, so one training serves them all. The results lie where the runs
of such a condition would: ``OUT/CONDITION/seed-K.json``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from raydiff.checkpoint import load_policy, policy_files, policy_of
from raydiff.comparison.runs import load_runs
from raydiff.config import Config
from raydiff.envs.registry import DEFAULT
from raydiff.errors import RunFailed
from raydiff.evaluation.evaluate_runs import Protocol, play
from raydiff.files import whole_file
from raydiff.studies.api import Condition, Job, Study
from raydiff.studies.computed import one_thread
from raydiff.studies.results import Row
from raydiff.studies.runner import Note
from raydiff.types import PolicyBlob


def played_conditions(study: Study, base: Config, jobs: Sequence[Job]) -> list[Condition]:
    """The conditions of a study that are played from these runs."""
    sources = {job.condition.name for job in jobs}
    return [condition for condition in study.conditions(base) if condition.played_from in sources]


def play_conditions(conditions: Sequence[Condition], jobs: Sequence[Job], note: Note) -> None:
    """Play what has not been played yet with the last policies of the finished runs. Raises ``UserError``, and
    ``RunFailed`` where a policy does not fit its run or has no such setting."""
    work = [(c, job) for c in conditions for job in jobs if job.condition.name == c.played_from and job.finished]
    for done, (condition, job) in enumerate(work):
        note("playing", done, len(work), f"{condition.name}/seed-{job.seed}")
        policy = _last_policy(job)
        content = {"settings": dict(condition.overrides), "policy": _digest(policy), "episodes": _episodes(job)}
        path = _path(condition, job)
        if path.is_file() and content.items() <= json.loads(path.read_text()).items():
            continue
        with one_thread():
            content |= _scores(policy, condition, job)
        with whole_file(path) as part:
            part.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")


def played_row(condition: Condition, jobs: Sequence[Job]) -> Row:
    """What has been played so far."""
    paths = {job.seed: _path(condition, job) for job in jobs if job.condition.name == condition.played_from}
    runs = {seed: {"score": json.loads(path.read_text())["score"]} for seed, path in paths.items() if path.is_file()}
    return Row(condition.name, condition.label, condition.group, condition.overrides, condition.x, runs)


def _scores(policy: PolicyBlob, condition: Condition, job: Job) -> dict[str, Any]:
    """The score as that of a run: of as many episodes from the same seeds."""
    name, evaluation = f"{condition.name}/seed-{job.seed}", job.config.evaluation
    unknown = [key for key in condition.overrides if key not in policy.spec]
    if unknown:
        raise RunFailed(f"{name}: the policy of {job.folder} has no setting {' or '.join(unknown)}.")
    changed = replace(policy, spec={**policy.spec, **condition.overrides})
    protocol = Protocol(evaluation.final_episodes, evaluation.seed)
    (run,) = load_runs([job.folder])
    environment = str(run.settings.get("data.environment") or run.dataset("environment") or DEFAULT)
    found = play(changed, environment, protocol, lambda _: None, name)
    record = found.record(name)
    return {"score": (record["normalized"] or record["raw"])["mean"], "returns": record["returns"]}


def _last_policy(job: Job) -> PolicyBlob:
    main, files = json.loads((job.folder / "summary.json").read_text())["main"], policy_files(job.folder)
    found = policy_of(files, main)
    if found is None:
        raise RunFailed(
            f"{job.folder} has ended and has no policy of {main}: make it anew with --on-existing overwrite."
        )
    return load_policy(files[found])


def _digest(policy: PolicyBlob) -> str:
    return hashlib.sha256(np.ascontiguousarray(policy.weights).tobytes()).hexdigest()[:12]


def _episodes(job: Job) -> list[int]:
    return [job.config.evaluation.seed, job.config.evaluation.final_episodes]


def _path(condition: Condition, job: Job) -> Path:
    return Path(job.config.output).parent / condition.name / f"seed-{job.seed}.json"
