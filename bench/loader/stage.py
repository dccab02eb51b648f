"""`mim3d bench loader`: crops per second of CPU and of wall clock, beside what people use."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mim3d.bench.corpora import corpus_of
from mim3d.bench.gpu.caches import GpuBench, gpu_table, measure_gpu
from mim3d.bench.loader.contestants import loading, make_loaders, make_peers, make_readers
from mim3d.bench.loader.crops import CROP, found_volumes, generated_volumes, random_crops
from mim3d.bench.loader.rounds import Rate, evict, timed
from mim3d.bench.loader.table import figures_of, table
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome


@dataclass(frozen=True)
class LoaderBench:
    """Compare reading of random 96^3 crops, page cache warm and cold.

    One thread each; a rate is the best of `rounds` interleaved rounds, per second of CPU time
    (all threads of the process) and of wall clock. Ratios are to mim3d's reader at snap 16.
    """

    peers: bool = False
    """Also time blosc2, tensorstore, zarr-python, a memory map and MONAI's CacheDataset."""
    volumes: int = 6
    """Generated int16 volumes of 192 x 256 x 256 voxels (18 % of them air)."""
    crops: int = 192
    """Crops per round: a reader takes 0.1 s for them, of which a loader's start is a small part."""
    rounds: int = 4
    """Interleaved rounds; the best of each counts."""
    data: Path | None = None
    """Folder with .npy (z, y, x) or NIfTI volumes instead of generated ones; label maps and volumes
    with a side below 96 are left out."""
    work: Path | None = None
    """Where to put the stores (a temporary folder otherwise, deleted afterwards)."""


def main(words: list[str]) -> Outcome:
    """Run the bench and print its table."""
    options = parse(LoaderBench, words, "mim3d bench loader", LoaderBench.__doc__)
    torch.set_num_threads(1)
    data = options.data
    folder = Path(tempfile.mkdtemp(prefix="mim3d-bench-", dir=options.work))
    try:
        volumes = found_volumes(data) if data else generated_volumes(options.volumes)
        root = corpus_of(folder / "corpus.zarr", volumes)
        gpu = {}
        if torch.cuda.is_available():  # first: a machine with a GPU is lent by the minute
            gpu = {"gpu": measure_gpu(root, CROP, "cuda", GpuBench())}
            print(gpu_table(gpu["gpu"]), flush=True)
        rates, rounds, stages = measure(options, volumes, folder, root)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(table(rates))
    return Outcome(figures_of(rates, volumes) | {"rounds": rounds, "stages": stages} | gpu)


def measure(
    options: LoaderBench, volumes: list[np.ndarray], folder: Path, root: Path
) -> tuple[dict[str, Rate], dict[str, list[float]], dict[str, dict[str, float]]]:
    """Best rates of every contestant, its crops per CPU-second by round, loaders' s by stage.

    `root` is the volumes' corpus, in `folder`. Rounds are interleaved; stages are totals over all.
    """
    shapes = [voxels.shape for voxels in volumes]
    loaders = make_loaders(root)
    contestants = make_readers(root, shapes, options.crops)
    contestants |= {name: (16, loading(loader)) for name, loader in loaders.items()}
    if options.peers:
        contestants |= make_peers(folder, root, volumes, options.crops)
    files = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".nii"]
    best: dict[str, Rate] = {}
    rounds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(options.rounds):
        for name, (snap, run) in contestants.items():
            first = number * options.crops
            crops = random_crops(shapes, options.crops, snap, first)
            if name in loaders:  # they read the same crops, but for those of the start
                state = loaders[name].state_dict()
                loaders[name].load_state_dict(state | {"sample": first})
            run(crops[:8])  # what a loader starts with its first batch is not counted
            rate = timed(run, crops)
            rounds[name].append(rate.per_cpu_s)
            known = best.get(name, rate)
            best[name] = Rate(
                max(rate.per_cpu_s, known.per_cpu_s), max(rate.per_wall_s, known.per_wall_s)
            )
    for name, (snap, run) in contestants.items():
        evict(files)
        first = options.rounds * options.crops
        cold = timed(run, random_crops(shapes, options.crops, snap, first))
        best[name] = Rate(best[name].per_cpu_s, best[name].per_wall_s, cold.per_wall_s)
    stages = {}
    for name, loader in loaders.items():
        stages[name] = {k: v for k, v in loader.metrics().items() if k.endswith("_s")}
        loader.close()
    return best, rounds, stages
