"""Toy laws for self-weighted guidance in which everything is known: narrow Gaussians in the plane, each with an energy.

The data are points ``a`` with the weight ``w = exp(beta (E - 1))`` of the Gaussian they come from. Then the law that
guidance is to sample, ``mu(a) E[w | a]``, has the same Gaussians with shares in proportion to ``p_k w_k``, and the
noise in a pair ``(a, w)`` has a closed form (section 0.2). Shapes and energies are those of Lu et al. (2023), brought
to about unit deviation: eight Gaussians, four rings, and two spirals, the last two as many Gaussians close to each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from raydiff.diffusion.vp import VP, Predict

FAR = 4.0
"""Points further than this many deviations from every centre are outside; of the data's, one in 3,000 (two
dimensions)."""

EXTENT = 2.0
"""No coordinate of the data is larger, but for one in a thousand."""

DIRECTIONS = 64
ENERGY_BINS = 10


@dataclass(frozen=True)
class Mixture:
    """``K`` Gaussians of one ``deviation``, as frequent as each other: ``centres [K, 2]``, ``energies [K]`` from 0 to 1,
    and the mode ``[K]`` that each of them belongs to, counted from 0."""

    centres: Tensor
    energies: Tensor
    modes: Tensor
    deviation: float

    def weights(self, beta: float) -> Tensor:
        """``w_k [K]``, of which the largest is 1 where an energy is."""
        return (beta * (self.energies - 1)).exp()

    def shares(self, beta: float, scale: float = 1.0) -> Tensor:
        """How much of the law proportional to ``p_k w_k^scale`` lies in each mode ``[M]``."""
        share = (scale * beta * self.energies).softmax(0)
        return torch.zeros(int(self.modes.max()) + 1).index_add_(0, self.modes, share)

    def draw(self, n: int, generator: torch.Generator, beta: float = 0.0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """Points ``[n, 2]`` of that law and the Gaussian ``[n]`` that each is from; with ``beta`` 0, of the data."""
        share = (scale * beta * self.energies).softmax(0)
        which = torch.multinomial(share, n, replacement=True, generator=generator)
        return self.centres[which] + self.deviation * torch.randn(n, 2, generator=generator), which

    def predict(self, beta: float, vp: VP, unit: float = 1.0) -> Predict:
        """The exact noise prediction of pairs ``x [B, 3]`` of a point and ``unit`` times its weight: the mean of the
        clean pair under the posterior of the Gaussians, a point between its centre and ``x``."""
        weights, variance = unit * self.weights(beta), self.deviation**2

        def predict(x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = (level[:, None] for level in vp.levels(t))
            point, weight = x[:, :2], x[:, 2:]
            spread = alpha.square() * variance + sigma.square()
            near = (alpha * (point @ self.centres.T) - alpha.square() * self.centres.square().sum(1) / 2) / spread
            same = (alpha * weight * weights - alpha.square() * weights.square() / 2) / sigma.square()
            posterior = (near + same).softmax(1)
            clean = (alpha * variance * point + sigma.square() * (posterior @ self.centres)) / spread
            pair = torch.cat([clean, posterior @ weights[:, None]], 1)
            return (x - alpha * pair) / sigma

        return predict

    def nearest(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The Gaussian ``[n]`` nearest to each of the points ``[n, 2]``, and its distance in deviations."""
        distance, which = torch.cdist(points, self.centres, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        return which, distance / self.deviation


def eight_gaussians() -> Mixture:
    angle = math.pi / 2 + torch.arange(8) * math.pi / 4
    centres = 1.36 * torch.stack([angle.cos(), angle.sin()], 1)
    return Mixture(centres, torch.arange(8) / 7, torch.arange(8), 0.17)


def rings() -> Mixture:
    """As many Gaussians on each ring, so that each has a quarter of the data."""
    count, radii, energies = 160, (1.82, 1.36, 0.91, 0.455), (2 / 3, 1 / 3, 1.0, 0.0)
    angle = torch.arange(count) * (2 * math.pi / count)
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    which = torch.arange(4).repeat_interleave(count)
    return Mixture(torch.cat([r * circle for r in radii]), torch.tensor(energies)[which], which, 0.048)


def two_spirals() -> Mixture:
    """The energy falls from the centre outwards; modes are equal parts of its range, of both arms together."""
    count, turns, size = 160, 3 * math.pi, 5.25
    angle = turns * ((torch.arange(count) + 0.5) / count).sqrt()
    arm = torch.stack([-angle.cos(), angle.sin()], 1) * (angle / size)[:, None]
    energy = 1 - angle / 10
    mode = ((angle / turns) * ENERGY_BINS).long()
    return Mixture(torch.cat([arm, -arm]), energy.repeat(2), mode.repeat(2), 0.064)


TOYS = {"eight-gaussians": eight_gaussians, "rings": rings, "two-spirals": two_spirals}


def total_variation(law: Mixture, points: Tensor, shares: Tensor) -> float:
    """Half the sum of the differences between ``shares [M]`` and how the points ``[n, 2]`` are shared by the modes."""
    modes = law.modes[law.nearest(points)[0]]
    found = modes.bincount(minlength=len(shares)) / len(points)
    return float((found - shares).abs().sum() / 2)


def sliced_distance(points: Tensor, reference: Tensor) -> float:
    """Wasserstein-1 distance of two sets of points ``[n, 2]`` and ``[m, 2]``, projected on a line; mean over lines in
    ``DIRECTIONS`` directions. ``m`` is a multiple of ``n``."""
    angle = torch.arange(DIRECTIONS) * (math.pi / DIRECTIONS)
    lines = torch.stack([angle.cos(), angle.sin()])
    ours, theirs = ((some @ lines).sort(0).values for some in (points, reference))
    return float((ours.repeat_interleave(len(reference) // len(points), 0) - theirs).abs().mean())
