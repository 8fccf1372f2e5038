"""What a generator offers: policy in, trajectories out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from raydiff.diffusion.guidance import ActionDistribution
from raydiff.seeds import key_seed
from raydiff.types import Trajectories


@dataclass(frozen=True)
class GeneratedTrajectories:
    """Trajectories in environment units and how they came about: network calls per trajectory ``nfe``, the
    guidance's name (``none``, ``paper``, ``score_exact``) and the strength that was applied (0 if none), and the mean
    squared ``deviation`` of their valid actions from the policy's mean (None without a policy)."""

    trajectories: Trajectories
    nfe: int
    guidance: str
    strength: float
    deviation: float | None


class Generator(Protocol):
    """Makes ``n`` trajectories for a policy (None: unguided). The same key, policy and device give the same bytes in
    every process with the same number of threads."""

    def generate(self, policy: ActionDistribution | None, n: int, key: tuple[int, ...]) -> GeneratedTrajectories: ...


def keyed_generator(key: tuple[int, ...], device: torch.device | str) -> torch.Generator:
    """A random generator seeded by a hash of the key's integers."""
    return torch.Generator(device).manual_seed(key_seed(*key))


@torch.no_grad()
def action_deviation(
    trajectories: Trajectories, policy: ActionDistribution, device: torch.device | str
) -> float | None:
    """Mean over valid transitions and action entries of ``(a - policy mean)^2``, in environment units squared; None
    when no transition is valid."""
    steps = trajectories.transitions()
    if not len(steps):
        return None
    mean, _ = policy.distribution(torch.from_numpy(steps.observation).to(device))
    return float((torch.from_numpy(steps.action).to(device) - mean).square().mean())
