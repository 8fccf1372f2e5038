"""Everything in one process, one command after the other in the order in which they were issued.

The same conductor and the same roles as on a cluster, without Ray: for debugging, tests and laptops. A seed gives
the same bytes each time, because nothing depends on when something finishes.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raydiff.compute import configure_compute
from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.errors import RunFailed
from raydiff.presets import main_arm
from raydiff.replay.block import BlockReport, joint_report, parts_of
from raydiff.roles.auditor import Auditor, joint_error
from raydiff.roles.bad_states import BadUpdate
from raydiff.roles.emulated import make_generator
from raydiff.roles.evaluator import Evaluator
from raydiff.roles.generator import Generator
from raydiff.roles.learner import Learner
from raydiff.roles.pretrainer import prepare_models
from raydiff.runtime import messages as m
from raydiff.runtime.crew import Crew, Materials, Note, Outcome, Progress
from raydiff.runtime.team import workers
from raydiff.types import PolicyBlob

Held = tuple[np.ndarray, list[int]]
"""Rows of a block, and how many trajectories of each seed they are."""

NO_ROWS = np.zeros((0, 0, 0), np.float32)


class LocalCrew:
    """The roles of one learner in this process."""

    def __init__(self, materials: Materials) -> None:
        self.materials = materials
        self.ready: deque[Outcome] = deque()
        self.queue: deque[tuple[m.Call, list[PolicyBlob], Held | None]] = deque()
        self.blocks: dict[int, Held] = {}

    def start(self) -> None:
        config, learner_id = self.materials.config, self.materials.learner_id
        self.learner = Learner(config, self.materials.real, learner_id)
        self.policies = self.learner.policies()
        self.evaluator = Evaluator(config)
        team = workers(config)
        # Auditors keep no state, so that one plays them all.
        self.auditor = Auditor(config, self.materials.real) if team["auditor"] else None
        self.generators: dict[str, Generator] = {}
        if self.materials.models is not None:
            for name in team["generator"] + team["refiner"]:
                self.generators[name] = make_generator(config, self.materials.models, name, main_arm(config))
        self.ready.extend(Outcome(m.WorkerUp(name), worker=name) for names in team.values() for name in names)

    def submit(self, command: m.Command) -> None:
        if isinstance(command, m.Forget):
            self.blocks.pop(command.block, None)
            return
        named = command.parent if isinstance(command, m.Refine) else getattr(command, "block", None)
        self.queue.append((command, self.policies, self.blocks.get(named) if named is not None else None))

    def poll(self) -> list[Outcome]:
        """Execute the oldest command, if any. Raises ``BadUpdate`` or ``RunFailed`` when the learner's losses are not
        finite."""
        if self.ready:
            return [self.ready.popleft()]
        if not self.queue:
            return []
        command, policies, held = self.queue.popleft()
        try:
            event, reports = self._execute(command, policies, *(held or (NO_ROWS, [])))
        except BadUpdate:
            raise
        except FloatingPointError as error:
            raise RunFailed(f"{command.worker} failed: {error}") from None
        return [Outcome(event, reports, command.worker)]

    def _execute(
        self, command: m.Call, policies: list[PolicyBlob], rows: np.ndarray, sizes: list[int]
    ) -> tuple[m.Event, tuple[Any, ...]]:
        match command:
            case m.Train(call, _, updates, front, real_only):
                trained = self.learner.train(updates, front, real_only)
                self.policies = self.learner.policies()
                return m.Trained(call, trained[0].update), trained
            case m.Generate(call, worker, shard, count, guided, block, strength):
                role = self.generators[worker]
                return self._keep(call, block, role.generate_all(policies, count, shard, block, guided, strength))
            case m.Refine(call, worker, shard, parent, block, strength):
                made = self.generators[worker].refine_all(rows, sizes, policies, shard, block, parent, strength)
                return self._keep(call, block, made)
            case m.Ingest(call, _, _, slot, version):
                self.learner.ingest(rows, slot, version, sizes)
                return m.Ingested(call), ()
            case m.Evaluate(call, _, final):
                return m.Evaluated(call), self.evaluator.evaluate_all(policies, final)
            case m.Audit(call, _, block, refreshed):
                assert self.auditor is not None
                audited = self.auditor.audit_all(rows, sizes, block, refreshed, policies)
                return m.Audited(call, joint_error(audited)), audited

    def _keep(
        self, call: int, block: int, made: tuple[np.ndarray, tuple[BlockReport, ...]]
    ) -> tuple[m.Event, tuple[Any, ...]]:
        rows, reports = made
        self.blocks[block] = rows, [report.trajectories for report in reports]
        return m.Produced(call, joint_report(reports)), reports

    def learner_states(self) -> list[tuple[PolicyBlob, dict[str, torch.Tensor]]]:
        return list(zip(self.learner.policies(), self.learner.states(), strict=True))

    def newest_block(self) -> np.ndarray | None:
        return parts_of(*self.blocks[max(self.blocks)])[0] if self.blocks else None

    def close(self) -> None:
        self.queue.clear()
        self.blocks.clear()


class LocalPretraining:
    """Pretraining in this process: one ``advance`` does it all, noting its progress on the way."""

    def __init__(self, config: Config, dataset: Dataset, cache: Path, note: Note) -> None:
        self.config, self.dataset, self.cache, self.note = config, dataset, cache, note
        self.progress: Progress | None = None

    def advance(self) -> bool:
        prepare_models(self.config, self.dataset, self.cache, self._note)
        return True

    def _note(self, *progress: Any) -> None:
        self.progress = progress
        self.note(self.progress)


class LocalBackend:
    """The runtime without Ray, as a context manager that sets this process's threads."""

    def __init__(self, config: Config, note: Note) -> None:
        self.config, self.note = config, note

    def __enter__(self) -> LocalBackend:
        # One thread, as any actor would have: sums then come in the same order on every machine.
        configure_compute(self.config.cluster.worker_threads or 1, self.config.cluster.matmul)
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def crews_of(self, learners: list[Materials]) -> list[Crew]:
        return [LocalCrew(materials) for materials in learners]

    def wait(self, crews: list[Crew]) -> None:
        """Nothing runs elsewhere, so there is nothing to wait for."""

    def pretrain(self, config: Config, dataset: Dataset, cache: Path) -> LocalPretraining:
        return LocalPretraining(config, dataset, cache, self.note)

    def learners_at_once(self, arms: list[Config], pretraining: bool) -> int:
        return 0 if pretraining else 1
