"""Self-weighted guidance on toys (its figure 1 and appendix E): samples of a trained network against the exact law.

As published: one network for every inverse temperature, given beyond the noisy pair and the time; cosine schedule; the
whole schedule in sampling. At a guidance scale of 1 the law has to be that of ``mu w``. For other scales there is no
closed form, and samples are held against the law of ``mu w^scale``, which they resemble but do not have (section E.2).
Clean values are held within the data's: at the schedule's last level they are 2,000 times as wrong as the prediction.
The closed-form noise prediction through the same sampler tells what of a distance is the trained network's, and exact
samples tell how far apart two sets of that size are anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from raydiff.agents.action_guidance import weight_guide
from raydiff.agents.networks import Adam
from raydiff.agents.noise_network import NetworkSpec, NoiseNetwork
from raydiff.agents.rates import cosine
from raydiff.diffusion.vp import VP, Predict, noise_loss, sample
from raydiff.figures import GREY, INK, new_figure
from raydiff.section import Section
from raydiff.seeds import key_seed
from raydiff.studies.computed import Computed, Line, Piece, Told
from raydiff.studies.findings import text
from raydiff.studies.measures import Column
from raydiff.studies.results import Results, Row
from raydiff.studies.swg_mixture import EXTENT, FAR, TOYS, Mixture, sliced_distance, total_variation

REFERENCE = 20  # times as many exact samples as compared ones
TOLD_EVERY = 100
LIMIT = 1.15 * EXTENT
DEVIATION, LEAST_DEVIATION = 0.5, 0.05


class ToyOptions(Section):
    """The defaults are published, in the paper or in its code."""

    updates: int = Field(200_000, ge=1, description="Updates of the network.")
    batch_size: int = Field(1024, ge=1, description="Pairs per update, each with a beta of its own.")
    width: int = Field(512, ge=1, description="Width of the network.")
    layers: int = Field(6, ge=1, description="Hidden layers of the network.")
    learning_rate: float = Field(1e-4, gt=0, description="Learning rate, on a cosine to zero.")
    ema: float = Field(0.005, gt=0, le=1, description="Share of the weights in the average that is sampled from.")
    weight_factor: float = Field(2.0, gt=0, description="Factor of the weight's entry in the loss.")
    weight_scale: Literal["none", "deviation"] = Field(
        "none", description="Weights as published, at most 1, or brought to deviation 0.5 for each beta."
    )
    steps: int = Field(100, ge=1, description="Diffusion steps, in training and in sampling.")
    largest_beta: float = Field(24.0, gt=0, description="The network learns inverse temperatures from 0 to this.")
    betas: tuple[float, ...] = Field((1.0, 5.0, 10.0, 15.0), min_length=1, description="Sampled at a scale of 1.")
    scales: tuple[float, ...] = Field(
        (0.0, 0.5, 2.0, 5.0), description="Other guidance scales, sampled at scales_beta."
    )
    scales_beta: float = Field(5.0, ge=0, description="The inverse temperature of these.")
    clip_denoised: bool = Field(True, description="Hold clean points and clean weights within the data's.")
    samples: int = Field(2000, ge=1, description="Samples of each law.")


def laws(options: ToyOptions) -> list[tuple[float, float]]:
    """Inverse temperatures with guidance scales."""
    return [*((beta, 1.0) for beta in options.betas), *((options.scales_beta, scale) for scale in options.scales)]


# ------------------------------------------------------------------------------------------------ computation
def compute(options: ToyOptions, part: str, seed: int, told: Told) -> Piece:
    """Train on one toy and sample every law."""
    law, vp = TOYS[part](), VP("cosine", options.steps)
    generator = torch.Generator().manual_seed(key_seed(seed, f"swg toy {part}"))
    cases = laws(options)
    total = options.updates + len(cases) * options.updates // 10  # sampling: about a tenth each
    network = _train(law, vp, options, generator, lambda done: told(done, total))
    lines, arrays = [], dict[str, np.ndarray]()
    for place, (beta, scale) in enumerate(cases):
        told(options.updates + place * options.updates // 10, total)
        unit = float(_unit(law, torch.tensor([[beta]]), options))
        given = torch.full((options.samples, 1), beta / options.largest_beta)

        def predict(x: Tensor, t: Tensor, given: Tensor = given) -> Tensor:
            return network(x, t, given)

        learnt = _sampled(predict, law, vp, beta, scale, options, generator)
        perfect = _sampled(law.predict(beta, vp, unit), law, vp, beta, scale, options, generator)
        exact = law.draw(options.samples, generator, beta, scale)[0]
        reference = law.draw(REFERENCE * options.samples, generator, beta, scale)[0]
        name = f"beta-{beta:g}-scale-{scale:g}"
        sets = {"": learnt, "_perfect": perfect, "_exact": exact}
        shares = law.shares(beta, scale)
        values: dict[str, float] = {}
        for suffix, points in sets.items():
            values[f"variation{suffix}"] = total_variation(law, points, shares)
            values[f"distance{suffix}"] = sliced_distance(points, reference)
        values["outside"] = float((law.nearest(learnt)[1] > FAR).float().mean())
        lines.append(Line(f"{part}-{name}", f"beta {beta:g}, scale {scale:g}", part, values))
        arrays |= {f"{name}{suffix}": points.numpy().astype(np.float32) for suffix, points in sets.items()}
    return Piece(part, seed, lines, arrays)


def _train(
    law: Mixture, vp: VP, options: ToyOptions, generator: torch.Generator, told: Callable[[int], None]
) -> NoiseNetwork:
    """The average of a network that learnt pairs of a point and its weight (equation 17), given beta."""
    spec = NetworkSpec(inputs=3, condition=1, hidden=(options.width,) * options.layers, activation="gelu", time_size=32)
    network = NoiseNetwork(spec, generator)
    average, optimizer = network.copy(), Adam([network.flat], options.learning_rate)
    factors = torch.tensor([1.0, 1.0, options.weight_factor])
    for step in range(options.updates):
        point, which = law.draw(options.batch_size, generator)
        beta = options.largest_beta * torch.rand(options.batch_size, 1, generator=generator)
        weight = (beta * (law.energies[which, None] - 1)).exp()
        pair = torch.cat([point, weight * _unit(law, beta, options)], 1)

        def predict(x: Tensor, t: Tensor, given: Tensor = beta / options.largest_beta) -> Tensor:
            return network(x, t, given)

        optimizer.learning_rate = cosine(options.learning_rate, step / options.updates)
        optimizer.minimize((noise_loss(predict, pair, vp, generator) * factors).mean())
        with torch.no_grad():
            average.flat.lerp_(network.flat, max(options.ema, 9 / (10 + step)))
        if step % TOLD_EVERY == 0:
            told(step)
    return average


def _unit(law: Mixture, beta: Tensor, options: ToyOptions) -> Tensor:
    """What weights are multiplied with at ``beta [B, 1]``: one or ``[B, 1]``. It changes no law (section E.4)."""
    if options.weight_scale == "none":
        return torch.ones(1, 1)
    weights = (beta * (law.energies - 1)).exp()
    return DEVIATION / weights.std(1, correction=0, keepdim=True).clamp_min(LEAST_DEVIATION)


def _sampled(
    predict: Predict, law: Mixture, vp: VP, beta: float, scale: float, options: ToyOptions, generator: torch.Generator
) -> Tensor:
    """Points ``[n, 2]`` by the stochastic sampler over the whole schedule."""
    weights = law.weights(beta) * float(_unit(law, torch.tensor([[beta]]), options))
    low, high = float(weights.min()), float(weights.max())
    guided = weight_guide(predict, vp, scale, low / 2)

    def clip(x: Tensor) -> Tensor:
        return torch.cat([x[:, :2].clamp(-EXTENT, EXTENT), x[:, 2:].clamp(low, high)], 1)

    start = torch.randn(options.samples, 3, generator=generator)
    return sample(
        guided, start, vp, "ddpm", options.steps, clip=clip if options.clip_denoised else None, generator=generator
    )[:, :2]


# ------------------------------------------------------------------------------------------------ findings and figure
def findings(results: Results) -> list[str]:
    """Per toy how far the trained and the perfect network are from the exact law, at a scale of 1 and at others."""
    lines = []
    for toy in dict.fromkeys(row.group for row in results.rows):
        for is_one, where in ((True, "At a guidance scale of 1"), (False, "At other scales, against mu w^scale")):
            rows = [row for row in results.group(toy) if row.label.endswith("scale 1") == is_one]
            if rows:
                parts = [
                    f"{name} {_span(rows, key)}"
                    for name, key in (
                        ("the trained network", "variation"),
                        ("the perfect one", "variation_perfect"),
                        ("exact samples", "variation_exact"),
                    )
                ]
                lines.append(f"{toy}. {where}, total variation from the exact shares: {'; '.join(parts)}.")
    return lines


def _span(rows: Sequence[Row], measure: str) -> str:
    """The smallest and the largest mean."""
    found = [estimate for row in rows if (estimate := row.estimate(measure)) is not None]
    low, high = (choose(found, key=lambda e: e.value) for choose in (min, max))
    return text(low, 3).partition(" ")[0] + (f" to {text(high, 3).partition(' ')[0]}" if len(found) > 1 else "")


def draw(results: Results, pieces: Sequence[Piece]) -> Figure | None:
    """Of each toy, for the first seed, exact samples above those of the trained network, in a column for each law."""
    first = list({piece.part: piece for piece in reversed(pieces)}.values())[::-1]
    columns = max((len(piece.lines) for piece in first), default=0)
    if not columns:
        return None
    figure = new_figure(1.55 * columns + 0.5, 3.3 * len(first))
    for (toy, kind, place), line, points in _panels(first):
        row = 2 * toy + (kind != "exact")
        axes = figure.add_subplot(2 * len(first), columns, row * columns + place + 1)
        axes.scatter(points[:, 0], points[:, 1], s=0.6, c=GREY if kind == "exact" else "#0072B2", linewidths=0)
        axes.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), xticks=[], yticks=[], aspect="equal")
        axes.spines[["top", "right", "left", "bottom"]].set_color("#dddddd")
        if kind == "exact":
            title = line.label.replace(", ", "\n")
            axes.set_title(title, fontsize=8, color=INK)
        if place == 0:
            axes.set_ylabel(f"{line.group}\n{kind}", fontsize=8, color=INK)
    return figure


def _panels(pieces: Sequence[Piece]) -> Iterator[tuple[tuple[int, str, int], Line, np.ndarray]]:
    for toy, piece in enumerate(pieces):
        for place, line in enumerate(piece.lines):
            name = line.name.removeprefix(f"{piece.part}-")
            for kind, suffix in (("exact", "_exact"), ("SWG", "")):
                yield (toy, kind, place), line, piece.arrays[f"{name}{suffix}"]


SMALL = {
    "updates": 6000,
    "batch_size": 256,
    "width": 128,
    "layers": 4,
    "learning_rate": 2e-3,
    "weight_scale": "deviation",
    "largest_beta": 16.0,
    "betas": (1.0, 5.0, 15.0),
    "scales": (0.0, 2.0, 5.0),
}
TINY = {**SMALL, "updates": 20, "width": 16, "steps": 5, "betas": (2.0,), "scales": (0.0,), "samples": 50}

SWG_TOY = Computed(
    "swg-toy",
    "Self-weighted guidance on toys (figure 1, appendix E): distances of its samples to the exact law.",
    ToyOptions,
    {"tiny": TINY, "small": SMALL, "paper": {}},
    lambda options: list(TOYS),
    compute,
    {
        "variation": Column("total variation of the modes", 3, False),
        "variation_perfect": Column("with a perfect network", 3, False),
        "variation_exact": Column("of exact samples", 3, None),
        "distance": Column("sliced W1", 4, False),
        "distance_perfect": Column("with a perfect network", 4, False),
        "distance_exact": Column("of exact samples", 4, None),
        "outside": Column("share outside", 4, False),
    },
    findings,
    draw,
    note=(
        "Means over seeds (of training and sampling) with Student's 95 % intervals in brackets; one seed has none. Modes "
        "are the eight Gaussians, the four rings, and tenths of the spirals' energies; their exact shares are in "
        "proportion to the data's times weight^scale. W1 is the Wasserstein distance on lines, in units of about the "
        f"data's deviation. Outside are points further than {FAR:g} deviations from the data's Gaussians."
    ),
)
