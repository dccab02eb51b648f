"""`mim3d bench views`: pairs of augmented views on a CPU, from crops that lie in memory."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from mim3d.bench.loader.options import ViewsBench
from mim3d.bench.noise import as_json, compared, in_turn, spread
from mim3d.dataio.geometry import Triple
from mim3d.dataio.loader.batch import add_noise
from mim3d.dataio.loader.view_graph import ViewGraph
from mim3d.dataio.transforms.augment import ViewDraws, augmentation, draw_view
from mim3d.dataio.transforms.dali import DaliGraph, feed_order
from mim3d.dataio.transforms.graph import GraphSpec
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome

KIND = augmentation("contrastive")
Contestant = Callable[[int], None]
"""Makes so many batches of pairs."""


def main(words: list[str]) -> Outcome:
    """Run the bench and print its table."""
    options = parse(ViewsBench, words, "mim3d bench views", ViewsBench.__doc__)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = measure(contestants(options), options)
    finally:
        torch.set_num_threads(threads)
    ratios = {
        f"ours over {name}": compared(rates["ours"], rates[name])
        for name in rates
        if name != "ours"
    }
    print(f"pairs of views of {options.crop}^3 a CPU-second")
    for name, rounds in rates.items():
        print(f"  {name:<28} {spread(rounds).text(digits=1)}")
    for name, ratio in ratios.items():
        print(f"  {name:<28} {ratio.text()}")
    return Outcome({"crop": options.crop, "per_cpu_s": rates, "ratios": as_json(ratios)})


def measure(who: Mapping[str, Contestant], options: ViewsBench) -> dict[str, list[float]]:
    """Pairs a CPU-second by contestant and round, after one batch to warm up."""
    rates: dict[str, list[float]] = {name: [] for name in who}
    for run in who.values():
        run(1)
    for number in range(options.rounds):
        for name in in_turn(list(who), number):
            began = time.process_time()
            who[name](options.batches)
            seconds = time.process_time() - began
            rates[name].append(options.batches * options.batch / seconds)
    return rates


def contestants(options: ViewsBench) -> dict[str, Contestant]:
    """Ours, and the peers where asked for."""
    size: Triple = (options.crop, options.crop, options.crop)
    drawn = np.random.default_rng(0).standard_normal((options.batch, 1, *size))
    image = drawn.astype(np.float32)
    spec = GraphSpec(options.batch, 1, size, 2, None, KIND, None, 1)
    found = {"ours": by_ours(spec, image)}
    if options.peers:
        found |= {"DALI on a CPU": by_dali(spec, image), "MONAI": by_monai(image)}
    return found


def draws(spec: GraphSpec, number: int) -> list[ViewDraws]:
    """Parameters of both views of batch `number`."""
    seeds = np.arange(number * spec.batch, (number + 1) * spec.batch, dtype=np.uint64)
    return [draw_view(spec.augmentation, seeds, view, spec.crop_size) for view in range(2)]


def by_ours(spec: GraphSpec, image: np.ndarray) -> Contestant:
    """The loader's own graph on a CPU."""

    def run(batches: int) -> None:
        graph = ViewGraph(spec, lambda number: [image, *draws(spec, number)])
        for _ in range(batches):
            graph.run()
        graph.close()

    return run


def by_dali(spec: GraphSpec, image: np.ndarray) -> Contestant:
    """The graph that a GPU has, built for a CPU; noise by torch, as there."""

    def run(batches: int) -> None:
        graph = DaliGraph(spec, lambda number: feed_order(spec, image, None, draws(spec, number)))
        for number in range(batches):
            for view, how in zip(graph.run(), draws(spec, number), strict=True):
                add_noise(view, how)
        graph.close()

    return run


def by_monai(image: np.ndarray) -> Contestant:
    """The same steps by MONAI's transforms, as a user would compose them."""
    from monai import transforms as mt  # a peer only

    size, angle = image.shape[2:], float(np.deg2rad(KIND.degrees))
    low = [int(KIND.side[0] * n) for n in size]
    steps: list[Any] = [
        mt.RandSpatialCrop(low, max_roi_size=size, random_size=True),
        mt.Resize(size, mode="trilinear"),
        *(mt.RandFlip(KIND.flip, axis) for axis in range(3)),
        mt.RandRotate(angle, prob=KIND.rotate, padding_mode="border"),
        mt.RandGaussianSmooth(*[KIND.sigma] * 3, prob=KIND.blur),
        mt.RandScaleIntensity(0.4, prob=1.0),
        mt.RandShiftIntensity(0.4, prob=1.0),
        mt.RandGaussianNoise(prob=KIND.noise, std=KIND.noise_std),
    ]
    whole = mt.Compose(steps)
    crops = torch.from_numpy(image)

    def run(batches: int) -> None:
        for _ in range(batches):
            for crop in crops:
                for _ in range(2):
                    whole(crop)

    return run
