"""The denoiser of states given the first state and all actions (DyDiff; section D.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raydiff.diffusion.edm import Denoiser


def given_entries(length: int, observation_size: int, action_size: int) -> Tensor:
    """Which entries ``[L, S+A]`` (bool) of rows observation | action are conditions: the first state, all actions."""
    given = torch.zeros(length, observation_size + action_size, dtype=torch.bool)
    given[0] = True
    given[:, observation_size:] = True
    return given


class ConditionalDenoiser(Denoiser):
    """``D(x; sigma)`` for ``x`` whose ``given [L, C]`` entries are clean at every noise level, in training and sampling.

    The preconditioning shrinks what the network sees of the conditions by ``c_in``, to nothing at high noise. With
    ``clean`` the network is therefore given them a second time as they are, and which entries they are: inputs
    ``[B, L, 3 C]``, outputs ``[B, L, C]``.
    """

    given: Tensor

    def __init__(self, network: nn.Module, given: Tensor, sigma_data: float, clean: bool) -> None:
        super().__init__(network, sigma_data)
        self.register_buffer("given", given, persistent=False)
        self.clean = clean

    def network_input(self, x: Tensor, scaled: Tensor) -> Tensor:
        if not self.clean:
            return scaled
        known = torch.where(self.given, x, 0.0)
        return torch.cat([scaled, known, self.given.to(x.dtype).expand_as(x)], dim=-1)

    def start(self, y: Tensor, noisy: Tensor) -> Tensor:
        return torch.where(self.given, y, noisy)
