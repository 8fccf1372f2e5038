"""What a generator offers: policy in, trajectories out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from raydiff.guidance.api import ActionDistribution
from raydiff.seeds import key_seed
from raydiff.types import Agreement, Trajectories


@dataclass(frozen=True)
class GeneratedTrajectories:
    """Trajectories in environment units and how they came about: network calls per trajectory ``nfe``, the
    guidance's name (``none``, or its mode or kind), the strength that was applied (0 if none), and how well they fit
    the policy (None without a policy, or without a valid transition)."""

    trajectories: Trajectories
    nfe: int
    guidance: str
    strength: float
    agreement: Agreement | None


class Generator(Protocol):
    """Makes ``n`` trajectories for a policy (None: unguided). The same key, policy, strength and device give the same
    bytes in every process with the same number of threads. ``strength``: of the guidance; None: the configured one."""

    def generate(
        self, policy: ActionDistribution | None, n: int, key: tuple[int, ...], strength: float | None = None
    ) -> GeneratedTrajectories: ...


class Refiner(Protocol):
    """Brings stored trajectories up to the current policy; the same reproducibility."""

    def refine(
        self,
        trajectories: Trajectories,
        policy: ActionDistribution | None,
        key: tuple[int, ...],
        strength: float | None = None,
    ) -> GeneratedTrajectories: ...


def keyed_generator(key: tuple[int, ...], device: torch.device | str) -> torch.Generator:
    """A random generator seeded by a hash of the key's integers."""
    return torch.Generator(device).manual_seed(key_seed(*key))


@torch.no_grad()
def action_agreement(
    trajectories: Trajectories, policy: ActionDistribution, device: torch.device | str, delta: float
) -> Agreement | None:
    """How well the valid transitions fit the policy; None when there is none. ``delta`` is the standard deviation
    given to a deterministic policy."""
    steps = trajectories.transitions()
    if not len(steps):
        return None
    mean, variance = policy.distribution(torch.from_numpy(steps.observation).to(device))
    if variance is None:
        variance = torch.full_like(mean, delta**2)
    squared = (torch.from_numpy(steps.action).to(device) - mean).square()
    constant = math.log(2 * math.pi) + variance.log()
    return Agreement(
        deviation=float(squared.mean()),
        log_likelihood=float((-0.5 * (squared / variance + constant)).sum(-1).mean()),
        own=float((-0.5 * (1.0 + constant)).sum(-1).mean()),
    )
