"""EDM preconditioning, training loss and noise levels (Karras et al. 2022; section A.2 of docs/algorithms.md).

The denoiser estimates ``E[y | x]`` for ``x = y + sigma * noise``. Its network only ever sees inputs and targets of
unit variance, whatever the noise level.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def per_trajectory(sigma: Tensor, like: Tensor) -> Tensor:
    """``sigma [B]`` (or ``[1]``, shared by the batch) with trailing axes, to broadcast against ``like [B, ...]``."""
    return sigma.reshape(sigma.shape + (1,) * (like.ndim - sigma.ndim))


class Denoiser(nn.Module):
    """``D(x; sigma) = c_skip x + c_out F(c_in x, ln(sigma) / 4)`` with a network ``F(x, c_noise)``.

    ``sigma_data`` is the standard deviation of the data that the network is trained on: 1 when standardised.
    """

    def __init__(self, network: nn.Module, sigma_data: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise ``x [B, L, C]`` at ``sigma [B]`` (or ``[1]`` for the whole batch); returns ``D [B, L, C]``."""
        level = per_trajectory(sigma, x)
        total = level.square() + self.sigma_data**2
        inverse = total.rsqrt()
        output = self.network(self.network_input(x, x * inverse), sigma.log() / 4)
        return torch.addcmul(x * (self.sigma_data**2 / total), level * inverse * self.sigma_data, output)

    def network_input(self, x: Tensor, scaled: Tensor) -> Tensor:
        """What the network sees of ``x``, given ``scaled = c_in x``."""
        return scaled

    def start(self, y: Tensor, noisy: Tensor) -> Tensor:
        """The training input for clean ``y`` and ``noisy = y + sigma * noise``."""
        return noisy


def loss(
    denoiser: Denoiser,
    y: Tensor,
    generator: torch.Generator,
    p_mean: float,
    p_std: float,
    counted: Tensor | None = None,
) -> Tensor:
    """Weighted denoising error of clean trajectories ``y [B, L, C]``, one log-normal noise level per trajectory.

    The weight ``1 / c_out^2`` makes the expected loss exactly 1 for a network that outputs zero, at every level, so
    1 means that nothing beyond the marginals was learnt (section A.2). ``counted [B, L, C]`` bool tells which entries
    it is the mean of; None: all. Scalar tensor.
    """
    normal = torch.randn(len(y), generator=generator, device=y.device, dtype=y.dtype)
    return loss_at(denoiser, y, (p_mean + p_std * normal).exp(), generator, counted)


def loss_at(
    denoiser: Denoiser, y: Tensor, sigma: Tensor, generator: torch.Generator, counted: Tensor | None = None
) -> Tensor:
    """The same at given noise levels ``sigma [B]``."""
    level = per_trajectory(sigma, y)
    noise = torch.randn(y.shape, generator=generator, device=y.device, dtype=y.dtype)
    error = denoiser(denoiser.start(y, torch.addcmul(y, level, noise)), sigma) - y
    weight = (level.square() + denoiser.sigma_data**2).sqrt() / (level * denoiser.sigma_data)
    squared = (error * weight).square()
    return squared.mean() if counted is None else torch.where(counted, squared, 0.0).sum() / counted.sum()


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Noise levels ``[steps + 1]`` in float64, from ``sigma_max`` to ``sigma_min`` and then 0 (section 0.5)."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 < sigma_min <= sigma_max:
        raise ValueError(f"need 0 < sigma_min <= sigma_max, got {sigma_min} and {sigma_max}")
    ramp = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    levels = (high + ramp * (low - high)) ** rho
    levels[0] = sigma_max
    return torch.cat([levels, levels.new_zeros(1)])
