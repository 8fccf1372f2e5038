"""The actors of one learner, and of several that start together: commands become actor calls, finished calls events.

Everything is asynchronous: ``submit`` never waits, ``poll`` takes what is ready. A dead worker costs its calls in flight
and is started anew; one that dies too often is given up.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

# Sets what Ray must be told before it is imported:
from raydiff.runtime.remote import actor_options, failure, first_cause, node_alive, pass_over, with_options  # isort: skip
import ray

from raydiff.presets import main_arm
from raydiff.replay.block import joint_report, parts_of
from raydiff.roles.auditor import joint_error
from raydiff.runtime import messages as m
from raydiff.runtime.actors import AuditorActor, EvaluatorActor, LearnerActor, SamplerActor
from raydiff.runtime.conductor import LEARNER
from raydiff.runtime.crew import Materials, Outcome
from raydiff.runtime.placement import Cluster, Placement, demands
from raydiff.runtime.team import workers
from raydiff.types import PolicyBlob

RESTART_WINDOW_S = 300.0
START_LIMIT_S = 300.0  # an actor's imports take seconds, on a busy machine tens of them


class Company:
    """Crews that were placed together (often one alone): once all their learners are up, the others start in the order
    of the plan, for Ray packs the GPUs as the plan does only in that order."""

    def __init__(self, placement: Placement | None) -> None:
        self.placement, self.crews = placement, list[RayCrew]()

    def muster(self) -> None:
        """Start the others when it is time."""
        present = [crew for crew in self.crews if not crew.closed]
        if not all(crew.led for crew in present):
            return
        idle = {crew.arm: crew for crew in present if not crew.staffed}
        names = [(arm, name) for arm, crew in idle.items() for name in crew.others()]
        if self.placement is not None:
            order = [(slot.arm, slot.worker) for slot in self.placement.slots]
            names.sort(key=order.index)
        for arm, name in names:
            idle[arm].launch(name)
        for crew in idle.values():
            crew.staffed = True


class RayCrew:
    """The actors of one learner: each on the node that ``placement`` gives it, or where Ray likes."""

    def __init__(
        self,
        materials: Materials,
        placement: Placement | None = None,
        cluster: Cluster | None = None,
        share: Callable[[Any], ray.ObjectRef] = ray.put,
        company: Company | None = None,
    ) -> None:
        self.materials, self.config, self.arm = materials, materials.config, materials.learner_id
        self.placement, self.cluster, self.share = placement, cluster, share
        self.company = company if company is not None else Company(placement)
        self.company.crews.append(self)
        self.closed = self.led = self.staffed = False
        self.actors: dict[str, Any] = {}
        self.starting: dict[ray.ObjectRef, tuple[str, float]] = {}
        self.calls: dict[ray.ObjectRef, tuple[m.Call, float, Any]] = {}
        self.blocks: dict[int, ray.ObjectRef] = {}
        self.sizes: dict[int, list[int]] = {}  # trajectories of each seed in a block
        self.deaths: defaultdict[str, list[float]] = defaultdict(list)
        self.causes: dict[str, str] = {}

    def start(self) -> None:
        """Learner first: the others wait for its first policy."""
        models, self.closed = self.materials.models, False
        self.real = self.share(self.materials.real)
        self.models = self.share(models) if models is not None else None
        self.led = self.staffed = False
        self.launch(LEARNER)

    def others(self) -> list[str]:
        """Everybody but the learner, in the order of their roles."""
        return [name for role, names in workers(self.config).items() if role != "learner" for name in names]

    def launch(self, name: str) -> None:
        """Start a worker, or start it anew."""
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
            actor = with_options(SamplerActor, options).remote(config, self.models, name, main_arm(config))
            ready = actor.ready.remote()
        self.actors[name], self.starting[ready] = actor, (name, time.monotonic())

    def pending(self) -> list[ray.ObjectRef]:
        """What ``RayBackend.wait`` waits for."""
        return [*self.calls, *self.starting]

    def submit(self, command: m.Command) -> None:
        if isinstance(command, m.Forget):
            self.blocks.pop(command.block, None)
            self.sizes.pop(command.block, None)
            return
        payload = None
        match command:
            case m.Train(_, _, updates, front, real_only):
                payload, ref = self._call(command, "train")(updates, front, real_only)
            case m.Generate(_, _, shard, count, guided, block, strength):
                payload, ref = self._call(command, "generate")(
                    self.weights, self.headers, count, shard, block, guided, strength
                )
            case m.Refine(_, _, shard, parent, block, strength):
                rows, policies = (self.blocks[parent], self.sizes[parent]), (self.weights, self.headers)
                payload, ref = self._call(command, "refine")(*rows, *policies, shard, block, parent, strength)
            case m.Ingest(_, _, block, slot, version):
                ref = self._call(command, "ingest")(self.blocks[block], slot, version, self.sizes[block])
            case m.Evaluate(_, _, final):
                ref = self._call(command, "evaluate")(self.weights, self.headers, final)
            case m.Audit(_, _, block, refreshed):
                rows = self.blocks[block], self.sizes[block]
                ref = self._call(command, "audit")(*rows, block, refreshed, self.weights, self.headers)
        self.calls[ref] = (command, time.monotonic(), payload)

    def _call(self, command: m.Call, method: str) -> Callable[..., Any]:
        """The method of the command's worker; the title of its process says meanwhile whose worker does what."""
        name = f"{self.arm}:{command.worker}.{method}"
        return getattr(self.actors[command.worker], method).options(name=name).remote

    def poll(self) -> list[Outcome]:
        self.company.muster()  # one that this crew has waited for may have gone
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
            answer, self.headers = answer
            self.weights, self.led = self.first_weights, True
            self.company.muster()
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
        return [Outcome(self._event(command, answer, payload), self._reports(command, answer), command.worker)]

    def _event(self, command: m.Call, answer: Any, payload: Any) -> m.Event:
        match command:
            case m.Train(call):
                reports, headers = answer
                if headers[0].version > self.headers[0].version:
                    self.weights, self.headers = payload, headers
                return m.Trained(call, reports[0].update)
            case m.Generate(call) | m.Refine(call):
                self.blocks[command.block] = payload
                self.sizes[command.block] = [report.trajectories for report in answer]
                return m.Produced(call, joint_report(answer))
            case m.Ingest(call):
                return m.Ingested(call)
            case m.Evaluate(call):
                return m.Evaluated(call)
            case m.Audit(call):
                return m.Audited(call, joint_error(answer))

    @staticmethod
    def _reports(command: m.Call, answer: Any) -> tuple[Any, ...]:
        return answer[0] if isinstance(command, m.Train) else answer or ()

    def _overdue(self) -> list[Outcome]:
        """Workers that take longer than allowed, to start or for a call, are replaced: nothing hangs in silence."""
        limit = self.config.cluster.call_timeout_s * self.config.learner.seeds
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
            _, _, payload = self.calls.pop(ref)
            pass_over([ref] if payload is None else [ref, payload])
        self.starting = {ref: entry for ref, entry in self.starting.items() if entry[0] != worker}
        now = time.monotonic()
        recent = [at for at in self.deaths[worker] if now - at < RESTART_WINDOW_S]
        recent += [now] if self._node_lives(worker) else []  # the end of its node is no fault of the worker
        self.deaths[worker] = recent
        if len(recent) > self.config.cluster.max_restarts:
            return [Outcome(m.WorkerGone(worker), worker=worker, facts={"cause": self.causes[worker]})]
        self.launch(worker)
        return [Outcome(m.WorkerLost(worker), worker=worker, facts={"cause": cause})]

    def learner_states(self) -> list[tuple[PolicyBlob, dict[str, torch.Tensor]]]:
        try:
            found = ray.get(self.actors[LEARNER].states.remote(), timeout=self.config.cluster.call_timeout_s)
        except ray.exceptions.RayError as error:
            raise failure("the learner failed after its last update", error) from None
        return [
            (policy, {key: torch.from_numpy(value.copy()) for key, value in state.items()}) for policy, state in found
        ]

    def newest_block(self) -> np.ndarray | None:
        if not self.blocks:
            return None
        last = max(self.blocks)
        try:
            rows = ray.get(self.blocks[last], timeout=self.config.cluster.call_timeout_s)
            return parts_of(rows, self.sizes[last])[0]
        except ray.exceptions.RayError:  # it went with its node; the run does without the sample
            return None

    def close(self) -> None:
        self.closed = True
        for actor in self.actors.values():
            ray.kill(actor, no_restart=True)
        self.actors.clear()
        for ref, (_, _, payload) in self.calls.items():
            pass_over([ref] if payload is None else [ref, payload])
        self.calls.clear()
        self.starting.clear()
        self.blocks.clear()
        self.sizes.clear()
