from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
from minari.storage import remotes
from minari.storage.remotes.cloud_storage import CloudStorage

from raydiff.data.dataset import Dataset
from raydiff.data.minari import (
    download_minari,
    list_minari,
    load_minari,
)
from raydiff.data.minari_export import export_minari
from raydiff.errors import UserError

ID = "test/pendulum/random-v0"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")


def assert_same_rows(have: Dataset, want: Dataset) -> None:
    for name in ("observation", "action", "reward", "terminal", "timeout", "next_observation"):
        np.testing.assert_array_equal(getattr(have, name), getattr(want, name), err_msg=name, strict=True)


class FolderRemote(CloudStorage):
    """A server of datasets that is a folder; ``broken`` breaks its transfers off half-way."""

    broken = False

    def __init__(self, name: str, token: str | None) -> None:
        self.folder = Path(name)

    def list_datasets(self, prefix: str | None = None) -> list[str]:
        ids = [path.parent.parent.relative_to(self.folder).as_posix() for path in self.folder.rglob("metadata.json")]
        return [id for id in ids if id.startswith(prefix or "")]

    def get_dataset_metadata(self, dataset_id: str) -> dict:
        return json.loads((self.folder / dataset_id / "data" / "metadata.json").read_text())

    def download_dataset(self, dataset_id: str, path: Path) -> None:
        (path / dataset_id / "data").mkdir(parents=True, exist_ok=True)
        for name in ("metadata.json", "main_data.hdf5"):
            shutil.copy(self.folder / dataset_id / "data" / name, path / dataset_id / "data" / name)
            if self.broken:
                raise ConnectionError("the connection was reset")

    def list_namespaces(self) -> list[str]:
        return [
            path.parent.relative_to(self.folder).as_posix() for path in self.folder.rglob("namespace_metadata.json")
        ]

    def download_namespace_metadata(self, namespace: str, path: Path) -> None:
        shutil.copy(self.folder / namespace / "namespace_metadata.json", path / namespace)

    def upload_dataset(self, dataset_id: str) -> None:
        raise NotImplementedError

    def upload_namespace(self, namespace: str) -> None:
        raise NotImplementedError


@pytest.fixture
def remote(tmp_path: Path, pendulum: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    export_minari(pendulum, ID, root=tmp_path / "remote")
    monkeypatch.setitem(remotes._registry, "folder", lambda: FolderRemote)
    monkeypatch.setenv("MINARI_REMOTE", f"folder://{tmp_path / 'remote'}")


def test_downloads_by_minaris_own_downloader(root: Path, remote: None, pendulum: Dataset) -> None:
    assert download_minari(ID) == root / ID
    assert_same_rows(load_minari(ID), pendulum)
    assert sorted(path.name for path in root.iterdir()) == ["test"]
    assert set(minari.list_local_datasets()) == {ID}
    assert set(minari.namespace.list_local_namespaces()) == {"test", "test/pendulum"}
    written = (root / ID / "data" / "main_data.hdf5").stat().st_mtime_ns
    assert download_minari(ID) == root / ID
    assert (root / ID / "data" / "main_data.hdf5").stat().st_mtime_ns == written


def test_a_transfer_that_breaks_off_leaves_no_dataset(
    root: Path, remote: None, pendulum: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FolderRemote, "broken", True)
    with pytest.raises(UserError, match="the connection was reset"):
        download_minari(ID)
    assert list_minari() == []
    assert minari.list_local_datasets() == {}
    monkeypatch.setattr(FolderRemote, "broken", False)
    download_minari(ID)
    assert_same_rows(load_minari(ID), pendulum)


def test_a_download_that_cannot_be(root: Path, remote: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="doesn't exist in the remote"):
        download_minari("test/pendulum/random-v9")
    with pytest.raises(UserError, match="Couldn't find any version"):
        download_minari("test/none-v0")
    load = builtins.__import__

    def without_minari(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "minari":
            raise ModuleNotFoundError("No module named 'minari'")
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_minari)
    with pytest.raises(UserError, match=r"pip install 'raydiff\[minari\]'"):
        download_minari(ID)
    assert list_minari() == []
