"""The peer of benchmarks/learner.py: TD3+BC and IQL in JAX, each as one jitted program of many updates.

Runs in a Python of its own that has JAX, as a child of the benchmark: it reads a folder with ``job.json`` and answers
each line on stdin, the name of an algorithm, with the seconds of ``updates`` updates.

What was tried to make it fast: all updates of a call are one ``jit`` round a ``scan``, with the state donated, so that
nothing returns to Python and nothing is copied; TD3+BC scans over pairs of updates, since a ``cond`` for the actor costs
more; the twin critics as two networks or as one ``vmap`` (the job says which; two are faster on CPUs); batches are drawn
before, as the benchmark's other contestants have theirs.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

Layers = list[tuple[jax.Array, jax.Array]]
State = dict[str, Any]
Batch = tuple[jax.Array, ...]
BATCH, LEARNING_RATE, DISCOUNT, TAU = 256, 3e-4, 0.99, 0.005
VMAP = False


# ------------------------------------------------------------------------------------------- networks, optimiser


def perceptron(key: jax.Array, sizes: tuple[int, ...]) -> Layers:
    layers = []
    for number, (fan_in, out) in enumerate(itertools.pairwise(sizes)):
        left, right = jax.random.split(jax.random.fold_in(key, number))
        bound = fan_in**-0.5
        weight = jax.random.uniform(left, (fan_in, out), minval=-bound, maxval=bound)
        layers.append((weight, jax.random.uniform(right, (out,), minval=-bound, maxval=bound)))
    return layers


def forward(layers: Layers, x: jax.Array) -> jax.Array:
    for weight, bias in layers[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    return x @ layers[-1][0] + layers[-1][1]


def twins(critics: Any, x: jax.Array) -> jax.Array:
    """Values ``[2, B]``."""
    if VMAP:
        return jax.vmap(forward, (0, None))(critics, x)[..., 0]
    return jnp.stack([forward(critic, x)[:, 0] for critic in critics])


def first(critics: Any) -> Layers:
    return jax.tree.map(lambda leaf: leaf[0], critics) if VMAP else critics[0]


def new_twins(key: jax.Array, sizes: tuple[int, ...]) -> Any:
    pair = [perceptron(jax.random.fold_in(key, number), sizes) for number in range(2)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *pair) if VMAP else pair


def adam(parameters: Any) -> State:
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    return {"first": zeros, "second": jax.tree.map(jnp.copy, zeros), "step": jnp.zeros(())}


def minimize(loss: Callable[[Any], jax.Array], parameters: Any, moments: State) -> tuple[Any, State]:
    gradient = jax.grad(loss)(parameters)
    step = moments["step"] + 1
    mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments["first"], gradient)
    square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, moments["second"], gradient)
    scale, root = LEARNING_RATE / (1 - 0.9**step), jax.lax.rsqrt(1 - 0.999**step)
    moved = jax.tree.map(lambda p, m, v: p - scale * m / (jnp.sqrt(v) * root + 1e-8), parameters, mean, square)
    return moved, {"first": mean, "second": square, "step": step}


def follow(target: Any, online: Any) -> Any:
    return jax.tree.map(lambda old, new: (1 - TAU) * old + TAU * new, target, online)


# ------------------------------------------------------------------------------------------- TD3+BC


def td3_bc_state(key: jax.Array, states: int, actions: int, hidden: tuple[int, ...]) -> State:
    keys = jax.random.split(key, 3)
    actor = perceptron(keys[0], (states, *hidden, actions))
    critics = new_twins(keys[1], (states + actions, *hidden, 1))
    return {
        "key": keys[2], "actor": actor, "critics": critics,
        "actor_target": jax.tree.map(jnp.copy, actor), "critics_target": jax.tree.map(jnp.copy, critics),
        "actor_moments": adam(actor), "critic_moments": adam(critics),
    }  # fmt: skip


def td3_bc_critics(state: State, batch: Batch) -> State:
    observation, action, reward, following, terminal = batch
    key, noise_key = jax.random.split(state["key"])
    noise = jnp.clip(0.2 * jax.random.normal(noise_key, action.shape), -0.5, 0.5)
    next_action = jnp.clip(jnp.tanh(forward(state["actor_target"], following)) + noise, -1, 1)
    next_value = twins(state["critics_target"], jnp.concatenate([following, next_action], 1)).min(0)
    target = reward + DISCOUNT * (1 - terminal) * next_value

    def loss(critics: Any) -> jax.Array:
        return jnp.square(twins(critics, jnp.concatenate([observation, action], 1)) - target).mean(1).sum()

    critics, moments = minimize(loss, state["critics"], state["critic_moments"])
    return {**state, "key": key, "critics": critics, "critic_moments": moments}


def td3_bc_actor(state: State, batch: Batch) -> State:
    observation, action = batch[:2]

    def loss(actor: Layers) -> jax.Array:
        own = jnp.tanh(forward(actor, observation))
        value = forward(first(state["critics"]), jnp.concatenate([observation, own], 1))
        scale = 2.5 / jax.lax.stop_gradient(jnp.abs(value).mean())
        return jnp.square(own - action).mean() - scale * value.mean()

    actor, moments = minimize(loss, state["actor"], state["actor_moments"])
    targets = {
        "actor_target": follow(state["actor_target"], actor),
        "critics_target": follow(state["critics_target"], state["critics"]),
    }
    return {**state, "actor": actor, "actor_moments": moments, **targets}


@partial(jax.jit, donate_argnums=0)
def td3_bc(state: State, batches: Batch) -> State:
    def pair(state: State, two: Batch) -> tuple[State, None]:
        odd, even = (tuple(field[number] for field in two) for number in range(2))
        state = td3_bc_critics(td3_bc_critics(state, odd), even)
        return td3_bc_actor(state, even), None

    halves = tuple(field.reshape(-1, 2, *field.shape[1:]) for field in batches)
    return jax.lax.scan(pair, state, halves)[0]


# ------------------------------------------------------------------------------------------- IQL


def iql_state(key: jax.Array, states: int, actions: int, hidden: tuple[int, ...]) -> State:
    keys = jax.random.split(key, 3)
    actor = {"mean": perceptron(keys[0], (states, *hidden, actions)), "log_std": jnp.zeros(actions)}
    critics = new_twins(keys[1], (states + actions, *hidden, 1))
    value = perceptron(keys[2], (states, *hidden, 1))
    return {
        "actor": actor, "critics": critics, "value": value, "critics_target": jax.tree.map(jnp.copy, critics),
        "actor_moments": adam(actor), "critic_moments": adam(critics), "value_moments": adam(value),
    }  # fmt: skip


@partial(jax.jit, donate_argnums=0)
def iql(state: State, batches: Batch) -> State:
    def update(state: State, batch: Batch) -> tuple[State, None]:
        observation, action, reward, following, terminal = batch
        state_action = jnp.concatenate([observation, action], 1)
        estimate = twins(state["critics_target"], state_action).min(0)

        def value_loss(value: Layers) -> jax.Array:
            advantage = estimate - forward(value, observation)[:, 0]
            return (jnp.where(advantage < 0, 0.3, 0.7) * jnp.square(advantage)).mean()

        value, value_moments = minimize(value_loss, state["value"], state["value_moments"])
        advantage = estimate - forward(value, observation)[:, 0]
        weight = jnp.minimum(jnp.exp(3.0 * advantage), 100.0)

        def actor_loss(actor: State) -> jax.Array:
            log_std = jnp.clip(actor["log_std"], -5.0, 2.0)
            deviation = (action - jnp.tanh(forward(actor["mean"], observation))) * jnp.exp(-log_std)
            return (weight * (0.5 * jnp.square(deviation) + log_std).sum(1)).mean()

        actor, actor_moments = minimize(actor_loss, state["actor"], state["actor_moments"])
        target = reward + DISCOUNT * (1 - terminal) * forward(value, following)[:, 0]

        def critic_loss(critics: Any) -> jax.Array:
            return jnp.square(twins(critics, state_action) - target).mean(1).sum()

        critics, critic_moments = minimize(critic_loss, state["critics"], state["critic_moments"])
        return {
            "actor": actor, "critics": critics, "value": value,
            "critics_target": follow(state["critics_target"], critics),
            "actor_moments": actor_moments, "critic_moments": critic_moments, "value_moments": value_moments,
        }, None  # fmt: skip

    return jax.lax.scan(update, state, batches)[0]


# ------------------------------------------------------------------------------------------- process


ALGORITHMS = {"td3_bc": (td3_bc_state, td3_bc), "iql": (iql_state, iql)}


def draw_batches(updates: int, states: int, actions: int) -> Batch:
    keys = jax.random.split(jax.random.key(0), 4)
    observation, following = (jax.random.normal(key, (updates, BATCH, states)) for key in keys[:2])
    action = jax.random.uniform(keys[2], (updates, BATCH, actions), minval=-1, maxval=1)
    return observation, action, jax.random.normal(keys[3], (updates, BATCH)), following, jnp.zeros((updates, BATCH))


def main() -> None:
    global VMAP
    folder = Path(sys.argv[1])
    os.sched_setaffinity(0, {int(os.environ["RAYDIFF_BENCHMARK_CORE"])})  # before the first array starts XLA's threads
    job = json.loads((folder / "job.json").read_text())
    VMAP = job["vmap"]
    batches = draw_batches(job["updates"], job["states"], job["actions"])
    states = {}
    for name, (new, run) in ALGORITHMS.items():
        start = new(jax.random.key(1), job["states"], job["actions"], tuple(job["hidden"]))
        states[name] = jax.block_until_ready(run(start, batches))  # compiles
    print(json.dumps({"ready": jax.__version__}), flush=True)
    for line in sys.stdin:
        name = line.strip()
        start_time = time.perf_counter()
        states[name] = jax.block_until_ready(ALGORITHMS[name][1](states[name], batches))
        print(json.dumps({"seconds": time.perf_counter() - start_time}), flush=True)


if __name__ == "__main__":
    main()
