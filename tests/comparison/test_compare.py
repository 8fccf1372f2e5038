from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from raydiff.compare import report
from raydiff.errors import UserError

MakeRun = Callable[..., Path]


def page(files: list[Path]) -> str:
    """The page's text without its pictures."""
    return html.unescape(re.sub(r"base64,[A-Za-z0-9+/=]+", "", files[-1].read_text()))


def section(text: str, title: str) -> str:
    (found,) = re.findall(rf"<section id=\"[^\"]*\"><h2>{title}</h2>.*?</section>", text, re.DOTALL)
    return found


def four_runs(make_run: MakeRun) -> list[Path]:
    """Two seeds of two strengths, each with an arm on real data alone."""
    return [
        make_run(f"k{strength}-{seed}", {"guided": [1.0, strength + seed], "real_only": [2.0, 3.0 + seed]}, seed=seed,
                 guidance__strength=strength)
        for strength in (5.0, 9.0) for seed in (0, 1)
    ]  # fmt: skip


def test_four_runs_make_one_page(make_run: MakeRun, tmp_path: Path) -> None:
    files = report(four_runs(make_run), tmp_path / "out")
    names = [
        "learning_curves_d4rl.png", "final_scores_d4rl.png", "improvement_d4rl.png",
        "data_quality_HalfCheetah-v4.png", "throughput_HalfCheetah-v4.png", "timelines.png", "index.html",
    ]  # fmt: skip
    assert [path.name for path in files] == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)  # and no temporary file
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files[:-1])
    text = page(files)
    assert text.count("data:image/png;base64,") == 0
    assert not re.search(r"https?:|<script|<link|@import|url\(", text)
    pictures = re.findall(r'<img alt="([^"]*)"', text)
    assert len(pictures) == 6
    assert min(map(len, pictures)) > 30, pictures
    assert text.count('class="shows"') == 6
    for words in (
        "3 conditions on 1 task, 2 seeds (0, 1), 4 runs", "range of the 2", "guided (strength 5)",
        "5.0, 6.0", "5.5", "[5.0, 6.0]", "9.5", "[9.0, 10.0]", "3.5", "[3.0, 4.0]", "2 of 2", "One <caveat> of the run.",
        "real only of 2 runs", "never of the best one",
    ):  # fmt: skip
        assert words in text, words


def test_the_same_runs_give_the_same_page(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(name, {"real_only": [1.0, 2.0]}, seed=seed) for seed, name in enumerate("ab")]
    first, second = (report(runs, tmp_path / name)[-1].read_bytes() for name in ("one", "two"))
    assert first == second


def test_scales_never_share_a_table_or_a_figure(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [
        make_run("a", {"guided": [11.5]}),
        make_run("b", {"guided": [22.5]}, data__dataset="minari:mujoco/halfcheetah/medium-v0"),
        make_run("c", {"guided": [-33.5]}, environment="Pendulum-v1", normalized=False),
    ]
    files = report(runs, tmp_path / "out")
    text = page(files)
    own = {"D4RL-normalised scores": "11.5", "Minari data, normalised scores": "22.5", "Returns": "-33.5"}
    for title, value in own.items():
        part = section(text, title)
        assert value in part
        assert not any(other in part for other in own.values() if other != value)
        assert "Over all" not in part  # one task of each scale: nothing to aggregate
    assert {f"learning_curves_{scale}.png" for scale in ("d4rl", "minari", "raw")} <= {path.name for path in files}
    assert "different scales" in text


def test_unfinished_runs_are_drawn_as_far_as_they_go(make_run: MakeRun) -> None:
    runs = [make_run(name, {"guided": [1.0, 2.0]}, finished=False, seed=seed) for seed, name in enumerate("ab")]
    files = report(runs)
    assert files[-1] == runs[0].resolve().parent / "comparison" / "index.html"
    text = page(files)
    assert "Not finished: a, b." in text
    assert "No run has ended yet." in text
    assert "learning_curves_d4rl.png" in {path.name for path in files}
    assert "final_scores_d4rl.png" not in {path.name for path in files}


def test_one_run_gets_its_own_report_again(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", {"guided": [1.0, 2.0]}, finished=False)
    assert report([run])[-1] == run / "report" / "index.html"
    files = report([run], tmp_path / "elsewhere")
    assert {path.parent for path in files} == {tmp_path / "elsewhere"}
    assert "the run has not ended" in page(files)


def test_an_earlier_report_is_replaced_and_nothing_else(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(name, {"real_only": [1.0, 2.0]}, seed=seed) for seed, name in enumerate("ab")]
    out = tmp_path / "out"
    report([*runs, make_run("raw", {"guided": [-3.0]}, environment="Pendulum-v1", normalized=False)], out)
    (out / "notes.txt").write_text("mine")
    (out / "photo.png").write_text("mine")
    report(runs, out)
    assert not list(out.glob("*raw.png"))
    assert not list(out.glob("*Pendulum*"))
    assert (out / "notes.txt").exists()
    assert (out / "photo.png").exists()


def test_folders_that_hold_something_else_are_left_alone(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(name, {"real_only": [1.0, 2.0]}, seed=seed) for seed, name in enumerate("ab")]
    with pytest.raises(UserError, match="folder of a run"):
        report(runs, runs[0])
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("<html>mine</html>")
    with pytest.raises(UserError, match="something else than a report"):
        report(runs, site)
    with pytest.raises(UserError, match="something else than a report"):
        report(runs[:1], site)
    assert [path.name for path in site.iterdir()] == ["index.html"]
    with pytest.raises(UserError, match="is a file"):
        report(runs, site / "index.html")
    with pytest.raises(UserError, match="cannot be written"):
        report(runs, site / "index.html" / "below")
    with pytest.raises(UserError, match="No run"):
        report([])
    with pytest.raises(UserError, match="There is no"):
        report([tmp_path / "nowhere"])
    assert not (tmp_path / "nowhere").exists()


def test_a_pattern_that_catches_an_earlier_comparison(make_run: MakeRun) -> None:
    runs = four_runs(make_run)
    first = report(runs)
    assert first[-1].parent.name == "comparison"
    again = report([*runs, first[-1].parent])
    assert again == first
