"""The network of intermediate energies: how good the actions are that a noisy action may have come from.

AEPO (section F) fits it to a closed form, QGPO (section G) by contrast. Guided sampling needs its gradient by the noisy
action alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raydiff.agents.noise_network import NetworkSpec, NoiseNetwork

TIME_SIZE = 32
"""Sines and cosines of the diffusion time."""

TIME_SCALE = 100.0
"""Their largest frequency, for times between 0 and 1."""


class EnergyNetwork(NoiseNetwork):
    """``E(a_t [B, A], t [B], observation [B, S]) -> [B]``: layers of swish units, which give a smooth gradient. Of
    several noisy actions in each state, as ``NoiseNetwork`` takes them, ``[B, K]``.

    ``t`` is the time of a continuous schedule, observations come normalised, and ``hidden`` are the widths of the
    hidden layers. The output layer starts at zero, so that an untrained energy guides nowhere.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden: tuple[int, ...] = (256, 256, 256),
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        spec = NetworkSpec(
            kind="mlp",
            inputs=action_size,
            condition=observation_size,
            outputs=1,
            hidden=hidden,
            activation="swish",
            time_size=TIME_SIZE,
            time_scale=TIME_SCALE,
        )
        super().__init__(spec, generator, device)
        with torch.no_grad():
            self.flat[-hidden[-1] - 1 :] = 0.0

    def forward(
        self,
        a_t: Tensor,
        t: Tensor,
        observation: Tensor,
        dropout: torch.Generator | None = None,
        head_alone: bool = False,
    ) -> Tensor:
        return super().forward(a_t, t, observation, dropout, head_alone).squeeze(-1)
