"""What the diffusion model of each method is: the windows it learns from, and a fresh denoiser for them."""

from __future__ import annotations

from raydiff.config import Config, DenoiserConfig
from raydiff.data.conditional_windows import conditional_windows
from raydiff.data.dataset import Dataset
from raydiff.data.normalizer import TrajectoryNormalizer
from raydiff.data.transition_rows import transition_windows
from raydiff.data.windows import Layout, Windows, make_windows
from raydiff.diffusion.conditional import ConditionalDenoiser, given_entries
from raydiff.diffusion.edm import Denoiser
from raydiff.diffusion.networks import build_network
from raydiff.errors import UserError

LAYOUTS: dict[str, Layout] = {"pgd": "trajectory", "synther": "transition", "dydiff": "conditional"}
CONVOLUTIONS = ("unet", "temporal_unet")


def layout_of(config: Config) -> Layout:
    """Layout of the rows that the denoiser of ``generator.method`` models; ``KeyError`` for a method without one."""
    return LAYOUTS[config.generator.method]


def training_windows(config: Config, dataset: Dataset) -> Windows:
    """What the denoiser of ``generator.method`` is trained on. ``UserError`` where the data are too few, or where the
    network cannot work on it."""
    section, layout = config.denoiser, layout_of(config)
    if layout == "transition":
        if section.network.kind in CONVOLUTIONS:
            raise UserError(
                f"generator.method=synther models single transitions, but denoiser.network.kind="
                f"{section.network.kind} convolves along trajectories. Set denoiser.network.kind=mlp."
            )
        return transition_windows(dataset, section.holdout, section.seed)
    make = conditional_windows if layout == "conditional" else make_windows
    return make(dataset, section.length, section.stride, section.holdout, section.seed)


def fit_normalizer(windows: Windows, config: DenoiserConfig) -> TrajectoryNormalizer:
    """Statistics of the windows' rows: extremes for the conditional model, else mean and standard deviation."""
    size, action_size = windows.observation_size, windows.action_size
    if windows.layout == "conditional":
        return TrajectoryNormalizer.fit_extremes(windows.rows, size, action_size)
    return TrajectoryNormalizer.fit(windows.rows, size, action_size, config.action_space)


def columns_of(layout: Layout, observation_size: int, action_size: int) -> int:
    """Columns of a row."""
    extra = {"trajectory": 2, "transition": 2 + observation_size, "conditional": 0}
    return observation_size + action_size + extra[layout]


def inputs_of(config: DenoiserConfig, layout: Layout, columns: int) -> int:
    """Columns that the network is given: a conditional one also gets the clean conditions and their mask."""
    return 3 * columns if layout == "conditional" and config.clean_conditions else columns


def build_denoiser(
    config: DenoiserConfig, layout: Layout, length: int, observation_size: int, action_size: int
) -> Denoiser:
    """A freshly initialised denoiser of windows ``[B, length, C]``; ``UserError`` as ``build_network``.

    ``sigma_data`` is 1 for standardised rows and 0.5 for rows within +-1.
    """
    columns = columns_of(layout, observation_size, action_size)
    if layout != "conditional":
        return Denoiser(build_network(config.network, length, columns))
    network = build_network(config.network, length, inputs_of(config, layout, columns), columns)
    given = given_entries(length, observation_size, action_size)
    return ConditionalDenoiser(network, given, 0.5, config.clean_conditions)
