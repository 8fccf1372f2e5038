"""DyDiff on linear systems, whose conditional trajectory model is known in closed form (section D.8: D1, D2), float64."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from raydiff.diffusion.conditional import given_entries
from raydiff.diffusion.edm import karras_sigmas
from raydiff.diffusion.exact import CovarianceDenoiser, LinearSystemDenoiser
from raydiff.diffusion.samplers import Churn, hold, solver_of
from raydiff.generators.dydiff_refine import FixedActions, RowActions, iterate, roll_out

S, A, L = 2, 1, 4
SIGMA_MAX = 80.0
DYDIFF = Churn(60, 0.370, 52.24195, 1.002)
sample_heun = solver_of("heun")


def matrix(rows):
    return torch.tensor(rows, dtype=torch.float64)


TRANSITION, CONTROL = matrix([[0.9, 0.2], [-0.1, 0.8]]), matrix([[0.5], [0.7]])
NOISE = matrix([[0.04, 0.01], [0.01, 0.09]])
GIVEN = given_entries(L, S, A)


def sigmas(steps):
    return karras_sigmas(steps, 0.002, SIGMA_MAX)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def system(noise=NOISE, length=L):
    return LinearSystemDenoiser(TRANSITION, CONTROL, noise, length)


def joint_covariance(length=L):
    """Of the rows of a trajectory whose first state and actions are standard normal, ``[L(S+A), L(S+A)]``."""
    sources = S + A * length + S * (length - 1)
    root = torch.linalg.cholesky(NOISE)
    first, actions, noise = torch.eye(sources, dtype=torch.float64).split([S, A * length, S * (length - 1)], dim=1)
    actions, noise = actions.view(sources, length, A), noise.view(sources, length - 1, S)
    states = [first]
    for row in range(length - 1):
        states.append(states[-1] @ TRANSITION.T + actions[:, row] @ CONTROL.T + noise[:, row] @ root.T)
    rows = torch.cat([torch.stack(states, dim=1), actions], dim=-1).flatten(1)
    return rows.T @ rows


def test_closed_form_agrees_with_gaussian_conditioning():
    """The denoiser against the joint Gaussian of rows, conditioned on clean inputs and noisy states."""
    covariance, given = joint_covariance(), GIVEN.flatten()
    sigma = 0.7
    observed = covariance + sigma**2 * torch.diag((~given).double())
    x = normal(5, L, S + A)
    expected = x.flatten(1) @ torch.linalg.solve(observed, covariance)
    got = system()(x, x.new_full((1,), sigma))
    torch.testing.assert_close(got.flatten(1), expected, rtol=0, atol=1e-10)
    assert torch.equal(got[:, GIVEN], x[:, GIVEN])
    free = ~given
    schur = covariance[free][:, free] - covariance[free][:, given] @ torch.linalg.solve(
        covariance[given][:, given], covariance[given][:, free]
    )
    torch.testing.assert_close(system().covariance, schur, rtol=0, atol=1e-12)


def affine_map(denoise, given, steps, noise=None):
    """The sampler's output for the free entries is affine in their initial noise: offset ``[K]``, matrix ``[K, K]``."""
    free = ~GIVEN
    count = int(free.sum())
    x = torch.zeros(count + 1, L, S + A, dtype=torch.float64)
    x[1:, free] = torch.eye(count, dtype=torch.float64)
    replace = hold(GIVEN, given, noise)
    out = sample_heun(denoise, x * SIGMA_MAX, sigmas(steps), replace=replace)
    assert torch.equal(out[:, GIVEN], given[GIVEN].expand(count + 1, -1))
    return out[0, free], (out[1:, free] - out[0, free]).T


def test_d1_replacement_in_a_conditional_model_is_exact():
    """Mean and covariance of all trajectories with these first state and actions, without any sampling error."""
    model, given = system(), normal(L, S + A)
    truth = model.mean(given[None])[0, 1:].flatten()
    # The sampler starts from N(0, sigma_max^2) where it should from N(mean, C + sigma_max^2): the share
    # sqrt(c / (c + sigma_max^2)) of the mean is missing in an eigendirection of variance c.
    lost = (model.values / (model.values + SIGMA_MAX**2)).sqrt()
    expected = truth - model.vectors @ (lost * (model.vectors.T @ truth))
    errors = []
    for steps in (64, 128, 256):
        offset, linear = affine_map(model, given, steps)
        assert (offset - expected).abs().max() < 1e-4
        errors.append(float((linear @ linear.T - model.covariance).abs().max() / model.covariance.abs().max()))
    assert errors[-1] < 5e-4
    assert all(3.5 < coarse / fine < 5.5 for coarse, fine in pairwise(errors))  # second order


@pytest.mark.parametrize("noised", [False, True])
def test_d1_replacement_in_an_unconditional_model_is_not(noised):
    """Even the exact joint model, which the true conditional follows from, misses it by far (section A.5b)."""
    joint, model, given = CovarianceDenoiser(torch.zeros(L * (S + A)), joint_covariance()), system(), normal(L, S + A)

    def unconditional(x, sigma):
        return joint(x.flatten(1), sigma).view(x.shape)

    def run(noise):
        return affine_map(unconditional, given, 64, noise if noised else None)

    offset, linear = run(torch.zeros_like(given))
    covariance = linear @ linear.T
    if noised:  # the map is affine in the noise of the conditions, too
        for entry in GIVEN.nonzero():
            noise = torch.zeros_like(given)
            noise[tuple(entry)] = 1.0
            change = run(noise)[0] - offset
            covariance = covariance + torch.outer(change, change)
    truth = model.mean(given[None])[0, 1:].flatten()
    assert (offset - truth).abs().max() > 0.5 * truth.abs().max()
    assert (covariance.diag() > 2 * model.covariance.diag()).all()


def variance_recursion(churn, steps, std, after_churn, gain=0.8):
    """Mean response and residual standard deviation of one state ``s = gain * a + std * w`` given ``a``.

    Where the action is not overwritten after the churn, the first network call of a step sees it with fresh noise,
    which enters the state with the weight of the action in that call.
    """

    def trust(sigma):
        return std**2 / (std**2 + sigma**2)

    mean, variance = 0.0, SIGMA_MAX**2
    for sigma, target in pairwise(sigmas(steps).tolist()):
        level = sigma * (1 + churn.gamma(sigma, steps))
        fresh = churn.noise**2 * (level**2 - sigma**2)
        state, action = trust(level) * (1 - target / level) + target / level, (1 - trust(level)) * (1 - target / level)
        clean = 0.0
        if target > 0:
            first, second = (target - level) / (2 * level), (target - level) / (2 * target) * (1 - trust(target))
            state, action = (
                1 + first * (1 - trust(level)) + second * state,
                second * action - first * (1 - trust(level)),
            )
            clean = -second
        mean = state * mean + (action + clean) * gain
        variance = state**2 * (variance + fresh) + (0.0 if after_churn else (action * gain) ** 2 * fresh)
    return mean, math.sqrt(variance)


@pytest.mark.parametrize(("after_churn", "anchor"), [(True, 0.31771), (False, 0.31917)])
def test_conditions_are_overwritten_after_churn(after_churn, anchor):
    """One step of ``s' = 0.8 a + 0.3 w`` with DyDiff's sampler (section D.4): the released code, which leaves the churn
    in the conditions, gives a little more spread. Both follow their recursion."""
    count, steps, churn = 300_000, 34, Churn(60, 0.370, 52.212, 1.002)
    model = LinearSystemDenoiser(matrix([[0.0]]), matrix([[0.8]]), matrix([[0.09]]), 2)
    given = torch.zeros(count, 2, 2, dtype=torch.float64)
    given[:, 0, 1] = 0.5 * normal(count)
    mask = given_entries(2, 1, 1)
    replace = hold(mask, given)
    x = sample_heun(
        model,
        SIGMA_MAX * normal(count, 2, 2, seed=1),
        sigmas(steps),
        churn=churn,
        generator=torch.Generator().manual_seed(2),
        replace=replace,
        replace_after_churn=after_churn,
    )
    slope, spread = variance_recursion(churn, steps, 0.3, after_churn)
    assert spread == pytest.approx(anchor, abs=1e-5)
    assert slope == pytest.approx(0.8, abs=1e-5)
    action, state = given[:, 0, 1], x[:, 1, 0]
    fitted = (action * state).mean() / action.square().mean()
    assert float(fitted) == pytest.approx(slope, abs=4 * spread / (0.5 * math.sqrt(count)))
    # Three standard errors are 0.0012; the two modes differ by 0.0015.
    assert float((state - fitted * action).std()) == pytest.approx(spread, abs=3 * spread / math.sqrt(2 * count))
    assert torch.equal(x[:, mask], given[:, mask])


class LinearPolicy:
    """``a ~ N(K s, std^2)``; without ``std`` deterministic."""

    def __init__(self, std=None):
        self.gain, self.std, self.deterministic = matrix([[-0.6, -0.5]]), std, std is None

    def distribution(self, observation):
        mean = observation @ self.gain.T
        return mean, None if self.std is None else torch.full_like(mean, self.std**2)


def exact_draw(length, steps=4):
    """States given actions by the sampler, in the exact model of the system without noise."""
    model = system(torch.zeros_like(NOISE), length)
    generator = torch.Generator().manual_seed(3)

    def draw(first, actions):
        known = torch.cat([first[:, None].expand(-1, length, -1), actions], dim=-1)
        replace = hold(given_entries(length, S, A), known)
        noise = SIGMA_MAX * torch.randn(known.shape, generator=generator, dtype=known.dtype)
        x = sample_heun(model, noise, sigmas(steps), churn=DYDIFF, generator=generator, replace=replace)
        return x[..., :S]

    return draw


def true_step(state, action):
    return state @ TRANSITION.T + action @ CONTROL.T


def wrong_step(state, action):
    return 0.5 * state - action @ CONTROL.T + 0.3


@pytest.mark.parametrize("std", [None, 0.2])
def test_d2_row_i_is_exact_after_i_iterations(std):
    """From the rollout of a wrong one-step model, for a deterministic and for a Gaussian policy."""
    length, first = 8, 0.4 * normal(16, S)
    noise = None if std is None else normal(16, length, A, seed=5)
    act, draw = RowActions(LinearPolicy(std), noise), exact_draw(length)
    truth, taken = roll_out(true_step, first, act, length)
    assert taken.abs().max() < 1.0  # nothing is clipped
    states, actions = roll_out(wrong_step, first, act, length)
    for done in range(1, length):
        assert (states[:, done] - truth[:, done]).abs().max() > 1e-6  # not before its iteration
        states, actions = iterate(draw, states, actions, act, 1, "replace")
        exact = slice(0, done + 1)
        torch.testing.assert_close(states[:, exact], truth[:, exact], rtol=0, atol=1e-8)
        torch.testing.assert_close(actions[:, exact], taken[:, exact], rtol=0, atol=1e-8)
    assert (iterate(draw, states, actions, act, 1, "replace")[0] - truth).abs().max() < 1e-8  # and there it stays


def closed_loop_states(noises, policy, steps=128):
    """States ``[B, L, S]`` after one iteration for each of ``noises [k][B, L, S+A]`` (standard normal), from the zero
    state, in the exact model of the system with disturbances. Deterministic sampling: affine in the noises."""
    model, first = system(), torch.zeros(len(noises[0]), S, dtype=torch.float64)
    left = iter(noises)

    def draw(first, actions):
        known = torch.cat([first[:, None].expand(-1, L, -1), actions], dim=-1)
        return sample_heun(model, SIGMA_MAX * next(left), sigmas(steps), replace=hold(GIVEN, known))[..., :S]

    act = RowActions(policy, None)
    states, actions = roll_out(wrong_step, first, act, L)
    return iterate(draw, states, actions, act, len(noises), "replace")[0]


@pytest.mark.parametrize("fresh", [False, True])
def test_the_same_noise_in_all_iterations_ends_in_the_law_of_the_closed_loop(fresh):
    """With disturbances. A policy answers them; drawn anew, those of the next iteration are not the ones it answered."""
    policy, free, iterations = LinearPolicy(), ~GIVEN, L + 1
    count = int(free.sum())
    basis = torch.zeros(count, L, S + A, dtype=torch.float64)
    basis[:, free] = torch.eye(count, dtype=torch.float64)
    zero = torch.zeros_like(basis)
    offset = closed_loop_states([zero] * iterations, policy)
    sources = [[basis if k == j else zero for k in range(iterations)] for j in range(iterations)]
    covariance = torch.zeros(count, count, dtype=torch.float64)
    for noises in sources if fresh else [[basis] * iterations]:
        linear = (closed_loop_states(noises, policy) - offset)[:, 1:].flatten(1)
        covariance += linear.T @ linear
    loop = LinearSystemDenoiser(TRANSITION + CONTROL @ policy.gain, 0 * CONTROL, NOISE, L).covariance
    ratio = covariance.diag() / loop.diag()
    if fresh:
        assert ratio.max() > 2.0
    else:
        assert (covariance - loop).abs().max() < 5e-3 * loop.abs().max()


def test_average_halves_what_replace_removes():
    """The released code's update: the error of row 1, whose action is exact from the start, halves each time."""
    length, first = 6, normal(16, S)
    act, draw = RowActions(LinearPolicy(), None), exact_draw(length)
    truth, _ = roll_out(true_step, first, act, length)
    states, actions = roll_out(wrong_step, first, act, length)
    for _ in range(4):
        before = states[:, 1] - truth[:, 1]
        states, actions = iterate(draw, states, actions, act, 1, "average")
        torch.testing.assert_close(states[:, 1] - truth[:, 1], before / 2, rtol=0, atol=1e-12)
        assert torch.equal(states[:, 0], first)
    replaced = iterate(draw, *roll_out(wrong_step, first, act, length), act, length - 1, "replace")[0]
    assert (replaced - truth).abs().max() < 1e-8
    assert (states - truth).abs().max() > 1e-2


def test_no_iteration_leaves_the_one_step_model():
    first = normal(4, S)
    act = RowActions(LinearPolicy(), None)
    states, actions = roll_out(wrong_step, first, act, L)
    same = iterate(exact_draw(L), states, actions, act, 0, "replace")
    assert torch.equal(same[0], states)
    assert torch.equal(same[1], actions)
    for row in range(L - 1):
        assert torch.equal(states[:, row + 1], wrong_step(states[:, row], actions[:, row]))


def test_fixed_actions_stay_and_policy_actions_are_clipped():
    actions = normal(4, L, A)
    fixed = FixedActions(actions)
    states, taken = roll_out(true_step, normal(4, S), fixed, L)
    assert torch.equal(taken, actions)
    assert torch.equal(fixed(states), actions)
    wide = RowActions(LinearPolicy(std=3.0), normal(4, L, A))
    assert wide(states).abs().max() == 1.0
    assert torch.equal(wide(states)[:, 2:], wide(states[:, 2:], first=2))
