"""Policies that can only be sampled, such as diffusion policies, as targets of guidance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DrawAction = Callable[[Tensor, Tensor], Tensor]
"""``draw(observation [N, S], noise [N, A]) -> action [N, A]`` in environment units: a policy as a function of standard
normal noise, for example a diffusion policy run by a deterministic solver."""

SMALLEST_VARIANCE = 1e-4


class SampledPolicy:
    """An ``ActionDistribution`` made of draws, since such a policy's log-density has no closed form (section B.4).

    With one sample it is deterministic: guidance leads to a Gaussian of standard deviation ``guidance.delta`` round one
    of the policy's actions, as policy-guided diffusion does for actors without a density. With more, to a Gaussian of
    their mean and variance. The noise is drawn once, from ``seed``, and is the same in all states, so that equal
    observations give equal distributions. Every guided noise level costs ``samples`` draws in every row.
    """

    def __init__(self, draw: DrawAction, action_size: int, samples: int = 1, seed: int = 0) -> None:
        if samples < 1:
            raise ValueError(f"a policy is known by at least one sample, got samples={samples}")
        self.draw, self.deterministic = draw, samples == 1
        self.noise = torch.randn(samples, action_size, generator=torch.Generator().manual_seed(seed))

    def distribution(self, observation: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean ``[..., A]`` and variance ``[..., A]`` (None for one sample) of the action at ``observation [..., S]``."""
        rows, (samples, size) = observation.reshape(-1, observation.shape[-1]), self.noise.shape
        noise = self.noise.to(rows).repeat(len(rows), 1)
        actions = self.draw(rows.repeat_interleave(samples, 0), noise).view(*observation.shape[:-1], samples, size)
        if self.deterministic:
            return actions.squeeze(-2), None
        return actions.mean(-2), actions.var(-2).clamp_min(SMALLEST_VARIANCE)
