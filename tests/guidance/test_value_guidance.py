"""Guidance up a critic and by AEPO's analytic energy: formulas, their reduction to single actions, and what they draw
(sections F.2, F.3; the anchors F2 and F3), in float64."""

from __future__ import annotations

import math

import pytest
import torch
from guidance_cases import PGD, SOLVERS, ValuedPolicy, random_case, sample, statistics

from raydiff.config import GuidanceConfig
from raydiff.diffusion.exact import GaussianDenoiser
from raydiff.diffusion.identities import edm_to_vp
from raydiff.guidance.build import guidance_hooks
from raydiff.guidance.energy import EnergyGuidance
from raydiff.guidance.value import ValueGuidance

STANDARD = GaussianDenoiser(0.0, 1.0)
MEAN, STD, UNIT = 0.3, 0.5, 0.1
"""The behaviour N(.3, .25) of the anchors, in tenths so that actions keep within the critic's ±1."""
VP_END = 152
"""The noise level at which the anchors' variance-preserving process starts, at t = 1."""


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def horizon_one():
    """Rows of one standardised observation, action, reward and flag: the action is N(.03, .05^2)."""
    return statistics(1, 1, action_std=STD * UNIT, action_mean=MEAN * UNIT)


def random_critic(seed=3, actions=2):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(actions, actions, generator=generator, dtype=torch.float64)
    return ValuedPolicy(torch.randn(actions, generator=generator, dtype=torch.float64), root @ root.T, centre=0.2)


def value_of(critic, normalizer, denoised, action):
    """``Q`` summed, as a function of the normalised actions, at the denoised observations."""
    first, last = normalizer.observation_size, normalizer.observation_size + normalizer.action_size
    env = action * normalizer.std[first:last] + normalizer.mean[first:last]
    observation = denoised[..., :first] * normalizer.std[:first] + normalizer.mean[:first]
    return critic.value(observation, env.tanh() if normalizer.action_space == "atanh" else env).sum()


# ------------------------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize("space", ["raw", "atanh"])
def test_value_gradient_is_the_chain_rule(space):
    normalizer, _, _, denoised = random_case(space)
    denoised[..., 5:7] *= 0.1  # within the limits
    critic = random_critic()
    action = denoised[..., 5:7].clone().requires_grad_(True)
    expected = torch.autograd.grad(value_of(critic, normalizer, denoised, action), action)[0]
    closed = ValueGuidance(critic, normalizer, GuidanceConfig(), 8).gradient(denoised)
    torch.testing.assert_close(closed, expected, atol=1e-12, rtol=1e-12)


def test_the_critic_is_asked_within_its_limits():
    normalizer = statistics(1, 1)
    critic = ValuedPolicy(double(0.0), double([1.0]), centre=3.0)
    rows = double(0.0, 5.0, 0.0, 0.0).expand(1, 2, 4)
    gradient = ValueGuidance(critic, normalizer, GuidanceConfig(), 8).gradient(rows)
    torch.testing.assert_close(gradient, torch.full((1, 2, 1), 3.0 - 1.0, dtype=torch.float64))


@pytest.mark.parametrize(
    "settings", [dict(kind="value"), dict(kind="value", normalize=False), dict(kind="analytic_energy")]
)
def test_only_actions_change_and_nothing_without_a_gradient(settings):
    normalizer, _, x, denoised = random_case("atanh")
    others = torch.ones(x.shape[-1], dtype=torch.bool)
    others[5:7] = False
    guide = guidance_hooks(normalizer, GuidanceConfig(**settings), random_critic(), 8).guide
    shifted, guided = guide(x, 0.7, denoised, 2, False)
    assert torch.equal(shifted[..., others], x[..., others])
    assert torch.equal(guided[..., others], denoised[..., others])
    assert not torch.equal(guided, denoised)
    flat = ValuedPolicy(double(0.0, 0.0))
    guide = guidance_hooks(normalizer, GuidanceConfig(**settings), flat, 8).guide
    assert torch.equal(guide(x, 0.7, denoised, 2, False)[0], x)
    assert torch.equal(guide(x, 0.7, denoised, 2, False)[1], denoised)


def test_normalised_value_guidance_displaces_like_mode_paper():
    """Length ``lambda_n`` over the actions of each trajectory, along its gradient; predictor only; slope kept."""
    normalizer, _, x, denoised = random_case("atanh", batch=2)
    config, steps = GuidanceConfig(kind="value", strength=0.7), 16
    guide = ValueGuidance(random_critic(), normalizer, config, steps)
    for step in (0, 7, 14):
        shifted, guided = guide(x, 1.0, denoised, step, False)
        shift = (shifted - x)[..., 5:7]
        expected = 0.7 * 256 / steps * (1 - step / steps + 0.3 * math.sin(math.pi * (step + 1) / steps))
        norms = torch.linalg.vector_norm(shift, dim=(1, 2))
        torch.testing.assert_close(norms, torch.full_like(norms, expected), atol=1e-6, rtol=1e-6)
        cosine = torch.cosine_similarity(shift.flatten(1), guide.gradient(denoised).flatten(1))
        torch.testing.assert_close(cosine, torch.ones_like(cosine))
        torch.testing.assert_close(shifted - guided, x - denoised, atol=1e-12, rtol=0)
    for step, corrector in ((15, False), (0, True)):
        shifted, guided = guide(x, 1.0, denoised, step, corrector)
        assert torch.equal(shifted, x)
        assert torch.equal(guided, denoised)


def test_rows_have_energies_of_their_own():
    normalizer, _, x, denoised = random_case("raw")
    guide = EnergyGuidance(random_critic(), normalizer, GuidanceConfig(kind="analytic_energy"))
    other = denoised.clone()
    other[:, 2] += 0.3
    before, after = (guide(x, 0.7, rows, 0, False)[1] - rows for rows in (denoised, other))
    torch.testing.assert_close(before[:, [0, 1, 3]], after[:, [0, 1, 3]], atol=1e-12, rtol=0)
    assert not torch.equal(before[:, 2], after[:, 2])


@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_damped_guidance_never_points_down_the_value(sigma):
    """Where the undamped term does: strong downward curvature (F.3)."""
    normalizer, _, x, denoised = random_case("raw", batch=50)
    denoised[..., 5:7] *= 0.1
    critic = random_critic()
    critic.bend = critic.bend * 20
    uphill = ValueGuidance(critic, normalizer, GuidanceConfig(), 8).gradient(denoised)

    def along(damped):
        guide = EnergyGuidance(critic, normalizer, GuidanceConfig(kind="analytic_energy", beta=3, damped=damped))
        return ((guide(x, sigma, denoised, 0, False)[1] - denoised)[..., 5:7] * uphill).sum(-1)

    assert (along(True) > 0).all()
    assert (along(False) < 0).any() == (sigma >= 1)


def test_a_kink_has_curvature_over_the_width_of_the_posterior():
    """``Q = -|a|``: next to the kink a gradient alone pulls with full force; the variance term knows that it ends."""

    class Kink(ValuedPolicy):
        def value_gradient(self, observation, action):
            return -action.sign()

    normalizer, config = statistics(1, 1), GuidanceConfig(kind="analytic_energy", beta=4.0, strength=1.0)
    guide = EnergyGuidance(Kink(double(0.0)), normalizer, config)
    near, far = (double(0.0, place, 0.0, 0.0).expand(1, 2, 4) for place in (0.01, 0.9))
    variance = 0.25
    assert guide.gradient(far, variance)[0, 0, 0] == -4.0
    # The gradient changes by 2 over twice the posterior's deviation of .5, so kappa = 2.
    assert guide.gradient(near, variance)[0, 0, 0] == pytest.approx(-4.0 / (1 + 4 * variance * 2))


# ------------------------------------------------------------------------------- single actions: horizon 1, and VP


@pytest.mark.parametrize("sigma", [0.05, 0.8, 20.0])
@pytest.mark.parametrize("bend", [0.0, 90.0])
@pytest.mark.parametrize("kind", ["value", "energy", "damped"])
def test_at_horizon_one_it_is_the_papers_formula(kind, sigma, bend):
    """Against the gradient, by automatic differentiation through the exact denoiser, of the published intermediate
    energies of a single action, in their own variance-preserving terms: ``beta Q(E[a | a_t])``, AEPO's equation 25, and
    for a concave quadratic with damping the exact ``log E[exp(beta Q) | a_t]``."""
    normalizer, beta, centre = horizon_one(), 1.7, 0.1
    critic = ValuedPolicy(double(0.8), double([bend]), centre)
    if kind == "damped" and bend:
        critic.slope = double(0.0)
    settings = dict(kind="value", strength=beta, normalize=False)
    if kind != "value":
        settings = dict(kind="analytic_energy", strength=1.0, beta=beta, damped=kind == "damped")
    x = torch.randn(64, 1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * math.hypot(1, sigma)
    denoised = STANDARD(x, double(sigma))
    hooks = guidance_hooks(normalizer, GuidanceConfig(**settings), critic, 8)
    assert (hooks.name, hooks.strength) == (settings["kind"], settings["strength"])
    score = (hooks.guide(x, sigma, denoised, 3, False)[1] - denoised)[..., 1] / sigma**2  # by the EDM sample

    mean, std = MEAN * UNIT, STD * UNIT
    noisy = mean + std * x[..., 1]  # the noisy action in environment units
    noisy, alpha, sigma_t = edm_to_vp(noisy, std * sigma)
    noisy = noisy.requires_grad_(True)
    total = alpha**2 * std**2 + sigma_t**2
    posterior_mean = (alpha * std**2 * noisy + sigma_t**2 * mean) / total
    variance = std**2 * sigma_t**2 / total
    value = critic.value(None, posterior_mean[..., None])
    gradient = critic.slope[0] - bend * (posterior_mean - centre)
    if kind == "value":
        energy = beta * value
    elif kind == "energy":
        energy = beta * value + beta**2 * variance * gradient.square() / 2
    else:  # exact: for the quadratic, or the linear Q of bend 0
        energy = beta * value + beta**2 * variance * gradient.square() / 2 / (1 + beta * bend * variance)
        if bend:
            exact = -beta * bend * (posterior_mean - centre) ** 2 / 2 / (1 + beta * bend * variance)
            torch.testing.assert_close(energy, exact)
    by_vp = torch.autograd.grad(energy.sum(), noisy)[0]
    torch.testing.assert_close(score, by_vp * alpha * std, atol=1e-6, rtol=1e-6)


def draw(settings, critic, solver="dpmpp_2m", steps=128):
    """Mean and deviation of actions at horizon 1, in the anchors' units, from evenly spread starts."""
    normalizer = horizon_one()
    hooks = guidance_hooks(normalizer, GuidanceConfig(**settings), critic, steps)
    generator, count = torch.Generator().manual_seed(2), 2_000 if solver in ("heun_ode", "dpmpp_2m") else 20_000
    levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    x = VP_END * torch.special.ndtri(levels)[:, None, None].repeat(1, 1, 4)
    out = sample(solver, STANDARD, x, steps, PGD, hooks, generator, VP_END)
    action = (out[..., 1] * STD * UNIT + MEAN * UNIT) / UNIT
    return float(action.mean()), float(action.std())


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_f2_a_linear_value_shifts_the_mean(beta, solver):
    """N(.3, .25) tilted by exp(.8 beta a) is N(.3 + .2 beta, .25): value guidance, and both forms of the energy."""
    critic = ValuedPolicy(double(0.8 / UNIT))
    for settings in (
        dict(kind="value", strength=beta, normalize=False),
        dict(kind="analytic_energy", strength=1.0, beta=beta, damped=False),
        dict(kind="analytic_energy", strength=1.0, beta=beta, damped=True),
    ):
        assert draw(settings, critic, solver) == pytest.approx((0.3 + 0.2 * beta, 0.5), abs=0.01)


F3 = [
    (1.0, (0.440, 0.447), (0.436, 0.446)),
    (2.0, (0.533, 0.408), (0.507, 0.412)),
    (4.0, (0.650, 0.354), (0.503, 0.387)),
    (6.0, (0.720, 0.316), (0.315, 0.412)),
    (8.0, (0.767, 0.289), (-0.135, 0.498)),
]


@pytest.mark.parametrize(("beta", "target", "published"), F3)
def test_f3_a_quadratic_value(beta, target, published):
    """``Q = -(a - 1)^2 / 2``: damped it draws the tilted density; as published it turns away for beta > 4."""
    critic = ValuedPolicy(double(0.0), double([1 / UNIT**2]), centre=UNIT)
    energy = dict(kind="analytic_energy", strength=1.0, beta=beta)
    assert draw(energy | dict(damped=True), critic) == pytest.approx(target, abs=0.01)
    assert draw(energy | dict(damped=False), critic) == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize("solver", SOLVERS)
def test_f3_damped_with_every_solver(solver):
    critic = ValuedPolicy(double(0.0), double([1 / UNIT**2]), centre=UNIT)
    settings = dict(kind="analytic_energy", strength=1.0, beta=4.0)
    assert draw(settings, critic, solver) == pytest.approx((0.650, 0.354), abs=0.01)


@pytest.mark.parametrize(
    ("settings", "unit"), [(dict(kind="value"), 0.002), (dict(kind="value", normalize=False), 0.1)]
)
def test_value_rises_with_strength(settings, unit):
    critic, values = ValuedPolicy(double(0.0), double([1 / UNIT**2]), centre=UNIT), []
    for strength in (0, 1, 2, 4):
        mean, std = draw(dict(strength=strength * unit, **settings), critic, steps=32)
        values.append(-((mean - 1) ** 2 + std**2) / 2)
    assert values == sorted(values)
    assert values[-1] > values[0] + 0.03
