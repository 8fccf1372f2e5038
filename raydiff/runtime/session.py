"""A whole ``raydiff train``: data, models, the main run and the arms it is compared with, summary and report.

Arms without generators need no model, so they run beside the pretraining; then the main run has the machine to
itself; then the remaining arms.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from raydiff.checkpoint import save_learner
from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.data.source import cache_folder, check_cache, load_dataset
from raydiff.metrics import MetricsWriter
from raydiff.presets import derive
from raydiff.replay.provenance import write_provenance
from raydiff.report import write_report
from raydiff.roles.models import Models
from raydiff.roles.pretrainer import check_models, prepare_models
from raydiff.run_folder import OnExisting, check_run_folder, create_run_folder
from raydiff.runtime.conductor import Conductor
from raydiff.runtime.crew import Crew, Materials, Progress
from raydiff.runtime.plan import check_blocks, check_hardware, check_placement, this_machine, usable_gpus
from raydiff.runtime.recorder import Recorder
from raydiff.runtime.running import Running
from raydiff.status import Status, StatusBoard
from raydiff.summary import write_summary
from raydiff.types import Transitions

RuntimeName = Literal["ray", "local"]


class Backend(Protocol):
    """What ``session`` needs of a runtime: crews, a way to sleep until something happens, and models."""

    def crew(self, materials: Materials) -> Crew: ...

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
    real: Transitions = field(init=False)
    models: Models | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.real = self.dataset.transitions(self.config.data.semantics)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds inside to ``seconds[name]``."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start

    def begin(self, arm: str, config: Config) -> Running:
        models = self.models if config.generator.count else None
        crew = self.backend.crew(Materials(config, arm, self.real, models))
        running = Running(Conductor(config, arm), crew, Recorder(self.writer, arm, self.board.message))
        crew.start()
        return running

    def end(self, running: Running) -> None:
        """Save what the arm leaves behind and let its actors go."""
        arm, conductor = running.recorder.arm, running.conductor
        policy, state = running.crew.learner_state()
        save_learner(self.folder / "checkpoints", arm, policy, state)
        if running.recorder.provenance:
            write_provenance(self.folder / "replay" / f"{arm}.parquet", running.recorder.provenance)
        self.summaries[arm] = {
            "updates": conductor.update,
            "trajectories_generated": conductor.generated,
            "trajectories_refined": conductor.refined,
            "samples_per_insert": {
                "target": conductor.limiter.samples_per_insert if conductor.limits.slots else None,
                "achieved": conductor.limiter.achieved,
            },
            "discards": dict(conductor.discards),
            "time": {"waits": dict(running.recorder.waits)},
        }
        running.crew.close()

    def run_all(self, arms: list[tuple[str, Config]], pretraining: Pretraining | None = None) -> None:
        """Run the arms, as many at once as the machine has room for, beside the pretraining if there is any."""
        waiting, active = deque(arms), list[Running]()
        try:
            while waiting or active or pretraining is not None:
                room = self.backend.learners_at_once([arm for _, arm in arms], pretraining is not None)
                while waiting and len(active) < room:
                    active.append(self.begin(*waiting.popleft()))
                self.backend.wait([running.crew for running in active])
                for running in active:
                    running.step()
                for running in [r for r in active if r.finished]:
                    self.end(running)
                    active.remove(running)
                if pretraining is not None and pretraining.advance():
                    pretraining = None
                self.board.update(self._statuses(active, pretraining))
        finally:
            for running in active:
                running.crew.close()

    @staticmethod
    def _statuses(active: list[Running], pretraining: Pretraining | None) -> list[Status]:
        statuses = [running.recorder.status(running.conductor) for running in active]
        if pretraining is not None and pretraining.progress is not None:
            statuses.insert(0, _pretraining_status(pretraining.progress))
        return statuses


def main_arm(config: Config) -> str:
    """The name of the run itself among its arms."""
    if not config.generator.count:
        return "real_only"
    return "guided" if config.guidance.kind != "none" else "unguided"


def train(config: Config, runtime: RuntimeName, on_existing: OnExisting, board: StatusBoard) -> Path:
    """Run everything and return the run folder.

    Raises ``UserError`` for whatever can be known before anything has started (no folder is made by then), and
    ``RunFailed`` where a run cannot go on.
    """
    begun = time.monotonic()
    main = main_arm(config)
    arms = {name: derive(config, values, f"arms.{name}") for name, values in config.arms.items() if name != main}
    for arm in (config, *arms.values()):
        Conductor(arm, "check")  # refuses limits that would stall
        check_hardware(arm, usable_gpus())
        if runtime == "ray":
            check_placement(arm, this_machine(arm))
    check_run_folder(config, on_existing)
    dataset = _load(config, board)
    if any(arm.generator.count for arm in (config, *arms.values())):
        check_models(config, dataset)
        check_cache(config.data)
    if runtime == "ray":
        for arm in (config, *arms.values()):
            check_blocks(arm, dataset.observation_size + dataset.action_size + 2)
    folder = create_run_folder(config, on_existing)
    with ExitStack() as stack:
        writer = stack.enter_context(MetricsWriter(folder))
        seconds = {"data": time.monotonic() - begun}
        backend = stack.enter_context(_backend(runtime, config, writer, board))
        session = Session(config, dataset, backend, writer, board, folder, seconds=seconds)
        _run_phases(session, main, arms)
    session.seconds["total"] = time.monotonic() - begun
    write_summary(folder, config, dataset, main, session.summaries, session.seconds)
    write_report(folder)
    return folder


def _run_phases(session: Session, main: str, arms: dict[str, Config]) -> None:
    config, cache = session.config, cache_folder(session.config.data)
    early = [(name, arm) for name, arm in arms.items() if not arm.generator.count]
    late = [(name, arm) for name, arm in arms.items() if arm.generator.count]
    needed = bool(config.generator.count or late)
    with session.phase("pretraining and real-only arms"):
        session.run_all(early, session.backend.pretrain(config, session.dataset, cache) if needed else None)
        session.models = prepare_models(config, session.dataset, cache) if needed else None
    with session.phase("main run"):
        session.run_all([(main, config)])
    for arm in late:
        with session.phase("other arms"):
            session.run_all([arm])


def _load(config: Config, board: StatusBoard) -> Dataset:
    def progress(done: int, total: int) -> None:
        board.update([Status(phase=f"collecting: {done:,} of {total:,} transitions", arm="data")])

    return load_dataset(config.data, progress)


def _backend(runtime: RuntimeName, config: Config, writer: MetricsWriter, board: StatusBoard) -> Any:
    """The runtime by name; Ray is imported only when it is used."""

    def note(progress: Progress) -> None:
        what, step, steps, loss, holdout = progress
        record = {"kind": "pretrain", "model": what, "step": step, "steps": steps, "loss": loss}
        writer.write({**record, "holdout_loss": holdout, "time": {"at": time.time()}})
        if runtime == "local":  # nobody else looks while this process trains
            board.update([_pretraining_status(progress)])

    if runtime == "local":
        from raydiff.runtime.local import LocalBackend

        return LocalBackend(config, note)
    from raydiff.runtime.cluster import RayBackend

    return RayBackend(config, note)


def _pretraining_status(progress: Progress) -> Status:
    what, *numbers = progress
    return Status(phase=f"pretraining: {what}", arm="models", pretrain=tuple(numbers))  # type: ignore[arg-type]
