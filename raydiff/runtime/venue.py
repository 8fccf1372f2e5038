"""Where a run may put its workers: settled, with room for every one of its learners, before any work is done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from raydiff.config import Config
from raydiff.errors import UserError
from raydiff.presets import arms_of
from raydiff.runtime.address import find_address, prepare_environment
from raydiff.runtime.inventory import this_machine, usable_gpus
from raydiff.runtime.placement import Cluster
from raydiff.runtime.plan import check_hardware
from raydiff.runtime.refusal import check_run


@contextmanager
def venue(runtime: str, config: Config, say: Callable[[str], None]) -> Iterator[Cluster | None]:
    """The cluster for a run with its arms; None where it needs no Ray.

    A cluster that is joined stays joined for the ``with`` block; a Ray of the run's own is not started yet. Raises
    ``UserError`` where devices or room are missing, or where the cluster cannot be joined.
    """
    settings = config.cluster
    learners = [config, *arms_of(config).values()]
    if runtime == "local":
        if settings.address:
            raise UserError(
                f"cluster.address={settings.address} needs Ray, and --runtime local does without it. Leave one out."
            )
        for learner in learners:
            check_hardware(learner, usable_gpus())
        yield None
        return
    address = find_address(settings.address, os.environ)
    prepare_environment(address)
    for learner in learners:
        check_hardware(learner, usable_gpus() if address is None else None)
    if address is None:
        if os.environ.get("RAY_ADDRESS"):
            say("RAY_ADDRESS is set, but this run starts a Ray of its own; --address auto joins that cluster instead")
        cluster = this_machine(config)
        check_run(config, cluster)
        yield cluster
        return
    from raydiff.runtime.join import await_room, running_ray

    with running_ray(config):
        yield await_room(config, say)
