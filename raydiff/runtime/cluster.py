"""The Ray runtime: an event loop's hands. It turns commands into actor calls and finished calls into events.

Everything is asynchronous: ``submit`` never waits, ``poll`` takes what is ready, ``RayBackend.wait`` sleeps until
something is. A dead worker costs its calls in flight and is started anew; one that dies too often is given up.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

# Ray binds every port to loopback when it believes that it serves this machine alone; both must be set before import.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_worker_niceness", "0")

import ray

from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.errors import RunFailed, UserError
from raydiff.runtime import messages as m
from raydiff.runtime.actors import EvaluatorActor, LearnerActor, PretrainActor, SamplerActor
from raydiff.runtime.conductor import LEARNER
from raydiff.runtime.crew import Crew, Materials, Note, Outcome, Progress
from raydiff.runtime.plan import arms_at_once, this_machine
from raydiff.types import PolicyBlob

RESTART_WINDOW_S = 300.0
START_LIMIT_S = 300.0  # an actor's imports take seconds, on a busy machine tens of them
WAIT_S = 0.25


class RayBackend:
    """A Ray instance on this machine, for the time of a ``with`` block."""

    def __init__(self, config: Config, note: Note = lambda progress: None) -> None:
        self.config, self.note = config, note
        self.machine = this_machine(config)

    def __enter__(self) -> RayBackend:
        ray.init(
            address="local",  # never a cluster that happens to be around
            num_cpus=int(self.machine.cpus),
            num_gpus=int(self.machine.gpus),
            object_store_memory=self.config.cluster.object_store_mb * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        if not ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
            warnings.warn(
                "Ray was imported before raydiff.runtime.cluster, so its ports are open beyond this machine. Import "
                "raydiff first, or set RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0.",
                stacklevel=2,
            )
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()

    def crew(self, materials: Materials) -> Crew:
        return RayCrew(materials)

    def wait(self, crews: list[Crew]) -> None:
        """Sleep until a call of any crew has finished, at most a quarter of a second."""
        refs = [ref for crew in crews if isinstance(crew, RayCrew) for ref in crew.pending()]
        if refs:
            ray.wait(refs, num_returns=1, timeout=WAIT_S, fetch_local=False)
        else:
            time.sleep(WAIT_S)

    def pretrain(self, config: Config, dataset: Dataset, cache: Path) -> RayPretraining:
        return RayPretraining(config, dataset, cache, self.note)

    def learners_at_once(self, arms: list[Config], pretraining: bool) -> int:
        return arms_at_once(arms, self.machine, pretraining)


class RayPretraining:
    """Pretraining in an actor of its own, watched from here."""

    def __init__(self, config: Config, dataset: Dataset, cache: Path, note: Note) -> None:
        self.note = note
        options = {"num_cpus": config.denoiser.cpus, "num_gpus": config.denoiser.gpus}
        self.actor = _with(PretrainActor, options).remote(config)
        self.done = self.actor.run.remote(dataset, str(cache))
        self.question = self.actor.progress.remote()
        self.asked = time.monotonic()
        self.progress: Progress | None = None

    def advance(self) -> bool:
        """Look at the progress about once a second; raise ``RunFailed`` if the pretrainer died."""
        finished, _ = ray.wait([self.done, self.question], num_returns=2, timeout=0)
        try:
            if self.question in finished and time.monotonic() - self.asked > 1.0:
                latest = ray.get(self.question)
                if latest is not None and latest != self.progress:
                    self.progress = latest
                    self.note(latest)
                self.question, self.asked = self.actor.progress.remote(), time.monotonic()
            if self.done in finished:
                ray.get(self.done)
                ray.kill(self.actor)
                return True
        except ray.exceptions.RayError as error:
            raise _failure("pretraining failed", error) from None
        return False


class RayCrew:
    """The actors of one learner."""

    def __init__(self, materials: Materials) -> None:
        self.materials, self.config = materials, materials.config
        self.actors: dict[str, Any] = {}
        self.starting: dict[ray.ObjectRef, tuple[str, float]] = {}
        self.calls: dict[ray.ObjectRef, tuple[m.Call, float, Any]] = {}
        self.blocks: dict[int, ray.ObjectRef] = {}
        self.deaths: defaultdict[str, list[float]] = defaultdict(list)
        self.causes: dict[str, str] = {}

    def start(self) -> None:
        """Learner first: the others wait for its first policy."""
        models = self.materials.models
        self.real = ray.put(self.materials.real)
        self.models = ray.put(models) if models is not None else None
        self._launch(LEARNER)

    def _start_others(self) -> None:
        names = [f"evaluator/{i}" for i in range(self.config.evaluation.count)]
        if self.models is not None:
            names += [f"generator/{i}" for i in range(self.config.generator.count)]
            names += [f"refiner/{i}" for i in range(self.config.refiner.count)]
        for name in names:
            self._launch(name)

    def _launch(self, name: str) -> None:
        config, role = self.config, name.split("/")[0]
        section = {"evaluator": "evaluation"}.get(role, role)
        settings = getattr(config, section)
        options = {"num_cpus": settings.cpus, "num_gpus": settings.gpus, "max_restarts": 0}
        if role == "learner":
            actor = _with(LearnerActor, options).remote(config, self.real, self.materials.learner_id)
            self.first_weights, ready = actor.ready.remote()
        elif role == "evaluator":
            actor = _with(EvaluatorActor, options).remote(config, self.materials.variance)
            ready = actor.ready.remote()
        else:
            actor = _with(SamplerActor, options).remote(config, self.models, name, self.materials.learner_id)
            ready = actor.ready.remote()
        self.actors[name], self.starting[ready] = actor, (name, time.monotonic())

    def pending(self) -> list[ray.ObjectRef]:
        """What ``RayBackend.wait`` waits for."""
        return [*self.calls, *self.starting]

    def submit(self, command: m.Command) -> None:
        if isinstance(command, m.Forget):
            self.blocks.pop(command.block, None)
            return
        actor, payload = self.actors[command.worker], None
        match command:
            case m.Train(_, _, updates):
                payload, ref = actor.train.remote(updates)
            case m.Generate(_, _, shard, count, guided, block):
                payload, ref = actor.generate.remote(self.weights, self.header, count, shard, block, guided)
            case m.Refine(_, _, shard, parent, block):
                payload, ref = actor.refine.remote(self.blocks[parent], self.weights, self.header, shard, block, parent)
            case m.Ingest(_, _, block, slot, version):
                ref = actor.ingest.remote(self.blocks[block], slot, version)
            case m.Evaluate(_, _, final):
                ref = actor.evaluate.remote(self.weights, self.header, final)
            case m.Audit(_, _, block, refreshed):
                ref = actor.audit.remote(self.blocks[block], block, refreshed)
        self.calls[ref] = (command, time.monotonic(), payload)

    def poll(self) -> list[Outcome]:
        refs = self.pending()
        if not refs:
            return []
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        outcomes: list[Outcome] = []
        for ref in ready:
            if ref in self.starting:
                outcomes += self._started(ref)
            elif ref in self.calls:  # a loss found earlier in this pass may have taken it already
                outcomes += self._finished(ref)
        outcomes += self._overdue()
        # Losses first: nothing must be issued to a worker whose end is known.
        return sorted(outcomes, key=lambda outcome: not isinstance(outcome.event, m.WorkerLost | m.WorkerGone))

    def _started(self, ref: ray.ObjectRef) -> list[Outcome]:
        name, _ = self.starting.pop(ref)
        try:
            answer = ray.get(ref)
        except ray.exceptions.RayError as error:
            return self._lost(name, error)
        if name == LEARNER:
            pid, self.header = answer
            self.weights = self.first_weights
            self._start_others()
        else:
            pid = answer
        return [Outcome(m.WorkerUp(name), worker=name, facts={"pid": pid})]

    def _finished(self, ref: ray.ObjectRef) -> list[Outcome]:
        command, _, payload = self.calls[ref]
        try:
            answer = ray.get(ref)
        except ray.exceptions.RayError as error:
            return self._lost(command.worker, error)
        del self.calls[ref]
        return [Outcome(self._event(command, answer, payload), self._report(command, answer), command.worker)]

    def _event(self, command: m.Call, answer: Any, payload: Any) -> m.Event:
        match command:
            case m.Train(call):
                report, header = answer
                if header.version > self.header.version:
                    self.weights, self.header = payload, header
                return m.Trained(call, report.update)
            case m.Generate(call) | m.Refine(call):
                self.blocks[command.block] = payload
                return m.Produced(call, answer)
            case m.Ingest(call):
                return m.Ingested(call)
            case m.Evaluate(call):
                return m.Evaluated(call)
            case m.Audit(call):
                return m.Audited(call)

    @staticmethod
    def _report(command: m.Call, answer: Any) -> Any:
        return answer[0] if isinstance(command, m.Train) else answer

    def _overdue(self) -> list[Outcome]:
        """Workers that take longer than allowed, to start or for a call, are replaced: nothing hangs in silence."""
        limit = self.config.cluster.call_timeout_s
        since = [(name, begun, max(limit, START_LIMIT_S)) for name, begun in self.starting.values()]
        since += [(command.worker, begun, limit) for command, begun, _ in self.calls.values()]
        now = time.monotonic()
        late = {name: allowed for name, begun, allowed in since if now - begun > allowed}
        outcomes: list[Outcome] = []
        for name, allowed in late.items():
            outcomes += self._lost(name, TimeoutError(f"{name} took longer than {allowed:g} s to start or to answer"))
        return outcomes

    def _lost(self, worker: str, error: Exception) -> list[Outcome]:
        """Forget the worker's calls and start it anew, or give it up."""
        cause = _first_cause(error)
        self.causes.setdefault(worker, cause)
        if worker == LEARNER:
            raise _failure("the learner failed", error)
        ray.kill(self.actors.pop(worker), no_restart=True)
        for ref in [ref for ref, (command, _, _) in self.calls.items() if command.worker == worker]:
            del self.calls[ref]
        self.starting = {ref: entry for ref, entry in self.starting.items() if entry[0] != worker}
        now = time.monotonic()
        recent = [at for at in self.deaths[worker] if now - at < RESTART_WINDOW_S] + [now]
        self.deaths[worker] = recent
        if len(recent) > self.config.cluster.max_restarts:
            return [Outcome(m.WorkerGone(worker), worker=worker, facts={"cause": self.causes[worker]})]
        self._launch(worker)
        return [Outcome(m.WorkerLost(worker), worker=worker, facts={"cause": cause})]

    def learner_state(self) -> tuple[PolicyBlob, dict[str, torch.Tensor]]:
        policy, state = ray.get(self.actors[LEARNER].state.remote(), timeout=self.config.cluster.call_timeout_s)
        return policy, {key: torch.from_numpy(value.copy()) for key, value in state.items()}

    def close(self) -> None:
        for actor in self.actors.values():
            ray.kill(actor, no_restart=True)
        self.actors.clear()
        self.calls.clear()
        self.starting.clear()
        self.blocks.clear()


def _with(actor: Any, options: dict[str, Any]) -> Any:
    """An actor class with resources; Ray adds ``options`` to it, which type checkers cannot know."""
    return actor.options(**options)


def _failure(what: str, error: Exception) -> Exception:
    """A remote error as one of ours: what the user can mend stays that."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, UserError) else RunFailed(f"{what}: {_first_cause(error)}")


def _first_cause(error: Exception) -> str:
    """The innermost message of a Ray error in one line, without the remote stack."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return f"{type(cause).__name__}: {cause}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    if "creation task" in lines[0]:  # an exception while the actor was built: Ray quotes it at the end
        return lines[-1]
    return f"{type(error).__name__}: {lines[0]}"
