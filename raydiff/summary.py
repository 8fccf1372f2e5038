"""``summary.json``: what came out of a run, computed from its records alone."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.envs.registry import EnvironmentSpec, environment_of, environment_spec
from raydiff.evaluation.audit_report import audit_summary
from raydiff.evaluation.statistics import over_seeds
from raydiff.files import whole_file
from raydiff.findings import strength_shows
from raydiff.metrics import Record, read_metrics, select
from raydiff.presets import config_hash, main_arm
from raydiff.roles.evaluator import score_returns
from raydiff.timeline import idle_fraction, learner_wait_fraction, overlap_fraction, training_span

ANSWERS = 5
"""Answers to the automatic strength that tell where it ended."""

PACE = ("overlap_fraction", "learner_wait_fraction", "generator_idle_fraction", "policy_lag")
"""Figures that the summary has of every arm, and of the run's own also at its top."""

PACKAGES = ("raydiff", "torch", "numpy", "ray", "gymnasium", "mujoco")


def write_summary(
    folder: Path,
    config: Config,
    dataset: Dataset,
    main: str,
    arms: dict[str, dict[str, Any]],
    seconds: dict[str, float],
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """Write ``summary.json`` atomically and return it. ``main`` is the arm that the run is about; ``failed`` says of
    arms that did not get to their end why."""
    records = read_metrics(folder)
    arms = {name: arm | _pace(records, name, arm["samples_per_insert"]["target"]) for name, arm in arms.items()}
    own = arms[main]
    spec, strength = environment_spec(environment_of(config.data)), strength_summary(records, main)
    summary = {
        "main": main,
        "scores": _scores(records, config, dataset, list(arms)),
        "seeds": own["seeds"],
        "updates": own["updates"],
        "trajectories_generated": own["trajectories_generated"],
        "trajectories_refined": own["trajectories_refined"],
        **{key: own[key] for key in PACE},
        "samples_per_insert": own["samples_per_insert"],
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "dataset": {
            "id": dataset.name,
            "hash": dataset.sha256,
            "environment": spec.id,
            "collected_in": dataset.collected_in or None,
            "d4rl_id": dataset.d4rl_id or None,
            "mujoco": spec.mujoco_version,
            "score_reference": spec.reference,
            "differences": list(spec.differences),
        },
        "config_hash": config_hash(config),
        "versions": _versions(),
        "discards": own["discards"],
        "arms": arms,
        "failed": dict(failed),
        "audit": audit_summary(records),
        "audit_floor": _audit_floor(records, main),
        "guidance_strength": strength,
        "caveats": _failures(failed) + caveats(config, spec, dataset, arms, strength),
    }
    with whole_file(folder / "summary.json") as part:
        part.write_text(json.dumps(summary, indent=2))
    return summary


def caveats(
    config: Config,
    spec: EnvironmentSpec,
    dataset: Dataset,
    arms: dict[str, dict[str, Any]],
    strength: dict[str, Any] | None = None,
) -> list[str]:
    """What a reader must know before quoting the scores. ``arms`` holds what each of them did, ``strength`` where the
    automatic strength of the guidance ended."""
    several = [name for name, arm in arms.items() if len(arm["seeds"]) > 1]
    lines = [
        "Each arm is one run of one seed; its interval is over evaluation episodes and says nothing of other seeds."
        if not several
        else f"Intervals of {', '.join(several)} are over the seeds that were trained at once (learner.seeds), those of "
        "all others over evaluation episodes of one seed."
    ]
    if spec.reference is not None:
        lines.append(
            "Scores use D4RL's reference returns as a scale; the data were "
            + ("given" if config.data.dataset else "collected here")
            + f" and the simulator is {spec.id} on MuJoCo {spec.mujoco_version}: compare with published D4RL results "
            "only where both are D4RL's own."
        )
    else:
        lines.append(f"No reference returns are known for {spec.id}: scores are raw returns.")
    if dataset.environment and dataset.environment != spec.id:
        lines.append(f"The data come from {dataset.environment}, the scores from {spec.id}.")
    if not dataset.environment:
        lines.append(
            f"The dataset does not say where it was collected; that it belongs to {spec.id} was taken as given."
        )
    if dataset.mujoco_version and dataset.mujoco_version != spec.mujoco_version:
        lines.append(
            f"The data were collected with MuJoCo {dataset.mujoco_version}, policies were scored with "
            f"{spec.mujoco_version}."
        )
    if config.generator.emulate_s is not None:
        lines.append(
            "Generation was emulated (generator.emulate_s): synthetic data are copies, and scores mean nothing."
        )
    for name, arm in arms.items():
        alone = arm["updates_on_real_data_alone"]
        if alone and arm["trajectories_generated"]:
            lines.append(
                f"{alone:,} of the {arm['updates']:,} updates of {name} were on real data alone, while synthetic ones "
                "were missing or too old (replay.shortage=real)."
            )
    if strength is not None and not strength.get("reached"):
        lines.append(f"The automatic strength of the guidance ended off its target: {strength_shows(strength)}.")
    lines += spec.differences
    if "real_only" in arms and len(arms) > 1:
        lines.append(
            "A learner on real data alone with weaker behaviour cloning (larger learner.td3_bc.alpha) can do as well "
            "as synthetic data: compare with a tuned arm before concluding anything."
        )
    return lines


def _scores(records: list[Record], config: Config, dataset: Dataset, arms: list[str]) -> dict[str, Any]:
    scores: dict[str, Any] = dict.fromkeys(["behaviour", "real_only", main_arm(config)])
    returns = dataset.episode_returns()
    if len(returns):
        normalized, raw = score_returns(returns, environment_of(config.data), config.seed)
        scores["behaviour"] = {"normalized": normalized.as_dict() if normalized else None, "raw": raw.as_dict()}
    for arm in arms:
        final = [record for record in select(records, "evaluate", arm) if record["final"]]
        if final:
            scores[arm] = _final(final)
    return scores


def _final(records: list[Record]) -> dict[str, Any]:
    """The score of an arm: over the episodes of its last final evaluation, or over its seeds, with that of each."""
    each = {record.get("seed"): {unit: record[unit] for unit in ("normalized", "raw")} for record in records}
    if None in each:
        return each[None]
    found: dict[str, Any] = {"normalized": None, "raw": None}
    for unit in found:
        scores = [score[unit] for score in each.values()]
        if None not in scores:
            found[unit] = {**over_seeds([score["mean"] for score in scores]), "episodes": scores[0]["episodes"]}
    return {**found, "seeds": {str(seed): score for seed, score in each.items()}}


def strength_summary(records: list[Record], arm: str) -> dict[str, Any] | None:
    """Where the automatic strength of an arm ended, None where it was given: what its controller last said, but for
    ``measured``, ``target`` and ``gap``, which are means over its last answers, since those of one block are noisy."""
    said = select(records, "strength", arm)
    if not said:
        return None
    state = {key: value for key, value in said[-1].items() if key not in ("kind", "arm", "update", "time")}
    last = [record for record in said[-ANSWERS:] if record.get("gap") is not None]
    if last:
        state |= {key: sum(record[key] for record in last) / len(last) for key in ("measured", "target", "gap")}
        state["reached"] = abs(state["gap"]) <= 0.1  # nats per action entry, or a tenth of the squared deviation
        state["unreachable"] = state["unreachable"] and not state["reached"]
    return state


def _audit_floor(records: list[Record], arm: str) -> float | None:
    """What the simulator itself leaves of the error of real transitions, over that of persistence."""
    floors = [floor for record in select(records, "audit", arm) if (floor := record.get("floor"))]
    error, persistence = (
        (floors[-1].get(k) for k in ("dynamics_error", "persistence_error")) if floors else (None, None)
    )
    return error / persistence if error is not None and persistence else None


def _failures(failed: Mapping[str, str]) -> list[str]:
    return [f"{name} failed and has no final score: {cause.rstrip('.')}." for name, cause in failed.items()]


def _pace(records: list[Record], arm: str, target: float | None) -> dict[str, Any]:
    """How well an arm learned and generated at the same time: ``PACE``."""
    return {
        "overlap_fraction": overlap_fraction(records, arm, target),
        "learner_wait_fraction": learner_wait_fraction(records, arm),
        "generator_idle_fraction": _idle(records, arm),
        "policy_lag": _policy_lag(records, arm),
    }


def _idle(records: list[Record], arm: str) -> float | None:
    span = training_span(records, arm)
    return idle_fraction(records, arm, "generator", *span) if span else None


def _policy_lag(records: list[Record], arm: str) -> dict[str, float | None]:
    """Over all sampled synthetic rows: chunks weigh by their updates."""
    lags = [(r["lag"]["mean"], r["lag"]["max"], r["updates"]) for r in select(records, "train", arm) if r["lag"]]
    if not lags:
        return {"mean": None, "max": None}
    weight = sum(updates for _, _, updates in lags)
    return {"mean": sum(mean * n for mean, _, n in lags) / weight, "max": max(top for _, top, _ in lags)}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a finished run."""
    return json.loads((folder / "summary.json").read_text())
