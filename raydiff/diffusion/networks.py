"""From a configuration to the network inside the preconditioning."""

from __future__ import annotations

from torch import nn

from raydiff.config import NetworkConfig
from raydiff.diffusion.mlp import ResidualMLP
from raydiff.diffusion.unet import GROUPS, TemporalUNet
from raydiff.errors import UserError


def build_network(config: NetworkConfig, length: int, columns: int) -> nn.Module:
    """A freshly initialised network ``forward(x [B, length, columns], c_noise [B]) -> [B, length, columns]``.

    Raises ``UserError`` for a U-Net that cannot work on this length or width.
    """
    if config.kind == "mlp":
        return ResidualMLP(length, columns, config.width, config.depth)
    if config.width % GROUPS:
        raise UserError(
            f"denoiser.network.width is {config.width}, but the U-Net normalises its channels in {GROUPS} groups. "
            f"Set it to a multiple of {GROUPS}."
        )
    if length < 2 ** (config.depth - 1):
        levels = length.bit_length()
        raise UserError(
            f"denoiser.network.depth is {config.depth}, but windows of {length} rows cannot be halved "
            f"{config.depth - 1} times. Set denoiser.network.depth to {levels} or less, denoiser.length to "
            f"{2 ** (config.depth - 1)} or more, or denoiser.network.kind to mlp."
        )
    return TemporalUNet(columns, config.width, config.depth)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
