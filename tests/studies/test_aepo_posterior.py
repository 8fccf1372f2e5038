"""The study of AEPO's posterior: its errors where they are known, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from raydiff.agents.posterior import POINTS, Posterior, PosteriorTable
from raydiff.cli_study import study as command
from raydiff.studies.aepo_fits import (
    VP_SCHEDULE,
    Grid,
    Options,
    acted,
    closed_form,
    count,
    distance,
    energy_network,
    exact_network,
    printed,
    trained_network,
)
from raydiff.studies.aepo_posterior import KINDS, POSTERIOR, compute, draw
from raydiff.studies.aepo_toy import TOYS, Toy
from raydiff.studies.computed import gather, read_options

ONE, TWO = Toy(TOYS["one-mode"], 2.0), Toy(TOYS["two-modes"], 2.0)
TIMES = PosteriorTable(VP_SCHEDULE, 1).times
TINY: Options = read_options(POSTERIOR, "tiny", [])


def exact_posterior(toy: Toy) -> Posterior:
    variances = torch.tensor([toy.variance(VP_SCHEDULE, float(t)) for t in TIMES])
    return Posterior(variances, torch.ones(POINTS), torch.tensor([toy.behaviour.mean]))


def test_exact_energy_and_guidance_have_no_error_and_none_has_all_of_it() -> None:
    grid = Grid(TWO, TIMES, 101)
    exact = TWO.energy(grid.x, grid.alpha, grid.sigma)
    assert grid.energy_error(exact + 7).max() < 1e-4, "a constant is no error"
    assert grid.guidance_error(TWO.guidance(grid.x, grid.alpha, grid.sigma)).max() == 0
    assert grid.energy_error(2 * exact).mean() == pytest.approx(float(grid.energy_error(0 * exact).mean()), rel=1e-4)
    assert grid.energy_error(0 * exact).mean() > 0.1
    torch.testing.assert_close(grid.share.sum(1), torch.ones(POINTS))


def test_the_closed_form_with_an_exact_network_has_the_error_of_its_expansion() -> None:
    """Of a Gaussian behaviour: ``beta r^2 / 2`` times the difference of ``1 - beta V`` and ``1 / (1 + beta V)``."""
    times = torch.tensor([0.3])
    grid, predict = Grid(ONE, times, 401), exact_network(ONE)
    guided = closed_form(predict, exact_posterior(ONE), ONE)
    energy, _ = grid.errors(predict, exact_posterior(ONE), guided)
    alpha, sigma = VP_SCHEDULE.levels(times)
    variance = 0.25 * sigma**2 / (alpha**2 * 0.25 + sigma**2)
    mu = (grid.x - grid.sigma[:, None] * predict(grid.x, grid.t)) / grid.alpha[:, None]
    wrong = -((mu[:, 0] - 1) ** 2) * ((1 - 2 * variance) - 1 / (1 + 2 * variance))
    share = grid.share[0]
    expected = ((share * wrong**2).sum() - (share * wrong).sum() ** 2).sqrt()
    assert float(energy[0]) == pytest.approx(float(expected), rel=0.02)


def test_the_closed_form_acts_as_section_f3_says() -> None:
    """Mean .507 and deviation .412 where .533 and .408 are right."""
    options = Options(steps=100)
    action = acted(closed_form(exact_network(ONE), exact_posterior(ONE), ONE), ONE, options)
    assert (float(action.mean()), float(action.std())) == (
        pytest.approx(0.507, abs=0.01),
        pytest.approx(0.412, abs=0.01),
    )
    assert distance(action, ONE) == pytest.approx(0.0265, abs=0.01)
    plain = acted(exact_network(ONE), ONE, options)
    assert distance(plain, ONE) > 0.2
    exact = acted(lambda x, t: ONE.policy.noise(x, *VP_SCHEDULE.levels(t)), ONE, options)
    assert distance(exact, ONE) < 0.005


def test_equation_22_as_printed_is_far_off_at_late_times_only() -> None:
    table = count(exact_network(ONE), ONE, 4096, 0)
    assert table.count == 4096
    truth = exact_posterior(ONE).variances
    off = (printed(table) - truth).abs()
    assert off[-16:].max() > 10
    assert off[:16].max() < 0.1
    assert (table.posterior("posterior_1").variances - truth).abs().max() < 0.3


def test_networks_learn() -> None:
    """The noise network comes near the exact one where data are dense; the energy network guides to the better side."""
    options = Options(width=32, updates=(300,), energy_updates=300, steps=15, actions=256)
    told: list[tuple[int, int]] = []
    predict = trained_network(ONE, options, 300, 0, lambda *at: told.append(at))
    assert told == [(0, 300), (100, 300), (200, 300)]
    x, t = torch.linspace(-0.5, 1.0, 64)[:, None], torch.full((64,), 0.3)
    with torch.no_grad():
        assert (predict(x, t) - exact_network(ONE)(x, t)).abs().max() < 0.15
    guided = energy_network(exact_network(ONE), exact_posterior(ONE), ONE, options, 0)
    action = acted(guided, ONE, options)
    assert 0.4 < float(action.mean()) < 0.6


def test_the_same_seed_computes_the_same() -> None:
    first, second = (compute(TINY, "one-mode", 3, lambda *_: None) for _ in range(2))
    assert first.lines == second.lines
    assert all(np.array_equal(first.arrays[name], second.arrays[name]) for name in first.arrays)
    other = compute(TINY, "one-mode", 4, lambda *_: None)
    assert first.lines != other.lines
    assert first.arrays["energy"].shape == (1 + len(TINY.updates), len(KINDS), POINTS)
    figure = draw(gather(POSTERIOR, [first]), [replace(first, settings=TINY.model_dump())])
    assert figure is not None
    assert len(figure.axes) == 4


def test_the_command(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    arguments = ["aepo-posterior", "scale=tiny", "--seeds", "2", "--only", "two-modes", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    folder = tmp_path / "aepo-posterior"
    assert {path.name for path in folder.iterdir()} == {"table.md", "results.json", "figure.png", "two-modes"}
    conditions = json.loads((folder / "results.json").read_text())["conditions"]
    groups = list(dict.fromkeys(one["group"] for one in conditions))
    assert groups == [f"two modes, {name}" for name in ("known", "exact network", "20 updates", "60 updates")]
    lines = {one["name"]: one["means"] for one in conditions}
    assert lines["two-modes exact"]["law"]["value"] < lines["two-modes none"]["law"]["value"]
    assert set(lines["two-modes 20 updates printed"]) == {"variance"}
    assert lines["two-modes exact network exact variance"]["variance"]["value"] == 0
