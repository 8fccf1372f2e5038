"""The automatic strength and the schedule of refinement through a whole run in the local runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.metrics import MetricsWriter, Record, read_metrics, select, without_time
from raydiff.roles.models import Models
from raydiff.runtime.conductor import Conductor
from raydiff.runtime.crew import Materials
from raydiff.runtime.local import LocalBackend
from raydiff.runtime.recorder import Recorder
from raydiff.runtime.running import Running
from raydiff.runtime.steering import make_controller
from raydiff.summary import strength_summary

Small = Callable[..., Config]
Run = Callable[..., list[Record]]


@pytest.fixture
def run(small: Small, dataset: Dataset, models: Models, tmp_path: Path) -> Run:
    """``run(**dotted overrides)`` of a hundred updates; its records."""

    def go(**overrides: Any) -> list[Record]:
        config = small(**{"learner.updates": 100, "learner.chunk": 10, "refiner.min_lag": 10, "sampler.steps": 6,
                          "generator.batch": 128, "replay.generation": 128, "replay.warmup": 256, "replay.ahead": 1,
                          "evaluation.every": 100, "replay.samples_per_insert": 16, "audit.transitions": 64,
                          "audit.trajectories": 4, "audit.coverage": 64, **overrides})  # fmt: skip
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        controller = make_controller(config, dataset.action_size)
        with LocalBackend(config, lambda progress: None) as backend, MetricsWriter(folder) as writer:
            [crew] = backend.crews_of([Materials(config, "guided", dataset.transitions("raydiff"), models)])
            running = Running(Conductor(config, "guided", controller), crew, Recorder(writer, "guided", print))
            crew.start()
            while not running.finished:
                running.step()
            crew.close()
        return read_metrics(folder)

    return go


def new_guided(records: list[Record]) -> list[Record]:
    blocks = select(records, "block", "guided")
    return [block for block in blocks if block["parent_block"] is None and block["guidance"] != "none"]


def test_the_strength_moves_until_actions_are_as_near_as_they_should_be(run: Run) -> None:
    """A policy that hardly moves, so that there is something to arrive at."""
    records = run(**{"guidance.automatic": True, "guidance.strength": 0.05, "learner.updates": 500,
                     "learner.learning_rate": 1e-6})  # fmt: skip
    blocks = new_guided(records)
    assert blocks[0]["strength"] == 0.05
    assert blocks[0]["deviation"] > 2 * 0.04  # the target is the square of guidance.delta
    state = strength_summary(records, "guided")
    assert state is not None
    assert state["target"] == pytest.approx(0.04)
    assert state["reached"]
    last = [block["deviation"] for block in blocks[-5:]]
    assert state["measured"] == pytest.approx(sum(last) / 5)
    assert state["measured"] == pytest.approx(0.04, rel=0.15)
    refreshed = [b for b in select(records, "block", "guided") if b["parent_block"] is not None]
    said = {record["strength"] for record in select(records, "strength", "guided")}
    assert refreshed
    assert {block["strength"] for block in refreshed} <= said


def test_errors_are_held_against_those_of_the_unguided_warm_up(run: Run) -> None:
    """The strength is limited exactly where the first five guided blocks are worse than those."""
    records = run(**{"guidance.automatic": True, "guidance.max_error": 1.000001, "replay.warmup": 512,
                     "replay.lifetime": 8, "learner.updates": 200, "guidance.strength": 8.0,
                     "refiner.fraction": 0.0})  # fmt: skip
    audits = select(records, "audit", "guided")
    guidance = {block["block"]: block["guidance"] for block in select(records, "block", "guided")}
    unguided = sorted(a["dynamics_error"] for a in audits if guidance[a["block"]] == "none")
    assert len(unguided) >= 3
    assert guidance[audits[0]["block"]] == "none"
    state = strength_summary(records, "guided")
    assert state is not None
    assert unguided[0] <= state["unguided_error"] <= unguided[-1]
    verdict = [a["dynamics_error"] for a in audits if guidance[a["block"]] != "none"][:5]
    assert len(verdict) == 5
    assert (state["limit"] < 16.0) == (median(verdict) > 1.000001 * median(unguided))


def test_the_same_seed_gives_the_same_strengths(run: Run) -> None:
    first, second = (run(**{"guidance.automatic": True}) for _ in range(2))
    assert len({block["strength"] for block in new_guided(first)}) > 1
    assert [without_time(record) for record in first] == [without_time(record) for record in second]


def test_published_guidance_answers_with_the_strength_that_it_was_given(run: Run) -> None:
    """Mode paper applies a multiple of it: 256 / steps."""
    records = run(**{"guidance.automatic": True, "guidance.mode": "paper", "guidance.strength": 0.1})
    strengths, blocks = select(records, "strength", "guided"), new_guided(records)
    assert len(strengths) == len(blocks)
    for state, block in zip(strengths, blocks, strict=True):
        assert state["measured_at"] == pytest.approx(block["strength"] * 6 / 256)


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_no_more_is_refreshed_than_its_share(run: Run, fraction: float) -> None:
    records = run(**{"refiner.fraction": fraction, "generator.sigma_limit": 1e9})
    blocks = select(records, "block", "guided")
    new, refreshed = 0, 0
    for block in blocks:
        if block["parent_block"] is None:
            new += block["trajectories"]
        else:
            refreshed += block["trajectories"]
        assert refreshed <= fraction * new
    assert refreshed >= fraction * new - 2 * 128


def test_audits_hold_blocks_against_the_newest_policy_and_the_floor(run: Run) -> None:
    records = run(**{"learner.updates": 200})
    audits = select(records, "audit", "guided")
    assert {audit["time"]["worker"] for audit in audits} == {"auditor/0"}
    assert {audit["refreshed"] for audit in audits} == {True, False}
    versions = [audit["policy_version"] for audit in audits]
    assert versions == sorted(versions)
    assert versions[-1] > 0
    for audit in audits:
        assert audit["floor"]["dynamics_error"] < 1e-6 < audit["dynamics_error"]
