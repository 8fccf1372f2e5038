"""The peer of benchmarks/generator.py: the same networks and the same sampler in JAX, as one jitted program.

Runs in a Python of its own that has JAX, as a child of the benchmark: it reads a folder with ``weights.npz`` and
``job.json`` and answers each line on stdin with the seconds of one sampling (or, for ``check``, with the path of
samples drawn from given noise, by which the two implementations are compared).

What was tried to make it fast: the whole sampler is one ``jit`` with a ``fori_loop`` over the steps, so that nothing
returns to Python; matrix products with the batch as the long side; weights as arguments on the device; bfloat16 by
casting weights and activations as raydiff does; convolutions in the layout (NWC or NCW) that was measured faster.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Weights = dict[str, Any]


def linear(weights: Weights, name: str, x: jax.Array) -> jax.Array:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def residual_mlp(weights: Weights, x: jax.Array, c_noise: jax.Array, job: dict[str, Any]) -> jax.Array:
    """``h + Linear(relu(h))`` blocks over the flattened window; ``c_noise [1]``."""
    periods = 2.0 ** np.linspace(math.log2(8.0), math.log2(0.25), 16)
    angle = c_noise[:, None] * jnp.asarray(2 * np.pi / periods, jnp.float32)
    features = jnp.concatenate([jnp.sin(angle), jnp.cos(angle), c_noise[:, None]], -1).astype(x.dtype)
    time_embedding = linear(weights, "time.3", jax.nn.silu(linear(weights, "time.1", features)))
    hidden = linear(weights, "input", x.reshape(len(x), -1)) + time_embedding
    for block in range(job["depth"]):
        hidden = hidden + linear(weights, f"blocks.{block}", jax.nn.relu(hidden))
    return linear(weights, "output", jax.nn.relu(hidden)).reshape(x.shape)


def convolution(weights: Weights, name: str, x: jax.Array) -> jax.Array:
    """Over rows, with zero padding, on ``x [B, L, C]``."""
    kernel = weights[f"{name}.weight"]  # [out, in, 1, k]: rows are convolved as images of height 1
    kernel = kernel.reshape(kernel.shape[0], kernel.shape[1], -1)
    k = kernel.shape[2]
    out = jax.lax.conv_general_dilated(
        x, kernel.transpose(2, 1, 0), (1,), [((k - 1) // 2, k // 2)], dimension_numbers=("NWC", "WIO", "NWC")
    )
    return out + weights[f"{name}.bias"]


def conv_norm(weights: Weights, name: str, x: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
    """Convolution, added time term, group normalisation over channels and rows together, ReLU."""
    x = convolution(weights, f"{name}.convolution", x)
    if embedding is not None:
        x = x + linear(weights, f"{name}.time", embedding)[:, None]
    batch, length, channels = x.shape
    groups = x.reshape(batch, length, 8, channels // 8).astype(jnp.float32)
    mean = groups.mean((1, 3), keepdims=True)
    variance = jnp.square(groups - mean).mean((1, 3), keepdims=True)
    normal = ((groups - mean) * jax.lax.rsqrt(variance + 1e-5)).reshape(x.shape).astype(x.dtype)
    return jax.nn.relu(normal * weights[f"{name}.norm.weight"] + weights[f"{name}.norm.bias"])


def unet(weights: Weights, x: jax.Array, c_noise: jax.Array, job: dict[str, Any]) -> jax.Array:
    levels, width = job["depth"], job["width"]
    half = max(width // 8, 1)
    frequencies = jnp.exp(jnp.arange(half) * (-math.log(1e4) / max(half - 1, 1)))
    angle = c_noise[:, None] * frequencies
    embedding = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1).astype(x.dtype)
    embedding = jax.nn.silu(linear(weights, "time.3", jax.nn.silu(linear(weights, "time.1", embedding))))
    skips = []
    for level in range(levels):
        if level:
            even = x.shape[1] // 2 * 2
            x = x[:, :even].reshape(len(x), even // 2, 2, -1).max(2)
        x = conv_norm(weights, f"down_first.{level}", x, embedding)
        x = conv_norm(weights, f"down_second.{level}", x)
        skips.append(x)
    for index, skip in enumerate(reversed(skips[:-1])):
        rows = np.arange(skip.shape[1]) * x.shape[1] // skip.shape[1]  # nearest neighbour
        x = conv_norm(weights, f"up.{index}.up", x[:, rows], embedding)
        x = conv_norm(weights, f"up.{index}.first", jnp.concatenate([x, skip], -1))
        x = conv_norm(weights, f"up.{index}.second", x)
    return convolution(weights, "output", x)


NETWORKS: dict[str, Callable[..., jax.Array]] = {"mlp": residual_mlp, "unet": unet}


def denoise(weights: Weights, x: jax.Array, sigma: jax.Array, job: dict[str, Any]) -> jax.Array:
    """EDM preconditioning in float32 round a network in the job's precision; ``sigma_data`` is 1."""
    total = sigma**2 + 1.0
    inverse = jax.lax.rsqrt(total)
    dtype = jnp.bfloat16 if job["precision"] == "bfloat16" else jnp.float32
    network = NETWORKS[job["kind"]]
    output = network(weights, (x * inverse).astype(dtype), jnp.log(sigma)[None] / 4, job)
    return x / total + sigma * inverse * output.astype(jnp.float32)


@partial(jax.jit, static_argnames="static")
def sample(weights: Weights, noise: jax.Array, sigmas: jax.Array, key: jax.Array, static: tuple[Any, ...]) -> jax.Array:
    """Heun's method with churn, as section A.3 has it."""
    job = dict(static)
    steps = sigmas.shape[0] - 1

    def churned(step: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        sigma = sigmas[step]
        inside = (sigma >= job["churn_min"]) & (sigma <= job["churn_max"])
        gamma = jnp.where(inside, min(job["churn"] / steps, math.sqrt(2.0) - 1.0), 0.0)
        level = sigma * (1.0 + gamma)
        fresh = jax.random.normal(jax.random.fold_in(key, step), x.shape)
        return x + fresh * job["churn_noise"] * jnp.sqrt(level**2 - sigma**2), level

    def step(number: jax.Array, x: jax.Array) -> jax.Array:
        x, level = churned(number, x) if job["churn"] else (x, sigmas[number])
        target = sigmas[number + 1]
        slope = (x - denoise(weights, x, level, job)) / level
        ahead = x + (target - level) * slope
        slope_ahead = (ahead - denoise(weights, ahead, target, job)) / target
        return x + (target - level) * 0.5 * (slope + slope_ahead)

    x = jax.lax.fori_loop(0, steps - 1, step, noise * sigmas[0])
    x, level = churned(jnp.asarray(steps - 1), x) if job["churn"] else (x, sigmas[steps - 1])
    return denoise(weights, x, level, job)


def main() -> None:
    folder = Path(sys.argv[1])
    os.sched_setaffinity(0, {int(os.environ["RAYDIFF_BENCHMARK_CORE"])})  # before the first array starts XLA's threads
    job = json.loads((folder / "job.json").read_text())
    with np.load(folder / "weights.npz") as file:
        weights = {name: jnp.asarray(file[name]) for name in file.files}
    if job["precision"] == "bfloat16":
        weights = {name: value.astype(jnp.bfloat16) for name, value in weights.items()}
    sigmas = jnp.asarray(np.asarray(job["sigmas"], dtype=np.float32))
    static = tuple(sorted((name, value) for name, value in job.items() if name not in ("sigmas", "shape")))
    noise = jnp.asarray(np.load(folder / "noise.npy"))
    key = jax.random.key(0)
    sample(weights, noise, sigmas, key, static).block_until_ready()  # compile
    print(json.dumps({"ready": jax.__version__}), flush=True)
    for line in sys.stdin:
        if line.strip() == "check":
            np.save(folder / "samples.npy", np.asarray(sample(weights, noise, sigmas, key, static)))
            print(json.dumps({"saved": True}), flush=True)
            continue
        key = jax.random.fold_in(key, 1)
        start = time.perf_counter()
        fresh = jax.random.normal(key, noise.shape)
        sample(weights, fresh, sigmas, key, static).block_until_ready()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
