"""Ray as a runtime: who is placed where, what is shared, and an event loop's sleep; its hands are ``ray_crew``."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

# Ray binds every port to loopback when it believes that it serves this machine alone; both must be set before import.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_worker_niceness", "0")

import ray

from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.runtime.crew import Crew, Materials, Note
from raydiff.runtime.join import running_ray
from raydiff.runtime.placement import Cluster, Placement, Slot, arms_at_once, attempt_pretrainer, attempt_together
from raydiff.runtime.ray_crew import Company, RayCrew
from raydiff.runtime.ray_pretraining import RayPretraining

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

    def crews_of(self, learners: list[Materials]) -> list[RayCrew]:
        """Actors for one learner, or for several that are placed together, each on the node that the plan gives it."""
        arms = {materials.learner_id: materials.config for materials in learners}
        result = attempt_together(arms, self._nodes(), self._taken())
        # Without room now (nodes have gone, say) Ray itself finds the places as they come free.
        placement = result if isinstance(result, Placement) else None
        company = Company(placement)
        for materials in learners:
            own = placement.arm(materials.learner_id) if placement is not None else None
            RayCrew(materials, own, self.cluster, self.share, company)
        self.crews = [*(other for other in self.crews if not other.closed), *company.crews]
        return company.crews

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
