"""Pretraining on Ray: an actor of its own, and the way of the models into this node's cache."""

from __future__ import annotations

import time
from pathlib import Path

# Sets what Ray must be told before it is imported:
from raydiff.runtime.remote import actor_options, failure, with_options  # isort: skip
import ray

from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.roles.pretrainer import cached_models, keep_models
from raydiff.runtime.actors import PretrainActor
from raydiff.runtime.crew import Note, Progress
from raydiff.runtime.placement import Cluster, Slot


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
