"""Self-weighted guidance with trained networks: the toy of eight Gaussians (test E6), and a bandit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from raydiff.agents.action_guidance import weight_guide
from raydiff.agents.networks import Adam
from raydiff.agents.noise_network import NetworkSpec, NoiseNetwork
from raydiff.agents.policy import Policy
from raydiff.agents.rates import cosine
from raydiff.agents.registry import build_agent
from raydiff.agents.swg import SWG
from raydiff.config_learner import LearnerConfig, SWGConfig
from raydiff.diffusion.vp import VP, noise_loss, sample
from raydiff.types import Batch, PolicyBlob

CENTRES = 0.7 * torch.stack([(torch.arange(8) * math.pi / 4).cos(), (torch.arange(8) * math.pi / 4).sin()], 1)
ENERGY = torch.arange(8) / 7


def toy_network(vp: VP, betas: Tensor) -> NoiseNetwork:
    """The average of a network that learnt pairs of a point, of eight Gaussians of deviation 0.05 on a circle, and its
    weight ``exp(-beta E)``, given ``beta``; one of the ``betas`` in each row."""
    generator, updates, rows, rate = torch.Generator().manual_seed(1), 20_000, 32, 2e-3
    spec = NetworkSpec(inputs=3, condition=1, hidden=(128, 128, 128), activation="swish")
    network = NoiseNetwork(spec, generator)
    average, optimizer = network.copy(), Adam([network.flat], rate)
    mode, row = (torch.randint(count, (updates * rows,), generator=generator) for count in (8, len(betas)))
    beta = betas[row][:, None]
    action = CENTRES[mode] + 0.05 * torch.randn(updates * rows, 2, generator=generator)
    pairs = torch.cat([action, (-beta * ENERGY[mode][:, None]).exp()], 1)
    for step, (pair, given) in enumerate(zip(pairs.split(rows), (beta / 5).split(rows), strict=True)):
        optimizer.learning_rate = cosine(rate, step / updates)
        optimizer.minimize(noise_loss(lambda x, t, s=given: network(x, t, s), pair, vp, generator).mean())
        with torch.no_grad():
            average.flat.lerp_(network.flat, max(1e-3, 9 / (10 + step)))
    return average


def test_trained_toy() -> None:
    """Test E6: after 20,000 updates the total variation between the shares of the modes and their true weights is below
    0.1, for two betas; without guidance the shares stay even."""
    vp, betas, count = VP("discrete", 50), torch.tensor([1.0, 3.0]), 3000
    network = toy_network(vp, betas)
    for index, beta in enumerate(betas):
        target = (-beta * ENERGY).softmax(0)
        given = torch.full((count, 1), beta.item() / 5)
        found = {}
        for scale in (0.0, 1.0):
            generator = torch.Generator().manual_seed(index)
            guided = weight_guide(lambda x, t, s=given: network(x, t, s), vp, scale, (-beta).exp().item() / 2)
            pair = sample(guided, torch.randn(count, 3, generator=generator), vp, "ddpm", 50, generator=generator)
            distance = torch.cdist(pair[:, :2], CENTRES)
            assert distance.amin(1).median() < 0.15
            found[scale] = distance.argmin(1).bincount(minlength=8) / count
        assert (found[1.0] - target).abs().sum() / 2 < 0.1
        assert (found[0.0] - 1 / 8).abs().sum() / 2 < 0.1
        assert (found[0.0] - target).abs().sum() / 2 > 0.1


def test_learner_on_a_bandit() -> None:
    """From rewards to actions: the better of two modes has the share of its weight, half without guidance, and all of
    it on the mean path, which from zero, between the two, would lead to neither were there no guidance."""
    options = SWGConfig(width=32, blocks=2, dropout=0.0, critic_share=0.3, guidance_scale=1.0, ema=1e-2)
    config = LearnerConfig(algorithm="swg", updates=1600, hidden=(32,), learning_rate=2e-3, swg=options)
    learner = build_agent(config, 1, 1, torch.zeros(1), torch.ones(1), 0)
    assert isinstance(learner, SWG)
    generator, state = torch.Generator().manual_seed(0), torch.zeros(128, 1)
    for _ in range(1600):
        good = torch.rand(128, generator=generator) < 0.5
        action = torch.where(good, 0.6, -0.6) + 0.05 * torch.randn(128, generator=generator)
        learner.update(Batch(state, action[:, None], good.float(), state, torch.ones(128)))
    bad, best = learner.weight(torch.zeros(2, 1), torch.tensor([[-0.6], [0.6]])).tolist()
    assert (bad, best) == pytest.approx((0.3 + 0.4 / (1 + math.exp(2.1)), 0.3 + 0.4 / (1 + math.exp(-0.9))), abs=0.03)

    share, path = {}, {}
    for scale in (0.0, 1.0, 10.0):
        blob = learner.policy_blob(0)
        policy = Policy.from_blob(PolicyBlob.pack(0, blob.spec | {"guidance_scale": scale}, blob.weights))
        drawn = policy.act(torch.zeros(2000, 1), deterministic=False)
        share[scale], path[scale] = float((drawn > 0).mean()), policy.act(torch.zeros(1, 1)).item()
    assert share[0.0] == pytest.approx(0.5, abs=0.05)
    assert share[1.0] == pytest.approx(best / (bad + best), abs=0.05)
    assert share[10.0] > 0.9
    assert path[1.0] == pytest.approx(0.6, abs=0.06)
    assert path[10.0] == pytest.approx(0.6, abs=0.06)
    assert abs(path[0.0] - 0.6) > 0.1
