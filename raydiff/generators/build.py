"""From a configuration and its models to the generator and the refiner of a run."""

from __future__ import annotations

from raydiff.config import Config
from raydiff.dynamics.ensemble import GaussianEnsemble
from raydiff.dynamics.reward import RewardModel
from raydiff.envs.registry import environment_of
from raydiff.generators.api import Generator, Refiner
from raydiff.generators.dydiff import DyDiffGenerator
from raydiff.generators.pgd import TrajectoryGenerator
from raydiff.generators.refine import Refresher
from raydiff.generators.rollout import RolloutGenerator
from raydiff.generators.synther import TransitionGenerator
from raydiff.roles.models import Models


def build_generator(config: Config, models: Models, device: str) -> Generator:
    """The generator of ``generator.method``."""
    match config.generator.method:
        case "pgd":
            assert models.bundle is not None
            return TrajectoryGenerator(models.bundle, config.sampler, config.guidance, device)
        case "synther":
            assert models.bundle is not None
            return TransitionGenerator(models.bundle, config.sampler, device, config.guidance.delta)
        case "dydiff":
            return _dydiff(config, models, device)
        case "pets":
            assert models.ensemble is not None
            assert models.starts is not None
            ensemble = GaussianEnsemble.from_state(models.ensemble)
            return RolloutGenerator(ensemble, None, models.starts, environment_of(config.data), config, device)


def build_refiner(config: Config, models: Models, device: str) -> Refiner | None:
    """What brings stored trajectories up to date; None where the method has no way to."""
    match config.generator.method:
        case "pgd":
            assert models.bundle is not None
            return Refresher(models.bundle, config.sampler, config.guidance, config.refiner, device)
        case "dydiff":
            return _dydiff(config, models, device)
    return None


def _dydiff(config: Config, models: Models, device: str) -> DyDiffGenerator:
    assert models.bundle is not None
    assert models.ensemble is not None
    assert models.reward is not None
    assert models.starts is not None
    return DyDiffGenerator(
        models.bundle,
        GaussianEnsemble.from_state(models.ensemble),
        RewardModel.from_state(models.reward),
        models.starts,
        environment_of(config.data),
        config,
        device,
    )
