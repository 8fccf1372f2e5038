"""A whole ``raydiff train``: data, models, the main run and the arms it is compared with, summary and report.

Arms without generators need no model, so they run beside the pretraining; then the main run has the machine to
itself; then the remaining arms. With ``arms_together`` these run at the same time as the main run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from raydiff.checkpoint import part_name, save_learner
from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.data.rewards import resolve_rewards
from raydiff.data.source import cache_folder, check_cache, load_dataset, resolve
from raydiff.data.windows import make_windows
from raydiff.envs.registry import environment_of
from raydiff.errors import RunFailed
from raydiff.evaluation.audit import auditable
from raydiff.metrics import MetricsWriter
from raydiff.presets import arms_of, main_arm, together
from raydiff.replay.provenance import write_provenance
from raydiff.replay.samples import MOST, write_samples
from raydiff.report import write_report
from raydiff.roles.bad_states import BadUpdate
from raydiff.roles.models import Models
from raydiff.roles.pretrainer import cached_models, check_models, describe_denoiser
from raydiff.run_folder import OnExisting, check_run_folder, create_run_folder
from raydiff.runtime.conductor import Conductor
from raydiff.runtime.crew import Crew, Materials, Progress
from raydiff.runtime.placement import Cluster
from raydiff.runtime.plan import check_blocks, check_blocks_together
from raydiff.runtime.recorder import Recorder
from raydiff.runtime.refusal import place, place_together
from raydiff.runtime.running import Running
from raydiff.runtime.steering import make_controller
from raydiff.runtime.venue import venue
from raydiff.status import Status, StatusBoard
from raydiff.summary import write_summary
from raydiff.types import Trajectories, Transitions

RuntimeName = Literal["ray", "local"]


class Backend(Protocol):
    """What ``session`` needs of a runtime: crews, a way to sleep until something happens, and models."""

    def crews_of(self, learners: list[Materials]) -> Sequence[Crew]: ...

    def wait(self, crews: list[Crew]) -> None: ...

    def pretrain(self, config: Config, dataset: Dataset, cache: Path) -> Pretraining: ...

    def learners_at_once(self, arms: list[Config], pretraining: bool) -> int: ...


class Pretraining(Protocol):
    """Models in the making; each step of ``progress`` is also told to the backend's ``note``."""

    progress: Progress | None

    def advance(self) -> bool:
        """Do or await a part of the work; true once the models are in the cache."""


@dataclass
class Session:
    """The state that the phases share."""

    config: Config
    dataset: Dataset
    backend: Backend
    writer: MetricsWriter
    board: StatusBoard
    folder: Path
    real: dict[bool, Transitions] = field(default_factory=dict)
    models: Models | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def transitions(self, config: Config) -> Transitions:
        """What an arm learns from; with the data's next actions where its learner needs them."""
        follow = config.learner.needs_next_action
        if follow not in self.real:
            self.real[follow] = self.dataset.transitions(self.config.data.semantics, follow)
        return self.real[follow]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds inside to ``seconds[name]``."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start

    def begin(self, arms: Mapping[str, Config]) -> list[Running]:
        """Start the learners of some arms, placed together."""
        learners = [
            Materials(config, arm, self.transitions(config), self.models if config.generator.count else None)
            for arm, config in arms.items()
        ]
        started = []
        for materials, crew in zip(learners, self.backend.crews_of(learners), strict=True):
            config, arm = materials.config, materials.learner_id
            if config.learner.compile:
                self.board.message(f"{arm}: the update is compiled first, which may take a minute or two")
            conductor = Conductor(config, arm, make_controller(config, self.dataset.action_size))
            crew.start()
            started.append(Running(conductor, crew, Recorder(self.writer, arm, self.board.message)))
        return started

    def end(self, running: Running) -> None:
        """Save what the arm leaves behind and let its actors go."""
        arm, conductor = running.recorder.arm, running.conductor
        seeds = conductor.config.seeds
        for seed, (policy, state) in zip(seeds, running.crew.learner_states(), strict=True):
            name = part_name(arm, seed if len(seeds) > 1 else None)
            save_learner(self.folder / "checkpoints", name, policy, state)
        if running.recorder.provenance:
            write_provenance(self.folder / "replay" / f"{arm}.parquet", running.recorder.provenance)
        rows = running.crew.newest_block()
        if rows is not None:
            data = Trajectories(rows, self.dataset.observation_size, self.dataset.action_size)
            write_samples(self.folder / "replay" / f"{arm}_sample.npz", data)
        self.summaries[arm] = {
            "updates": conductor.update,
            "seeds": list(seeds),
            "trajectories_generated": conductor.generated * len(seeds),
            "trajectories_refined": conductor.refined * len(seeds),
            "updates_on_real_data_alone": conductor.real_only if conductor.limits.slots else conductor.update,
            "samples_per_insert": {
                "target": conductor.target_ratio,
                "achieved": conductor.limiter.achieved,
            },
            "discards": dict(conductor.discards),
            "time": {"waits": dict(running.recorder.waits)},
        }
        running.crew.close()

    def run_all(
        self, arms: Mapping[str, Config], pretraining: Pretraining | None = None, together: bool = False
    ) -> None:
        """Run the arms, as many at once as the machine has room for, beside the pretraining if there is any.

        ``together``: all of them at once (by turns where the runtime is one process). What fails one of them is then
        noted in ``failed``, and the others go on.
        """
        groups = [dict(arms)] if together else [{name: arm} for name, arm in arms.items()]
        waiting, active = deque(groups), list[Running]()
        try:
            while waiting or active or pretraining is not None:
                room = self.backend.learners_at_once(list(arms.values()), pretraining is not None)
                while waiting and (together or len(active) < room):
                    active += self.begin(waiting.popleft())
                self.backend.wait([running.crew for running in active])
                active = [running for running in active if not self._done(running, together)]
                if pretraining is not None and pretraining.advance():
                    pretraining = None
                self.board.update(self._statuses(active, pretraining))
        finally:
            for running in active:
                running.crew.close()

    def _done(self, running: Running, together: bool) -> bool:
        """One step of an arm; whether it has ended by it."""
        try:
            self._step(running)
            if running.finished:
                self.end(running)
        except RunFailed as error:
            if not together:
                raise
            arm = running.recorder.arm
            running.crew.close()
            self.failed[arm] = str(error)
            event = {"kind": "event", "event": "arm_failed", "arm": arm, "worker": "", "detail": str(error)}
            self.writer.write({**event, "time": {"at": time.time()}})
            self.board.message(f"{arm} has failed, the other arms go on: {error}")
        return running.finished or running.recorder.arm in self.failed

    def _step(self, running: Running) -> None:
        """``running.step()``; an update that went wrong is saved first, so that it can be repeated."""
        try:
            running.step()
        except BadUpdate as error:
            try:
                path = error.save(self.folder, running.recorder.arm)
            except OSError as refused:
                raise RunFailed(f"{error}. It could not be saved ({refused.strerror or refused}).") from None
            raise RunFailed(
                f"{error}. The batch and the learner's state before it are in {path}; raydiff train --replay-batch {path} "
                "repeats that update."
            ) from None

    @staticmethod
    def _statuses(active: list[Running], pretraining: Pretraining | None) -> list[Status]:
        statuses = [running.recorder.status(running.conductor) for running in active]
        if pretraining is not None and pretraining.progress is not None:
            statuses.insert(0, _pretraining_status(pretraining.progress))
        return statuses


def train(config: Config, runtime: RuntimeName, on_existing: OnExisting, board: StatusBoard) -> Path:
    """Run everything and return the run folder.

    Raises ``UserError`` for whatever can be known before anything has started (no folder is made by then), and
    ``RunFailed`` where a run cannot go on.
    """
    begun = time.monotonic()
    config = _auditable(resolve(config))
    arms = arms_of(config)
    for arm in (config, *arms.values()):
        Conductor(arm, "check")  # refuses limits that would stall
    for name in (name for name in config.arms if name not in (*arms, main_arm(config))):
        board.message(f"arm {name} is left out: without generators it would be this run again.")
    with venue(runtime, config, board.message) as cluster:
        return _train(config, arms, runtime, cluster, on_existing, board, begun)


def _train(
    config: Config,
    arms: dict[str, Config],
    runtime: RuntimeName,
    cluster: Cluster | None,
    on_existing: OnExisting,
    board: StatusBoard,
    begun: float,
) -> Path:
    main = main_arm(config)
    check_run_folder(config, on_existing)
    dataset = _load(config, board)
    config = resolve_rewards(config, dataset)
    arms = {name: resolve_rewards(arm, dataset) for name, arm in arms.items()}
    generating = any(arm.generator.count for arm in (config, *arms.values()))
    if generating:
        check_models(config, dataset)
        check_cache(config.data)
    if cluster is not None:
        columns, at_once = dataset.observation_size + dataset.action_size + 2, together(config)
        check_blocks_together(at_once, columns, cluster, place_together(config, cluster))
        for arm in (arm for name, arm in arms.items() if name not in at_once):
            check_blocks(arm, columns, cluster, place(arm, cluster))
    folder = create_run_folder(config, on_existing)
    with ExitStack() as stack:
        writer = stack.enter_context(MetricsWriter(folder))
        seconds = {"data": time.monotonic() - begun}
        if generating:
            _write_real_samples(folder, config, dataset)
            if (size := describe_denoiser(config, dataset)) is not None:
                board.message(size)
        backend = stack.enter_context(_backend(cluster, config, writer, board))
        session = Session(config, dataset, backend, writer, board, folder, seconds=seconds)
        _run_phases(session, main, arms)
    session.seconds["total"] = time.monotonic() - begun
    if main in session.summaries:
        write_summary(folder, config, dataset, main, session.summaries, session.seconds, session.failed)
    write_report(folder)
    if session.failed:
        causes = "; ".join(f"{arm}: {cause.rstrip('.')}" for arm, cause in session.failed.items())
        raise RunFailed(
            f"{len(session.failed)} of {1 + len(arms)} arms failed ({causes}). {folder} has what the others came to."
        )
    return folder


def _run_phases(session: Session, main: str, arms: dict[str, Config]) -> None:
    config, cache = session.config, cache_folder(session.config.data)
    learners = {main: config, **arms}
    at_once = {name: learners.pop(name) for name in together(config)}
    early = {name: arm for name, arm in learners.items() if not arm.generator.count}
    needed = any(arm.generator.count for arm in (*at_once.values(), *learners.values()))
    with session.phase("pretraining and real-only arms"):
        session.run_all(early, session.backend.pretrain(config, session.dataset, cache) if needed else None)
        if needed:  # in the cache by now; a node of a cluster may lack the device that they were trained on
            session.models = cached_models(config, session.dataset, cache)
    with session.phase("arms together" if len(at_once) > 1 else "main run"):
        session.run_all(at_once, together=len(at_once) > 1)
    for name in (name for name in learners if name not in early):
        with session.phase("other arms"):
            session.run_all({name: learners[name]})


def _auditable(config: Config) -> Config:
    """Without audits where the simulator's state does not follow from observations."""
    if auditable(environment_of(config.data)):
        return config
    return config.model_copy(update={"audit": config.audit.model_copy(update={"count": 0})})


def _write_real_samples(folder: Path, config: Config, dataset: Dataset) -> None:
    """Windows of the real data, to look at beside the synthetic ones and as long as they where the data reach."""
    section = config.denoiser
    longest = int((dataset.episode_slices("raydiff") @ (-1, 1)).max())
    windows = make_windows(dataset, min(config.rows, longest), section.stride, section.holdout, section.seed)
    chosen = windows.train[np.linspace(0, len(windows.train) - 1, min(MOST, len(windows.train))).astype(np.int64)]
    data = Trajectories(windows.gather(chosen), dataset.observation_size, dataset.action_size)
    write_samples(folder / "replay" / "real_sample.npz", data)


def _load(config: Config, board: StatusBoard) -> Dataset:
    def progress(what: str, done: int, total: int) -> None:
        board.update([Status(phase=f"{what} {done:,} of {total:,}", arm="data")])

    dataset = load_dataset(config.data, progress)
    if dataset.environment and dataset.environment != config.data.environment:
        board.message(
            f"The data come from {dataset.environment}, and policies are scored in {config.data.environment}."
        )
    return dataset


def _backend(cluster: Cluster | None, config: Config, writer: MetricsWriter, board: StatusBoard) -> Any:
    """The runtime for the cluster, or for none; Ray is imported only when it is used."""

    def note(progress: Progress) -> None:
        what, step, steps, loss, holdout = progress
        record = {"kind": "pretrain", "model": what, "step": step, "steps": steps, "loss": loss}
        writer.write({**record, "holdout_loss": holdout, "time": {"at": time.time()}})
        if cluster is None:  # nobody else looks while this process trains
            board.update([_pretraining_status(progress)])

    if cluster is None:
        from raydiff.runtime.local import LocalBackend

        return LocalBackend(config, note)
    from raydiff.runtime.cluster import RayBackend

    return RayBackend(config, note, None if cluster.started_here else cluster)


def _pretraining_status(progress: Progress) -> Status:
    what, *numbers = progress
    return Status(phase=f"pretraining: {what}", arm="models", pretrain=tuple(numbers))  # type: ignore[arg-type]
