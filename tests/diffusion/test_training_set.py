"""What each method's denoiser learns from: layouts, their round trip (A6), resumption and the cache's key."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from raydiff.config import Config, DenoiserConfig, NetworkConfig
from raydiff.data.dataset import Dataset
from raydiff.data.windows import make_windows
from raydiff.diffusion.bundle import DenoiserBundle
from raydiff.diffusion.pretrain import denoiser_key, load_or_pretrain, pretrain
from raydiff.diffusion.trainer import DenoiserTrainer
from raydiff.diffusion.training_set import layout_of, training_windows
from raydiff.errors import UserError

S, A, L = 3, 2, 4
METHODS = {"pgd": "trajectory", "synther": "transition", "dydiff": "conditional"}
COLUMNS = {"pgd": S + A + 2, "synther": 2 * S + A + 2, "dydiff": S + A}


def dataset(stored=True):
    """Eighty episodes of 3 to 24 rows, every other one ending in a terminal; the third coordinate is constant."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 25, 80)
    count, ends = int(lengths.sum()), np.cumsum(lengths) - 1
    observation = rng.normal(size=(count, S)).astype(np.float32)
    observation[:, 2] = 0.7
    following = (observation * 0.9).astype(np.float32)
    following[:, 2] = 0.7
    terminal, timeout = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    terminal[ends[::2]], timeout[ends[1::2]] = True, True
    return Dataset(
        observation=observation,
        action=rng.uniform(-1, 1, (count, A)).astype(np.float32),
        reward=rng.normal(2, 0.5, count).astype(np.float32),
        terminal=terminal,
        timeout=timeout,
        next_observation=following if stored else None,
        name="toy",
        path="toy.hdf5",
    )


def config(method, **changes):
    section = dict(network=NetworkConfig(width=16, depth=1), length=L, steps=20, batch_size=16, checkpoint_every=8)
    return Config(generator={"method": method}, denoiser=DenoiserConfig(**(section | changes)))


def same(a, b):
    first, second = a.to_arrays()[0], b.to_arrays()[0]
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", METHODS)
def test_a6_round_trip_of_each_layout(method, tmp_path):
    settings, data = config(method), dataset()
    windows = training_windows(settings, data)
    assert windows.layout == layout_of(settings) == METHODS[method]
    bundle = pretrain(windows, settings.denoiser, dataset_hash="d", folder=tmp_path)
    assert bundle.layout == METHODS[method]
    assert bundle.columns == windows.rows.shape[1] == COLUMNS[method]
    assert bundle.length == (1 if method == "synther" else L)
    batch = torch.from_numpy(windows.gather(windows.train))
    decoded = bundle.normalizer.decode(bundle.normalizer.encode(batch))
    torch.testing.assert_close(decoded, batch, rtol=0, atol=2e-6)
    assert float(bundle.normalizer.std[2]) == 1.0, "a column without spread"
    assert bundle.denoiser.sigma_data == (0.5 if method == "dydiff" else 1.0)
    if method != "dydiff":
        terminal = S + A + 1
        assert torch.equal(decoded[..., terminal], batch[..., terminal])
        assert set(decoded[..., terminal].unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("method", METHODS)
def test_bundles_of_each_layout_travel(method, tmp_path):
    settings = config(method)
    bundle = pretrain(training_windows(settings, dataset()), settings.denoiser, dataset_hash="d", folder=tmp_path)
    arrays, spec = bundle.to_arrays()
    assert not any("given" in name for name in arrays)
    x = torch.randn(5, bundle.length, bundle.columns, generator=torch.Generator().manual_seed(0))
    expected = bundle.denoiser(x, torch.ones(1))
    for other in (DenoiserBundle.from_arrays(arrays, json.loads(json.dumps(spec))), DenoiserBundle.load(tmp_path)):
        assert (other.layout, other.columns) == (bundle.layout, bundle.columns)
        assert same(other, bundle)
        assert torch.equal(other.denoiser(x, torch.ones(1)), expected)


@pytest.mark.parametrize("method", METHODS)
def test_resumed_runs_of_each_layout_are_bit_equal(method, tmp_path):
    class Crash(Exception):
        pass

    def crash(step, *_):
        if step == 13:
            raise Crash

    settings = config(method, gradient_clip=0.05).denoiser
    windows = training_windows(config(method), dataset())
    whole = pretrain(windows, settings, dataset_hash="d", folder=tmp_path / "whole")
    with pytest.raises(Crash):
        pretrain(windows, settings, dataset_hash="d", folder=tmp_path / "parts", progress=crash)
    steps = []
    resumed = pretrain(
        windows, settings, dataset_hash="d", folder=tmp_path / "parts", progress=lambda *r: steps.append(r[0])
    )
    assert steps[0] == 9
    assert same(resumed, whole)


def test_trajectories_are_the_windows_of_make_windows():
    windows, plain = training_windows(config("pgd"), dataset()), make_windows(dataset(), L, 1, 0.05, 0)
    for name in ("rows", "train", "validation"):
        np.testing.assert_array_equal(getattr(windows, name), getattr(plain, name))
    assert (windows.layout, windows.padding) == ("trajectory", None)


def test_key_knows_the_layout_and_only_the_settings_that_it_uses():
    section = config("pgd").denoiser
    keys = {layout: denoiser_key("d", section, layout) for layout in METHODS.values()}
    assert len(set(keys.values())) == 3
    unused = {
        "trajectory": [{"mask_conditions": False}, {"clean_conditions": False}],
        "transition": [{"mask_conditions": False}, {"clean_conditions": False}, {"length": 9}, {"stride": 2}],
        "conditional": [{"action_space": "atanh"}],
    }
    changes = [change for group in unused.values() for change in group]
    for layout, key in keys.items():
        for change in [*changes, {"gradient_clip": 1.0}, {"seed": 1}]:
            changed = denoiser_key("d", config("pgd", **change).denoiser, layout)
            assert (changed == key) == (change in unused[layout]), (layout, change)


def test_cache_keeps_the_methods_apart(tmp_path):
    bundles = []
    for method in METHODS:
        settings = config(method)
        windows = training_windows(settings, dataset())
        for _ in range(2):
            bundles.append(load_or_pretrain(windows, settings.denoiser, dataset_hash="d", cache=tmp_path))
        assert same(bundles[-1], bundles[-2])
        assert bundles[-1].layout == METHODS[method]
    assert len(list((tmp_path / "denoisers").iterdir())) == 3


def test_gradient_is_clipped():
    """With a limit far below the gradients' norm every step has that norm, so Adam's first moment is 0.1 of it."""
    windows = training_windows(config("synther"), dataset())
    norms = []
    for limit in (None, 1e-3):
        trainer = DenoiserTrainer(windows, config("synther", gradient_clip=limit).denoiser)
        trainer.advance()
        moments = [trainer.optimizer.state[weight]["exp_avg"].flatten() for weight in trainer.weights]
        norms.append(float(torch.cat(moments).norm()) / 0.1)
    assert norms[0] > 1e-2
    assert norms[1] == pytest.approx(1e-3, rel=1e-3)


def test_single_transitions_need_no_successive_rows_and_no_convolution():
    data = dataset()
    assert len(training_windows(config("synther", length=500), data).train) > 0
    with pytest.raises(UserError, match=r"network\.kind=mlp"):
        training_windows(config("synther", network=NetworkConfig(kind="unet")), data)
    with pytest.raises(UserError, match="Shorten"):
        training_windows(config("pgd", length=500), data)
