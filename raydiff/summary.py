"""``summary.json``: what came out of a run, computed from its records alone."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.envs.registry import EnvironmentSpec, environment_of, environment_spec
from raydiff.evaluation.audit_report import audit_summary
from raydiff.files import whole_file
from raydiff.findings import strength_shows
from raydiff.metrics import Record, read_metrics, select
from raydiff.presets import config_hash, main_arm
from raydiff.roles.evaluator import score_returns
from raydiff.timeline import idle_fraction, learner_wait_fraction, overlap_fraction, training_span

ANSWERS = 5
"""Answers to the automatic strength that tell where it ended."""

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
    spec, strength = environment_spec(environment_of(config.data)), strength_summary(records, main)
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
        "audit": audit_summary(records),
        "audit_floor": _audit_floor(records, main),
        "guidance_strength": strength,
        "caveats": caveats(config, spec, dataset, arms, strength),
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
        for record in select(records, "evaluate", arm):
            if record["final"]:
                scores[arm] = {"normalized": record["normalized"], "raw": record["raw"]}
    return scores


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
