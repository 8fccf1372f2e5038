"""Keep the synthetic trajectories of high predicted return (section D.6)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raydiff.config import GeneratorConfig
from raydiff.types import Trajectories


def reward_filter(returns: Tensor, config: GeneratorConfig, generator: torch.Generator, uniform: float = 0.0) -> Tensor:
    """Indices ``[m]``, ascending, of the trajectories that ``config.filter`` keeps, given their ``returns [n]``.

    ``hardmax`` keeps the best ``floor(config.keep * n)`` and whatever equals the last of them; ``softmax`` draws that
    many without replacement by ``log_probabilities``; ``none`` and ``keep=1`` keep all. At least one is kept.
    ``generator``, on the device of ``returns``, is drawn from for ``softmax`` only. ``uniform``: see
    ``log_probabilities``.
    """
    n = len(returns)
    # The tolerance keeps a product such as 0.29 * 100 = 28.999... at its exact value.
    count = max(1, math.floor(config.keep * n + 1e-9))
    if config.filter == "none" or count >= n:
        return torch.arange(n, device=returns.device)
    if config.filter == "hardmax":
        return (returns >= returns.topk(count).values[-1]).nonzero()[:, 0]
    # The largest of log p - log(exponential noise) are a draw without replacement, for probabilities of any size.
    noise = torch.empty(n, dtype=torch.float64, device=returns.device).exponential_(generator=generator)
    return (log_probabilities(returns, config.temperature, uniform) - noise.log()).topk(count).indices.sort().values


def log_probabilities(returns: Tensor, temperature: float, uniform: float = 0.0) -> Tensor:
    """Log of the softmax ``[n]`` (float64) of the standardised ``returns [n]`` over ``temperature``.

    DyDiff's code also gives a share ``uniform`` = 1e-6 to the uniform distribution. At its temperature of 0.05 that
    outweighs the softmax for all but the few best, so most of what it keeps is drawn at random.
    """
    value = returns.double()
    spread = value.std(correction=0)
    z = (value - value.mean()) / torch.where(spread > 0, spread, 1.0)
    plain = (z / temperature).log_softmax(0)
    if uniform == 0.0:
        return plain
    return torch.logaddexp(plain + math.log1p(-uniform), plain.new_tensor(math.log(uniform / len(z))))


def filter_trajectories(
    trajectories: Trajectories, returns: Tensor, config: GeneratorConfig, generator: torch.Generator
) -> Trajectories:
    """The trajectories that ``reward_filter`` keeps, in their order. With trajectories of one transition and their
    rewards as returns it is SynthER's reward-filtered variant."""
    kept = reward_filter(returns, config, generator).cpu().numpy()
    return Trajectories(trajectories.rows[kept], trajectories.observation_size, trajectories.action_size)
