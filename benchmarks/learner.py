"""How fast a learner trains on one CPU thread: ``python benchmarks/learner.py [--quick] [--json FILE]``.

TD3+BC and IQL of this project run in turns with a plain single-file TD3+BC, written below as such files usually are,
and with bare matrix products of the size of the hidden layers, which bound what float32 can reach. Only
ratios within one run mean anything; updates per second depend on the machine and on what else it does.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import torch
from common import arguments, machine, report
from torch import Tensor, nn
from torch.nn import functional

from raydiff.agents.registry import build_agent
from raydiff.compute import configure_compute
from raydiff.config_learner import LearnerConfig
from raydiff.types import Batch

OBSERVATION, ACTION, WIDTH, BATCH = 17, 6, 256, 256
GOAL_AGAINST_PLAIN = 2.2


# ------------------------------------------------------------------------------------------- the single-file peer


class PlainTD3BC:
    """TD3+BC as single-file implementations write it: separate linear layers, ``backward``, default Adam. It is
    spared the host synchronisations that many of them have."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.actor = perceptron(OBSERVATION, ACTION)
        self.critics = nn.ModuleList([perceptron(OBSERVATION + ACTION, 1) for _ in range(2)])
        self.actor_target, self.critics_target = copy.deepcopy(self.actor), copy.deepcopy(self.critics)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=3e-4)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), lr=3e-4)
        self.updates = 0

    def update(self, batch: Batch) -> dict[str, Tensor]:
        observation, action, reward, next_observation, terminal = batch
        with torch.no_grad():
            noise = (torch.randn_like(action) * 0.2).clamp(-0.5, 0.5)
            next_action = (torch.tanh(self.actor_target(next_observation)) + noise).clamp(-1, 1)
            following = torch.cat([next_observation, next_action], 1)
            target_1, target_2 = (critic(following).squeeze(1) for critic in self.critics_target)
            target = reward + 0.99 * (1 - terminal) * torch.min(target_1, target_2)
        state_action = torch.cat([observation, action], 1)
        value_1, value_2 = (critic(state_action).squeeze(1) for critic in self.critics)
        critic_loss = functional.mse_loss(value_1, target) + functional.mse_loss(value_2, target)
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()
        self.updates += 1
        if self.updates % 2 == 0:
            self.update_actor(observation, action)
        return {"critic_loss": critic_loss.detach()}

    def update_actor(self, observation: Tensor, action: Tensor) -> None:
        own = torch.tanh(self.actor(observation))
        value = self.critics[0](torch.cat([observation, own], 1))
        actor_loss = -2.5 / value.abs().mean().detach() * value.mean() + functional.mse_loss(own, action)
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()
        with torch.no_grad():
            for online, target in ((self.actor, self.actor_target), (self.critics, self.critics_target)):
                for source, moved in zip(online.parameters(), target.parameters(), strict=True):
                    moved.copy_(0.005 * source + 0.995 * moved)


def perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, outputs)
    )


# ------------------------------------------------------------------------------------------- measurement


def flops_per_update() -> float:
    """Floating-point operations of the matrix products of one TD3+BC update, the actor's share in every second."""
    critic_first, actor_first = (OBSERVATION + ACTION) * WIDTH, OBSERVATION * WIDTH
    critic, actor = critic_first + WIDTH**2 + WIDTH, actor_first + WIDTH**2 + WIDTH * ACTION
    critic_step = actor + 2 * (3 * critic + (critic - critic_first))  # targets, forward, weights; inputs without first
    actor_step = actor + 2 * critic + actor + (actor - actor_first)
    return 2.0 * BATCH * (critic_step + actor_step / 2)


def random_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    action = torch.rand(BATCH, ACTION, generator=generator) * 2 - 1
    return Batch(normal(BATCH, OBSERVATION), action, normal(BATCH), normal(BATCH, OBSERVATION), torch.zeros(BATCH))


def rate(call: Callable[[], object], count: int) -> float:
    """Calls per second."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return count / (time.perf_counter() - start)


def contestants() -> dict[str, tuple[str, Callable[[], object]]]:
    """Name -> (route of matrix products, one update or product)."""
    batch = random_batch()
    zeros, ones = torch.zeros(OBSERVATION), torch.ones(OBSERVATION)
    td3_bc, td3_bc_default, iql = (
        build_agent(LearnerConfig(algorithm=name, updates=10**6), OBSERVATION, ACTION, zeros, ones, 0)
        for name in ("td3_bc", "td3_bc", "iql")
    )
    plain, left, right = PlainTD3BC(), torch.randn(2, BATCH, WIDTH), torch.randn(2, WIDTH, WIDTH)
    output = torch.empty_like(left)
    return {
        "plain": ("default", lambda: plain.update(batch)),
        "td3_bc": ("auto", lambda: td3_bc.update(batch)),
        "td3_bc_default": ("default", lambda: td3_bc_default.update(batch)),
        "iql": ("auto", lambda: iql.update(batch)),
        "products": ("auto", lambda: torch.bmm(left, right, out=output)),
    }


def measure(rounds: int, count: int) -> dict[str, float]:
    """Medians over rounds in which everything runs in turn; ratios are taken within a round."""
    runs = contestants()
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 2):
        for name, (route, call) in runs.items():
            configure_compute(1, "auto" if route == "auto" else "default")
            speed = rate(call, count)
            if turn >= 2:
                rates[name].append(speed)

    def ratio(name: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(rates[name], rates[other], strict=True))

    product_flops = 2.0 * 2 * BATCH * WIDTH * WIDTH
    return {
        "td3_bc_updates_per_second": statistics.median(rates["td3_bc"]),
        "td3_bc_default_matmul_updates_per_second": statistics.median(rates["td3_bc_default"]),
        "iql_updates_per_second": statistics.median(rates["iql"]),
        "plain_td3_bc_updates_per_second": statistics.median(rates["plain"]),
        "matmul_gflops_per_second": statistics.median(rates["products"]) * product_flops / 1e9,
        "matmul_bound_updates_per_second": statistics.median(rates["products"]) * product_flops / flops_per_update(),
        "td3_bc_against_plain": ratio("td3_bc", "plain"),
        "td3_bc_against_default_matmul": ratio("td3_bc", "td3_bc_default"),
        "iql_against_plain_td3_bc": ratio("iql", "plain"),
        "td3_bc_share_of_matmul_bound": ratio("td3_bc", "products") * flops_per_update() / product_flops,
    }


# ------------------------------------------------------------------------------------------- report


def main() -> None:
    chosen = arguments(__doc__)
    figures = measure(rounds=15 if chosen.quick else 80, count=20)
    description = machine(threads=1, compute=str(configure_compute(1, "auto")))
    report(description, figures, {"td3_bc_against_plain": GOAL_AGAINST_PLAIN}, chosen.json)


if __name__ == "__main__":
    main()
