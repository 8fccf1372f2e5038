from __future__ import annotations

from pathlib import Path

import pytest

from raydiff.config import Config
from raydiff.errors import UserError
from raydiff.presets import load_config
from raydiff.run_folder import check_run_folder, create_run_folder


def config(output: Path, *overrides: str) -> Config:
    return load_config(None, [f"output={output}", "name=mine", *overrides])


def old_run(folder: Path) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "guided.safetensors").write_bytes(b"old")
    (folder / "config.yaml").write_text("seed: 1\n")
    (folder / "metrics.jsonl").write_text("")


def refusal(*arguments: object) -> str:
    with pytest.raises(UserError) as error:
        create_run_folder(*arguments)
    return str(error.value)


def test_new_folder_holds_the_resolved_configuration(tmp_path: Path) -> None:
    wanted = config(tmp_path / "a" / "b", "learner.updates=77")
    folder = create_run_folder(wanted, "refuse")
    assert folder == tmp_path / "a" / "b" / "mine"
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]
    assert load_config(folder / "config.yaml") == wanted


def test_checking_changes_nothing(tmp_path: Path) -> None:
    assert check_run_folder(config(tmp_path / "a" / "b"), "refuse") == tmp_path / "a" / "b" / "mine"
    assert list(tmp_path.iterdir()) == []
    old_run(tmp_path / "mine")
    before = sorted(tmp_path.rglob("*"))
    check_run_folder(config(tmp_path), "overwrite")
    assert sorted(tmp_path.rglob("*")) == before


def test_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    create_run_folder(config(tmp_path), "refuse")
    assert (tmp_path / "mine" / "config.yaml").is_file()


def test_existing_run_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    old_run(tmp_path / "mine")
    text = refusal(config(tmp_path), "refuse")
    for part in (str(tmp_path / "mine"), "exists", "name=NAME", "--on-existing overwrite"):
        assert part in text
    assert (tmp_path / "mine" / "config.yaml").read_text() == "seed: 1\n"


def test_overwriting_leaves_nothing_of_the_old_run(tmp_path: Path) -> None:
    old_run(tmp_path / "mine")
    folder = create_run_folder(config(tmp_path, "seed=2"), "overwrite")
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]
    assert load_config(folder / "config.yaml").seed == 2


def test_folder_that_is_not_a_run_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    text = refusal(config(tmp_path), "overwrite")
    assert "is not a run of raydiff" in text
    assert "config.yaml" in text
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_file_in_place_of_the_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("a file")
    for on_existing in ("refuse", "overwrite"):
        assert str(tmp_path / "mine") in refusal(config(tmp_path), on_existing)
    assert (tmp_path / "mine").read_text() == "a file"


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file")
    text = refusal(config(tmp_path / "blocked"), "refuse")
    assert f"{tmp_path / 'blocked' / 'mine'} cannot be written" in text
    assert "output=FOLDER" in text
