"""The policy of AEPO without an energy network: guided by the closed form at every step of the sampler (section F.4)."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from raydiff.agents.action_guidance import closed_form_guide
from raydiff.agents.closed_form import CriticMean
from raydiff.agents.diffusion_policy import DiffusionPolicy, DiffusionPolicySpec
from raydiff.agents.posterior import POINTS, Posterior
from raydiff.diffusion.vp import Predict


class PosteriorSpec(BaseModel):
    """``Posterior`` as numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variances: tuple[float, ...]
    scales: tuple[float, ...]
    centre: tuple[float, ...]


class ClosedFormPolicySpec(DiffusionPolicySpec):
    """That of a diffusion policy, which brings its critics along, with the inverse temperature ``beta``, the
    ``posterior`` over time, and ``damped`` as in ``closed_form_gradient``."""

    beta: float
    damped: bool = False
    posterior: PosteriorSpec


class ClosedFormPolicy(DiffusionPolicy):
    """``DiffusionPolicy`` with the closed form as its guidance."""

    def __init__(self, spec: ClosedFormPolicySpec, weights: Tensor) -> None:
        """Raises ``ValueError`` for a spec without critics or with a posterior of another length."""
        lengths = [len(part) for part in spec.posterior.model_dump().values()]
        if not spec.critic or lengths != [POINTS, POINTS, spec.action_size]:
            raise ValueError(f"guidance by the closed form needs critics and {POINTS} times, and {spec} has not both")
        super().__init__(spec, weights)
        self._closed_form = spec
        parts = {name: torch.tensor(part, device=weights.device) for name, part in spec.posterior.model_dump().items()}
        self._posterior = Posterior(**parts)

    def _predict(self, state: Tensor) -> Predict:
        spec = self._closed_form
        assert self.critic is not None

        def predict(x: Tensor, t: Tensor) -> Tensor:
            return self.noise_network(x, t, state)

        return closed_form_guide(
            predict,
            CriticMean(self.critic, state).slope,
            self._posterior.variance,
            self.vp,
            spec.beta,
            spec.guidance_scale,
            mean=self._posterior.mean,
            damped=spec.damped,
            rescale=spec.rescale,
        )
