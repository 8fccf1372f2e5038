"""The Ray runtime on a real local Ray: it runs, overlaps, survives kills, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.errors import RunFailed
from raydiff.metrics import MetricsWriter, read_metrics, select
from raydiff.replay.block import RAY_INLINE_BYTES
from raydiff.roles.models import Models
from raydiff.runtime import messages as m
from raydiff.runtime.conductor import LEARNER, Conductor
from raydiff.runtime.crew import Materials
from raydiff.runtime.recorder import Recorder
from raydiff.runtime.running import Running
from raydiff.timeline import learner_wait_fraction, overlap_fraction, training_span

# Ray comes through our module: it must be told to stay on loopback before it is imported.
cluster = pytest.importorskip("raydiff.runtime.cluster")
ray = cluster.ray
pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

Small = Callable[..., Config]
LIMIT_S = 120.0


@pytest.fixture(scope="module")
def backend(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One small Ray for the module, with a home of its own for its token."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    patch = pytest.MonkeyPatch()
    patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    with cluster.RayBackend(small(**{"cluster.cpus": 4})) as running:
        yield running
    patch.undo()
    deadline = time.monotonic() + 20
    while left := {c.pid for c in psutil.Process().children(recursive=True)} - before:
        assert time.monotonic() < deadline, f"processes left behind: {[psutil.Process(pid).cmdline() for pid in left]}"
        time.sleep(0.2)


class Drive:
    """A run whose outcomes a test can watch and disturb."""

    def __init__(self, backend: Any, config: Config, dataset: Dataset, models: Models | None, folder: Path) -> None:
        self.backend, self.folder = backend, folder
        self.said: list[str] = []
        self.pids: dict[str, list[int]] = {}
        self.writer = MetricsWriter(folder)
        [self.crew] = backend.crews_of([Materials(config, "guided", dataset.transitions("raydiff"), models)])
        self.conductor = Conductor(config, "guided")
        self.running = Running(self.conductor, self.crew, Recorder(self.writer, "guided", self.said.append))
        self.held: list[Any] = []
        self._poll_crew, self.crew.poll = self.crew.poll, self._poll

    def _poll(self) -> list[Any]:
        """What the crew tells. That the learner is up is kept back until all others are: a run of seconds would else be
        over before its last worker has started."""
        outcomes = self._poll_crew()
        for outcome in outcomes:
            if isinstance(outcome.event, m.WorkerUp):
                self.pids.setdefault(outcome.worker, []).append(outcome.facts["pid"])
        first = [o for o in outcomes if isinstance(o.event, m.WorkerUp) and o.worker == LEARNER]
        self.held += first
        others = {name for names in self.conductor.workers.values() for name in names} - {LEARNER}
        told = [outcome for outcome in outcomes if outcome not in first]
        if others <= self.conductor.up:
            told, self.held = told + self.held, []
        return told

    def __enter__(self) -> Drive:
        self.crew.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.crew.close()
        self.writer.close()

    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not done():
            assert time.monotonic() < deadline, f"gave up waiting; {self.conductor.why_learner_waits()}; {self.said}"
            self.backend.wait([self.crew])
            self.running.step()

    def records(self, kind: str) -> list[dict[str, Any]]:
        return select(read_metrics(self.folder), kind)


def test_runs_overlaps_and_survives_kills(backend: Any, small: Small, dataset: Dataset, models: Models, tmp_path: Path):
    config = small(**{"learner.updates": 1500, "learner.chunk": 25, "evaluation.every": 250})
    with Drive(backend, config, dataset, models, tmp_path) as drive:
        conductor = drive.conductor
        drive.until(lambda: conductor.update >= 100)
        lost_shards: dict[str, set[int]] = {}
        for worker in ("generator/0", "refiner/0", "evaluator/0", "auditor/0"):
            drive.until(lambda worker=worker: any(call.worker == worker for call in conductor.in_flight.values()))
            lost_shards[worker] = {
                call.shard
                for call in conductor.in_flight.values()
                if call.worker == worker and isinstance(call, m.Generate)
            }
            os.kill(drive.pids[worker][-1], signal.SIGKILL)
        drive.until(lambda: conductor.finished and all(len(drive.pids[w]) >= 2 for w in lost_shards))
        ((policy, state),) = drive.crew.learner_states()
    assert policy.version == 1500
    assert all(np.isfinite(value.numpy()).all() for value in state.values() if value.is_floating_point())
    events = drive.records("event")
    assert {e["worker"] for e in events if e["event"] == "worker_lost"} == set(lost_shards)
    assert any("is replaced" in line for line in drive.said)
    # The learner went on: no pause between its chunks came near the time that a new actor needs to start.
    train = drive.records("train")
    assert sum(record["updates"] for record in train) == 1500
    assert max(record["time"]["waited"] for record in train) < 2.0
    # A shard lost on the way is made again under its own number.
    made = [record["shard"] for record in drive.records("block")]
    assert lost_shards["generator/0"] <= set(made)
    assert len(made) == len(set(made))
    # Refreshed blocks name a parent that was generated before.
    blocks = {record["block"]: record for record in drive.records("block")}
    refreshed = [record for record in blocks.values() if record["parent_block"] is not None]
    assert refreshed
    assert all(blocks[r["parent_block"]]["policy_version"] < r["policy_version"] for r in refreshed)


def test_overlap_and_pacing(backend: Any, small: Small, dataset: Dataset, models: Models, tmp_path: Path):
    # Calls of some tenths of a second, as in use: of shorter ones the way to the driver and back is too large a part.
    paced = {"replay.samples_per_insert": 8, "replay.ahead": 0.5, "learner.chunk": 25, "sampler.steps": 80}
    paced |= {"learner.updates": 1500, "evaluation.every": 750}
    config = small(**paced)
    with Drive(backend, config, dataset, models, tmp_path) as drive:
        drive.until(lambda: drive.conductor.finished)
        held = len(drive.crew.blocks)
    records = read_metrics(tmp_path)
    target = config.replay.samples_per_insert
    assert drive.conductor.limiter.achieved == pytest.approx(target, rel=0.1)
    overlap = overlap_fraction(records, "guided", target)
    assert overlap is not None
    assert overlap > 0.3  # real concurrency; how much depends on what else this machine does
    assert learner_wait_fraction(records, "guided") < 0.3
    assert training_span(records, "guided") is not None
    # The store keeps the blocks of the table and those on their way, and nothing else.
    assert held <= drive.conductor.limits.slots + len(drive.conductor.in_flight) + 2
    assert [r["final"] for r in drive.records("evaluate")].count(True) == 1
    assert {record["time"]["worker"] for record in drive.records("audit")} == {"auditor/0"}
    lags = [record["lag"]["max"] for record in drive.records("train")]
    assert max(lags) < 1500


def test_several_seeds_in_one_learner(backend: Any, small: Small, dataset: Dataset, models: Models, tmp_path: Path):
    values = {"seed": 3, "learner.seeds": 2, "learner.updates": 600, "learner.chunk": 25, "evaluation.every": 600}
    values |= {"replay.samples_per_insert": 8, "replay.ahead": 0.5}  # so that there is time for audits
    with Drive(backend, small(**values), dataset, models, tmp_path) as drive:
        drive.until(lambda: any(c.worker == "generator/0" for c in drive.conductor.in_flight.values()))
        os.kill(drive.pids["generator/0"][-1], signal.SIGKILL)
        drive.until(lambda: drive.conductor.finished)
        (first, _), (second, state) = drive.crew.learner_states()
        rows = drive.crew.newest_block()
    assert (first.version, second.version) == (600, 600)
    first.verify()
    second.verify()
    assert first.checksum != second.checksum
    assert all(np.isfinite(value.numpy()).all() for value in state.values() if value.is_floating_point())
    train, made, audits, scores = (drive.records(kind) for kind in ("train", "block", "audit", "evaluate"))
    for seed in (3, 4):
        assert sum(record["updates"] for record in train if record["seed"] == seed) == 600
        assert {record["update"] for record in scores if record["seed"] == seed} == {600}
    shards = [[record["shard"] for record in made if record["seed"] == seed] for seed in (3, 4)]
    assert shards[0] == shards[1]
    assert len(shards[0]) == len(set(shards[0]))  # what was lost on the way was made once more, for both
    assert any(record["parent_block"] is not None for record in made)
    assert {record["seed"] for record in audits} == {3, 4}
    assert rows is not None
    assert len(rows) <= drive.conductor.config.generator.batch  # the part of the first seed


def test_a_block_survives_its_producer_and_is_not_inlined(
    backend: Any, small: Small, dataset: Dataset, models: Models, tmp_path: Path
):
    config = small()
    with Drive(backend, config, dataset, models, tmp_path) as drive:
        drive.until(lambda: bool(drive.crew.blocks))
        block, ref = next(iter(drive.crew.blocks.items()))
        deadline = time.monotonic() + 10  # the place of an object is told a little after the object
        while not ray.experimental.get_object_locations([ref])[ref]["node_ids"]:
            assert time.monotonic() < deadline, "the block is not in the object store"
            time.sleep(0.05)
        producer = next(r for r in drive.records("block") if r["block"] == block)["generator"]
        os.kill(drive.pids[producer][-1], signal.SIGKILL)
        deadline = time.monotonic() + 10
        while psutil.pid_exists(drive.pids[producer][-1]) and time.monotonic() < deadline:
            time.sleep(0.05)
        rows = ray.get(ref, timeout=10)
    assert rows.nbytes > RAY_INLINE_BYTES
    assert rows.shape[1:] == (config.denoiser.length, dataset.observation_size + dataset.action_size + 2)
    assert np.isfinite(rows).all()


def test_small_objects_are_inlined_where_blocks_are_not(backend: Any):
    """What the test above relies on: Ray does tell the two apart."""

    @ray.remote
    def make(size: int) -> np.ndarray:
        return np.zeros(size, np.uint8)

    small, large = make.remote(RAY_INLINE_BYTES // 2), make.remote(2 * RAY_INLINE_BYTES)
    ray.wait([small, large], num_returns=2, timeout=60)
    locations = ray.experimental.get_object_locations([small, large])
    assert not locations[small]["node_ids"]
    assert locations[large]["node_ids"]


def test_a_worker_that_dies_too_often_is_given_up(
    backend: Any, small: Small, dataset: Dataset, models: Models, tmp_path: Path
):
    config = small(**{"cluster.max_restarts": 0, "learner.updates": 400})
    with Drive(backend, config, dataset, models, tmp_path) as drive:
        drive.until(lambda: any(c.worker == "generator/1" for c in drive.conductor.in_flight.values()))
        os.kill(drive.pids["generator/1"][-1], signal.SIGKILL)
        drive.until(lambda: drive.conductor.finished)
    assert drive.conductor.workers["generator"] == ["generator/0"]
    assert [e["worker"] for e in drive.records("event") if e["event"] == "quarantine"] == ["generator/1"]
    assert any("given up" in line for line in drive.said)


def test_a_run_goes_on_without_its_auditor(
    backend: Any, small: Small, dataset: Dataset, models: Models, tmp_path: Path
):
    config = small(**{"cluster.max_restarts": 0, "learner.updates": 600})
    with Drive(backend, config, dataset, models, tmp_path) as drive:
        drive.until(lambda: any(c.worker == "auditor/0" for c in drive.conductor.in_flight.values()))
        os.kill(drive.pids["auditor/0"][-1], signal.SIGKILL)
        drive.until(lambda: drive.conductor.finished)
    assert drive.conductor.workers["auditor"] == []
    assert any("auditor/0" in line and "audits stop here" in line for line in drive.said)
    assert [r["final"] for r in drive.records("evaluate")].count(True) == 1


def test_a_dead_learner_ends_the_run_with_its_cause(
    backend: Any, small: Small, dataset: Dataset, models: Models, tmp_path: Path
):
    config = small(**{"learner.updates": 50_000})
    with Drive(backend, config, dataset, models, tmp_path) as drive:
        drive.until(lambda: drive.conductor.update > 0)
        begun = time.monotonic()
        os.kill(drive.pids[LEARNER][-1], signal.SIGKILL)
        with pytest.raises(RunFailed, match="the learner failed"):
            drive.until(lambda: drive.conductor.finished)
        assert time.monotonic() - begun < 15


def test_the_first_cause_is_told(backend: Any, small: Small, dataset: Dataset, models: Models, tmp_path: Path):
    config = small(**{"cluster.max_restarts": 0, "generator.count": 1})
    with Drive(backend, config, dataset, models, tmp_path / "gone") as drive:
        drive.until(lambda: any(c.worker == "generator/0" for c in drive.conductor.in_flight.values()))
        os.kill(drive.pids["generator/0"][-1], signal.SIGKILL)
        with pytest.raises(RunFailed, match=r"every generator is gone.*\(ActorDiedError: .+\)"):
            drive.until(lambda: drive.conductor.finished)
    empty = replace(dataset.transitions("raydiff"), action=np.zeros(0, np.float32))
    with Drive(backend, config, dataset, None, tmp_path / "broken") as drive:
        drive.crew.materials = replace(drive.crew.materials, real=empty)
        drive.crew.close()
        drive.crew.start()
        with pytest.raises(RunFailed, match="the learner failed: IndexError: tuple index out of range"):
            drive.until(lambda: drive.conductor.finished)


def test_an_overdue_call_replaces_its_worker(
    backend: Any, small: Small, dataset: Dataset, models: Models, tmp_path: Path
):
    config = small(**{"learner.updates": 400, "cluster.call_timeout_s": 5, "audit.count": 0})
    with Drive(backend, config, dataset, models, tmp_path) as drive:
        drive.until(lambda: any(c.worker == "generator/0" for c in drive.conductor.in_flight.values()))
        os.kill(drive.pids["generator/0"][-1], signal.SIGSTOP)  # alive, and silent
        drive.until(lambda: len(drive.pids["generator/0"]) >= 2)
        drive.until(lambda: drive.conductor.finished)
    lost = [e for e in drive.records("event") if e["event"] == "worker_lost"]
    assert [e["worker"] for e in lost] == ["generator/0"]
    assert "longer than 5 s" in lost[0]["detail"]


def test_every_port_is_on_loopback(backend: Any):
    open_ports = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # actors of the tests before may still be on their way out
            connections = process.net_connections("inet")
            open_ports += [(process.pid, c.laddr.ip) for c in connections if c.status == psutil.CONN_LISTEN]
    assert open_ports
    assert {ip.removeprefix("::ffff:") for _, ip in open_ports} <= {"127.0.0.1", "::1"}, open_ports


def test_learners_at_once_share_data_and_models_and_nothing_else(
    backend: Any, small: Small, dataset: Dataset, models: Models, tmp_path: Path
):
    real, length = dataset.transitions("raydiff"), {"learner.updates": 400, "learner.chunk": 25}
    arms = {name: small(**length, **{"learner.algorithm": name, "generator.count": 1}) for name in ("td3_bc", "iql")}
    crews = backend.crews_of([Materials(config, name, real, models) for name, config in arms.items()])
    first, second = crews
    assert first.placement is not None  # planned together, on four CPUs
    assert {slot.arm for crew in crews for slot in crew.placement.slots} == set(arms)
    said: list[str] = []
    pids: dict[tuple[str, str], list[int]] = {}
    with MetricsWriter(tmp_path) as writer:
        runs = {
            crew.arm: Running(Conductor(arms[crew.arm], crew.arm), crew, Recorder(writer, crew.arm, said.append))
            for crew in crews
        }

        def note(crew: Any, poll: Any) -> Any:
            outcomes = poll()
            for outcome in outcomes:
                if isinstance(outcome.event, m.WorkerUp):
                    pids.setdefault((crew.arm, outcome.worker), []).append(outcome.facts["pid"])
            return outcomes

        for crew in crews:
            crew.poll = lambda crew=crew, poll=crew.poll: note(crew, poll)
            crew.start()
        assert first.real == second.real  # one copy in the object store, and one of the models
        assert first.models == second.models

        def until(done: Callable[[], bool]) -> None:
            deadline = time.monotonic() + LIMIT_S
            while not done():
                assert time.monotonic() < deadline, (said, {arm: run.conductor.update for arm, run in runs.items()})
                backend.wait(crews)
                for running in runs.values():
                    running.step()

        def generating() -> bool:
            return any(isinstance(call, m.Generate) for call in runs["iql"].conductor.in_flight.values())

        until(lambda: all(run.conductor.update >= 50 for run in runs.values()) and generating())
        victim = psutil.Process(pids["iql", "generator/0"][0])
        titles = set()
        deadline = time.monotonic() + 20
        while "ray::iql:generator/0.generate" not in titles and time.monotonic() < deadline:
            titles.add(victim.cmdline()[0])
            until(generating)
        assert "ray::iql:generator/0.generate" in titles, titles
        victim.send_signal(signal.SIGKILL)
        until(lambda: all(run.finished for run in runs.values()) and len(pids["iql", "generator/0"]) == 2)
        for crew in crews:
            [(policy, _)] = crew.learner_states()
            assert policy.version == 400
            crew.close()
    records = read_metrics(tmp_path)
    lost = [(e["arm"], e["worker"]) for e in select(records, "event") if e["event"] == "worker_lost"]
    assert lost == [("iql", "generator/0")]
    assert [line for line in said if "lost" in line] == [
        line for line in said if line.startswith("iql: lost generator/0")
    ]
    assert max(record["time"]["waited"] for record in select(records, "train", "td3_bc")) < 2.0
    for arm in arms:
        assert sum(record["updates"] for record in select(records, "train", arm)) == 400
        shards = [record["shard"] for record in select(records, "block", arm)]
        assert len(shards) == len(set(shards))
    # They did learn at the same time.
    spans = [training_span(records, arm) for arm in arms]
    assert max(span[0] for span in spans) < min(span[1] for span in spans)


@pytest.mark.gpu
def test_a_learner_and_two_generators_share_one_gpu(
    backend: Any, small: Small, dataset: Dataset, models: Models, tmp_path: Path
):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    shares = {"learner.gpus": 0.4, "generator.gpus": 0.3, "generator.count": 2, "refiner.count": 0}
    devices = {"learner.device": "cuda", "generator.device": "cuda"}
    with Drive(backend, small(**shares, **devices), dataset, models, tmp_path) as drive:
        drive.until(lambda: drive.conductor.finished)
    assert drive.conductor.update == small().learner.updates
    assert {record["generator"] for record in drive.records("block")} == {"generator/0", "generator/1"}
