"""The Ray runtime: an event loop's hands. It turns commands into actor calls and finished calls into events.

Everything is asynchronous: ``submit`` never waits, ``poll`` takes what is ready, ``RayBackend.wait`` sleeps until
something is. A dead worker costs its calls in flight and is started anew; one that dies too often is given up.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Ray binds every port to loopback when it believes that it serves this machine alone; both must be set before import.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_worker_niceness", "0")

import ray

from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.roles.pretrainer import cached_models, keep_models
from raydiff.runtime import messages as m
from raydiff.runtime.actors import AuditorActor, EvaluatorActor, LearnerActor, PretrainActor, SamplerActor
from raydiff.runtime.conductor import LEARNER
from raydiff.runtime.crew import Crew, Materials, Note, Outcome, Progress
from raydiff.runtime.join import running_ray
from raydiff.runtime.placement import Cluster, Placement, Slot, arms_at_once, attempt, attempt_pretrainer, demands
from raydiff.runtime.remote import actor_options, failure, first_cause, node_alive, with_options
from raydiff.runtime.team import workers
from raydiff.types import PolicyBlob

RESTART_WINDOW_S = 300.0
START_LIMIT_S = 300.0  # an actor's imports take seconds, on a busy machine tens of them
WAIT_S = 0.25


class RayBackend:
    """Ray for the time of a ``with`` block: one that is joined already (``cluster``), else as the configuration says."""

    def __init__(self, config: Config, note: Note = lambda progress: None, cluster: Cluster | None = None) -> None:
        self.config, self.note, self.known = config, note, cluster
        self.stack = ExitStack()
        self.crews: list[RayCrew] = []
        self.pretraining: RayPretraining | None = None
        self.shared: dict[int, tuple[Any, ray.ObjectRef]] = {}

    def __enter__(self) -> RayBackend:
        self.cluster = self.known if self.known is not None else self.stack.enter_context(running_ray(self.config))
        return self

    def __exit__(self, *_: object) -> None:
        self.shared.clear()
        for crew in self.crews:
            crew.close()
        self.stack.close()

    def crew(self, materials: Materials) -> Crew:
        """Actors for one learner, each on the node that the plan gives it."""
        result = attempt(materials.config, self._nodes(), self._taken())
        # Without room now (nodes have gone, say) Ray itself finds the places as they come free.
        placement = result if isinstance(result, Placement) else None
        crew = RayCrew(materials, placement, self.cluster, self.share)
        self.crews = [*(other for other in self.crews if not other.closed), crew]
        return crew

    def share(self, value: Any) -> ray.ObjectRef:
        """The reference of a large object, put into the object store once however many crews use it."""
        if id(value) not in self.shared:
            self.shared[id(value)] = (value, ray.put(value))
        return self.shared[id(value)][1]

    def _nodes(self) -> Cluster:
        """The nodes of the start, as far as they still live."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        return replace(self.cluster, nodes=tuple(node for node in self.cluster.nodes if node.id in alive))

    def _taken(self) -> list[Slot]:
        crews = [crew.placement for crew in self.crews if crew.actors and crew.placement is not None]
        taken = [slot for placement in crews for slot in placement.slots]
        if self.pretraining is not None and self.pretraining.slot is not None:
            taken.append(self.pretraining.slot)
        return taken

    def wait(self, crews: list[Crew]) -> None:
        """Sleep until a call of any crew has finished, at most a quarter of a second."""
        refs = [ref for crew in crews if isinstance(crew, RayCrew) for ref in crew.pending()]
        if refs:
            ray.wait(refs, num_returns=1, timeout=WAIT_S, fetch_local=False)
        else:
            time.sleep(WAIT_S)

    def pretrain(self, config: Config, dataset: Dataset, cache: Path) -> RayPretraining:
        result = attempt_pretrainer(config, self._nodes(), self._taken())
        slot = result if isinstance(result, Slot) else None
        self.pretraining = RayPretraining(config, dataset, cache, self.note, slot, self.cluster)
        return self.pretraining

    def learners_at_once(self, arms: list[Config], pretraining: bool) -> int:
        slot = self.pretraining.slot if pretraining and self.pretraining is not None else None
        return arms_at_once(arms, self._nodes(), slot)


class RayPretraining:
    """Pretraining in an actor of its own, wherever there is room; the models come back into the cache of this node.

    ``slot`` is None once nothing is held any more: at once, where the cache has the models already.
    """

    def __init__(
        self, config: Config, dataset: Dataset, cache: Path, note: Note, slot: Slot | None, cluster: Cluster
    ) -> None:
        self.config, self.dataset, self.cache, self.note, self.slot = config, dataset, cache, note, slot
        self.progress: Progress | None = None
        self.ready = cached_models(config, dataset, cache) is not None
        if self.ready:
            self.slot = None
            return
        options = actor_options(config.denoiser.cpus, config.denoiser.gpus, slot, cluster)
        self.actor = with_options(PretrainActor, options).remote(config)
        self.done = self.actor.run.remote(dataset, str(cache))
        self.question = self.actor.progress.remote()
        self.asked = time.monotonic()

    def advance(self) -> bool:
        """Look at the progress about once a second; raise ``RunFailed`` if the pretrainer died."""
        if self.ready:
            return True
        finished, _ = ray.wait([self.done, self.question], num_returns=2, timeout=0)
        try:
            if self.question in finished and time.monotonic() - self.asked > 1.0:
                latest = ray.get(self.question)
                if latest is not None and latest != self.progress:
                    self.progress = latest
                    self.note(latest)
                self.question, self.asked = self.actor.progress.remote(), time.monotonic()
            if self.done in finished:
                keep_models(self.config, self.dataset, self.cache, ray.get(self.done))
                ray.kill(self.actor)
                self.ready, self.slot = True, None
                return True
        except ray.exceptions.RayError as error:
            raise failure("pretraining failed", error) from None
        return False


class RayCrew:
    """The actors of one learner: each on the node that ``placement`` gives it, or where Ray likes."""

    def __init__(
        self,
        materials: Materials,
        placement: Placement | None = None,
        cluster: Cluster | None = None,
        share: Callable[[Any], ray.ObjectRef] = ray.put,
    ) -> None:
        self.materials, self.config = materials, materials.config
        self.placement, self.cluster, self.share, self.closed = placement, cluster, share, False
        self.actors: dict[str, Any] = {}
        self.starting: dict[ray.ObjectRef, tuple[str, float]] = {}
        self.calls: dict[ray.ObjectRef, tuple[m.Call, float, Any]] = {}
        self.blocks: dict[int, ray.ObjectRef] = {}
        self.deaths: defaultdict[str, list[float]] = defaultdict(list)
        self.causes: dict[str, str] = {}

    def start(self) -> None:
        """Learner first: the others wait for its first policy."""
        models, self.closed = self.materials.models, False
        self.real = self.share(self.materials.real)
        self.models = self.share(models) if models is not None else None
        self._launch(LEARNER)

    def _start_others(self) -> None:
        names = [name for role, names in workers(self.config).items() if role != "learner" for name in names]
        if self.placement is not None:  # in the order of the plan, so that Ray packs the GPUs as the plan does
            order = [slot.worker for slot in self.placement.slots]
            names.sort(key=order.index)
        for name in names:
            self._launch(name)

    def _launch(self, name: str) -> None:
        config, role = self.config, name.split("/")[0]
        demand = next(demand for demand in demands(config) if demand.role == role)
        slot = self.placement.of(name) if self.placement is not None else None
        options = actor_options(demand.cpus, demand.gpus, slot, self.cluster)
        if role == "learner":
            actor = with_options(LearnerActor, options).remote(config, self.real, self.materials.learner_id)
            self.first_weights, ready = actor.ready.remote()
        elif role == "evaluator":
            actor = with_options(EvaluatorActor, options).remote(config)
            ready = actor.ready.remote()
        elif role == "auditor":
            actor = with_options(AuditorActor, options).remote(config, self.real)
            ready = actor.ready.remote()
        else:
            actor = with_options(SamplerActor, options).remote(config, self.models, name, self.materials.learner_id)
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
            case m.Train(_, _, updates, front, real_only):
                payload, ref = actor.train.remote(updates, front, real_only)
            case m.Generate(_, _, shard, count, guided, block, strength):
                payload, ref = actor.generate.remote(self.weights, self.header, count, shard, block, guided, strength)
            case m.Refine(_, _, shard, parent, block, strength):
                rows = self.blocks[parent]
                payload, ref = actor.refine.remote(rows, self.weights, self.header, shard, block, parent, strength)
            case m.Ingest(_, _, block, slot, version):
                ref = actor.ingest.remote(self.blocks[block], slot, version)
            case m.Evaluate(_, _, final):
                ref = actor.evaluate.remote(self.weights, self.header, final)
            case m.Audit(_, _, block, refreshed):
                ref = actor.audit.remote(self.blocks[block], block, refreshed, self.weights, self.header)
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
            answer, self.header = answer
            self.weights = self.first_weights
            self._start_others()
        pid, node_id = answer
        facts = {"pid": pid, "node": self._node_name(node_id), "node_id": node_id}
        return [Outcome(m.WorkerUp(name), worker=name, facts=facts)]

    def _node_lives(self, worker: str) -> bool:
        """False where the node that the plan gave the worker is known to be gone."""
        slot = self.placement.of(worker) if self.placement is not None else None
        return slot is None or self.cluster is None or node_alive(self.cluster.node(slot.node).id)

    def _node_name(self, node_id: str) -> str:
        """The name by Ray's id; the id itself for a node that came after the start."""
        nodes = self.cluster.nodes if self.cluster is not None else ()
        return next((node.name for node in nodes if node.id == node_id), node_id)

    def _finished(self, ref: ray.ObjectRef) -> list[Outcome]:
        command, _, payload = self.calls[ref]
        try:
            answer = ray.get(ref)
        except ray.exceptions.RayError as error:
            if isinstance(error, ray.exceptions.ObjectLostError) and isinstance(command, m.Ingest | m.Refine | m.Audit):
                del self.calls[ref]  # the block went with its node; the worker itself is well
                facts = {"cause": first_cause(error)}
                return [Outcome(m.BlockLost(command.call), worker=command.worker, facts=facts)]
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
                return m.Audited(call, answer.error)

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
        cause = first_cause(error)
        self.causes.setdefault(worker, cause)
        if worker == LEARNER:
            raise failure("the learner failed", error)
        ray.kill(self.actors.pop(worker), no_restart=True)
        for ref in [ref for ref, (command, _, _) in self.calls.items() if command.worker == worker]:
            del self.calls[ref]
        self.starting = {ref: entry for ref, entry in self.starting.items() if entry[0] != worker}
        now = time.monotonic()
        recent = [at for at in self.deaths[worker] if now - at < RESTART_WINDOW_S]
        recent += [now] if self._node_lives(worker) else []  # the end of its node is no fault of the worker
        self.deaths[worker] = recent
        if len(recent) > self.config.cluster.max_restarts:
            return [Outcome(m.WorkerGone(worker), worker=worker, facts={"cause": self.causes[worker]})]
        self._launch(worker)
        return [Outcome(m.WorkerLost(worker), worker=worker, facts={"cause": cause})]

    def learner_state(self) -> tuple[PolicyBlob, dict[str, torch.Tensor]]:
        policy, state = ray.get(self.actors[LEARNER].state.remote(), timeout=self.config.cluster.call_timeout_s)
        return policy, {key: torch.from_numpy(value.copy()) for key, value in state.items()}

    def newest_block(self) -> np.ndarray | None:
        if not self.blocks:
            return None
        try:
            return ray.get(self.blocks[max(self.blocks)], timeout=self.config.cluster.call_timeout_s)
        except ray.exceptions.RayError:  # it went with its node; the run does without the sample
            return None

    def close(self) -> None:
        self.closed = True
        for actor in self.actors.values():
            ray.kill(actor, no_restart=True)
        self.actors.clear()
        self.calls.clear()
        self.starting.clear()
        self.blocks.clear()
