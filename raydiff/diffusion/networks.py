"""From a configuration to the network inside the preconditioning, and how large it is."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from raydiff.config import NetworkConfig
from raydiff.diffusion.mlp import ResidualMLP
from raydiff.diffusion.temporal_unet import TemporalUNet
from raydiff.diffusion.transformer import Transformer
from raydiff.diffusion.unet import GROUPS, UNet
from raydiff.errors import UserError


def build_network(config: NetworkConfig, length: int, columns: int, outputs: int | None = None) -> nn.Module:
    """A freshly initialised network ``forward(x [B, length, columns], c_noise [B] or [1]) -> [B, length, outputs]``.

    ``outputs`` is ``columns`` where not given. Raises ``UserError`` for a network that cannot work on this length, or
    whose settings do not fit each other.
    """
    outputs = columns if outputs is None else outputs
    match config.kind:
        case "mlp":
            return ResidualMLP(length, columns, config.width, config.depth, outputs)
        case "unet":
            _check_groups(config.width, config)
            _check_halving(config, length)
            return UNet(columns, config.width, config.depth, outputs)
        case "temporal_unet":
            widths = _widths(config)
            _check_multiple(config, length)
            return TemporalUNet(columns, outputs, widths)
        case "transformer":
            if config.width % config.heads:
                raise UserError(
                    f"denoiser.network.width is {config.width}, which {config.heads} attention heads cannot share. Set it "
                    f"to a multiple of denoiser.network.heads."
                )
            return Transformer(length, columns, outputs, config.width, config.depth, config.heads)


def _check_groups(width: int, config: NetworkConfig) -> None:
    if width % GROUPS:
        raise UserError(
            f"denoiser.network.width is {config.width}, but the U-Net normalises its channels in {GROUPS} groups. "
            f"Set it to a multiple of {GROUPS}."
        )


def _check_halving(config: NetworkConfig, length: int) -> None:
    if length < 2 ** (config.depth - 1):
        levels = length.bit_length()
        raise UserError(
            f"denoiser.network.depth is {config.depth}, but windows of {length} rows cannot be halved "
            f"{config.depth - 1} times. Set denoiser.network.depth to {levels} or less, denoiser.length to "
            f"{2 ** (config.depth - 1)} or more, or denoiser.network.kind to mlp."
        )


def _widths(config: NetworkConfig) -> tuple[int, ...]:
    """Widths of the levels of a temporal U-Net."""
    if config.depth > len(config.multipliers):
        raise UserError(
            f"denoiser.network.depth asks for {config.depth} levels, but denoiser.network.multipliers gives the widths "
            f"of {len(config.multipliers)}. Set the depth to {len(config.multipliers)} or less, or add multipliers."
        )
    _check_groups(config.width, config)
    return tuple(config.width * multiplier for multiplier in config.multipliers[: config.depth])


def _check_multiple(config: NetworkConfig, length: int) -> None:
    multiple = 2 ** (config.depth - 1)
    if length % multiple:
        below, above = length - length % multiple, length + multiple - length % multiple
        lengths = f"{below} or {above}" if below else f"{above}"
        raise UserError(
            f"denoiser.length is {length}, but a temporal U-Net of {config.depth} levels needs a multiple of {multiple} "
            f"rows, to halve and double them. Set denoiser.length to {lengths}, or denoiser.network.depth to a smaller "
            f"number, or denoiser.network.kind to unet, which takes any length."
        )


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def count_flops(module: nn.Module, length: int, columns: int) -> int:
    """Floating-point operations of matrix products, convolutions and attention per trajectory and network call.

    Two per multiplication with addition. ``columns`` are the network's inputs. What a batch at one noise level shares,
    the embedding of that level, is left out. Nothing is computed: the shapes alone are followed.
    """
    shapes = {name: tensor.to("meta") for name, tensor in chain(module.named_parameters(), module.named_buffers())}

    def total(batch: int) -> int:
        x, c_noise = torch.empty(batch, length, columns, device="meta"), torch.empty(1, device="meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            functional_call(module, shapes, (x, c_noise))
        return counter.get_total_flops()

    return total(2) - total(1)
