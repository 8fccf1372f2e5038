"""Self-weighted guidance with perfect networks: the law of the samples, and the gradient (section E.8).

The denoiser of a finite data set has a closed form (section 0.2), so nothing is trained here.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from raydiff.agents.action_guidance import weight_guide
from raydiff.diffusion.vp import VP, sample

CIRCLE = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
WEIGHTS = torch.tensor([0.1, 0.3, 0.5, 0.9])
EVEN, UNEVEN = torch.full((4,), 0.25), torch.tensor([0.4, 0.3, 0.2, 0.1])


class Atoms:
    """The perfect noise network of pairs ``(action, weight)``, ``atoms [M, A+1]`` with ``probabilities [M]``: the
    denoised value is their mean under the posterior given ``x`` (section 0.2)."""

    def __init__(self, action: Tensor, weight: Tensor, probabilities: Tensor, vp: VP) -> None:
        self.atoms, self.probabilities, self.vp = torch.cat([action, weight[:, None]], 1), probabilities, vp

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.vp.levels(t)
        size = self.atoms.square().sum(1, keepdim=True)
        exponent = alpha * (self.atoms @ x.T) - alpha.square() * (size / 2)
        posterior = (self.probabilities.log()[:, None] + exponent / sigma.square()).softmax(0)
        return (x - alpha[:, None] * (posterior.T @ self.atoms)) / sigma[:, None]

    def guided(self, scale: float, count: int, seed: int = 0) -> Tensor:
        """``count`` samples ``[count, A+1]`` by the stochastic sampler over the whole schedule."""
        generator = torch.Generator().manual_seed(seed)
        predict = weight_guide(self, self.vp, scale, self.atoms[:, -1].min().item() / 2)
        start = torch.randn(count, self.atoms.shape[1], dtype=self.atoms.dtype, generator=generator)
        return sample(predict, start, self.vp, "ddpm", self.vp.steps, generator=generator)

    def counts(self, scale: float, count: int, seed: int = 0) -> np.ndarray:
        """How many samples lie nearest to each atom; none of them is far from it."""
        distance = torch.cdist(self.guided(scale, count, seed), self.atoms)
        assert distance.amin(1).mean() < 0.05
        return distance.argmin(1).bincount(minlength=len(self.atoms)).numpy()


def likely(counts: np.ndarray, law: Tensor) -> bool:
    """Whether a chi-squared test does not reject the law at one in a thousand."""
    share = law.double().numpy()
    return bool(chisquare(counts, share / share.sum() * counts.sum()).pvalue > 1e-3)


@pytest.mark.parametrize("kind", ["cosine", "discrete"])
def test_samples_in_proportion_to_the_weights(kind: str) -> None:
    """Test E1."""
    assert likely(Atoms(CIRCLE, WEIGHTS, EVEN, VP(kind, 200)).counts(1.0, 20_000), WEIGHTS)


def test_samples_in_proportion_to_frequency_times_weight() -> None:
    """Test E1 with uneven data; and test E2: without guidance the data come back."""
    atoms = Atoms(CIRCLE, WEIGHTS, UNEVEN, VP("cosine", 200))
    guided, plain = atoms.counts(1.0, 20_000), atoms.counts(0.0, 20_000)
    assert likely(guided, UNEVEN * WEIGHTS)
    assert not likely(guided, UNEVEN)
    assert likely(plain, UNEVEN)


def test_two_valued_weights() -> None:
    """Test E3: in proportion with scale 1; with scale 5 nearly all on the better half."""
    hard = torch.tensor([0.3, 0.3, 0.7, 0.7])
    atoms = Atoms(CIRCLE, hard, EVEN, VP("cosine", 200))
    assert likely(atoms.counts(1.0, 20_000), hard)
    share = atoms.counts(5.0, 20_000) / 20_000
    np.testing.assert_allclose(share, [0.0045, 0.0045, 0.4955, 0.4955], atol=0.015)
    assert share[:2].max() < 0.01


def test_larger_scales_are_sharper_but_no_power_of_the_weights() -> None:
    """Scale 5 is not the law of ``w^5``: the mean of a power is not the power of the mean (section E.2)."""
    counts = Atoms(CIRCLE, WEIGHTS, EVEN, VP("cosine", 200)).counts(5.0, 20_000)
    np.testing.assert_allclose(counts / 20_000, [0.0, 0.0035, 0.0735, 0.923], atol=0.008)
    power = WEIGHTS**5 / (WEIGHTS**5).sum()
    assert abs(counts[2] / 20_000 - power[2].item()) > 0.012


def test_the_published_number_of_steps_is_coarse() -> None:
    """15 steps: close to the target, not on it."""
    counts = Atoms(CIRCLE, WEIGHTS, EVEN, VP("discrete", 15)).counts(1.0, 20_000)
    np.testing.assert_allclose(counts / 20_000, [0.051, 0.150, 0.278, 0.522], atol=0.012)
    assert not likely(counts, WEIGHTS)


@pytest.mark.parametrize("t", [1, 2, 3, 6, 10, 15])
@pytest.mark.parametrize("place", ["atoms", "between"])
def test_gradient_against_finite_differences(t: int, place: str) -> None:
    """Test E4, through the network and by all of ``z_t``, cross terms included: round noisy atoms, and half way between
    two. At the lowest level it is known near an atom which one it was, so that there the pull on the action ends."""
    vp, times = VP("discrete", 15), torch.full((6,), float(t), dtype=torch.float64)
    atoms = Atoms(CIRCLE.double(), WEIGHTS.double(), EVEN.double(), vp)
    alpha, sigma = (level[0].item() for level in vp.levels(times))
    noise = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(t))
    x = alpha * atoms.atoms[[0, 1, 2, 3, 0, 1]] + sigma * noise
    if place == "between":
        x = alpha * (atoms.atoms[[0, 1, 2, 3, 0, 1]] + atoms.atoms[[1, 2, 3, 0, 1, 2]]) / 2 + sigma**2 * noise

    def log_weight(z: Tensor) -> Tensor:
        return ((z - sigma * atoms(z, times))[:, -1] / alpha).log()

    step = 1e-5
    columns = [(log_weight(x + step * e) - log_weight(x - step * e)) / (2 * step) for e in torch.eye(3).double()]
    gradient = torch.stack(columns, 1)
    found = (atoms(x, times) - weight_guide(atoms, vp, 2.0, 1e-9)(x, times)) / (2 * sigma)
    torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-5)
    if place == "between" and t <= 3:
        least = 1.0
    else:
        least = 1e-4 if t == 1 else 1e-3
    assert gradient[:, :2].abs().max() > least  # the pull on the action, not only on the weight


def test_units_of_the_weight_do_not_matter() -> None:
    """Test E4: weights times a constant give the same law."""
    counts = Atoms(CIRCLE, 4 * WEIGHTS, EVEN, VP("cosine", 200)).counts(1.0, 20_000)
    assert likely(counts, WEIGHTS)


def tilted_gaussian(kappa: float, points: int) -> Atoms:
    """A standard normal as atoms on a grid, with weights ``exp(kappa a)`` of mean 1."""
    grid = torch.linspace(-4.5, 4.5, points)
    weight = (kappa * grid - kappa**2 / 2).exp()
    return Atoms(grid[:, None], weight, (-grid.square() / 2).softmax(0), VP("cosine", 200))


@pytest.mark.parametrize("kappa", [0.5, 1.0])
def test_exponential_tilt_of_a_gaussian(kappa: float) -> None:
    """Test E5: ``w = exp(kappa a)`` is not linear in the pair, and moves a standard normal by kappa all the same. Along
    the probability flow from a Sobol sequence, which needs no luck."""
    atoms = tilted_gaussian(kappa, 2001)
    uniform = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(256, dtype=torch.float64)
    predict = weight_guide(atoms, atoms.vp, 1.0, atoms.atoms[:, -1].min().item() / 2)
    action = sample(predict, torch.special.ndtri(uniform).float(), atoms.vp, "ddim", 200)[:, 0]
    assert action.mean().item() == pytest.approx(kappa, abs=0.015)
    assert action.std().item() == pytest.approx(1.0, abs=0.015)


def test_exponential_tilt_by_the_stochastic_sampler() -> None:
    """Test E5 once more, with the sampler of the other tests and as coarse a grid as leaves it quick."""
    action = tilted_gaussian(1.0, 181).guided(1.0, 4000)[:, 0]
    assert action.mean().item() == pytest.approx(1.0, abs=0.05)
    assert action.std().item() == pytest.approx(1.0, abs=0.05)


def test_below_the_floor_there_is_no_guidance() -> None:
    """No logarithm of a negative weight: a network that is off guides nowhere instead."""
    vp = VP("discrete", 15)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([x[:, :2], 0.5 * x[:, 2:] + 10], 1)

    x, t = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.full((5,), 7.0)
    assert torch.equal(weight_guide(predict, vp, 30.0, 0.1)(x, t), predict(x, t))


def test_large_weights_keep_their_gradient() -> None:
    """There is no upper clip: weights of 50 and more pull on their own entry by ``d log w / d z_w``, as small ones do."""
    vp, t = VP("discrete", 15), torch.full((3,), 15.0)
    weight = torch.tensor([[0.5], [50.0], [5000.0]])

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x)

    x = torch.cat([torch.zeros(3, 2), weight], 1)
    _, sigma = vp.levels(t)
    expected = torch.cat([torch.zeros(3, 2), -7.0 * sigma[:, None] / weight], 1)
    torch.testing.assert_close(weight_guide(predict, vp, 7.0, 0.1)(x, t), expected)


def test_works_in_inference_mode_and_leaves_no_graph() -> None:
    vp = VP("discrete", 15)
    atoms = Atoms(CIRCLE, WEIGHTS, EVEN, vp)
    with torch.inference_mode():
        x, t = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.full((4,), 3.0)
        inside = weight_guide(atoms, vp, 1.0, 0.05)(x, t)
    outside = weight_guide(atoms, vp, 1.0, 0.05)(x.clone(), t.clone())
    assert not inside.requires_grad
    assert not outside.requires_grad
    torch.testing.assert_close(inside.clone(), outside)
