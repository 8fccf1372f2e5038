from __future__ import annotations

import numpy as np
import pytest
import torch

from raydiff.replay.mixture import Mixture, joint_chunk, real_rows
from raydiff.replay.table import Table
from raydiff.types import Transitions

S, A = 2, 1
REAL, SYNTHETIC = -1.0, 1.0


def constant(count: int, value: float) -> Transitions:
    full = [np.full(shape, value, np.float32) for shape in ((count, S), (count, A), count, (count, S), count)]
    return Transitions(*full)


def mixture(batch_size: int, real_fraction: float, versions: tuple[int, ...] = (0,)) -> Mixture:
    synthetic = Table(len(versions), 8, S, A)
    for slot, version in enumerate(versions):
        synthetic.write(slot, constant(8, SYNTHETIC), policy_version=version)
    return Mixture(Table.from_transitions(constant(20, REAL)), synthetic, batch_size, real_fraction)


@pytest.mark.parametrize(("batch_size", "fraction", "real"), [
    (256, 0.5, 128), (256, 0.6, 154), (256, 0.0, 0), (256, 1.0, 256), (10, 0.25, 2), (10, 0.26, 3), (7, 0.5, 4), (3, 0.4, 1),
])  # fmt: skip
def test_every_batch_has_the_exact_share_of_real_rows(batch_size: int, fraction: float, real: int) -> None:
    assert real_rows(batch_size, fraction) == real
    batches, _ = mixture(batch_size, fraction).chunk(5, 0, torch.Generator().manual_seed(0))
    drawn = list(batches)
    assert len(drawn) == 5
    for batch in drawn:
        assert batch.observation.shape == (batch_size, S)
        assert batch.action.shape == (batch_size, A)
        assert batch.next_action is None
        for part in batch[:5]:
            flat = part.reshape(batch_size, -1)
            assert int((flat == REAL).all(1).sum()) == real
            assert int((flat == SYNTHETIC).all(1).sum()) == batch_size - real


def test_without_a_synthetic_table_every_row_is_real() -> None:
    only = Mixture(Table.from_transitions(constant(20, REAL)), None, 16, real_fraction=0.25)
    batches, lag = only.chunk(3, 100, torch.Generator().manual_seed(0))
    assert [int((batch.reward == REAL).sum()) for batch in batches] == [16, 16, 16]
    assert lag is None


@pytest.mark.parametrize("versions", [(), (0, 90)])
def test_while_synthetic_rows_are_too_few_every_row_is_real(versions: tuple[int, ...]) -> None:
    """Whether the synthetic table is still empty or not: the caller decides when it holds enough."""
    source = mixture(16, 0.25, versions or (0,))
    if not versions:
        source = Mixture(source.real, Table(1, 8, S, A), 16, 0.25)
        with pytest.raises(ValueError, match="empty"):
            source.chunk(1, 0, torch.Generator().manual_seed(0))
    batches, lag = source.chunk(3, 100, torch.Generator().manual_seed(0), real_only=True)
    assert [int((batch.reward == REAL).sum()) for batch in batches] == [16, 16, 16]
    assert lag is None


def test_lag_of_one_version_counts_up_to_each_update() -> None:
    _, lag = mixture(8, 0.5, versions=(30,)).chunk(5, 100, torch.Generator().manual_seed(0))
    assert lag is not None
    assert lag.mean == pytest.approx(72.0)  # updates 100 to 104, on average 102
    assert lag.max == 74


def test_lag_is_that_of_the_sampled_rows() -> None:
    _, lag = mixture(4_096, 0.0, versions=(0, 90)).chunk(1, 100, torch.Generator().manual_seed(0))
    assert lag is not None
    assert lag.max == 100
    assert lag.mean == pytest.approx(55.0, abs=5 * 45 / 4_096**0.5)


def test_all_real_batches_have_no_lag() -> None:
    _, lag = mixture(8, 1.0).chunk(2, 100, torch.Generator().manual_seed(0))
    assert lag is None


def test_the_generator_fixes_the_draws() -> None:
    source = mixture(8, 0.5)
    source.real.records[:, 0] = torch.arange(20.0)
    first, second = (
        torch.cat([batch.observation for batch in source.chunk(3, 0, torch.Generator().manual_seed(5))[0]])
        for _ in range(2)
    )
    assert torch.equal(first, second)


def seeded(*values: float) -> list[Mixture]:
    """Mixtures on one real table, each with synthetic rows of its own value and version."""
    real = Table.from_transitions(constant(20, REAL))
    real.records[:, 0] = torch.arange(20.0)
    found = []
    for value in values:
        synthetic = Table(2, 8, S, A)
        for slot in range(2):
            synthetic.write(slot, constant(8, value + slot), policy_version=int(10 * value) + slot)
        found.append(Mixture(real, synthetic, 8, 0.5))
    return found


@pytest.mark.parametrize("real_only", [False, True])
@pytest.mark.parametrize("front", [None, (1, 2)])
def test_each_seed_draws_what_it_would_draw_alone(front: tuple[int, int] | None, real_only: bool) -> None:
    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]

    mixtures, joint, apart = seeded(1.0, 2.0, 3.0), generators(), generators()
    for first_update in (0, 4):  # the generators go on from where they were
        drawn, lags = joint_chunk(mixtures, 4, first_update, joint, front, real_only)
        batches = list(drawn)
        assert [tuple(field.shape) for field in batches[0][:5]] == [(3, 8, S), (3, 8, A), (3, 8), (3, 8, S), (3, 8)]
        for seed, (mixture, generator) in enumerate(zip(mixtures, apart, strict=True)):
            own, lag = mixture.chunk(4, first_update, generator, front, real_only)
            assert lags[seed] == lag
            for ours, theirs in zip(batches, own, strict=True):
                assert all(torch.equal(a[seed], b) for a, b in zip(ours[:5], theirs[:5], strict=True))
    assert len({lag.mean for lag in lags if lag is not None}) == (0 if real_only else 3)


def test_a_single_seed_has_no_axis_of_its_own() -> None:
    drawn, (lag,) = joint_chunk(seeded(1.0), 2, 0, [torch.Generator().manual_seed(0)])
    assert [batch.observation.shape for batch in drawn] == [(8, S)] * 2
    assert lag is not None
