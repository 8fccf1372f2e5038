"""The law of a clean action given its noisy value, as a table over diffusion time (sections F.2 and F.7).

AEPO takes the law of ``a_0`` given ``a_t`` for a Gaussian with the mean ``mu = (a_t - sigma e) / alpha``, ``e`` being the
output of the noise network, and a variance ``h(t)`` that is the same in all directions and for all ``a_t``. The paper
has two estimates of it, equal for an exact network; means are over data, noise and the ``A`` entries of an action:

```
posterior_1   sigma^2 / alpha^2 (E noise^2 - E e^2)       equation 22, which has E noise^2 at its value, 1
posterior_2   Var(a_0) - E (mu - b)^2,   b = E a_0        equation 24
```
The first multiplies a difference of two numbers near 1 by up to 23 000. The noise that was really drawn, in place of
its expectation, takes much of the sampling error out of that difference. Both are clipped to ``[0, Var(a_0)]``.

``mu`` itself has the errors of the network times ``sigma / alpha``, up to 152. So there is a third kind, of our own:

```
calibrated    mean b + c (mu - b),   variance Var(a_0) - c Cov(a_0, mu),   c(t) = Cov(a_0, mu) / Var(mu) within [0, 1]
```
the best linear prediction of ``a_0`` from ``mu`` and its squared error, which for an exact network are those above
(``c = 1``). Where the network knows nothing, ``c`` is 0, and there is no guidance.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from raydiff.diffusion.vp import FIRST_TIME, VP, Predict

PosteriorKind = Literal["posterior_1", "posterior_2", "calibrated"]

POINTS = 64
"""Times of the table (section F.2)."""

TINY = 1e-12


class Posterior(NamedTuple):
    """``variances`` and ``scales``, ``h(t)`` and ``c(t)`` at evenly spaced times ``[POINTS]``, and ``centre`` ``b [A]``."""

    variances: Tensor
    scales: Tensor
    centre: Tensor

    def variance(self, t: Tensor) -> Tensor:
        """``h [B]`` at times ``t [B]``."""
        return interpolate(self.variances, t)

    def mean(self, predicted: Tensor, t: Tensor) -> Tensor:
        """The mean ``[B, A]`` for what the network predicts ``[B, A]``; a linear function of it."""
        return self.centre + interpolate(self.scales, t)[:, None] * (predicted - self.centre)


class PosteriorTable:
    """Sums over data and noise at ``POINTS`` evenly spaced times, from which the posterior follows.

    ``sums [POINTS, 7, A]`` and ``count []``, both float64, are all that has to be saved.
    """

    def __init__(self, vp: VP, action_size: int, device: torch.device | str = "cpu") -> None:
        self.times = torch.linspace(FIRST_TIME, 1.0, POINTS, device=device)
        self.alpha, self.sigma = vp.levels(self.times)
        self.sums = torch.zeros(POINTS, 7, action_size, dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self._known: tuple[tuple[str, int, int], Posterior] | None = None

    @torch.no_grad()
    def add(self, predict: Predict, action: Tensor, generator: torch.Generator) -> None:
        """Count the clean actions ``[B, A]`` once at each time, each with noise of its own. ``predict(a_t, t)`` is the
        noise network in the states of these actions."""
        for index, t in enumerate(self.times):
            alpha, sigma = self.alpha[index], self.sigma[index]
            noise = torch.empty_like(action).normal_(generator=generator)
            predicted = predict(alpha * action + sigma * noise, t.expand(len(action)))
            mean = action + sigma / alpha * (noise - predicted)
            seen = noise**2, predicted**2, mean, mean**2, mean * action, action, action**2
            self.sums[index] += torch.stack(seen).sum(1, dtype=torch.float64)
        self.count += len(action)

    def posterior(self, kind: PosteriorKind) -> Posterior:
        """In float32; before anything was counted, variances of 0. Worked out again when the sums have changed."""
        state = kind, self.sums._version, self.count._version
        if self._known is None or self._known[0] != state:
            self._known = state, self._posterior(kind)
        return self._known[1]

    def _posterior(self, kind: PosteriorKind) -> Posterior:
        moments = self.sums / self.count.clamp_min(1.0)
        noise, predicted, mean, mean_square, product, action, square = moments.unbind(1)
        prior = (square - action**2).mean(-1)
        covariance = (product - mean * action).mean(-1)
        scale = torch.ones_like(prior)
        if kind == "posterior_1":
            variance = (self.sigma / self.alpha).double() ** 2 * (noise - predicted).mean(-1)
        elif kind == "posterior_2":
            variance = prior - (mean_square - 2 * action * mean + action**2).mean(-1)
        else:
            scale = (covariance / (mean_square - mean**2).mean(-1).clamp_min(TINY)).clamp(0.0, 1.0)
            variance = prior - scale * covariance
        variance = variance.clamp_min(0.0).minimum(prior)
        return Posterior(variance.float(), scale.float(), action.mean(0).float())


def interpolate(table: Tensor, t: Tensor) -> Tensor:
    """The entry ``[B]`` at any times ``t [B]`` between those of ``table [POINTS]``, linearly."""
    position = (t - FIRST_TIME) * ((len(table) - 1) / (1.0 - FIRST_TIME))
    lower = position.floor().clamp(0, len(table) - 2)
    index = lower.long()
    return torch.lerp(table[index], table[index + 1], (position - lower).clamp(0.0, 1.0).to(table))
