"""Every solver against exact denoisers, in float64 (sections A.3 and A.7: A2 to A5, A7)."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from raydiff.diffusion.edm import karras_sigmas
from raydiff.diffusion.exact import AtomDenoiser, GaussianDenoiser, MixtureDenoiser
from raydiff.diffusion.samplers import SOLVERS, Churn, hold, network_calls, solver_of

PGD = Churn(80, 0.05, 50, 1.003)
SIGMA_MAX = 80.0
DETERMINISTIC = ("heun_ode", "dpmpp_2m")
NOISY = tuple(sorted(set(SOLVERS) - set(DETERMINISTIC)))

every_solver = pytest.mark.parametrize("name", SOLVERS)


def sigmas(steps):
    return karras_sigmas(steps, 0.002, SIGMA_MAX, 7.0)


def start(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return SIGMA_MAX * torch.randn(*shape, generator=generator, dtype=torch.float64), generator


class Affine:
    """On N(0, std^2) with ``D = c x`` every solver is linear in its standard normal draws: their coefficients.

    Written down in the variables of the papers: slopes ``k`` for Heun (Karras et al. 2022), ``h`` and ``r`` in half the
    logarithm of the signal-to-noise ratio for DPM-Solver++ (Lu et al. 2022).
    """

    def __init__(self, name, steps, std, churn):
        self.steps, self.std, self.churn = steps, std, churn
        self.levels = sigmas(steps).tolist()
        self.x = np.array([SIGMA_MAX])
        if name.startswith("heun"):
            self.heun(churned=name == "heun")
        else:
            self.multistep(stochastic=name == "dpmpp_2m_sde")

    @property
    def output_std(self):
        return float(np.linalg.norm(self.x))

    def trust(self, t):
        return self.std**2 / (self.std**2 + t**2)

    def draw(self, x, scale):
        return np.append(x, scale)

    def heun(self, churned):
        for sigma, target in pairwise(self.levels):
            gamma = self.churn.gamma(sigma, self.steps) if churned else 0.0
            level, x = (1 + gamma) * sigma, self.x
            if gamma:
                x = self.draw(x, self.churn.noise * math.sqrt(level**2 - sigma**2))
            slope = (1 - self.trust(level)) / level * x
            self.x = x + (target - level) * slope
            if target:
                self.x = x + (target - level) * (slope + (1 - self.trust(target)) / target * self.x) / 2

    def multistep(self, stochastic):
        history = []
        for n, (sigma, target) in enumerate(pairwise(self.levels)):
            denoised = self.trust(sigma) * self.x
            history.append(denoised)
            if target == 0:
                self.x = denoised
                break
            h = -math.log(target) + math.log(sigma)
            if n:
                r = math.log(self.levels[n - 1] / sigma) / h
                before = np.pad(history[-2], (0, len(denoised) - len(history[-2])))
                denoised = (1 + 1 / (2 * r)) * denoised - before / (2 * r)
            if stochastic:
                mean = target / sigma * math.exp(-h) * self.x + (1 - math.exp(-2 * h)) * denoised
                self.x = self.draw(mean, target * math.sqrt(1 - math.exp(-2 * h)))
            else:
                self.x = target / sigma * self.x - math.expm1(-h) * denoised


@pytest.mark.parametrize(
    ("name", "std", "final", "ratios"),
    [
        ("heun_ode", 1.0, 1.770e-4, [4.57, 4.27, 4.14, 4.10]),
        ("heun_ode", 0.5, 2.104e-4, [4.60, 4.29, 4.16, 4.18]),
        ("heun_ode", 2.0, 1.462e-4, [4.54, 4.25, 4.12, 4.07]),
        ("dpmpp_2m", 1.0, 1.784e-4, [4.87, 4.44, 4.21, 4.13]),
        ("dpmpp_2m", 0.5, 2.123e-4, [4.71, 4.47, 4.24, 4.22]),
        ("dpmpp_2m", 2.0, 1.472e-4, [4.90, 4.40, 4.19, 4.10]),
    ],
)
def test_a2_second_order(name, std, final, ratios):
    """Halving the step divides the error by four, and by a little more while steps are coarse."""
    x = torch.tensor([[1.0], [-3.0]], dtype=torch.float64)
    exact = x * std / math.sqrt(std**2 + SIGMA_MAX**2)
    errors = []
    for steps in (16, 32, 64, 128, 256):
        out = solver_of(name)(GaussianDenoiser(0.0, std), x, sigmas(steps))
        errors.append(float((out / exact - 1).abs().max()))
    assert errors[-1] == pytest.approx(final, rel=0.002)
    assert [a / b for a, b in pairwise(errors)] == pytest.approx(ratios, abs=0.01)


def test_a2_heun_without_churn_is_its_ode():
    x, _ = start(0, 8, 2)
    plain = solver_of("heun")(GaussianDenoiser(0.2, 1.0), x, sigmas(8))
    assert torch.equal(plain, solver_of("heun_ode")(GaussianDenoiser(0.2, 1.0), x, sigmas(8), churn=PGD))


@pytest.mark.parametrize(
    ("std", "final", "ratios"),
    [(1.0, 4.799e-4, [3.89, 4.38, 4.21, 4.11]), (0.5, 5.803e-4, [3.41, 4.37, 4.23, 4.15])],
)
def test_a2_second_order_of_the_sde(std, final, ratios):
    """Order two in the output's standard deviation, by the recursion that A3 checks the solver against."""
    errors = [Affine("dpmpp_2m_sde", steps, std, Churn()).output_std / std - 1 for steps in (16, 32, 64, 128, 256)]
    assert errors[-1] == pytest.approx(final, rel=0.002)
    assert [a / b for a, b in pairwise(errors)] == pytest.approx(ratios, abs=0.01)


@pytest.mark.parametrize(("steps", "std"), [(16, 1.0), (34, 0.5), (128, 2.0)])
@every_solver
def test_a3_follows_its_recursion(name, steps, std):
    """Sample for sample, from the same draws: this fixes every coefficient of a solver and the order of its draws."""
    affine = Affine(name, steps, std, PGD)
    x, generator = start(3, 50, 2)
    out = solver_of(name)(GaussianDenoiser(0.0, std), x, sigmas(steps), churn=PGD, generator=generator)
    again = torch.Generator().manual_seed(3)
    draws = [torch.randn(50, 2, generator=again, dtype=torch.float64) for _ in affine.x]
    expected = sum(weight * draw for weight, draw in zip(affine.x, draws, strict=True))
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(generator.get_state(), again.get_state()), "as many draws as the recursion has"
    assert (len(draws) > 1) == (name in NOISY)


@pytest.mark.parametrize(
    ("name", "steps", "anchor"),
    [("heun", 128, 1.01148), ("heun_ode", 128, 1.00065), ("dpmpp_2m", 128, 1.00066), ("dpmpp_2m_sde", 128, 1.00197)],
)
def test_a3_variance(name, steps, anchor):
    """Anchors of the recursion, and the sample's own spread: the share of the start beyond the prior is in it."""
    affine = Affine(name, steps, 1.0, PGD)
    assert affine.output_std == pytest.approx(anchor, abs=6e-6)
    x, generator = start(0, 40_000, 1)
    out = solver_of(name)(GaussianDenoiser(0.0, 1.0), x, sigmas(steps), churn=PGD, generator=generator)
    assert float(out.std()) / affine.output_std == pytest.approx(1, abs=3 / math.sqrt(2 * out.numel()))


@every_solver
def test_a4_mixture(name):
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    means = torch.tensor([[2.0], [-1.0]], dtype=torch.float64)
    std = torch.tensor([0.3, 0.5], dtype=torch.float64)
    x, generator = start(2, 40_000, 1)
    churn = Churn(40, 0.05, 50, 1.0)
    out = solver_of(name)(MixtureDenoiser(means, std, weights), x, sigmas(128), churn=churn, generator=generator)
    # At 0.8 the two modes are 4 and 3.6 standard deviations away.
    right = out[:, 0] > 0.8
    share = float(right.double().mean())
    assert share == pytest.approx(0.3, abs=3 * math.sqrt(0.3 * 0.7 / len(out)) + 2e-4)
    assert float(out[right].std()) == pytest.approx(0.3, rel=0.02)
    assert float(out[~right].std()) == pytest.approx(0.5, rel=0.02)


@every_solver
def test_a5_atoms(name):
    generator = torch.Generator().manual_seed(3)
    atoms = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    probabilities = torch.tensor([0.1, 0.15, 0.2, 0.25, 0.3], dtype=torch.float64)
    x, generator = start(4, 20_000, 3)
    churn = Churn(20, 0.05, 50, 1.0)
    out = solver_of(name)(AtomDenoiser(atoms, probabilities), x, sigmas(64), churn=churn, generator=generator)
    distance, nearest = torch.cdist(out, atoms).min(1)
    assert float(distance.max()) < 1e-3
    counts = torch.bincount(nearest, minlength=5).double()
    chi_square = float(((counts - len(out) * probabilities) ** 2 / (len(out) * probabilities)).sum())
    assert chi_square < 18.5  # p = 1e-3 with 4 degrees of freedom


@pytest.mark.parametrize("noised", [False, True])
@every_solver
def test_a7_replacement_is_exact(name, noised):
    """At every network call, that of a shift included, and at the end, although both hooks move all entries."""
    x, generator = start(5, 64, 4, 3)
    mask = torch.zeros(4, 3, dtype=torch.bool)
    mask[0] = True
    values = torch.randn(64, 4, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(64, 4, 3, generator=generator, dtype=torch.float64) if noised else None
    seen = []

    def denoise(x, sigma):
        wanted = values if noise is None else values + sigma.item() * noise
        seen.append(torch.equal(x[:, mask], wanted[:, mask]))
        return x / (1 + sigma.square()).reshape(-1, 1, 1)

    def shift(x, sigma, step):
        return x + 0.1 * denoise(x, x.new_full((1,), sigma))

    def guide(x, sigma, denoised, step, corrector):
        return x + 0.1, denoised + 0.2

    out = solver_of(name)(
        denoise,
        x,
        sigmas(8),
        churn=PGD,
        guide=guide,
        shift=shift,
        generator=generator,
        replace=hold(mask, values, noise),
    )
    assert torch.equal(out[:, mask], values[:, mask])
    assert not torch.equal(out[:, ~mask], values[:, ~mask])
    assert seen == [True] * (network_calls(name, 8) + 8)


@every_solver
def test_a_score_term_is_another_denoiser(name):
    """A tilt of N(0, 1) by exp(y) gives N(1, 1): ``D + sigma^2 / (1 + sigma^2)``. Also what a solver remembers is
    guided."""

    def guide(x, sigma, denoised, step, corrector):
        return x, denoised + sigma**2 / (1 + sigma**2)

    x, _ = start(6, 16, 3)
    outs = [
        solver_of(name)(denoise, x, sigmas(7), churn=PGD, guide=hook, generator=torch.Generator().manual_seed(1))
        for denoise, hook in ((GaussianDenoiser(0.0, 1.0), guide), (GaussianDenoiser(1.0, 1.0), None))
    ]
    torch.testing.assert_close(*outs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("hook", ["guide", "shift"])
@every_solver
def test_displacements_move_the_output_as_the_flow_does(name, hook):
    """On N(0, 1) a displacement at ``sigma`` arrives at the output as its ``1 / sqrt(1 + sigma^2)`` part (B.2). The
    reverse stochastic equation forgets the rest of the sample: there it is the ``1 / (1 + sigma^2)`` part."""
    steps, size = 1024, 0.015
    levels = sigmas(steps)

    def shift(x, sigma, step):
        return x + (size if step < steps - 1 else 0.0)

    def guide(x, sigma, denoised, step, corrector):
        offset = 0.0 if corrector or step == steps - 1 else size
        return x + offset, denoised + offset

    def run(**hooks):
        generator = torch.Generator().manual_seed(1)
        return solver_of(name)(GaussianDenoiser(0.0, 1.0), x, levels, generator=generator, **hooks)

    x, _ = start(7, 4, 2)
    moved = run(**({"guide": guide} if hook == "guide" else {"shift": shift})) - run()
    power = 1.0 if name == "dpmpp_2m_sde" else 0.5
    expected = float((size / (1 + levels[:-2].square()) ** power).sum())
    torch.testing.assert_close(moved, torch.full_like(x, expected), rtol=0.02, atol=0)


@every_solver
def test_calls_of_network_and_hooks(name):
    events = []

    def denoise(x, sigma):
        events.append(("call", float(sigma)))
        return x / (1 + sigma.square()).reshape(-1, 1)

    def guide(x, sigma, denoised, step, corrector):
        events.append(("guide", sigma, step, corrector))
        return x, denoised

    def shift(x, sigma, step):
        events.append(("shift", sigma, step))
        return x

    x, generator = start(6, 3, 2)
    levels = sigmas(5)
    solver_of(name)(denoise, x, levels, churn=PGD, guide=guide, shift=shift, generator=generator)
    calls = [event[1] for event in events if event[0] == "call"]
    guided = [event for event in events if event[0] == "guide"]
    assert len(calls) == network_calls(name, 5) == (9 if name.startswith("heun") else 5)
    assert min(calls) > 0
    assert [event[1] for event in guided] == calls
    assert [event[2:] for event in guided if not event[3]] == [(step, False) for step in range(5)]
    corrected = [event[2:] for event in guided if event[3]]
    assert corrected == ([(step, True) for step in range(4)] if name.startswith("heun") else [])
    assert [event for event in events if event[0] == "shift"] == [
        ("shift", level, step) for step, level in enumerate(levels[:-1].tolist())
    ]
    assert events[0][0] == "shift"


@every_solver
def test_only_the_given_generator_draws(name):
    x, generator = start(8, 3, 2)
    before, outside = generator.get_state(), torch.get_rng_state()
    arguments = (GaussianDenoiser(0.0, 1.0), x, sigmas(5))
    first = solver_of(name)(*arguments, churn=PGD, generator=generator)
    assert torch.equal(torch.get_rng_state(), outside)
    assert torch.equal(generator.get_state(), before) == (name in DETERMINISTIC)
    torch.manual_seed(99)
    assert torch.equal(solver_of(name)(*arguments, churn=PGD, generator=generator.set_state(before)), first)
    if name in NOISY:
        with pytest.raises(ValueError, match="needs a generator"):
            solver_of(name)(*arguments, churn=PGD)


@every_solver
def test_float32_stays_float32_and_the_input_as_it_is(name):
    x, generator = start(9, 200, 2)
    x = x.float()
    kept = x.clone()
    out = solver_of(name)(GaussianDenoiser(0.0, 1.0), x, sigmas(12), churn=PGD, generator=generator)
    assert out.dtype == torch.float32
    assert torch.equal(x, kept)
    if name in DETERMINISTIC:
        exact = solver_of(name)(GaussianDenoiser(0.0, 1.0), x.double(), sigmas(12))
        torch.testing.assert_close(out.double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_starts_from_an_intermediate_level(name):
    generator = torch.Generator().manual_seed(7)
    clean = torch.randn(40_000, 1, generator=generator, dtype=torch.float64)
    noisy = clean + 0.7 * torch.randn(40_000, 1, generator=generator, dtype=torch.float64)
    out = solver_of(name)(GaussianDenoiser(0.0, 1.0), noisy, karras_sigmas(32, 0.002, 0.7, 7.0))
    assert float(out.std()) == pytest.approx(1.0, abs=0.015)
    # The flow is deterministic: each sample keeps its quantile.
    torch.testing.assert_close(out, noisy / math.sqrt(1 + 0.49), atol=0.02, rtol=0)


def test_unknown_solver():
    with pytest.raises(KeyError):
        solver_of("euler")
    with pytest.raises(KeyError):
        network_calls("euler", 4)
