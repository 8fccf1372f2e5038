"""AEPO's own networks and estimates on a toy whose law is known, and how far off they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from raydiff.agents.action_guidance import closed_form_guide, energy_guide
from raydiff.agents.aepo import AEPO
from raydiff.agents.closed_form import closed_form_energy
from raydiff.agents.posterior import Posterior, PosteriorTable
from raydiff.agents.rates import cosine
from raydiff.agents.registry import build_agent
from raydiff.config_learner import AEPOConfig, LearnerConfig
from raydiff.diffusion.vp import VP, Predict, add_noise, sample
from raydiff.section import Section
from raydiff.studies.aepo_toy import Toy

VP_SCHEDULE = VP("continuous")
BATCH, RATE = 256, 1e-3
COUNTED = 4096  # actions counted at once
TOLD_EVERY = 100


class Options(Section):
    beta: float = Field(2.0, ge=0, description="Inverse temperature of the policy")
    updates: tuple[int, ...] = Field((400, 4000), min_length=1, description="Updates of each trained noise network")
    energy_updates: int = Field(1000, ge=1, description="Updates of an energy network")
    width: int = Field(64, ge=1, description="Width of the noise network, and of two layers of the energy network")
    blocks: int = Field(2, ge=1, description="Residual blocks of the noise network")
    samples: int = Field(16_384, ge=1, description="Actions behind each entry of the table of variances")
    points: int = Field(201, ge=3, description="Noisy actions at which energies are compared")
    steps: int = Field(50, ge=1, description="Steps of DPM-Solver++")
    actions: int = Field(1024, ge=2, description="Actions of each policy")


def exact_network(toy: Toy) -> Predict:
    return lambda x, t: toy.behaviour.noise(x, *VP_SCHEDULE.levels(t))


def trained_network(toy: Toy, options: Options, updates: int, seed: int, told: Callable[[int, int], None]) -> Predict:
    """The learner's behaviour model, trained on fresh actions at a rate that falls to zero."""
    learner, generator, state = _learner(options, seed), torch.Generator().manual_seed(seed), torch.zeros(BATCH, 1)
    for update in range(updates):
        learner.behaviour_optimizer.learning_rate = cosine(RATE, update / updates)
        action = toy.behaviour.draw(BATCH, generator)
        learner.behaviour_optimizer.minimize(learner.behaviour_loss(state, action))
        if update % TOLD_EVERY == 0:
            told(update, updates)
    return lambda x, t: learner.behaviour(x, t, x.new_zeros(len(x), 1))


def count(predict: Predict, toy: Toy, samples: int, seed: int) -> PosteriorTable:
    """The table behind the estimates, from ``samples`` fresh actions."""
    table, generator = PosteriorTable(VP_SCHEDULE, 1), torch.Generator().manual_seed(seed)
    for start in range(0, samples, COUNTED):
        table.add(predict, toy.behaviour.draw(min(COUNTED, samples - start), generator), generator)
    return table


def printed(table: PosteriorTable) -> Tensor:
    """Equation 22 as printed ``[64]``: the drawn noise at its expectation, and no clip."""
    return (table.sigma / table.alpha) ** 2 * (1 - table.sums[:, 1, 0] / table.count)


def energy(predict: Predict, posterior: Posterior, toy: Toy, x: Tensor, t: Tensor) -> Tensor:
    """The closed form ``[B]`` of equation 25 at noisy actions ``[B, 1]``."""
    alpha, sigma = (level[:, None] for level in VP_SCHEDULE.levels(t))
    centre = posterior.mean((x - sigma * predict(x, t)) / alpha, t)
    return closed_form_energy(toy.value, toy.slope, centre, posterior.variance(t), toy.beta)


def closed_form(predict: Predict, posterior: Posterior, toy: Toy) -> Predict:
    """Noise guided by the closed form itself."""
    variance = posterior.variance
    return closed_form_guide(predict, toy.slope, variance, VP_SCHEDULE, toy.beta, 1.0, mean=posterior.mean)


def energy_network(predict: Predict, posterior: Posterior, toy: Toy, options: Options, seed: int) -> Predict:
    """Noise guided by the learner's energy network, fitted to the closed form (equation 26). What the learner takes off
    as its value is here the value's mean over the behaviour."""
    learner, generator, state = _learner(options, seed), torch.Generator().manual_seed(seed), torch.zeros(BATCH, 1)
    law, updates = toy.behaviour, options.energy_updates
    baseline = -toy.beta * ((law.mean - toy.target) ** 2 + law.variance) / 2
    for update in range(updates):
        learner.energy_optimizer.learning_rate = cosine(RATE, update / updates)
        noised = add_noise(law.draw(BATCH, generator), VP_SCHEDULE, generator)
        with torch.no_grad():
            target = energy(predict, posterior, toy, noised.x, noised.t) - baseline
        learner.energy_optimizer.minimize((learner.energy(noised.x, noised.t, state) - target).square().mean())
    return energy_guide(predict, lambda x, t: learner.energy(x, t, x.new_zeros(len(x), 1)), VP_SCHEDULE, 1.0)


class Grid:
    """Noisy actions at each of ``times [T]``, and their ``share [T, points]`` under the exact policy."""

    def __init__(self, toy: Toy, times: Tensor, points: int) -> None:
        self.toy, self.shape = toy, (len(times), points)
        self.x = torch.linspace(-5, 5, points).repeat(len(times))[:, None]
        self.t = times.repeat_interleave(points)
        self.alpha, self.sigma = VP_SCHEDULE.levels(self.t)
        self.share = toy.policy.log_density(self.x, self.alpha, self.sigma).view(self.shape).softmax(1)

    def energy_error(self, energy: Tensor) -> Tensor:
        """Deviation ``[T]`` of the difference between ``energy [T points]`` and the exact one: constants do not count."""
        wrong = (energy - self.toy.energy(self.x, self.alpha, self.sigma)).view(self.shape)
        return (self.share * (wrong - (self.share * wrong).sum(1, keepdim=True)).square()).sum(1).sqrt()

    def guidance_error(self, guidance: Tensor) -> Tensor:
        """Root mean square ``[T]`` of the difference between ``guidance [T points, 1]`` and ``sigma dE/dx``."""
        wrong = (guidance - self.toy.guidance(self.x, self.alpha, self.sigma)).view(self.shape)
        return (self.share * wrong.square()).sum(1).sqrt()

    def errors(self, predict: Predict, posterior: Posterior, guided: Predict) -> tuple[Tensor, Tensor]:
        """Of the closed form's energy and of what ``guided`` takes off ``predict``, ``[T]`` each."""
        with torch.no_grad():
            found = energy(predict, posterior, self.toy, self.x, self.t)
            return self.energy_error(found), self.guidance_error(predict(self.x, self.t) - guided(self.x, self.t))


def acted(guided: Predict, toy: Toy, options: Options) -> Tensor:
    """What equally likely quantiles of noise become: sorted actions ``[options.actions]`` in float64."""
    share = (torch.arange(options.actions, dtype=torch.float64) + 0.5) / options.actions
    noise = torch.special.ndtri(share).float()[:, None]
    action = sample(guided, noise, VP_SCHEDULE, "dpmpp_2m", options.steps)[:, 0].double()
    return action.clamp(-toy.limit, toy.limit).sort().values


def distance(action: Tensor, toy: Toy) -> float:
    """Wasserstein-1 between sorted actions and the exact policy."""
    return float((action - toy.policy.quantiles(len(action))).abs().mean())


def _learner(options: Options, seed: int) -> AEPO:
    """The learner whose networks are trained here; the toy stands in for its critics."""
    settings = AEPOConfig(width=options.width, blocks=options.blocks, energy_hidden=(options.width, options.width))
    config = LearnerConfig(algorithm="aepo", hidden=(1,), aepo=settings)
    learner = build_agent(config, 1, 1, torch.zeros(1), torch.ones(1), seed)
    assert isinstance(learner, AEPO)
    return learner
