"""`mim3d bench spatial`: crops turned and zoomed on a CPU, read and made, beside nnssl's way."""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mim3d.bench.corpora import anatomy_like, bench_corpus
from mim3d.bench.loader import nnssl
from mim3d.bench.loader.options import SpatialBench
from mim3d.bench.noise import as_json, compared, in_turn, spread
from mim3d.bench.other_work import OtherWork
from mim3d.dataio.geometry import Triple
from mim3d.dataio.loader.loader import Loader, LoaderConfig
from mim3d.dataio.transforms.augment import augmentation, draw_flips, draw_placements
from mim3d.dataio.transforms.placement import Placement
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome

SHAPE: Triple = (192, 224, 192)
OURS = "mim3d"
KIND = augmentation("spatial")
Contestant = Callable[[int], None]
"""Makes the crops of a round."""


@dataclass(frozen=True)
class Wanted:
    """One crop: its volume and start, how it lies there (None: as it is), and its flips."""

    volume: int
    start: Triple
    placement: Placement | None
    flips: tuple[bool, ...]


def main(words: list[str]) -> Outcome:
    """Run the bench and print its table."""
    options = parse(SpatialBench, words, "mim3d bench spatial", SpatialBench.__doc__)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="mim3d-bench-") as folder, OtherWork() as other:
            rates, moved = run(options, Path(folder))
    finally:
        torch.set_num_threads(threads)
    ratios = {
        f"{OURS} over {name}": compared(rates[OURS], rates[name]) for name in rates if name != OURS
    }
    print(f"crops of {options.crop}^3 a CPU-second, {moved:.0%} of them turned or zoomed")
    for name, rounds in rates.items():
        print(f"  {name:<42} {spread(rounds).text()}")
    for name, ratio in ratios.items():
        print(f"  {name:<42} {ratio.text()}")
    print(f"others used {other.text()} of the CPUs")
    figures = {"crop": options.crop, "nnssl_patch": nnssl.patch_of(options.crop), "moved": moved}
    figures |= {"per_cpu_s": rates, "ratios": as_json(ratios), "others_cpu_share": other.share}
    return Outcome(figures)


def run(options: SpatialBench, folder: Path) -> tuple[dict[str, list[float]], float]:
    """Crops a CPU-second by contestant and round, and the share of crops that were moved."""
    side = options.side
    shape = (side, side, side) if side else SHAPE
    volumes = [anatomy_like(shape, i) for i in range(options.volumes)]
    root = bench_corpus(folder / "c.zarr", volumes, 1)
    size = (options.crop, options.crop, options.crop)
    config = LoaderConfig(crop_size=size, micro_batch=1, prefetch=1, augment="spatial")
    still = replace(config, augment="mim")
    who: dict[str, Contestant] = {
        OURS: by_ours(root, config, options.crops),
        "mim3d, nothing turned or zoomed": by_ours(root, still, options.crops),
    }
    rounds = wanted(root, config, options)
    if options.peers:
        arrays = nnssl.stores(folder, volumes, options.crop)
        who["nnssl's way, order 3"] = by_nnssl(arrays, rounds, options.crop, 3)
        who["nnssl's way at order 1, as ours"] = by_nnssl(arrays, rounds, options.crop, 1)
    moved = [each.placement is not None for crops in rounds for each in crops]
    return measure(who, options), float(np.mean(moved))


def measure(who: Mapping[str, Contestant], options: SpatialBench) -> dict[str, list[float]]:
    """The rates, after a round of ours that is not counted: it brings libraries in."""
    rates: dict[str, list[float]] = {name: [] for name in who}
    who[OURS](0)
    for number in range(options.rounds):
        for name in in_turn(list(who), number):
            began = time.process_time()
            who[name](number)
            rates[name].append(options.crops / (time.process_time() - began))
    return rates


def wanted(root: Path, config: LoaderConfig, options: SpatialBench) -> list[list[Wanted]]:
    """The crops of every round, as the loader draws them."""
    rounds = []
    with Loader(root, config) as loader:
        table = np.asarray(loader.corpus.table.volumes)
        for number in range(options.rounds):
            samples = loader.sampler.samples(number * options.crops, options.crops)
            seeds = samples.augment_seed
            flips = draw_flips(KIND, seeds)
            placed = draw_placements(
                *(KIND, seeds, samples.start, config.crop_size, np.zeros_like(flips)),
                table[samples.volume],
            )
            assert placed is not None
            rounds.append(
                [
                    Wanted(volume, (z, y, x), placed.of(i), tuple(flips[i].tolist()))
                    for i, (volume, (z, y, x)) in enumerate(
                        zip(samples.volume.tolist(), samples.start.tolist(), strict=True)
                    )
                ]
            )
    return rounds


def by_ours(root: Path, config: LoaderConfig, crops: int) -> Contestant:
    """A loader, opened and closed in each round: what it read ahead is counted too."""

    def make(number: int) -> None:
        with Loader(root, config) as loader:
            loader.load_state_dict(loader.state_dict() | {"sample": number * crops})
            for _ in range(crops):
                next(loader)

    return make


def by_nnssl(arrays: list[Any], rounds: list[list[Wanted]], crop: int, order: int) -> Contestant:
    """The same crops, one after the other."""

    def make(number: int) -> None:
        for each in rounds[number]:
            read = nnssl.patch(arrays[each.volume], each.start, crop)
            found = nnssl.moved(read, each.placement, crop, order)
            z, y, x = (slice(None, None, -1 if flip else 1) for flip in each.flips)
            torch.from_numpy(np.ascontiguousarray(found[z, y, x]))

    return make
