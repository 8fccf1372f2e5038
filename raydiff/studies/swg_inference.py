"""How long self-weighted guidance takes for an action, by width and depth of its noise network (its figure 3, D.5).

The network is evaluated and differentiated once per diffusion step. As published: a plain network of four layers by
width, and one of a fixed width by the number of layers, with and without guidance. Beside that the residual network of
the method by its blocks, with the weight read from the last block and from the second: then the gradient passes
through two blocks however many there are. Networks are random: the time does not depend on what they have learnt.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter
from pydantic import Field

from raydiff.agents.diffusion_policy import DiffusionPolicy, DiffusionPolicySpec, pack_diffusion_policy
from raydiff.agents.noise_network import NetworkSpec, NoiseNetwork
from raydiff.diffusion.vp import Solver
from raydiff.figures import new_figure, style, thousands
from raydiff.section import Section
from raydiff.seeds import key_seed
from raydiff.studies.computed import Computed, Line, Piece, Told
from raydiff.studies.figure import COLOURS, MARKERS
from raydiff.studies.measures import Column
from raydiff.studies.results import Results, Row

AXES = {"width": "width of four layers", "depth": "layers", "blocks": "residual blocks"}
LAYERS, HEAD = 4, 2
WARM_UP = 2
PLAIN, GUIDED, EARLY = "without guidance", "guided", f"guided, weight from block {HEAD}"


class InferenceOptions(Section):
    """Widths, depths and the width of the latter are the published ones by default; sizes are HalfCheetah's."""

    widths: tuple[int, ...] = Field((128, 256, 512, 1024, 2056, 4096, 8192), min_length=1, description="Of 4 layers.")
    depths: tuple[int, ...] = Field((1, 2, 3, 4, 5, 6, 7), min_length=1, description="Numbers of layers.")
    depth_width: int = Field(2056, ge=1, description="Width of these layers.")
    blocks: tuple[int, ...] = Field((2, 3, 4, 6, 8, 12), min_length=1, description="Numbers of residual blocks.")
    blocks_width: int = Field(256, ge=1, description="Width of the residual network.")
    observation_size: int = Field(17, ge=1, description="Size of an observation.")
    action_size: int = Field(6, ge=1, description="Size of an action.")
    solver: Solver = Field("ddpm", description="Sampler.")
    steps: int = Field(15, ge=1, description="Diffusion steps, each one call of the network.")
    batch: int = Field(64, ge=1, description="Actions of a batch; single actions are measured too.")
    repeats: int = Field(200, ge=1, description="Rounds; in each of them everything is measured once.")
    device: str = Field("cpu", description="Torch device.")


# ------------------------------------------------------------------------------------------------ computation
def compute(options: InferenceOptions, part: str, seed: int, told: Told) -> Piece:
    """Median times over rounds in which all networks of a part, guided or not, take their turns."""
    cases = [(size, kind, _policy(options, spec, kind, seed)) for size, kind, spec in _networks(options, part)]
    generator = torch.Generator().manual_seed(key_seed(seed, "swg inference"))
    observation = torch.randn(options.batch, options.observation_size, generator=generator).numpy()
    spent: dict[tuple[int, int], list[float]] = {}
    rows = list(dict.fromkeys((1, options.batch)))
    rounds = WARM_UP + options.repeats
    for turn in range(rounds):
        told(turn, rounds)
        for place, (_, _, policy) in enumerate(cases):
            for n in rows:
                start = time.perf_counter()
                policy.act(observation[:n])  # brings the actions to the host, so that a device has finished
                spent.setdefault((place, n), []).append(time.perf_counter() - start)
    lines = []
    for place, (size, kind, policy) in enumerate(cases):
        single, batch = (1e3 * float(np.median(spent[place, n][WARM_UP:])) for n in (1, options.batch))
        values = {"parameters": float(len(policy.noise_network.flat)), "single_ms": single, "batch_ms": batch}
        name = f"{part}-{size}-{kind.replace(', ', '-').replace(' ', '-')}"
        label = f"width {size}" if part == "width" else f"{AXES[part]}: {size}"
        lines.append(Line(name, label, f"{part}, {kind}", values, float(size)))
    return Piece(part, seed, lines, facts={"measured on": _machine(options.device), "torch": torch.__version__})


def _networks(options: InferenceOptions, part: str) -> list[tuple[int, str, NetworkSpec]]:
    """Size on the axis, kind, and network: of pairs of an action and its weight, in a given state."""
    pair, state = options.action_size + 1, options.observation_size
    if part == "blocks":
        return [
            (count, kind, NetworkSpec(
                kind="residual", inputs=pair, condition=state, hidden=(options.blocks_width,) * count,
                activation="swish", time_features="fourier", time_size=128, head=HEAD if kind == EARLY else None,
            ))
            for count in options.blocks
            for kind in (PLAIN, GUIDED, EARLY)
        ]  # fmt: skip
    hidden = {
        "width": [(width, (width,) * LAYERS) for width in options.widths],
        "depth": [(depth, (options.depth_width,) * depth) for depth in options.depths],
    }[part]
    return [
        (size, kind, NetworkSpec(inputs=pair, condition=state, hidden=widths, activation="gelu"))
        for size, widths in hidden
        for kind in (PLAIN, GUIDED)
    ]


def _policy(options: InferenceOptions, network: NetworkSpec, kind: str, seed: int) -> DiffusionPolicy:
    """The policy that acts in evaluation, with random weights. Without guidance it diffuses as many numbers, through
    the very same network, and only takes no gradient."""
    guided = kind != PLAIN
    spec = DiffusionPolicySpec(
        observation_size=options.observation_size,
        action_size=options.action_size + (not guided),
        network=network,
        schedule="discrete",
        levels=options.steps,
        solver=options.solver,
        steps=options.steps,
        guidance="weight" if guided else "none",
        weight_range=(0.3, 0.7) if guided else None,
        temperature=0.0,
    )
    model = NoiseNetwork(network, torch.Generator().manual_seed(key_seed(seed, "swg inference network")))
    mean, std = torch.zeros(options.observation_size), torch.ones(options.observation_size)
    weights = torch.tensor(pack_diffusion_policy(0, spec, mean, std, model).weights, device=options.device)
    return DiffusionPolicy(spec, weights)


def _machine(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"one thread of {platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


# ------------------------------------------------------------------------------------------------ findings and figure
def findings(results: Results) -> list[str]:
    """What guidance costs, how times grow with the sizes, and what an early weight saves."""
    lines = []
    for part, axis in AXES.items():
        plain, guided, early = (_times(results, part, kind) for kind in (PLAIN, GUIDED, EARLY))
        if not plain or not guided:
            continue
        ratios = [guided[size] / plain[size] for size in plain if size in guided]
        lines.append(
            f"{axis.capitalize()}: an action with guidance takes {min(ratios):.1f} to {max(ratios):.1f} times as long as "
            f"one without ({plain[min(plain)]:.1f} to {plain[max(plain)]:.1f} ms without)."
        )
        if part != "width" and len(plain) > 2:
            slopes = [f"{_slope(times):.2f} ms {name}" for name, times in
                      ((PLAIN, plain), (GUIDED, guided), (EARLY, early)) if times]  # fmt: skip
            unit = "layer" if part == "depth" else "block"
            lines.append(f"Each further {unit} costs {', '.join(slopes)} (least squares, single actions).")
        if early:
            last = max(early)
            lines.append(
                f"With {last:g} blocks and the weight read from block {HEAD}, guidance takes {early[last] / plain[last]:.1f} "
                f"times as long as none; with the weight read from the last block {guided[last] / plain[last]:.1f} times."
            )
    return lines


def _times(results: Results, part: str, kind: str) -> dict[float, float]:
    """Milliseconds of a single action by size."""
    rows = results.group(f"{part}, {kind}")
    found = ((row.x, row.estimate("single_ms")) for row in rows)
    return {x: estimate.value for x, estimate in found if x is not None and estimate is not None}


def _slope(times: dict[float, float]) -> float:
    return float(np.polyfit(list(times), list(times.values()), 1)[0])


def draw(results: Results, pieces: Sequence[Piece]) -> Figure | None:
    """A panel for each part, one action above and a batch below, a line with its interval for each kind."""
    parts = [part for part in AXES if any(row.group.startswith(f"{part}, ") for row in results.rows)]
    if not parts:
        return None
    figure = new_figure(3.7 * len(parts), 6.4)
    batch = results.facts.get("batch", "")
    grid = figure.subplots(2, len(parts), squeeze=False)
    for column, part in enumerate(parts):
        for row, (measure, what) in enumerate((("single_ms", "one action"), ("batch_ms", f"{batch} actions at once"))):
            axes = grid[row, column]
            for place, kind in enumerate((PLAIN, GUIDED, EARLY)):
                _line(axes, results.group(f"{part}, {kind}"), measure, kind, place)
            style(axes, what, AXES[part], "milliseconds")
            if part == "width":
                axes.set_xscale("log", base=2)
                axes.xaxis.set_major_formatter(ScalarFormatter())
                axes.xaxis.set_minor_formatter(NullFormatter())
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                axes.yaxis.set_major_formatter(FuncFormatter(thousands))
                axes.yaxis.set_minor_formatter(NullFormatter())
            else:
                axes.set_ylim(bottom=0)
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend(fontsize=8, frameon=False)
    return figure


def _line(axes: Axes, rows: Sequence[Row], measure: str, kind: str, place: int) -> None:
    points = [(row.x, found) for row in rows if row.x is not None and (found := row.estimate(measure)) is not None]
    if not points:
        return
    axes.plot(
        [x for x, _ in points], [e.value for _, e in points], f"{MARKERS[place]}-", color=COLOURS[place], label=kind
    )
    known = [(x, e.low, e.high) for x, e in points if e.low is not None and e.high is not None]
    if known:
        xs, lows, highs = zip(*known, strict=True)
        axes.fill_between(xs, lows, highs, color=COLOURS[place], alpha=0.15, linewidth=0)


SMALL = {"widths": (128, 256, 512, 1024), "depths": (1, 2, 3, 4, 5, 6), "depth_width": 512, "blocks": (2, 3, 4, 6, 8),
         "repeats": 15}  # fmt: skip
TINY = {"widths": (16, 32), "depths": (1, 2, 3), "depth_width": 16, "blocks": (2, 3), "blocks_width": 16, "steps": 3,
        "batch": 4, "repeats": 3}  # fmt: skip

SWG_INFERENCE = Computed(
    "swg-inference",
    "Self-weighted guidance: time of an action by width and depth of the noise network (figure 3).",
    InferenceOptions,
    {"tiny": TINY, "small": SMALL, "paper": {}},
    lambda options: list(AXES),
    compute,
    {
        "parameters": Column("parameters", 0, None),
        "single_ms": Column("ms for one action", 2, False),
        "batch_ms": Column("ms for a batch", 2, False),
    },
    findings,
    draw,
    x="size",
    note=(
        "Medians over rounds in which everything takes its turn, after two rounds of warm-up; means of these over seeds "
        "(networks anew) with Student's 95 % intervals in brackets; one seed has none. Times are those of the policy's "
        "act: observation in, actions out, all diffusion steps."
    ),
)
