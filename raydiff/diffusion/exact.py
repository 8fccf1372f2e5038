"""Exact denoisers of known distributions (section 0.2): what a perfect network would output.

They let samplers and guidance be checked against closed forms without training anything. All work in any float
dtype, on ``x [B, ...]`` with ``sigma [B]`` or ``[1]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raydiff.diffusion.edm import per_trajectory


class GaussianDenoiser:
    """``E[y | x]`` for independent entries ``y ~ N(mean, std^2)``; ``mean`` and ``std`` broadcast against ``x``."""

    def __init__(self, mean: Tensor | float, std: Tensor | float) -> None:
        self.mean, self.std = mean, std

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        variance = self.std**2
        return self.mean + variance / (variance + per_trajectory(sigma, x).square()) * (x - self.mean)


class CovarianceDenoiser:
    """``E[y | x]`` for ``y ~ N(mean [K], covariance [K, K])``, ``x [B, K]``."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean = mean
        self.values, self.vectors = torch.linalg.eigh(covariance)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        gain = self.values / (self.values + per_trajectory(sigma, x).square())
        return self.mean + ((x - self.mean) @ self.vectors * gain) @ self.vectors.T


class MixtureDenoiser:
    """``E[y | x]`` for isotropic Gaussians ``means [M, K]``, ``std [M]`` mixed by ``weights [M]``, ``x [B, K]``."""

    def __init__(self, means: Tensor, std: Tensor, weights: Tensor) -> None:
        self.means, self.std, self.weights = means, std, weights

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        total = self.std.square() + per_trajectory(sigma, x).square()
        offset = x[:, None] - self.means
        logits = self.weights.log() - offset.square().sum(-1) / (2 * total) - total.log() * (x.shape[1] / 2)
        component = self.means + (self.std.square() / total)[..., None] * offset
        return (logits.softmax(1)[..., None] * component).sum(1)


class AtomDenoiser:
    """``E[y | x]`` for a finite data set: ``atoms [M, K]`` with ``probabilities [M]``, ``x [B, K]``."""

    def __init__(self, atoms: Tensor, probabilities: Tensor) -> None:
        self.atoms, self.probabilities = atoms, probabilities

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        distance = (x[:, None] - self.atoms).square().sum(-1)
        logits = self.probabilities.log() - distance / (2 * per_trajectory(sigma, x).square())
        return logits.softmax(1) @ self.atoms


class LinearSystemDenoiser:
    """``E[y | x]`` for rows ``(s_i, a_i)`` of the linear system ``s' = F s + G a + w``, ``w ~ N(0, Q)``, given the first
    state and all actions (section D.8).

    ``transition`` is ``F [S, S]``, ``control`` ``G [S, A]``, ``noise`` ``Q [S, S]``; of ``x [B, length, S+A]`` the first
    state and the actions are clean, as for a network that is trained with clean conditions, and come back unchanged.
    The later states are Gaussian given those, with ``mean(x)`` and ``covariance``. Without noise (``Q = 0``) the result
    is the system's own path at every level.
    """

    def __init__(self, transition: Tensor, control: Tensor, noise: Tensor, length: int) -> None:
        self.transition, self.control, self.states = transition, control, len(transition)
        steps = length - 1
        # Effect of the disturbance behind row j on row i: F^(i - 1 - j), for j < i.
        effect = transition.new_zeros(steps, self.states, steps, self.states)
        for row in range(steps):
            for cause in range(row + 1):
                effect[row, :, cause] = torch.linalg.matrix_power(transition, row - cause)
        flat = effect.reshape(steps * self.states, steps * self.states)
        self.covariance = flat @ torch.block_diag(*[noise] * steps) @ flat.T
        self.values, self.vectors = torch.linalg.eigh(self.covariance)

    def mean(self, x: Tensor) -> Tensor:
        """Expected states ``[B, length, S]`` for the first state and the actions of ``x [B, length, S+A]``."""
        state, action = x[:, 0, : self.states], x[..., self.states :]
        path = [state]
        for row in range(x.shape[1] - 1):
            state = state @ self.transition.T + action[:, row] @ self.control.T
            path.append(state)
        return torch.stack(path, dim=1)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        mean, result = self.mean(x), x.clone()
        offset = (x[:, 1:, : self.states] - mean[:, 1:]).flatten(1)
        gain = self.values / (self.values + per_trajectory(sigma, offset).square())
        result[:, 1:, : self.states] = mean[:, 1:] + (offset @ self.vectors * gain @ self.vectors.T).view(
            mean[:, 1:].shape
        )
        return result
