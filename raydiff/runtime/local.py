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
from raydiff.roles.auditor import Auditor
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


class LocalCrew:
    """The roles of one learner in this process."""

    def __init__(self, materials: Materials) -> None:
        self.materials = materials
        self.ready: deque[Outcome] = deque()
        self.queue: deque[tuple[m.Call, PolicyBlob, np.ndarray | None]] = deque()
        self.blocks: dict[int, np.ndarray] = {}

    def start(self) -> None:
        config, learner_id = self.materials.config, self.materials.learner_id
        self.learner = Learner(config, self.materials.real, learner_id)
        self.policy = self.learner.policy()
        self.evaluator = Evaluator(config)
        team = workers(config)
        # Auditors keep no state, so that one plays them all.
        self.auditor = Auditor(config, self.materials.real) if team["auditor"] else None
        self.generators: dict[str, Generator] = {}
        if self.materials.models is not None:
            for name in team["generator"] + team["refiner"]:
                self.generators[name] = make_generator(config, self.materials.models, name, learner_id)
        self.ready.extend(Outcome(m.WorkerUp(name), worker=name) for names in team.values() for name in names)

    def submit(self, command: m.Command) -> None:
        if isinstance(command, m.Forget):
            self.blocks.pop(command.block, None)
            return
        named = command.parent if isinstance(command, m.Refine) else getattr(command, "block", None)
        self.queue.append((command, self.policy, self.blocks.get(named) if named is not None else None))

    def poll(self) -> list[Outcome]:
        """Execute the oldest command, if any. Raises ``BadUpdate`` or ``RunFailed`` when the learner's losses are not
        finite."""
        if self.ready:
            return [self.ready.popleft()]
        if not self.queue:
            return []
        command, policy, rows = self.queue.popleft()
        try:
            event, report = self._execute(command, policy, rows)
        except BadUpdate:
            raise
        except FloatingPointError as error:
            raise RunFailed(f"{command.worker} failed: {error}") from None
        return [Outcome(event, report, command.worker)]

    def _execute(self, command: m.Call, policy: PolicyBlob, rows: np.ndarray | None) -> tuple[m.Event, Any]:
        match command:
            case m.Train(call, _, updates, front, real_only):
                trained = self.learner.train(updates, front, real_only)
                self.policy = self.learner.policy()
                return m.Trained(call, trained.update), trained
            case m.Generate(call, worker, shard, count, guided, block, strength):
                return self._keep(call, self.generators[worker].generate(policy, count, shard, block, guided, strength))
            case m.Refine(call, worker, shard, parent, block, strength):
                assert rows is not None
                return self._keep(call, self.generators[worker].refine(rows, policy, shard, block, parent, strength))
            case m.Ingest(call, _, _, slot, version):
                assert rows is not None
                self.learner.ingest(rows, slot, version)
                return m.Ingested(call), None
            case m.Evaluate(call, _, final):
                return m.Evaluated(call), self.evaluator.evaluate(policy, final)
            case m.Audit(call, _, block, refreshed):
                assert rows is not None
                assert self.auditor is not None
                audited = self.auditor.audit(rows, block, refreshed, policy)
                return m.Audited(call, audited.error), audited

    def _keep(self, call: int, made: tuple[np.ndarray, Any]) -> tuple[m.Event, Any]:
        rows, report = made
        self.blocks[report.provenance.block] = rows
        return m.Produced(call, report), report

    def learner_state(self) -> tuple[PolicyBlob, dict[str, torch.Tensor]]:
        return self.learner.policy(), self.learner.state_dict()

    def newest_block(self) -> np.ndarray | None:
        return self.blocks[max(self.blocks)] if self.blocks else None

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

    def crew(self, materials: Materials) -> Crew:
        return LocalCrew(materials)

    def wait(self, crews: list[Crew]) -> None:
        """Nothing runs elsewhere, so there is nothing to wait for."""

    def pretrain(self, config: Config, dataset: Dataset, cache: Path) -> LocalPretraining:
        return LocalPretraining(config, dataset, cache, self.note)

    def learners_at_once(self, arms: list[Config], pretraining: bool) -> int:
        return 0 if pretraining else 1
