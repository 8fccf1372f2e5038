"""Files that appear whole or not at all."""

import os
from pathlib import Path

import pytest

from raydiff.files import probe_folder, whole_file


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "figures.txt"
    with whole_file(path) as part:
        part.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["figures.txt"]


def test_a_failure_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "figures.txt"
    path.write_text("earlier")
    with pytest.raises(FileNotFoundError), whole_file(path) as part:
        part.rename(tmp_path / "lost")
    (tmp_path / "lost").unlink()
    assert path.read_text() == "earlier"
    assert os.listdir(tmp_path) == ["figures.txt"]


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        probe_folder(tmp_path / "file" / "folder")
    with pytest.raises(OSError), whole_file(tmp_path / "file" / "figures.txt"):
        pytest.fail("no file can be made under a file")
    probe_folder(tmp_path / "folder")
    assert os.listdir(tmp_path / "folder") == []
