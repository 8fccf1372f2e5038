"""Variance-preserving diffusion against closed forms: schedules, conversions, losses and solvers (sections 0.2, 0.5)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from raydiff.diffusion.exact import GaussianDenoiser, MixtureDenoiser
from raydiff.diffusion.identities import noise_from_denoised, vp_denoised_from_noise, vp_score_from_noise, vp_to_edm
from raydiff.diffusion.vp import VP, Predict, Solver, add_noise, noise_loss, sample

MEAN, STD = 0.3, 0.5
SCHEDULES = [VP("discrete", 5), VP("discrete", 1000), VP("cosine", 50), VP("continuous")]


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def times(vp: VP) -> Tensor:
    if vp.kind == "continuous":
        return torch.linspace(1e-3, 1, 97, dtype=torch.float64)
    return torch.arange(1, vp.steps + 1, dtype=torch.float64)


def gaussian_noise(vp: VP, mean: float = MEAN, std: float = STD) -> Predict:
    """The exact noise network of ``N(mean, std^2)`` (section 0.2)."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (level[:, None] for level in vp.levels(t))
        return sigma * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)

    return predict


# ------------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("steps", [1, 5, 15, 1000])
def test_discrete_levels_are_the_product_of_the_published_steps(steps: int) -> None:
    vp, t = VP("discrete", steps), np.arange(1, steps + 1)
    single = np.exp(-0.1 / steps - (10 - 0.1) * (2 * t - 1) / (2 * steps**2))
    alpha, sigma = vp.levels(torch.from_numpy(t).double())
    np.testing.assert_allclose(alpha**2, single.cumprod(), rtol=1e-12)
    np.testing.assert_allclose(sigma**2, 1 - single.cumprod(), rtol=1e-9)
    assert alpha[-1].item() ** 2 == pytest.approx(math.exp(-5.05), rel=1e-12)


@pytest.mark.parametrize("steps", [2, 10, 50, 1000])
def test_cosine_levels_have_their_steps_clipped(steps: int) -> None:
    kept = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    beta = np.minimum(1 - kept[1:] / kept[:-1], 0.999)
    assert (beta == 0.999).sum() == 1
    alpha, _ = VP("cosine", steps).levels(torch.arange(1, steps + 1).double())
    np.testing.assert_allclose(alpha**2, (1 - beta).cumprod(), rtol=1e-9)


def test_continuous_levels_are_the_integral_of_the_rate() -> None:
    t = np.linspace(0, 1, 20_001)
    rate = 0.1 + (20 - 0.1) * t
    integral = np.concatenate([[0], np.cumsum((rate[1:] + rate[:-1]) / 2 * np.diff(t))])
    alpha, _ = VP("continuous").levels(torch.from_numpy(t))
    np.testing.assert_allclose(alpha, np.exp(-integral / 2), rtol=1e-9)


@pytest.mark.parametrize("vp", SCHEDULES)
def test_levels_preserve_variance_and_grow(vp: VP) -> None:
    alpha, sigma = vp.levels(times(vp))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=0, atol=1e-14)
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()
    clean = vp.levels(torch.zeros(1))
    assert (clean[0].item(), clean[1].item()) == (1.0, 0.0)
    single = vp.levels(times(vp).float())
    assert single[0].dtype == single[1].dtype == torch.float32
    torch.testing.assert_close(single[1].double(), sigma, rtol=1e-5, atol=0)  # no digits lost where sigma is small
    if vp.kind != "continuous":
        torch.testing.assert_close(vp.levels(times(vp).long())[0], single[0], rtol=0, atol=0)


@pytest.mark.parametrize("vp", SCHEDULES)
def test_training_times_are_uniform(vp: VP) -> None:
    drawn = vp.draw(40_000, random())
    assert torch.equal(drawn, vp.draw(40_000, random()))
    low, high = (1e-3, 1.0) if vp.kind == "continuous" else (1.0, float(vp.steps))
    assert low <= drawn.min() < drawn.max() <= high
    assert drawn.double().mean().item() == pytest.approx((low + high) / 2, rel=0.015)
    if vp.kind != "continuous":
        assert torch.equal(drawn, drawn.round())
    if vp.steps == 5:
        counts = torch.bincount(drawn.long())[1:]
        assert ((counts - 8000).abs() < 4 * math.sqrt(8000 * 0.8)).all()


def test_sampler_times() -> None:
    assert VP("discrete", 5).grid(5).tolist() == [5, 4, 3, 2, 1, 0]
    for vp, steps in ((VP("discrete", 1000), 60), (VP("discrete", 7), 6), (VP("cosine", 50), 10), (VP("cosine", 9), 9)):
        grid = vp.grid(steps)
        assert len(grid) == steps + 1
        assert (grid.diff() < 0).all()
        assert torch.equal(grid, grid.round())
        assert (grid[0], grid[-2], grid[-1]) == (vp.steps, 1, 0)
    grid = VP("continuous").grid(20)
    assert grid[0].item() == pytest.approx(1.0, abs=1e-12)
    assert grid[-2].item() == pytest.approx(1e-3, rel=1e-9)
    alpha, sigma = VP("continuous").levels(grid[:-1])
    steps_in_ratio = (alpha / sigma).log().diff()
    torch.testing.assert_close(steps_in_ratio, steps_in_ratio[:1].expand(19), rtol=1e-6, atol=0)
    assert VP("continuous").grid(1).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="6 sampler steps"):
        VP("discrete", 5).grid(6)
    with pytest.raises(ValueError, match="at least one"):
        VP("discrete", 5).grid(0)
    with pytest.raises(ValueError, match="at least one"):
        VP("discrete", 0)


# ------------------------------------------------------------------------------------------------- identities, loss


@pytest.mark.parametrize("vp", SCHEDULES)
def test_noise_denoised_value_and_score_of_a_gaussian_agree(vp: VP) -> None:
    """The exact noise network, that of the EDM denoiser at the same point, and the gradient of the log density."""
    t = times(vp)
    alpha, sigma = (level[:, None] for level in vp.levels(t))
    x = torch.randn(len(t), 1, generator=random(), dtype=torch.float64).requires_grad_()
    noise = gaussian_noise(vp)(x, t)
    edm_x, edm_sigma = vp_to_edm(x, alpha, sigma)
    denoised = GaussianDenoiser(MEAN, STD)(edm_x, edm_sigma[:, 0])
    torch.testing.assert_close(vp_denoised_from_noise(x, noise, alpha, sigma), denoised, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(noise_from_denoised(edm_x, denoised, edm_sigma), noise, rtol=1e-7, atol=1e-9)
    density = torch.distributions.Normal(alpha * MEAN, (alpha**2 * STD**2 + sigma**2).sqrt()).log_prob(x)
    (score,) = torch.autograd.grad(density.sum(), x)
    torch.testing.assert_close(vp_score_from_noise(noise, sigma), score, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("vp", SCHEDULES)
def test_noise_loss_of_the_exact_network_is_the_posterior_variance(vp: VP) -> None:
    x0 = MEAN + STD * torch.randn(40_000, 2, generator=random(), dtype=torch.float64)
    loss = noise_loss(gaussian_noise(vp), x0, vp, random(1))
    alpha, sigma = vp.levels(add_noise(x0, vp, random(1)).t)
    expected = (alpha**2 * STD**2 / (alpha**2 * STD**2 + sigma**2))[:, None].expand_as(loss)
    assert loss.shape == x0.shape
    assert loss.mean().item() == pytest.approx(expected.mean().item(), rel=0.03)
    weight = torch.rand(40_000, generator=random(2), dtype=torch.float64)
    weighted = noise_loss(gaussian_noise(vp), x0, vp, random(1), weight)
    torch.testing.assert_close(weighted, loss * weight[:, None])


def test_added_noise_has_the_levels_of_its_time() -> None:
    vp, x0 = VP("discrete", 15), torch.full((30_000, 1), 2.0)
    noised = add_noise(x0, vp, random())
    torch.testing.assert_close(noised.x, noised.alpha * x0 + noised.sigma * noised.noise)
    late = noised.x[noised.t == 15]
    alpha, sigma = vp.levels(torch.tensor(15.0))
    assert late.mean().item() == pytest.approx(2 * alpha.item(), abs=5 / math.sqrt(len(late)))
    assert late.std().item() == pytest.approx(sigma.item(), rel=0.1)


# ------------------------------------------------------------------------------------------------- solvers


def exact_path(vp: VP, x: Tensor, end: float) -> Tensor:
    """Where the probability flow of ``N(MEAN, STD^2)`` takes ``x`` from the last level to time ``end``: the sample
    keeps its quantile."""
    (a0, s0), (a1, s1) = (vp.levels(torch.tensor([t], dtype=torch.float64)) for t in (1.0, end))
    quantile = (x - a0 * MEAN) / (a0**2 * STD**2 + s0**2).sqrt()
    return a1 * MEAN + (a1**2 * STD**2 + s1**2).sqrt() * quantile


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
def test_order_of_the_solvers(solver: Solver, order: int) -> None:
    """The error against the exact probability flow falls by ``2^order`` when the steps double."""
    vp = VP("continuous")
    start, predict = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None], gaussian_noise(vp)
    alpha, sigma = vp.levels(torch.tensor([1e-3], dtype=torch.float64))
    arrived = exact_path(vp, start, 1e-3)
    expected = (arrived - sigma * predict(arrived, torch.full((9,), 1e-3).double())) / alpha  # the last step denoises
    errors = [(sample(predict, start, vp, solver, n) - expected).abs().max().item() for n in (40, 80, 160)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(
    ("solver", "vp", "steps", "error"),
    [
        ("ddpm", VP("discrete", 400), 400, 0.015),
        ("ddpm", VP("cosine", 400), 400, 0.02),
        ("ddim", VP("cosine", 200), 200, 0.02),
        ("ddim", VP("continuous"), 300, 0.02),
        ("dpmpp_2m", VP("discrete", 1000), 15, 0.03),
        ("dpmpp_2m", VP("continuous"), 15, 0.03),
        ("dpmpp_2m_sde", VP("continuous"), 40, 0.015),
    ],
)
def test_samples_of_a_gaussian(solver: Solver, vp: VP, steps: int, error: float) -> None:
    """Mean and deviation; 20 000 samples leave an error of .005 (95 %). The initial noise is that of the last level,
    whose ``alpha`` is .08 in schedule ``discrete``: its mean is not quite zero."""
    alpha, sigma = vp.levels(vp.grid(1)[:1])
    start = MEAN * alpha + (alpha**2 * STD**2 + sigma**2).sqrt() * torch.randn(
        20_000, 1, generator=random(3), dtype=torch.float64
    )
    found = sample(gaussian_noise(vp), start, vp, solver, steps, generator=random(4))
    assert found.mean().item() == pytest.approx(MEAN, abs=0.012)
    assert found.std().item() == pytest.approx(STD, abs=error)


@pytest.mark.parametrize("vp", [VP("discrete", 5), VP("cosine", 4)])
def test_ddpm_is_the_chain_of_posteriors(vp: VP) -> None:
    """Against a chain written with ``beta_t``, step by step, with the same noise (Ho et al. 2020, equations 6 and 7)."""
    predict, start = gaussian_noise(vp), torch.randn(32, 1, generator=random(), dtype=torch.float64)
    kept = torch.cat([torch.ones(1).double(), vp.levels(times(vp))[0] ** 2])
    x, generator = start, random(5)
    for t in range(vp.steps, 0, -1):
        beta = 1 - kept[t] / kept[t - 1]
        noise = predict(x, torch.full((32,), t).double())
        x0 = ((x - (1 - kept[t]).sqrt() * noise) / kept[t].sqrt()).clamp(-1, 1)
        weight0 = kept[t - 1].sqrt() * beta / (1 - kept[t])
        weight = (1 - beta).sqrt() * (1 - kept[t - 1]) / (1 - kept[t])
        variance = beta * (1 - kept[t - 1]) / (1 - kept[t])
        x = weight0 * x0 + weight * x
        if t > 1:
            x = x + variance.sqrt() * 0.7 * torch.randn(32, 1, generator=generator, dtype=torch.float64)
    found = sample(
        predict, start, vp, "ddpm", vp.steps, temperature=0.7, clip=lambda y: y.clamp(-1, 1), generator=random(5)
    )
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)


def test_solvers_find_the_modes_of_a_mixture() -> None:
    """Modes at -0.8 and 0.6 with weights .3 and .7, all four solvers."""
    vp = VP("continuous")
    mixture = MixtureDenoiser(
        torch.tensor([[-0.8], [0.6]]).double(), torch.tensor([0.05, 0.1]).double(), torch.tensor([0.3, 0.7]).double()
    )

    def predict(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (level[:, None] for level in vp.levels(t))
        edm_x, edm_sigma = vp_to_edm(x, alpha, sigma)
        return noise_from_denoised(edm_x, mixture(edm_x, edm_sigma[:, 0]), edm_sigma)

    start = torch.randn(4000, 1, generator=random(6), dtype=torch.float64)
    for solver, steps in (("ddpm", 300), ("ddim", 200), ("dpmpp_2m", 40), ("dpmpp_2m_sde", 100)):
        found = sample(predict, start, vp, solver, steps, generator=random(7))
        low = found[found < 0]
        assert len(low) / 4000 == pytest.approx(0.3, abs=0.03), solver
        assert low.mean().item() == pytest.approx(-0.8, abs=0.01), solver
        assert low.std().item() == pytest.approx(0.05, rel=0.15), solver
        assert found[found > 0].std().item() == pytest.approx(0.1, rel=0.15), solver


@pytest.mark.parametrize("solver", ["dpmpp_2m", "dpmpp_2m_sde"])
def test_guide_tilts_a_gaussian(solver: Solver) -> None:
    """The score of ``exp(3 a)`` in front of ``N(.3, .25)``: the mean moves by ``3 * .25``, the deviation stays."""
    vp = VP("continuous")

    def guide(x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        alpha, sigma = (level[:, None] for level in vp.levels(t))
        return noise - sigma * 3.0 * alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)

    start = torch.randn(20_000, 1, generator=random(8), dtype=torch.float64)
    found = sample(gaussian_noise(vp), start, vp, solver, 60, guide=guide, generator=random(9))
    assert found.mean().item() == pytest.approx(MEAN + 0.75, abs=0.015)
    assert found.std().item() == pytest.approx(STD, abs=0.015)


def test_without_temperature_there_is_one_path() -> None:
    vp, start = VP("discrete", 15), torch.randn(8, 2, generator=random(), dtype=torch.float64)
    predict = gaussian_noise(vp)
    for solver in ("ddpm", "dpmpp_2m_sde"):
        paths = [sample(predict, start, vp, solver, 15, temperature=0, generator=random(s)) for s in (0, 1)]
        noisy = [sample(predict, start, vp, solver, 15, generator=random(s)) for s in (0, 0, 1)]
        assert torch.equal(*paths)
        assert torch.equal(noisy[0], noisy[1])
        assert not torch.equal(noisy[0], noisy[2])
    mean_path = sample(predict, torch.zeros(1, 1).double(), vp, "ddpm", 15, temperature=0)
    assert mean_path.item() == pytest.approx(MEAN, abs=0.02)


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde"])
def test_gradient_through_the_sampler(solver: Solver) -> None:
    """Against central differences, by the network's parameter and by the initial noise; recorded only when asked."""
    vp, start = VP("discrete", 8), torch.randn(6, 1, generator=random(), dtype=torch.float64)
    base = gaussian_noise(vp)
    shift = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)

    def result(parameter: Tensor, x: Tensor, differentiable: bool = True) -> Tensor:
        return sample(
            lambda y, t: base(y, t) * (1 + parameter) + parameter * y.sin(),
            x,
            vp,
            solver,
            8,
            clip=lambda y: y.clamp(-1, 1),
            generator=random(1),
            differentiable=differentiable,
        )

    leaf = start.clone().requires_grad_()
    by_shift, by_start = torch.autograd.grad(result(shift, leaf).sum(), [shift, leaf])
    step = 1e-6
    with torch.no_grad():
        numeric = (result(shift + step, start).sum() - result(shift - step, start).sum()) / (2 * step)
        moved = (result(shift, start + step) - result(shift, start - step)) / (2 * step)
    assert by_shift.item() == pytest.approx(numeric.item(), rel=1e-6)
    torch.testing.assert_close(by_start, moved, rtol=1e-6, atol=1e-8)
    assert not result(shift, start, differentiable=False).requires_grad
