"""What a trajectory costs and is worth: ``python benchmarks/generator.py [--quick] [--json FILE] [--jax PYTHON]``.

1. The front, for one trained model: audited error (one step replayed in the simulator) and distribution error (sliced
   Wasserstein distance to held-out windows) against trajectories per second, over solver, steps and precision. The
   reference is stochastic Heun with 256 steps; the cheapest setting whose audited error is within 5 % of it is named.
2. The peer: the same networks, the same sampler and equal calls in JAX, as one jitted program in a Python of its own
   (``peers/jax_sampler.py``), one thread each, pinned to one core, in turns. Beside it the rate of bare matrix products
   of the same shape, which bounds what float32 can reach.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from common import arguments, machine, report
from peers.jax_child import JaxSampler
from peers.venv import jax_python
from scipy.stats import wasserstein_distance

from raydiff.compute import configure_compute
from raydiff.config import Config, GuidanceConfig, NetworkConfig, SamplerConfig
from raydiff.data.dataset import Dataset
from raydiff.data.source import cache_folder, load_dataset, resolve
from raydiff.data.windows import make_windows
from raydiff.diffusion.bundle import DenoiserBundle
from raydiff.diffusion.edm import Denoiser, karras_sigmas
from raydiff.diffusion.networks import build_network
from raydiff.diffusion.precision import in_precision
from raydiff.diffusion.samplers import network_calls, solver_of
from raydiff.evaluation.audit import Auditor
from raydiff.generators.pgd import TrajectoryGenerator
from raydiff.generators.sampling import churn_of
from raydiff.presets import load_config
from raydiff.roles.pretrainer import prepare_models

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[1]
CORE = 0
SOLVERS = ("heun", "heun_ode", "dpmpp_2m", "dpmpp_2m_sde")
PRECISIONS = ("float32", "bfloat16")
STEPS = {
    "heun": (16, 32, 48, 64),
    "heun_ode": (8, 16, 32),
    "dpmpp_2m": (16, 32, 64),
    "dpmpp_2m_sde": (16, 32, 64),
}
# Noise levels, and the share of a step's noise that heun churns: as published, and what standardised data need.
RANGES = {"0.002 to 80": (0.002, 80.0, 0.3125), "0.02 to 20": (0.02, 20.0, 0.4142), "0.05 to 10": (0.05, 10.0, 0.4142)}
REFERENCE = SamplerConfig(steps=256, churn=80.0, sigma_min=0.002, sigma_max=80.0)
WITHIN = 0.05
PEERS: dict[str, tuple[NetworkConfig, int, int, int]] = {  # network, rows, columns, batch
    "mlp": (NetworkConfig(kind="mlp", width=512, depth=4), 3, 25, 512),
    "unet": (NetworkConfig(kind="unet", width=64, depth=3), 16, 25, 64),
}


def timed(sample: Callable[[], object], least_s: float) -> float:
    """Median seconds of a call, warmed up, over at least three calls and ``least_s`` seconds."""
    sample()
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < least_s:
        start = time.perf_counter()
        sample()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


class Judge:
    """Audited and distribution error of a sampler's trajectories, for one model and dataset."""

    def __init__(self, config: Config, dataset: Dataset, bundle: DenoiserBundle, quick: bool) -> None:
        assert config.data.environment is not None
        self.bundle, self.auditor = bundle, Auditor(config.data.environment)
        self.variance = np.maximum(dataset.observation.var(0), 1e-6)
        self.count, self.transitions = (512, 512) if quick else (8192, 16_384)
        section = config.denoiser
        windows = make_windows(dataset, section.length, section.stride, section.holdout, section.seed)
        chosen = np.random.default_rng(0).permutation(windows.validation)[: self.count]
        rows = bundle.normalizer.encode(torch.from_numpy(windows.gather(chosen)))
        self.projections = np.random.default_rng(1).normal(size=(rows[0].numel(), 128))
        self.projections /= np.linalg.norm(self.projections, axis=0)
        self.real = rows.flatten(1).numpy() @ self.projections

    def judge(self, sampler: SamplerConfig) -> tuple[float, float]:
        """One-step dynamics error (over the data's variance, without the largest 5 %), and sliced distance."""
        generator = TrajectoryGenerator(self.bundle, sampler, GuidanceConfig(kind="none"))
        made = generator.generate(None, self.count, (0,)).trajectories
        steps = made.transitions()
        pick = np.random.default_rng(2).permutation(len(steps))[: self.transitions]
        chosen = type(steps)(*(getattr(steps, name)[pick] for name in steps.__dataclass_fields__))
        error = self.auditor.audit(chosen, self.variance).dynamics_error.trimmed_mean
        rows = self.bundle.normalizer.encode(torch.from_numpy(made.rows)).flatten(1).numpy() @ self.projections
        distance = np.mean([wasserstein_distance(rows[:, i], self.real[:, i]) for i in range(rows.shape[1])])
        return error, float(distance)

    def rate(self, sampler: SamplerConfig, batch: int, least_s: float) -> float:
        """Trajectories per second."""
        generator = TrajectoryGenerator(self.bundle, sampler, GuidanceConfig(kind="none"))
        keys = itertools.count()
        return batch / timed(lambda: generator.generate(None, batch, (next(keys),)), least_s)


def front(config: Config, quick: bool) -> list[dict[str, Any]]:
    """One record per setting, the reference first."""
    dataset = load_dataset(config.data)
    models = prepare_models(config, dataset, cache_folder(config.data))
    assert models.bundle is not None
    judge = Judge(config, dataset, models.bundle, quick)
    settings = [REFERENCE if not quick else REFERENCE.model_copy(update={"steps": 64, "churn": 20.0})]
    for (solver, steps), (low, high, share), precision in itertools.product(STEPS.items(), RANGES.values(), PRECISIONS):
        for count in steps[1:3] if quick else steps:
            churn = share * count if solver == "heun" else 0.0
            levels = {"sigma_min": low, "sigma_max": high}
            settings.append(SamplerConfig(solver=solver, steps=count, precision=precision, churn=churn, **levels))
    records = []
    for sampler in settings:
        error, distance = judge.judge(sampler)
        rate = judge.rate(sampler, 512, 0.2 if quick else 1.0)
        calls = network_calls(sampler.solver, sampler.steps)
        levels = f"{sampler.sigma_min:g} to {sampler.sigma_max:g}"
        name = f"{sampler.solver} {sampler.steps}, {levels}, {sampler.precision}"
        records.append(
            {"name": name, "solver": sampler.solver, "steps": sampler.steps, "precision": sampler.precision, "levels": levels,
             "calls": calls, "error": error, "distance": distance, "rate": rate}
        )  # fmt: skip
        print(f"{name:44s} {calls:4d} calls  error {error:.5f}  distance {distance:.4f}  {rate:9.0f} trajectories/s")
    return records


def cheapest(records: list[dict[str, Any]], precisions: tuple[str, ...]) -> dict[str, Any]:
    """The fastest record whose audited error is within 5 % of the reference's (better counts as within)."""
    limit = records[0]["error"] * (1 + WITHIN)
    good = [record for record in records if record["error"] <= limit and record["precision"] in precisions]
    return max(good, key=lambda record: record["rate"])


def against_jax(name: str, precision: str, python: Path, rounds: int) -> dict[str, float]:
    """Trajectories per second of ours and of JAX's sampler, in turns, and the largest difference of their samples."""
    network, rows, columns, batch = PEERS[name]
    torch.manual_seed(0)
    denoiser = Denoiser(build_network(network, rows, columns)).eval().requires_grad_(False)
    torch.nn.init.normal_(denoiser.network.output.weight, std=0.05)
    plain = SamplerConfig(steps=16, churn=0.0, precision=precision)
    sampler = plain.model_copy(update={"churn": 5.0})
    sigmas = karras_sigmas(plain.steps, plain.sigma_min, plain.sigma_max, plain.rho)
    noise = torch.randn(batch, rows, columns)
    described = {"kind": network.kind, "width": network.width, "depth": network.depth}
    denoise = in_precision(denoiser, precision)
    solve, generator = solver_of("heun"), torch.Generator().manual_seed(0)

    def ours() -> torch.Tensor:
        start = torch.randn(noise.shape, generator=generator) * sigmas[0]
        return solve(denoise, start.float(), sigmas, churn=churn_of(sampler), generator=generator)

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        arguments = (denoiser, described)
        with JaxSampler(python, Path(folder) / "check", *arguments, plain, sigmas, noise, CORE) as peer:
            expected = solve(denoise, noise * sigmas[0].float(), sigmas)
            difference = float((torch.from_numpy(peer.samples()) - expected).abs().max())
        with JaxSampler(python, Path(folder) / "time", *arguments, sampler, sigmas, noise, CORE) as peer:
            for _ in range(3):
                ours(), peer.seconds()
            mine, theirs = [], []
            for _ in range(rounds):
                theirs.append(peer.seconds())
                mine.append(timed(ours, 0.0))
    return {
        "ours": batch / statistics.median(mine),
        "jax": batch / statistics.median(theirs),
        "difference": difference,
        "bound": bound(name, precision, rounds),
    }


def bound(name: str, precision: str, rounds: int) -> float:
    """Trajectories per second if nothing but the matrix products of the residual MLP's blocks were done; nan for others."""
    network, rows, columns, batch = PEERS[name]
    if network.kind != "mlp":
        return float("nan")
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    x, weight = (torch.randn(size, network.width, dtype=dtype) for size in (batch, network.width))
    seconds = timed(lambda: torch.mm(x, weight), 0.05 * rounds)
    products = network.depth + 2 * rows * columns / network.width
    return batch / (seconds * products * network_calls("heun", 16))


def picture(records: list[dict[str, Any]], best: dict[str, Any], path: Path) -> None:
    """Errors against trajectories per second."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.6), constrained_layout=True)
    labels = {"error": "audited one-step error / variance", "distance": "sliced distance to held-out windows"}
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        for (solver, marker), (levels, style), precision in itertools.product(
            zip(SOLVERS, "os^D", strict=True), zip(RANGES, (":", "--", "-"), strict=True), PRECISIONS
        ):
            some = [r for r in records[1:] if (r["solver"], r["levels"], r["precision"]) == (solver, levels, precision)]
            axis.plot(
                [r["rate"] for r in some],
                [r[key] for r in some],
                marker=marker,
                linestyle=style,
                lw=1,
                color=f"C{SOLVERS.index(solver)}",
                fillstyle="full" if precision == "bfloat16" else "none",
                label=f"{solver}, {levels}" if precision == "bfloat16" else None,
            )
        axis.axhline(records[0][key], color="black", lw=1, ls="-.", label=f"reference: {records[0]['name']}")
        axis.scatter([best["rate"]], [best[key]], s=160, facecolors="none", edgecolors="black", zorder=5)
        axis.set(xscale="log", yscale="log", xlabel="trajectories per second, one thread", ylabel=label)
    figure.suptitle(
        "Filled: bfloat16, open: float32. Circled: the fastest within 5 % of the reference's audited error."
    )
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--jax", type=Path, metavar="PYTHON", help="A Python that has JAX; default: one is made.")
        parser.add_argument("--preset", type=Path, default=ROOT / "configs" / "demo.yaml", help="Whose model to use.")
        parser.add_argument("--plot", type=Path, metavar="FILE", help="Write the picture of the front to this PNG.")

    options = arguments(__doc__, more)
    os.sched_setaffinity(0, {CORE})
    compute = configure_compute(1, "auto")
    config = resolve(load_config(options.preset, ["scale=tiny"] if options.quick else []))
    records = front(config, options.quick)
    best, exact = cheapest(records, PRECISIONS), cheapest(records, ("float32",))
    print(f"cheapest within 5 % of {records[0]['name']}: {best['name']} (float32: {exact['name']})")
    figures = {f"{r['name']} {key}": float(r[key]) for r in records for key in ("calls", "error", "distance", "rate")}
    figures["calls of the reference over those of the cheapest"] = records[0]["calls"] / best["calls"]
    figures["calls of the reference over those of the cheapest float32"] = records[0]["calls"] / exact["calls"]
    python, rounds = jax_python(options.jax), 5 if options.quick else 15
    for name, precision in itertools.product(PEERS, PRECISIONS):
        rates = against_jax(name, precision, python, rounds)
        figures |= {f"{name} {precision} {key}": value for key, value in rates.items()}
    for name, precision in itertools.product(PEERS, PRECISIONS):
        figures[f"{name} {precision} over JAX float32"] = (
            figures[f"{name} {precision} ours"] / figures[f"{name} float32 jax"]
        )
    goals = {"calls of the reference over those of the cheapest float32": 4.0}
    goals |= {f"{name} float32 over JAX float32": 1.3 for name in PEERS}
    goals |= {f"{name} bfloat16 over JAX float32": 2.2 for name in PEERS}
    report(machine(preset=str(options.preset.name), compute=str(compute)), figures, goals, options.json)
    if options.plot is not None:
        picture(records, best, options.plot)


if __name__ == "__main__":
    main()
