"""DyDiff as a generator and as a refiner: conditions, counts, terminals, reproducible bytes (section D)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from dydiff_cases import (
    SOLVERS,
    STATES,
    A,
    L,
    LinearPolicy,
    S,
    digest,
    linear_system,
    make,
    make_networks,
    rows_of,
    starts_of,
)

from raydiff.config import DyDiffConfig, GeneratorConfig, SamplerConfig
from raydiff.diffusion.samplers import network_calls
from raydiff.generators.dydiff_refine import stop_at_terminals
from raydiff.types import Trajectories

SUPPORT = Path(__file__).parents[1] / "support"


def test_states_follow_the_actions_and_actions_the_states():
    """After L - 1 iterations of an exact model both hold in every row, whatever the one-step model says."""
    generator = make(dydiff=DyDiffConfig(iterations=L - 1))
    made = generator.generate(LinearPolicy(), 64, (1,))
    trajectories = made.trajectories
    transition, control, _ = linear_system(0.0)
    state, action, following = (torch.from_numpy(np.ascontiguousarray(part)) for part in (
        trajectories.observation[:, :-1], trajectories.action[:, :-1], trajectories.observation[:, 1:],
    ))  # fmt: skip
    torch.testing.assert_close(following, state @ transition.T + action @ control.T, rtol=0, atol=1e-5)
    torch.testing.assert_close(action, LinearPolicy().distribution(state)[0], rtol=0, atol=1e-6)
    reward = generator.reward.predict(state, action, following)
    np.testing.assert_allclose(trajectories.reward[:, :-1], reward.numpy(), atol=1e-6)
    assert trajectories.rows.shape == (64, L, S + A + 2)
    assert trajectories.rows.dtype == np.float32
    assert not trajectories.rows[:, -1, S:].any()
    assert trajectories.valid().sum() == 64 * (L - 1)
    assert made.agreement.deviation < 1e-10
    assert (made.guidance, made.strength) == ("none", 0.0)


@pytest.mark.parametrize("after_churn", [True, False])
@pytest.mark.parametrize("solver", SOLVERS)
def test_conditions_come_back_bit_for_bit(solver, after_churn):
    """A7: the sampler's output, and the first state of the trajectories in environment units."""
    starts = starts_of(4, seed=1)
    options = DyDiffConfig(iterations=1, replace_after_churn=after_churn)
    generator = make(noise=0.1, starts=starts, dydiff=options, sampler=SamplerConfig(solver=solver, steps=6))
    taken = []
    encode = generator.bundle.normalizer.encode
    generator.bundle.normalizer.encode = lambda rows: taken.append(encode(rows)) or taken[-1]
    rows = rows_of(generator, 400)
    known, x = taken[0], generator.bundle.normalizer.decoded
    assert torch.equal(x[..., S:], known[..., S:])
    assert torch.equal(x[:, 0], known[:, 0])
    assert not torch.equal(x[:, 1:, :S], known[:, 1:, :S])
    chosen = (rows[:, None, 0, :S] == starts[None]).all(-1)
    assert (chosen.sum(1) == 1).all()
    # Uniform over the starts: 100 of 400 each, standard error 8.7.
    assert np.abs(chosen.sum(0) - 100).max() < 35


@pytest.mark.parametrize("clean", [True, False])
def test_network_sees_clean_conditions_in_every_call(clean):
    """The first state and the actions of the iteration, whatever the noise level; the emitted actions come after."""
    generator = make_networks(clean=clean, dydiff=DyDiffConfig(iterations=1))
    seen, inner = [], generator.sampling.denoise
    generator.sampling.denoise = lambda x, sigma: seen.append(x) or inner(x, sigma)
    rows = torch.from_numpy(rows_of(generator, 16, LinearPolicy(std=0.3)))
    encoded = generator.bundle.normalizer.encode(rows[..., : S + A])
    assert len(seen) == 11
    for x in seen:
        assert torch.equal(x[:, 0, :S], encoded[:, 0, :S])
        assert torch.equal(x[:, 0, S:], encoded[:, 0, S:])  # the first action depends on the first state alone
        assert torch.equal(x[..., S:], seen[0][..., S:])
    assert not torch.equal(encoded[:, 1:-1, S:], seen[0][:, 1:-1, S:])  # the policy's in the new states


def test_as_coded_the_churn_stays_in_the_conditions_of_one_call_per_step():
    generator = make_networks(dydiff=DyDiffConfig(iterations=1, replace_after_churn=False))
    seen, inner = [], generator.sampling.denoise
    generator.sampling.denoise = lambda x, sigma: seen.append(x) or inner(x, sigma)
    rows_of(generator, 16)
    churned = [not torch.equal(x[..., S:], seen[-1][..., S:]) for x in seen]
    # Steps at sigma 80, 24, 5.8, 0.97, 0.085 and 0.002: noise is added between 0.05 and 50. The last has one call.
    assert [call for call, noised in enumerate(churned) if noised] == [2, 4, 6, 8]


@pytest.mark.parametrize("solver", SOLVERS)
def test_network_calls(solver):
    generator = make(sampler=SamplerConfig(solver=solver, steps=6), dydiff=DyDiffConfig(iterations=2))
    calls = []
    inner = generator.sampling.denoise
    generator.sampling.denoise = lambda x, sigma: calls.append(1) or inner(x, sigma)
    made = generator.generate(LinearPolicy(), 4, (1,))
    assert made.nfe == len(calls) == 2 * network_calls(solver, 6)


@pytest.mark.parametrize("sample", [True, False])
def test_no_iteration_is_the_one_step_model(sample):
    generator = make(dydiff=DyDiffConfig(iterations=0), rollout={"sample": sample})
    made = generator.generate(LinearPolicy(), 8, (1,))
    assert made.nfe == 0
    assert generator.ensemble.samples == [sample] * (L - 1)
    observation, action = made.trajectories.observation, made.trajectories.action
    expected = 0.9 * observation[:, :-1] + 0.1 * action[:, :-1].mean(-1, keepdims=True)
    assert np.abs(observation[:, 1:] - expected).max() < (0.1 if sample else 1e-5)


@pytest.mark.parametrize(("sampled", "expected"), [(True, 0.2), (False, 0.0)])
def test_actions_are_drawn_or_the_mean(sampled, expected):
    policy = LinearPolicy(std=0.2)
    options = DyDiffConfig(iterations=1, sample_actions=sampled)
    made = make(noise=0.01, dydiff=options).generate(policy, 500, (1,))
    mean = policy.distribution(torch.from_numpy(made.trajectories.observation[:, :-1].copy()))[0].numpy()
    residual = made.trajectories.action[:, :-1] - mean
    assert np.sqrt(np.square(residual).mean()) == pytest.approx(expected, rel=0.03, abs=1e-6)


def test_the_same_noise_lets_iterations_come_to_rest():
    def states(iterations, fresh):
        options = DyDiffConfig(iterations=iterations, fresh_noise=fresh)
        return rows_of(make(noise=0.1, dydiff=options))[..., STATES]

    np.testing.assert_allclose(states(L, False), states(L - 1, False), atol=1e-4)
    assert np.abs(states(L, True) - states(L - 1, True)).max() > 0.1
    # The noise is still that of the key: from one start everything else is the same.
    alone = make(noise=0.1, starts=starts_of(1), dydiff=DyDiffConfig(fresh_noise=False), rollout={"sample": False})
    first, other = (rows_of(alone, 8, key=(key,)) for key in (1, 2))
    assert not np.array_equal(first, other)


def test_averaging_keeps_half_of_the_states_before():
    one = {"dydiff": DyDiffConfig(iterations=1)}
    start = rows_of(make(dydiff=DyDiffConfig(iterations=0)))
    replaced = rows_of(make(**one))
    averaged = rows_of(make(dydiff=DyDiffConfig(iterations=1, update="average")))
    np.testing.assert_allclose(averaged[..., STATES], (start + replaced)[..., STATES] / 2, atol=1e-5)


def test_without_a_policy_actions_are_uniform():
    made = make().generate(None, 500, (1,))
    actions = made.trajectories.action[:, :-1]
    assert made.agreement is None
    assert made.nfe == network_calls("heun", 6)  # nothing to iterate for
    assert np.abs(actions).max() <= 1
    assert actions.mean() == pytest.approx(0, abs=0.03)
    assert actions.var() == pytest.approx(1 / 3, rel=0.03)


@pytest.mark.parametrize("kind", ["hardmax", "softmax"])
def test_filter_keeps_the_better_ones(kind):
    everything = make(noise=0.05).generate(LinearPolicy(), 200, (1,)).trajectories
    section = GeneratorConfig(filter=kind, keep=0.6)
    kept = make(noise=0.05, generator=section).generate(LinearPolicy(), 200, (1,)).trajectories
    assert len(everything) == 200
    assert len(kept) == 120
    have = {row.tobytes() for row in everything.rows}
    assert all(row.tobytes() in have for row in kept.rows)
    assert kept.reward.sum(1).mean() > everything.reward.sum(1).mean()


def test_filter_counts_what_lies_behind_a_terminal():
    """The return of the filter is over all rows (section D.6): every trajectory ends at once, and yet they rank by it."""
    low = np.zeros((50, S), dtype=np.float32)  # Hopper's height 0: fallen
    low[:, 2:] = np.random.default_rng(0).normal(0, 0.4, (50, S - 2))
    arguments = {"environment": "Hopper-v4", "noise": 1e-3, "starts": low}
    section = GeneratorConfig(filter="hardmax", keep=0.5)
    kept = make(**arguments, generator=section).generate(LinearPolicy(), 100, (1,)).trajectories
    whole = make(noise=1e-3, starts=low).generate(LinearPolicy(), 100, (1,)).trajectories
    assert (kept.valid().sum(1) == 1).all()
    assert len(kept) == 50
    returns = whole.reward[:, :-1].sum(1)
    best = {row.tobytes() for row in whole.rows[returns >= np.quantile(returns, 0.5)][:, 0, : S + A]}
    assert {row.tobytes() for row in kept.rows[:, 0, : S + A]} == best


def test_trajectories_that_ran_out_of_bounds_rank_last():
    starts = starts_of()
    starts[0] = np.nan
    section = GeneratorConfig(filter="hardmax", keep=0.9)
    kept = make(starts=starts, generator=section).generate(LinearPolicy(), 200, (1,)).trajectories
    assert 180 <= len(kept) <= 200
    plain = make(starts=starts).generate(LinearPolicy(), 200, (1,)).trajectories
    assert 0 < np.isnan(plain.rows).any((1, 2)).sum() < 20
    assert len(kept) == 180
    assert not np.isnan(kept.rows).any()


def test_d5_nothing_lies_behind_the_first_terminal():
    """Hopper's own termination on the states of the linear system: its height decays below 0.7."""
    starts = np.zeros((50, S), dtype=np.float32)
    starts[:, 0] = np.linspace(0.8, 3.0, 50)
    trajectories = make("Hopper-v4", noise=1e-3, starts=starts).generate(LinearPolicy(), 300, (1,)).trajectories
    steps, valid = trajectories.transitions(), trajectories.valid()
    healthy = (steps.next_observation[:, 0] > 0.7) & (np.abs(steps.next_observation[:, 1]) < 0.2)
    np.testing.assert_array_equal(steps.terminal, (~healthy).astype(np.float32))
    lengths = valid.sum(1)
    assert len(set(lengths)) > 2  # some end early, some later
    for row, count in zip(trajectories.rows, lengths, strict=True):
        terminal = row[:-1, -1]
        assert terminal[:count].sum() <= 1
        if count < L - 1:
            assert terminal[count - 1] == 1  # the last one stored
            assert (row[count:, STATES] == row[count, STATES]).all()
            assert not row[count:, S:-1].any()
    # The same without terminations: nothing else has changed before the first terminal.
    whole = make(noise=1e-3, starts=starts).generate(LinearPolicy(), 300, (1,)).trajectories
    assert not whole.terminal.any()
    np.testing.assert_array_equal(whole.rows[:, :-1, :-1][valid], trajectories.rows[:, :-1, :-1][valid])


def test_stop_at_terminals_by_hand():
    states = torch.arange(8.0).view(2, 4, 1)
    actions, reward = torch.full((2, 4, 1), 0.5), torch.ones(2, 3)
    terminal = torch.tensor([[False, True, False], [False, False, False]])
    rows = stop_at_terminals(states, actions, reward, terminal)
    assert rows[0].tolist() == [[0, 0.5, 1, 0], [1, 0.5, 1, 1], [2, 0, 0, 1], [2, 0, 0, 0]]
    assert rows[1].tolist() == [[4, 0.5, 1, 0], [5, 0.5, 1, 0], [6, 0.5, 1, 0], [7, 0, 0, 0]]
    assert Trajectories(rows.numpy(), 1, 1).valid().tolist() == [[True, True, False], [True, True, True]]


class OtherPolicy(LinearPolicy):
    def distribution(self, observation):
        mean, variance = super().distribution(observation)
        return -mean, variance


def test_refinement_brings_stored_trajectories_up_to_the_policy():
    """The filter does not touch them: every parent keeps its place and its first state."""
    generator = make(dydiff=DyDiffConfig(iterations=L - 1), generator=GeneratorConfig(filter="hardmax", keep=0.5))
    stored = generator.generate(LinearPolicy(), 64, (1,)).trajectories
    before = stored.rows.copy()
    made = generator.refine(stored, OtherPolicy(), (2,))
    fresh = made.trajectories
    assert len(fresh) == len(stored) < 64
    np.testing.assert_array_equal(fresh.observation[:, 0], before[:, 0, STATES])
    np.testing.assert_array_equal(stored.rows, before)
    assert made.agreement.deviation < 1e-10
    transition, control, _ = linear_system(0.0)
    expected = fresh.observation[:, :-1] @ transition.numpy().T + fresh.action[:, :-1] @ control.numpy().T
    np.testing.assert_allclose(fresh.observation[:, 1:], expected, atol=1e-5)
    assert not fresh.rows[:, -1, S:].any()


def test_refinement_iterates_at_least_once():
    generator = make(dydiff=DyDiffConfig(iterations=0))
    stored = generator.generate(LinearPolicy(), 16, (1,)).trajectories
    made = generator.refine(stored, LinearPolicy(), (2,))
    assert made.nfe == network_calls("heun", 6)
    kept = generator.refine(stored, None, (2,))
    np.testing.assert_array_equal(kept.trajectories.action, stored.action)
    assert kept.agreement is None
    assert not np.array_equal(kept.trajectories.observation[:, 1:], stored.observation[:, 1:])


def test_other_horizons_and_other_models_are_refused():
    generator = make()
    short = Trajectories(np.zeros((4, L - 1, S + A + 2), dtype=np.float32), S, A)
    with pytest.raises(ValueError, match=f"{L - 1} rows, but the denoiser has {L}"):
        generator.refine(short, LinearPolicy(), (1,))
    with pytest.raises(ValueError, match="layout 'trajectory'"):
        make(layout="trajectory")


def everything(key=(1, 2, 3)):
    """Bytes of a generation with all that draws at random, and of its refinement."""
    generator = make_networks(generator=GeneratorConfig(filter="softmax", keep=0.5))
    assert generator.config.rollout.sample
    made = generator.generate(LinearPolicy(std=0.3), 32, key).trajectories
    return digest(made.rows), digest(generator.refine(made, LinearPolicy(std=0.3), key).trajectories.rows)


def test_same_key_same_bytes_and_no_other_source_of_randomness():
    first = everything()
    torch.manual_seed(99)
    np.random.seed(99)
    assert everything() == first
    assert len({*first, *everything((1, 2, 4)), *everything((12, 3))}) == 6


CHILD = """
import importlib.util, sys, torch
sys.path.insert(0, sys.argv[3])
torch.set_num_threads(int(sys.argv[2]))
spec = importlib.util.spec_from_file_location("dydiff_tests", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(*module.everything())
"""


def test_same_key_same_bytes_in_a_fresh_process():
    threads = str(torch.get_num_threads())
    child = subprocess.run(
        [sys.executable, "-c", CHILD, __file__, threads, SUPPORT],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert tuple(child.stdout.split()) == everything()
