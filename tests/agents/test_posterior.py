"""The variance of a clean action given its noisy value: its estimates against laws where it is known (F1, F7)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from raydiff.agents.posterior import POINTS, PosteriorTable, interpolate
from raydiff.diffusion.vp import VP

CONTINUOUS = VP(kind="continuous")
KINDS = ("posterior_1", "posterior_2", "calibrated")
Predict = Callable[[Tensor, Tensor], Tensor]


def gaussian_noise(mean: Tensor, variance: float) -> Predict:
    """The exact noise network of N(mean [A], variance I) (section 0.2)."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (level.reshape(-1, 1) for level in CONTINUOUS.levels(t))
        return sigma * (x - alpha * mean) / (alpha**2 * variance + sigma**2)

    return predict


def bimodal_noise(x: Tensor, t: Tensor) -> Tensor:
    """The exact one of two Gaussians of standard deviation .2 at -.6 and .6."""
    alpha, sigma = (level.reshape(-1, 1) for level in CONTINUOUS.levels(t))
    total, modes = alpha**2 * 0.04 + sigma**2, torch.tensor([[0.6, -0.6]])
    share = (-((x - alpha * modes) ** 2) / (2 * total)).softmax(1)
    mean = (share * (modes + 0.04 * alpha / total * (x - alpha * modes))).sum(1, keepdim=True)
    return (x - alpha * mean) / sigma


def counted(predict: Predict, draw: Callable[[torch.Generator], Tensor], calls: int, seed: int = 0) -> PosteriorTable:
    generator = torch.Generator().manual_seed(seed)
    action = draw(generator)
    table = PosteriorTable(CONTINUOUS, action.shape[1])
    table.add(predict, action, generator)
    for _ in range(calls - 1):
        table.add(predict, draw(generator), generator)
    return table


@pytest.mark.parametrize("kind", KINDS)
def test_f1_a_gaussian_posterior_has_the_known_variance(kind: str) -> None:
    mean, variance, samples = torch.tensor([0.3, -0.2]), 0.25, 16 * 4096
    table = counted(
        gaussian_noise(mean, variance), lambda g: mean + 0.5 * torch.randn(4096, 2, generator=g), samples // 4096
    )
    alpha, sigma = CONTINUOUS.levels(table.times)
    truth = variance * sigma**2 / (alpha**2 * variance + sigma**2)
    prior = (table.sums[0, 6] / samples - (table.sums[0, 5] / samples) ** 2).mean().float()
    estimate = table.posterior(kind).variances  # type: ignore[arg-type]
    error = 5 * (truth * 3 + variance) / (2 * samples) ** 0.5
    if kind == "posterior_1":  # a product of two noises of which one is sigma / alpha times the posterior's width
        error = error + 5 * 2 * sigma / alpha * (truth / (2 * samples)) ** 0.5
    assert ((estimate - truth.minimum(prior)).abs() <= error).all()
    assert error[: POINTS // 4].max() < 0.03, "at small times the check must mean something"
    assert estimate[0] < 1e-3 < 0.2 < truth[-1]


@pytest.mark.parametrize("kind", ["posterior_2", "calibrated"])
def test_f1_a_bimodal_posterior_has_the_variance_of_a_large_simulation(kind: str) -> None:
    def draw(generator: torch.Generator) -> Tensor:
        sign = 2.0 * torch.randint(0, 2, (8192, 1), generator=generator) - 1
        return 0.6 * sign + 0.2 * torch.randn(8192, 1, generator=generator)

    estimate = interpolate(counted(bimodal_noise, draw, 8).posterior(kind).variances, torch.tensor([0.5, 0.8]))  # type: ignore[arg-type]
    torch.testing.assert_close(estimate, torch.tensor([0.387, 0.3996]), atol=0.01, rtol=0)


def test_posterior_1_with_the_drawn_noise_has_the_mean_of_equation_22_and_less_spread() -> None:
    mean, variance = torch.tensor([0.3]), 0.25
    plain, drawn = [], []
    for seed in range(40):
        table = counted(
            gaussian_noise(mean, variance), lambda g: mean + 0.5 * torch.randn(512, 1, generator=g), 1, seed
        )
        noise, predicted = table.sums[32, 0] / table.count, table.sums[32, 1] / table.count
        ratio = (table.sigma[32] / table.alpha[32]) ** 2
        plain.append(ratio * (1 - predicted))
        drawn.append(ratio * (noise - predicted))
    alpha, sigma = CONTINUOUS.levels(table.times[32:33])
    truth = variance * sigma**2 / (alpha**2 * variance + sigma**2)
    plain_all, drawn_all = torch.cat(plain), torch.cat(drawn)
    assert (drawn_all.mean() - truth).abs() < 4 * drawn_all.std() / 40**0.5
    assert (plain_all.mean() - truth).abs() < 4 * plain_all.std() / 40**0.5
    assert drawn_all.std() < 0.5 * plain_all.std()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [0.9, 1.0, 1.1])
def test_f7_no_estimate_leaves_zero_to_the_variance_of_the_data(kind: str, bias: float) -> None:
    """With few samples and networks that are too small or too large by a tenth, where equation 22 is off by
    thousands."""
    exact = gaussian_noise(torch.zeros(1), 0.25)
    for seed in range(10):
        table = counted(lambda x, t: bias * exact(x, t), lambda g: 0.5 * torch.randn(64, 1, generator=g), 1, seed)
        prior = (table.sums[0, 6] / 64 - (table.sums[0, 5] / 64) ** 2).mean().float()
        estimate = table.posterior(kind).variances  # type: ignore[arg-type]
        assert (estimate >= 0).all()
        assert (estimate <= prior).all()


def test_sums_of_two_batches_are_those_of_one() -> None:
    predict, action = (
        gaussian_noise(torch.zeros(2), 0.25),
        torch.randn(64, 2, generator=torch.Generator().manual_seed(1)),
    )
    whole = PosteriorTable(CONTINUOUS, 2)
    parts = PosteriorTable(CONTINUOUS, 2)
    whole.add(lambda x, t: 0 * predict(x, t), action, torch.Generator().manual_seed(0))
    for part in action.split(32):
        parts.add(lambda x, t: 0 * predict(x, t), part, torch.Generator().manual_seed(0))
    assert parts.count == whole.count == 64
    torch.testing.assert_close(parts.sums[:, 5:], whole.sums[:, 5:])


def test_times_between_those_of_the_table_are_interpolated() -> None:
    table = torch.linspace(0, 1, POINTS) ** 2
    at = torch.linspace(1e-3, 1.0, POINTS)
    torch.testing.assert_close(interpolate(table, at), table, atol=1e-5, rtol=0)
    middle = (at[1:] + at[:-1]) / 2
    torch.testing.assert_close(interpolate(table, middle), (table[1:] + table[:-1]) / 2, atol=1e-5, rtol=0)


def test_an_exact_network_needs_no_calibration() -> None:
    draw = 2 * 4096
    table = counted(
        gaussian_noise(torch.tensor([0.3]), 0.25), lambda g: 0.3 + 0.5 * torch.randn(draw, 1, generator=g), 4
    )
    posterior = table.posterior("calibrated")
    assert (posterior.scales[: POINTS // 3] - 1).abs().max() < 0.05
    predicted, t = torch.tensor([[-0.5], [0.9]]), torch.tensor([0.01, 0.2])
    torch.testing.assert_close(posterior.mean(predicted, t), predicted, atol=0.02, rtol=0)
    for kind in ("posterior_1", "posterior_2"):
        paper = table.posterior(kind)  # type: ignore[arg-type]
        assert torch.equal(paper.scales, torch.ones(POINTS))
        torch.testing.assert_close(paper.mean(predicted, t), predicted)


def test_calibration_takes_out_what_a_networks_errors_make_of_late_times() -> None:
    """A network with an error of one hundredth that varies with its input: at late times its mean is nonsense, and the
    calibrated one that of the data."""
    exact = gaussian_noise(torch.tensor([0.3]), 0.25)

    def wrong(x: Tensor, t: Tensor) -> Tensor:
        return exact(x, t) + 0.01 * (5 * x).sin()

    table = counted(wrong, lambda g: 0.3 + 0.5 * torch.randn(4096, 1, generator=g), 8)
    x, t = torch.linspace(-2, 2, 64)[:, None], torch.full((64,), 0.99)
    alpha, sigma = (level[:, None] for level in CONTINUOUS.levels(t))
    predicted = (x - sigma * wrong(x, t)) / alpha
    assert predicted.std() > 0.8
    posterior = table.posterior("calibrated")
    assert (posterior.mean(predicted, t) - 0.3).abs().max() < 0.1
    assert (posterior.variance(t) - 0.25).abs().max() < 0.01
    assert table.posterior("posterior_2").variance(t).max() < 0.01, "where the paper's second estimate is clipped to 0"


def test_an_empty_table_has_no_variance() -> None:
    posterior = PosteriorTable(CONTINUOUS, 2).posterior("calibrated")
    assert torch.equal(posterior.variances, torch.zeros(POINTS))
    assert torch.equal(posterior.centre, torch.zeros(2))


def test_between_the_ends_of_a_table_nothing_is_extrapolated() -> None:
    """Rounding must not turn a variance beside a clipped 0 negative."""
    table = torch.zeros(POINTS)
    table[1::2] = 1.0
    times = torch.cat([torch.linspace(1e-3, 1.0, 4001), torch.nextafter(torch.ones(3), torch.zeros(3))])
    found = interpolate(table, times)
    assert 0.0 <= found.min() <= found.max() <= 1.0
