"""Networks of action diffusion against plain layers, their dropout, and their weights in one vector."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from raydiff.agents.noise_network import NetworkSpec, NoiseNetwork

MLP_SPEC = NetworkSpec(inputs=3, condition=5, hidden=(24, 16))
RESIDUAL_SPEC = NetworkSpec(
    kind="residual",
    inputs=4,
    condition=5,
    hidden=(16, 16, 16),
    activation="swish",
    time_features="fourier",
    time_size=8,
    dropout=0.25,
    head=2,
)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(spec: NetworkSpec, seed: int = 0) -> NoiseNetwork:
    return NoiseNetwork(spec, random(seed))


def inputs(spec: NetworkSpec, batch: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(batch, spec.inputs, generator=random(1))
    t = torch.randint(1, 16, (batch,), generator=random(2)).float()
    return x, t, torch.randn(batch, spec.condition, generator=random(3))


def take(flat: Iterator[Tensor], *modules: nn.Module) -> None:
    """Fill the modules' weights, one by one, from the numbers that come next."""
    for module in modules:
        for parameter in module.parameters():
            values = [next(flat) for _ in range(parameter.numel())]
            parameter.data.copy_(torch.stack(values).view(parameter.shape))


def test_mlp_is_the_published_network() -> None:
    """Sinusoids of the time, ``Linear, Mish, Linear`` on them, then action, time and state through Mish layers."""
    net, (x, t, state) = network(MLP_SPEC), inputs(MLP_SPEC)
    rates = torch.exp(torch.arange(8) * -(math.log(10_000) / 7))
    features = torch.cat([(t[:, None] * rates).sin(), (t[:, None] * rates).cos()], 1)
    time = nn.Sequential(nn.Linear(16, 32), nn.Mish(), nn.Linear(32, 16))
    body = nn.Sequential(nn.Linear(3 + 16 + 5, 24), nn.Mish(), nn.Linear(24, 16), nn.Mish(), nn.Linear(16, 3))
    weights = iter(net.flat.detach())
    take(weights, time, body)
    assert next(weights, None) is None
    expected = body(torch.cat([x, time(features), state], 1))
    torch.testing.assert_close(net(x, t, state), expected, rtol=1e-5, atol=1e-6)

    (gradient,) = torch.autograd.grad(net(x, t, state).square().sum(), net.flat)
    plain = torch.autograd.grad(expected.square().sum(), [*time.parameters(), *body.parameters()])
    torch.testing.assert_close(gradient, torch.cat([part.flatten() for part in plain]), rtol=1e-4, atol=1e-5)


def test_residual_network_with_a_head_from_the_second_block() -> None:
    net, (x, t, state) = network(RESIDUAL_SPEC), inputs(RESIDUAL_SPEC)
    weights = iter(net.flat.detach())
    frequencies = torch.stack([next(weights) for _ in range(4)])
    angle = 2 * math.pi * t[:, None] * frequencies
    time = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16))
    first = nn.Linear(4 + 5 + 16, 16)
    blocks = [nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 64), nn.SiLU(), nn.Linear(64, 16)) for _ in range(3)]
    head = nn.Sequential(nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 1))
    last = nn.Sequential(nn.SiLU(), nn.Linear(16, 3))
    take(weights, time, first, blocks[0], blocks[1], head, blocks[2], last)
    assert next(weights, None) is None

    signal = first(torch.cat([x, state, time(torch.cat([angle.sin(), angle.cos()], 1))], 1))
    signal = signal + blocks[0](signal)
    signal = signal + blocks[1](signal)
    weight = head(signal)
    signal = signal + blocks[2](signal)
    expected = torch.cat([last(signal), weight], 1)
    torch.testing.assert_close(net(x, t, state), expected, rtol=1e-4, atol=1e-5)


def test_outputs_need_not_be_as_many_as_inputs() -> None:
    for spec in (MLP_SPEC, RESIDUAL_SPEC.model_copy(update={"head": None})):
        energy = network(spec.model_copy(update={"outputs": 1}))
        assert energy(*inputs(spec)).shape == (32, 1)


def test_size_of_self_weighted_guidance() -> None:
    """Section E.5: about 1.8 million weights with HalfCheetah's sizes."""
    spec = RESIDUAL_SPEC.model_copy(update={"inputs": 7, "condition": 17, "hidden": (256,) * 3, "time_size": 128})
    assert network(spec).flat.numel() == pytest.approx(1.8e6, rel=0.02)


@pytest.mark.parametrize("spec", [MLP_SPEC, RESIDUAL_SPEC])
def test_time_scale_multiplies_the_time(spec: NetworkSpec) -> None:
    x, t, state = inputs(spec)
    scaled = network(spec.model_copy(update={"time_scale": 1000.0}))
    torch.testing.assert_close(scaled(x, t / 1000, state), network(spec)(x, t, state), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("spec", [MLP_SPEC.model_copy(update={"dropout": 0.25}), RESIDUAL_SPEC])
def test_dropout_acts_with_its_generator_alone(spec: NetworkSpec) -> None:
    net, batch = network(spec), inputs(spec)
    with torch.no_grad():
        torch.testing.assert_close(net.train()(*batch), net.eval()(*batch), rtol=0, atol=0)
        dropped = [net(*batch, dropout=random(seed)) for seed in (4, 4, 5)]
        assert torch.equal(dropped[0], dropped[1])
        assert not torch.allclose(dropped[0], dropped[2])
        assert not torch.allclose(dropped[0], net(*batch))
        never = network(spec.model_copy(update={"dropout": 0.0}))
        assert torch.equal(never(*batch, dropout=random()), never(*batch))


def test_dropout_keeps_the_mean() -> None:
    net = network(RESIDUAL_SPEC)
    signal = torch.ones(200_000)
    dropped = net._drop(signal, random())
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("spec", [MLP_SPEC, RESIDUAL_SPEC])
def test_weights_come_from_the_generator_and_nothing_else(spec: NetworkSpec) -> None:
    before = torch.get_rng_state()
    nets = [network(spec, seed) for seed in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(nets[0].flat, nets[1].flat)
    assert not torch.equal(nets[0].flat, nets[2].flat)
    assert [name for name, _ in nets[0].named_parameters()] == ["flat"]


def test_weights_are_drawn_like_those_of_linear_layers() -> None:
    net = network(MLP_SPEC.model_copy(update={"hidden": (100,)}))
    first = net.flat.detach()[16 * 32 + 32 + 32 * 16 + 16 :][: 24 * 100]
    bound = 1 / math.sqrt(24)
    assert first.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert first.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)


def test_copies_are_separate_and_fixed() -> None:
    net, batch = network(MLP_SPEC), inputs(MLP_SPEC)
    copy = net.copy()
    assert torch.equal(copy(*batch), net(*batch))
    assert not copy.flat.requires_grad
    copy.load(copy.flat + 1)
    assert not torch.allclose(copy(*batch), net(*batch))
    assert torch.equal(net.flat, network(MLP_SPEC).flat)


@pytest.mark.parametrize("spec", [MLP_SPEC, RESIDUAL_SPEC.model_copy(update={"dropout": 0.0})])
def test_several_networks_run_as_one(spec: NetworkSpec) -> None:
    nets, batch = [network(spec, seed) for seed in range(3)], inputs(spec)
    stacked = torch.stack([net.flat.detach() for net in nets])
    found = torch.func.vmap(lambda flat: torch.func.functional_call(nets[0], {"flat": flat}, batch))(stacked)
    for net, output in zip(nets, found, strict=True):
        torch.testing.assert_close(output, net(*batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": ()}, "at least one hidden layer"),
        ({"time_size": 7}, "7 is odd"),
        ({"kind": "residual", "hidden": (16, 8)}, "one width"),
        ({"head": 2}, "head behind block 2"),
        ({"kind": "residual", "hidden": (8, 8), "head": 3}, "head behind block 3"),
    ],
)
def test_impossible_networks_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(MLP_SPEC.model_copy(update=change))


def test_gradients_of_the_head_alone_end_at_its_block() -> None:
    """The outputs stay the same, the head's gradient too, and what lies behind its block gets none."""
    net, (x, t, state) = network(RESIDUAL_SPEC), inputs(RESIDUAL_SPEC)
    outputs, gradients = [], []
    for alone in (False, True):
        leaf = x.clone().requires_grad_()
        output = net(leaf, t, state, head_alone=alone)
        outputs.append(output)
        (own,) = torch.autograd.grad(output[:, -1].sum(), leaf, retain_graph=True)
        (rest,) = torch.autograd.grad(output[:, :-1].sum(), leaf)
        gradients.append((own, rest))
    assert torch.equal(*outputs)
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert gradients[0][1].abs().max() > 0
    assert not gradients[1][1].any()
