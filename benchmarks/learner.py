"""How fast learners train on one CPU core: ``python benchmarks/learner.py [--quick] [--json FILE] [--jax PYTHON]``.

TD3+BC and IQL of this project (float32, bfloat16, each compiled or not, and eight batched seeds), as single-file
implementations write them (peers/plain_torch.py) and as jitted JAX programs (peers/jax_learner.py, in a Python of its
own), all on the same core, in turns, warmed up, with batches drawn before. Beside them bare matrix products of the size
of the hidden layers, which bound what float32 can reach, and a profile of where our update's time goes. Only ratios
within one run mean anything; updates per second depend on the machine and on what else it does.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import arguments, machine, report
from peers.jax_child import JaxLearner
from peers.plain_torch import PlainIQL, PlainTD3BC
from peers.venv import jax_python
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from raydiff.agents.members import build_members
from raydiff.compute import configure_compute
from raydiff.config_learner import LearnerConfig
from raydiff.types import Batch

STATES, ACTIONS, WIDTH, BATCH, SEEDS, CORE = 17, 6, 256, 256, 8, 0
NAMES = ("td3_bc", "iql")
GOALS = {"float32_against_jax": 0.9, "float32_against_plain": 2.2, "bfloat16_against_jax": 1.1}
Call = Callable[[], object]


# ------------------------------------------------------------------------------------------- contestants


def random_batch(*shape: int) -> Batch:
    generator = torch.Generator().manual_seed(0)

    def normal(*last: int) -> Tensor:
        return torch.randn(*shape, BATCH, *last, generator=generator)

    action = torch.rand(*shape, BATCH, ACTIONS, generator=generator) * 2 - 1
    return Batch(normal(STATES), action, normal(), normal(STATES), torch.zeros(*shape, BATCH))


def ours(name: str, seeds: int = 1, **settings: Any) -> Call:
    """One update of this project's learner."""
    config = LearnerConfig(algorithm=name, updates=10**6, seeds=seeds, **settings)  # type: ignore[arg-type]
    members = build_members(config, STATES, ACTIONS, torch.zeros(STATES), torch.ones(STATES), range(seeds))
    batch = random_batch() if seeds == 1 else random_batch(seeds)
    return lambda: members.update(batch)


def contestants() -> dict[str, tuple[str, Call, int]]:
    """Name -> (route of matrix products, one call, updates or products of a call)."""
    left, right, batch = torch.randn(2, BATCH, WIDTH), torch.randn(2, WIDTH, WIDTH), random_batch()
    output = torch.empty_like(left)
    found: dict[str, tuple[str, Call, int]] = {"products": ("auto", lambda: torch.bmm(left, right, out=output), 1)}
    for name, plain in zip(NAMES, (PlainTD3BC, PlainIQL), strict=True):
        peer = plain(STATES, ACTIONS, WIDTH)
        found[f"{name}.plain"] = ("default", lambda peer=peer: peer.update(batch), 1)
        found[f"{name}.float32"] = ("auto", ours(name), 1)
        found[f"{name}.float32_compiled"] = ("auto", ours(name, compile=True), 1)
        found[f"{name}.bfloat16"] = ("auto", ours(name, precision="bfloat16"), 1)
        found[f"{name}.bfloat16_compiled"] = ("auto", ours(name, precision="bfloat16", compile=True), 1)
        found[f"{name}.{SEEDS}_seeds_batched"] = ("auto", ours(name, SEEDS, batch_seeds="on"), SEEDS)
    return found


def flops_per_update() -> float:
    """Floating-point operations of the matrix products of one TD3+BC update, the actor's share in every second."""
    critic_first, actor_first = (STATES + ACTIONS) * WIDTH, STATES * WIDTH
    critic, actor = critic_first + WIDTH**2 + WIDTH, actor_first + WIDTH**2 + WIDTH * ACTIONS
    critic_step = actor + 2 * (3 * critic + (critic - critic_first))  # targets, forward, weights; inputs without first
    actor_step = actor + 2 * critic + actor + (actor - actor_first)
    return 2.0 * BATCH * (critic_step + actor_step / 2)


# ------------------------------------------------------------------------------------------- measurement


def measure(
    runs: dict[str, tuple[str, Call, int]], peer: JaxLearner, count: int, rounds: int
) -> dict[str, list[float]]:
    """Updates (or products) per second of each, in rounds in which everything runs in turn; the first two are warm-up."""
    rates: dict[str, list[float]] = {name: [] for name in (*runs, *(f"{name}.jax" for name in NAMES))}
    for turn in range(rounds + 2):
        for name, (route, call, weight) in runs.items():
            configure_compute(1, "auto" if route == "auto" else "default")
            calls = max(2, count // weight)
            start = time.perf_counter()
            for _ in range(calls):
                call()
            rates[name].append(calls * weight / (time.perf_counter() - start))
        for name in NAMES:
            rates[f"{name}.jax"].append(count / peer.seconds(name))
        if turn == 1:
            rates = {name: [] for name in rates}
    return rates


def figures_of(rates: dict[str, list[float]]) -> dict[str, float]:
    """Medians over the rounds; ratios are taken within a round."""

    def ratio(name: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(rates[name], rates[other], strict=True))

    found = {f"{name}.updates_per_second": statistics.median(values) for name, values in rates.items()}
    product_flops = 2.0 * 2 * BATCH * WIDTH * WIDTH
    found["products.gflops_per_second"] = found.pop("products.updates_per_second") * product_flops / 1e9
    for name in NAMES:
        for kind in ("float32", "float32_compiled", "bfloat16", "bfloat16_compiled", f"{SEEDS}_seeds_batched"):
            for other in ("jax", "plain"):
                found[f"{name}.{kind}_against_{other}"] = ratio(f"{name}.{kind}", f"{name}.{other}")
        found[f"{name}.jax_against_plain"] = ratio(f"{name}.jax", f"{name}.plain")
    for kind in ("float32", "float32_compiled", "jax", "plain"):
        bound = ratio(f"td3_bc.{kind}", "products") * flops_per_update() / product_flops
        found[f"td3_bc.{kind}_share_of_product_bound"] = bound
    return found


def shares(call: Call) -> dict[str, float]:
    """Where the time of a call goes: matrix products, other kernels, and the rest (Python, dispatch, autograd)."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        for _ in range(50):
            call()
        total = time.perf_counter() - start
    spent = {event.key: event.self_cpu_time_total / 1e6 for event in profiler.key_averages()}
    products = sum(spent.get(f"aten::{name}", 0.0) for name in ("mm", "addmm", "bmm", "baddbmm"))
    kernels = sum(value for name, value in spent.items() if name.startswith("aten::")) - products
    return {"products": products / total, "other_kernels": kernels / total, "rest": 1 - (products + kernels) / total}


# ------------------------------------------------------------------------------------------- report


def goals(figures: dict[str, float]) -> dict[str, float]:
    """The goals, judged on the faster of compiled and not."""
    wanted = {}
    for name in NAMES:
        for goal, value in GOALS.items():
            precision, other = goal.split("_against_")
            best = max(
                f"{precision}", f"{precision}_compiled", key=lambda kind: figures[f"{name}.{kind}_against_{other}"]
            )
            wanted[f"{name}.{best}_against_{other}"] = value
    return wanted


def main() -> None:
    def more(parser: ArgumentParser) -> None:
        parser.add_argument("--jax", type=Path, metavar="PYTHON", help="A Python that has JAX; default: one is made.")

    chosen = arguments(__doc__ or "", more)
    python, rounds = jax_python(chosen.jax), 8 if chosen.quick else 40
    os.sched_setaffinity(0, {CORE})
    configure_compute(1, "auto")
    count = 20
    with tempfile.TemporaryDirectory() as folder:
        job = {"vmap": False, "updates": count, "states": STATES, "actions": ACTIONS, "hidden": [WIDTH, WIDTH]}
        with JaxLearner(python, Path(folder), job, CORE) as peer:
            runs = contestants()
            rates = measure(runs, peer, count, rounds)
            description = machine(threads=1, jax=peer.version, compute=str(configure_compute(1, "auto")))
    figures = figures_of(rates)
    for name in ("td3_bc.float32", "td3_bc.bfloat16", "iql.float32"):
        figures |= {f"{name}.time_in_{part}": value for part, value in shares(runs[name][1]).items()}
    report(description, figures, goals(figures), chosen.json)


if __name__ == "__main__":
    main()
