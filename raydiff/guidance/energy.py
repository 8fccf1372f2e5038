"""Guidance by AEPO's analytic energy on the actions of a trajectory (sections F.2 and F.3).

The score of ``p(x) exp(beta Q)`` at a noise level needs ``E = log E[exp(beta Q(s, a)) | x]``. A first-order expansion of
``Q`` round the posterior mean ``mu`` gives, for a Gaussian posterior of variance ``V``,
``E = beta Q(mu) + beta^2 V |g|^2 / 2`` with ``g = dQ/dmu`` (equation 25).
"""

from __future__ import annotations

from torch import Tensor

from raydiff.agents.closed_form import closed_form_gradient
from raydiff.config import GuidanceConfig
from raydiff.data.normalizer import TrajectoryNormalizer
from raydiff.guidance.api import Critic
from raydiff.guidance.columns import ActionColumns
from raydiff.guidance.schedule import posterior_variance
from raydiff.guidance.value import ActionValueGradient


class EnergyGuidance:
    """A ``guide`` hook on normalised rows ``[B, L, C]`` that adds ``strength * dE/dx`` to the score.

    ``mu`` is the denoised action, ``V = sigma^2 / (1 + sigma^2)`` and ``dmu/dx = V / sigma^2``: those of a standardised
    Gaussian. Observations are held fixed, and every row has an energy of its own. With ``damped`` the variance term is
    divided by ``1 + beta V kappa`` (F.3), where ``kappa`` is the downward curvature of ``Q`` along its gradient: exact
    for isotropic concave quadratics, and never pointing down ``Q``, as the undamped term does beyond
    ``beta V kappa = 1``.
    """

    def __init__(self, critic: Critic, normalizer: TrajectoryNormalizer, config: GuidanceConfig) -> None:
        self.config, self.columns = config, ActionColumns(normalizer)
        self.value_gradient = ActionValueGradient(critic, self.columns)

    def __call__(self, x: Tensor, sigma: float, denoised: Tensor, step: int, corrector: bool) -> tuple[Tensor, Tensor]:
        variance = posterior_variance(sigma)
        gradient = self.gradient(denoised, variance)
        return x, self.columns.add(denoised, gradient.mul_(self.config.strength * variance))

    def gradient(self, denoised: Tensor, variance: float) -> Tensor:
        """``dE/dmu [B, L, A]`` at the denoised, normalised actions, for the posterior variance ``V``."""
        observation = self.columns.observation(denoised)

        def slope(u: Tensor) -> Tensor:
            return self.value_gradient(observation, u)

        u = self.columns.normalised(denoised)
        return closed_form_gradient(slope, u, variance, self.config.beta, damped=self.config.damped)
