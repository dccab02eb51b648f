"""`mim3d bench loader`: crops per second of CPU and of wall clock, beside what people use."""

import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from mim3d.bench.corpora import bench_corpus, many_volumes
from mim3d.bench.gpu.caches import GpuBench, gpu_table, measure_gpu
from mim3d.bench.loader.contestants import loading, make_loaders, make_peers, make_readers
from mim3d.bench.loader.crops import CROP, SHAPE, found_volumes, random_crops
from mim3d.bench.loader.options import LoaderBench
from mim3d.bench.loader.rounds import Rates, evict, timed
from mim3d.bench.loader.table import figures_of, table
from mim3d.bench.noise import in_turn
from mim3d.bench.other_work import OtherWork
from mim3d.bench.sharing import Sharing, sharing_of
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome


def main(words: list[str]) -> Outcome:
    """Run the bench and print its table."""
    options = parse(LoaderBench, words, "mim3d bench loader", LoaderBench.__doc__)
    torch.set_num_threads(1)
    data = options.data
    folder = Path(tempfile.mkdtemp(prefix="mim3d-bench-", dir=options.work))
    try:
        volumes = found_volumes(data) if data else many_volumes(SHAPE, options.volumes)
        root = bench_corpus(folder / "corpus.zarr", volumes, min(8, os.cpu_count() or 1))
        gpu = {}
        if torch.cuda.is_available():  # first: a machine with a GPU is lent by the minute
            gpu = {"gpu": measure_gpu(root, CROP, "cuda", GpuBench(), refuse=data is None)}
            print(gpu_table(gpu["gpu"]), flush=True)
        with OtherWork() as other:
            rates, stages, sharing = measure(options, volumes, folder, root)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(volumes)} volumes, {sharing.text()}")
    print(f"median (range) of {options.rounds} rounds; others used {other.text()} of the CPUs")
    print(table(rates))
    beside = {"chunks_per_crop": asdict(sharing), "others_cpu_share": other.share}
    return Outcome(figures_of(rates, volumes) | {"stages": stages} | beside | gpu)


def measure(
    options: LoaderBench, volumes: list[np.ndarray], folder: Path, root: Path
) -> tuple[dict[str, Rates], dict[str, dict[str, float]], Sharing]:
    """Rates of every contestant by round, loaders' seconds by stage, chunks decoded for a crop.

    `root` is the volumes' corpus, in `folder`. Rounds are interleaved; stages are totals over all.
    """
    shapes = [voxels.shape for voxels in volumes]
    loaders = make_loaders(root)
    contestants = make_readers(root, shapes, options.crops)
    contestants |= {name: (16, loading(loader)) for name, loader in loaders.items()}
    if options.peers:
        contestants |= make_peers(folder, root, volumes, options.crops)
    files = [file for file in folder.rglob("*") if file.is_file()]
    rates = {name: Rates() for name in contestants}
    for number in range(options.rounds):
        first = number * options.crops
        for name in in_turn(list(contestants), number):
            snap, run = contestants[name]
            crops = random_crops(shapes, options.crops, snap, first)
            if name in loaders:  # they read the same crops, but for those of the start
                state = loaders[name].state_dict()
                loaders[name].load_state_dict(state | {"sample": first})
            run(crops[:8])  # what a loader starts with its first batch is not counted
            rates[name].add(run, crops)
    for name, (snap, run) in contestants.items():
        evict(files)
        first = options.rounds * options.crops
        rates[name].cold = timed(run, random_crops(shapes, options.crops, snap, first))[1]
    plain = loaders["mim3d loader"]
    sharing = sharing_of(plain, [next(plain) for _ in range(4)])
    stages = {}
    for name, loader in loaders.items():
        stages[name] = {k: v for k, v in loader.metrics().items() if k.endswith("_s")}
        loader.close()
    return rates, stages, sharing
