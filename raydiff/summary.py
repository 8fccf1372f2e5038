"""``summary.json``: what came out of a run, computed from its records alone."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.envs.registry import EnvironmentSpec, environment_of, environment_spec
from raydiff.evaluation.audit import Auditor
from raydiff.files import whole_file
from raydiff.metrics import Record, read_metrics, select
from raydiff.presets import config_hash
from raydiff.roles.evaluator import score_returns
from raydiff.timeline import idle_fraction, learner_wait_fraction, overlap_fraction, training_span
from raydiff.types import Transitions

PACKAGES = ("raydiff", "torch", "numpy", "ray", "gymnasium", "mujoco")


def write_summary(
    folder: Path,
    config: Config,
    dataset: Dataset,
    main: str,
    arms: dict[str, dict[str, Any]],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Write ``summary.json`` atomically and return it. ``main`` is the arm that the run is about."""
    records = read_metrics(folder)
    own = arms[main]
    spec = environment_spec(environment_of(config.data))
    summary = {
        "main": main,
        "scores": _scores(records, config, dataset, list(arms)),
        "updates": own["updates"],
        "trajectories_generated": own["trajectories_generated"],
        "trajectories_refined": own["trajectories_refined"],
        "overlap_fraction": overlap_fraction(records, main, own["samples_per_insert"]["target"]),
        "learner_wait_fraction": learner_wait_fraction(records, main),
        "generator_idle_fraction": _idle(records, main),
        "policy_lag": _policy_lag(records, main),
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
        "audit_floor": _audit_floor(config, dataset),
        "caveats": caveats(config, spec, dataset, arms),
    }
    with whole_file(folder / "summary.json") as part:
        part.write_text(json.dumps(summary, indent=2))
    return summary


def caveats(config: Config, spec: EnvironmentSpec, dataset: Dataset, arms: dict[str, dict[str, Any]]) -> list[str]:
    """What a reader must know before quoting the scores. ``arms`` holds what each of them did."""
    lines = [
        "Each arm is one run of one seed; its interval is over evaluation episodes and says nothing of other seeds."
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
    lines += spec.differences
    if "guided" in arms and "real_only" in arms:
        lines.append(
            "A learner on real data alone with weaker behaviour cloning (larger learner.td3_bc.alpha) can do as well "
            "as guided data: compare with a tuned arm before concluding anything."
        )
    return lines


def _scores(records: list[Record], config: Config, dataset: Dataset, arms: list[str]) -> dict[str, Any]:
    scores: dict[str, Any] = {"behaviour": None, "real_only": None, "guided": None}
    returns = dataset.episode_returns()
    if len(returns):
        normalized, raw = score_returns(returns, environment_of(config.data), config.seed)
        scores["behaviour"] = {"normalized": normalized.as_dict() if normalized else None, "raw": raw.as_dict()}
    for arm in arms:
        for record in select(records, "evaluate", arm):
            if record["final"]:
                scores[arm] = {"normalized": record["normalized"], "raw": record["raw"]}
    return scores


def _audit_floor(config: Config, dataset: Dataset) -> float | None:
    """The audit of real transitions: what the simulator itself leaves of the error, over that of persistence."""
    if not config.evaluation.audit:
        return None
    real = dataset.transitions("dynamics")
    pick = np.random.default_rng(config.seed).permutation(len(real))[: 4 * config.evaluation.audit]
    if not len(pick):
        return None
    chosen = Transitions(*(getattr(real, name)[pick] for name in real.__dataclass_fields__))
    variance = np.maximum(real.observation.var(0), 1e-6)
    ratio = Auditor(environment_of(config.data)).audit(chosen, variance).ratio
    return ratio if np.isfinite(ratio) else None


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
