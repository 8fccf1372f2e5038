from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydiff.errors import UserError
from raydiff.replay.limiter import SampleLimiter


def test_limits_that_would_stall_are_refused() -> None:
    with pytest.raises(UserError) as error:
        SampleLimiter(samples_per_insert=4.0, ahead=64, behind=32, chunk_samples=100, where="main")
    text = str(error.value)
    assert text.startswith("main: these limits would stall the run: generation stops once it leads by 64 samples")
    assert "the learner needs a lead of 68 to draw its next 100" in text
    for key in ("replay.ahead", "replay.behind", "generator.batch", "learner.chunk"):
        assert key in text


def test_limits_that_just_suffice_are_accepted() -> None:
    limiter = SampleLimiter(4.0, ahead=64, behind=36, chunk_samples=100)
    assert limiter.achieved is None
    assert limiter.lead == 0


def test_inserts_in_flight_count_as_done() -> None:
    limiter = SampleLimiter(2.0, ahead=20, behind=0, chunk_samples=20)
    assert limiter.may_insert()
    limiter.inserting = 10
    assert not limiter.may_insert()
    assert not limiter.may_sample(20)  # nothing has landed
    assert "generation leads by 0 samples, 10 transitions are on their way" in limiter.why_not_insert()
    assert "replay.ahead allows 20" in limiter.why_not_insert()
    limiter.inserting, limiter.inserted = 0, 10
    assert limiter.may_sample(20)
    assert not limiter.may_sample(21)
    limiter.sampled = 20
    assert limiter.may_insert()
    assert limiter.achieved == 2.0
    assert limiter.why_not_sample(5) == (
        "the next 5 samples need more inserts: 10 transitions inserted allow 20 at 2 per insert, and 20 are drawn"
    )


def test_sampling_may_run_behind() -> None:
    limiter = SampleLimiter(1.0, ahead=1, behind=7, chunk_samples=7)
    assert limiter.may_sample(7)
    limiter.sampled = 7
    assert not limiter.may_sample(1)
    assert limiter.lead == -7


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    ratio=st.floats(0.05, 50),
    ahead=st.floats(0.1, 200),
    chunk=st.integers(1, 300),
    block=st.integers(1, 100),
    order=st.randoms(use_true_random=False),
)
def test_ratio_is_achieved_without_ever_blocking_both_sides(
    ratio: float, ahead: float, chunk: int, block: int, order: object
) -> None:
    behind = max(0.0, chunk - ahead)
    behind = behind if ahead + behind >= chunk else behind + 1e-6
    limiter = SampleLimiter(ratio, ahead, behind, chunk)
    for _ in range(400):
        moves = [name for name, may in (("insert", limiter.may_insert()), ("sample", limiter.may_sample(chunk))) if may]
        assert moves
        if order.choice(moves) == "insert":
            limiter.inserted += block
        else:
            limiter.sampled += chunk
        assert limiter.sampled <= ratio * limiter.inserted + behind + 1e-6
        assert limiter.lead < ahead + block * ratio + 1e-6
    allowance = max(behind, ahead + block * ratio)
    if limiter.inserted:
        assert limiter.achieved == pytest.approx(ratio, abs=allowance / limiter.inserted + 1e-9)
