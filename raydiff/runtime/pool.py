"""Generators without a learner, as actors on Ray."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Sets what Ray must be told before it is imported:
from raydiff.runtime.remote import actor_options, failure, first_cause, with_options  # isort: skip
import ray

from raydiff.config import Config
from raydiff.errors import RunFailed, UserError
from raydiff.roles.models import Models
from raydiff.runtime.actors import SamplerActor, split_blobs
from raydiff.runtime.join import running_ray
from raydiff.synthesis.pool import LEARNER_ID, Made
from raydiff.types import PolicyBlob

SAY_EVERY_S = 10.0
WAIT_S = 0.25


class RayPool:
    """``generator.count`` generator actors on Ray. One that dies is started anew, and its shard is made again."""

    def __init__(self, config: Config, models: Models, policy: PolicyBlob, guided: bool, say: Callable[[str], None]):
        self.config, self.guided, self.say = config, guided, say
        weights, self.headers = split_blobs([policy])
        self.models, self.weights = ray.put(models), ray.put(weights)
        self.actors: dict[str, Any] = {}
        self.starting: dict[ray.ObjectRef, tuple[str, float]] = {}
        self.calls: dict[ray.ObjectRef, tuple[str, int, Any]] = {}
        self.deaths: Counter[str] = Counter()
        self.pids: dict[str, int] = {}
        self.told = time.monotonic()
        for index in range(config.generator.count):
            self._launch(f"generator/{index}")

    def _launch(self, name: str) -> None:
        options = actor_options(self.config.generator.cpus, self.config.generator.gpus, None, None)
        self.actors[name] = with_options(SamplerActor, options).remote(self.config, self.models, name, LEARNER_ID)
        self.starting[self.actors[name].ready.remote()] = (name, time.monotonic())

    @property
    def room(self) -> int:
        """One shard each, and one more in the queue, so that no generator waits for this process."""
        return 2 * (len(self.actors) - len(self.starting)) - len(self.calls)

    def submit(self, shard: int) -> None:
        starting = {name for name, _ in self.starting.values()}
        held = Counter(name for name, _, _ in self.calls.values())
        name = min((name for name in self.actors if name not in starting), key=held.__getitem__)
        rows, ref = self.actors[name].generate.remote(
            self.weights, self.headers, self.config.generator.batch, shard, shard, self.guided
        )
        self.calls[ref] = (name, shard, rows)

    def collect(self) -> list[Made]:
        refs = [*self.calls, *self.starting]
        ready, _ = ray.wait(refs, num_returns=1, timeout=WAIT_S, fetch_local=False)
        made: list[Made] = []
        for ref in ready:
            if ref in self.starting:
                made += self._started(ref)
            elif ref in self.calls:
                made += self._finished(ref)
        self._explain()
        return made

    def _started(self, ref: ray.ObjectRef) -> list[Made]:
        name, _ = self.starting.pop(ref)
        try:
            self.pids[name], _ = ray.get(ref)
        except ray.exceptions.RayError as error:
            return self._lost(name, error)
        return []

    def _finished(self, ref: ray.ObjectRef) -> list[Made]:
        name, shard, payload = self.calls[ref]
        try:
            (report,), rows = ray.get(ref), ray.get(payload)
        except ray.exceptions.RayError as error:
            return self._lost(name, error)
        del self.calls[ref]
        return [Made(shard, rows, report)]

    def _lost(self, name: str, error: Exception) -> list[Made]:
        self.deaths[name] += 1
        if self.deaths[name] > self.config.cluster.max_restarts:
            raise failure(f"{name} died {self.deaths[name]} times", error)
        process = f" (process {self.pids.pop(name)})" if name in self.pids else ""
        self.say(f"{name}{process} is started anew: {first_cause(error)}")
        ray.kill(self.actors.pop(name), no_restart=True)
        lost = [Made(shard) for other, shard, _ in self.calls.values() if other == name]
        self.calls = {ref: call for ref, call in self.calls.items() if call[0] != name}
        self.starting = {ref: entry for ref, entry in self.starting.items() if entry[0] != name}
        self._launch(name)
        return lost

    def _explain(self) -> None:
        now = time.monotonic()
        waiting = [(name, now - since) for name, since in self.starting.values() if now - since > SAY_EVERY_S]
        if waiting and now - self.told > SAY_EVERY_S:
            self.told = now
            names, longest = ", ".join(name for name, _ in waiting), max(seconds for _, seconds in waiting)
            self.say(f"waiting for {names} to start, for {longest:.0f} s")
            if longest > self.config.cluster.call_timeout_s:
                raise RunFailed(f"{names} did not start within cluster.call_timeout_s={longest:.0f} s")


@contextmanager
def ray_pool(
    config: Config, models: Models, policy: PolicyBlob, guided: bool, say: Callable[[str], None]
) -> Iterator[RayPool]:
    """Ray, started or joined as ``cluster.address`` says, with the generators on it. Raises ``UserError`` where the
    cluster as a whole has too little for them."""
    with running_ray(config):
        total, section = ray.cluster_resources(), config.generator
        for resource, key, each in (("CPU", "cpus", section.cpus), ("GPU", "gpus", section.gpus)):
            if each * section.count > total.get(resource, 0.0):
                raise UserError(
                    f"{section.count} generators need {each * section.count:g} {resource}s (generator.{key}={each:g}), "
                    f"and the cluster has {total.get(resource, 0.0):g}. Lower generator.count or generator.{key}."
                )
        yield RayPool(config, models, policy, guided, say)
