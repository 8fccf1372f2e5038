"""Run folders as a run writes them, with scores that are chosen here so that every figure of a report can be checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from raydiff.config import Config
from raydiff.metrics import MetricsWriter, Record

Scores = Mapping[str, list[float]]  # arm -> score at each evaluation, the last one final
MakeRun = Callable[..., Path]

LOW, HIGH = -280.178953, 12135.0  # HalfCheetah's reference returns
CHUNK = 100


def interval(mean: float, spread: float, episodes: int) -> dict[str, float]:
    return {"mean": mean, "low": mean - spread, "high": mean + spread, "episodes": episodes}


def arm_records(arm: str, scores: list[float], normalized: bool, begin: float, finished: bool) -> list[Record]:
    """A chunk of 100 updates in 2 s before each evaluation; 3 blocks of 50 trajectories beside each chunk."""
    records: list[Record] = []
    synthetic = arm != "real_only"
    for place, score in enumerate(scores):
        update, start = CHUNK * (place + 1), begin + 2.0 * place
        lag = {"mean": 10.0 * (place + 1), "max": 20 * (place + 1)} if synthetic else None
        records.append({
            "kind": "train", "arm": arm, "update": update, "updates": CHUNK, "losses": {"critic_loss": 1.0},
            "lag": lag, "synthetic_sampled": 0, "synthetic_inserted": 0,
            "time": {"worker": "learner/0", "start": start, "end": start + 1.8, "waited": 0.2 if place else 0.0},
        })  # fmt: skip
        for block in range(3 if synthetic else 0):
            at = start + 0.5 * block
            records.append({
                "kind": "block", "arm": arm, "block": 3 * place + block, "parent_block": None, "guidance": "policy",
                "update": update, "trajectories": 50, "transitions": 100, "deviation": 0.02 * (block + 1),
                "time": {"worker": f"generator/{block % 2}", "start": at, "end": at + 0.4},
            })  # fmt: skip
        if synthetic:
            records.append({
                "kind": "audit", "arm": arm, "block": 3 * place, "refreshed": False, "update": update,
                "dynamics_error": 0.1 * (place + 1), "persistence_error": 1.0,
                "time": {"worker": "evaluator/0", "start": start, "end": start + 0.1},
            })  # fmt: skip
        final = finished and place == len(scores) - 1
        episodes = 20 if final else 5
        raw = interval(LOW + (HIGH - LOW) * score / 100 if normalized else score, 3.0, episodes)
        records.append({
            "kind": "evaluate", "arm": arm, "update": update, "final": final, "returns": [raw["mean"]] * episodes,
            "normalized": interval(score, 0.5, episodes) if normalized else None, "raw": raw,
            "time": {"worker": "evaluator/0", "start": start + 1.8, "end": start + 1.9},
        })  # fmt: skip
    return records


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """``make_run(name, {arm: scores}, **settings)`` writes a run folder; settings are dotted with ``__``."""

    def make(
        name: str, scores: Scores, *, finished: bool = True, normalized: bool = True,
        environment: str = "HalfCheetah-v4", facts: Mapping[str, Any] | None = None, **settings: Any,
    ) -> Path:  # fmt: skip
        config = Config().model_dump(mode="json")
        config |= {"name": name, "output": str(tmp_path)}
        config["data"]["environment"] = environment
        config["arms"] = {"real_only": {"generator.count": 0}, "unguided": {"guidance.kind": "none"}}
        for key, value in settings.items():
            section = config
            *groups, leaf = key.split("__")
            for group in groups:
                section = section[group]
            section[leaf] = value
        folder = tmp_path / name
        with MetricsWriter(folder) as writer:
            for place, (arm, values) in enumerate(scores.items()):
                for record in arm_records(arm, values, normalized, 1e9 + 100.0 * place, finished):
                    writer.write(record)
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        if finished:
            (folder / "summary.json").write_text(json.dumps(summary(environment, normalized, dict(facts or {}))))
        return folder

    return make


def summary(environment: str, normalized: bool, facts: dict[str, Any]) -> dict[str, Any]:
    behaviour = {"normalized": interval(1.0, 0.2, 40) if normalized else None, "raw": interval(5.0, 1.0, 40)}
    return {
        "scores": {"behaviour": behaviour},
        "dataset": {"environment": environment, "hash": facts.get("hash", "abc"), "mujoco": facts.get("mujoco", "3.3")},
        "versions": {"raydiff": facts.get("raydiff", "0.1.0"), "torch": "2.13.0"},
        "seconds": {"total": 12.0}, "caveats": ["One <caveat> of the run."],
    }  # fmt: skip
