"""`mim3d bench loader`: crops per second of CPU and of wall clock, beside what people use."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from nibabel import nifti1

from mim3d.bench import loader_peers as peers
from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.bench.gpu_ready import found
from mim3d.bench.loader_gpu import GpuBench, gpu_table, measure_gpu
from mim3d.dataio.chunks.decode import IDENTITY
from mim3d.dataio.geometry import Triple
from mim3d.dataio.loader.loader import Loader, LoaderConfig
from mim3d.dataio.loader.sampler import Sampler
from mim3d.dataio.reader.corpus import opened_corpus
from mim3d.dataio.reader.shard_reader import ShardReader
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome

CROP: Triple = (96, 96, 96)
MOST_CLASSES = 32  # of a label map


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


@dataclass(frozen=True)
class Rate:
    """Crops per second of CPU time and of wall clock; `cold` per wall second with no page cache."""

    per_cpu_s: float
    per_wall_s: float
    cold_per_wall_s: float | None = None


Crops = Sequence[tuple[int, Triple]]
Round = Callable[[Crops], None]


def main(words: list[str]) -> Outcome:
    """Run the bench and print its table."""
    options = parse(LoaderBench, words, "mim3d bench loader", LoaderBench.__doc__)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="mim3d-bench-", dir=options.work))
    try:
        volumes = _volumes(options)
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
    loaders = _loaders(root)
    contestants = _readers(root, shapes, options.crops)
    contestants |= {name: (16, _loading(loader)) for name, loader in loaders.items()}
    if options.peers:
        contestants |= _peers(folder, root, volumes, options.crops)
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
            rate = _timed(run, crops)
            rounds[name].append(rate.per_cpu_s)
            known = best.get(name, rate)
            best[name] = Rate(
                max(rate.per_cpu_s, known.per_cpu_s), max(rate.per_wall_s, known.per_wall_s)
            )
    for name, (snap, run) in contestants.items():
        evict(files)
        first = options.rounds * options.crops
        cold = _timed(run, random_crops(shapes, options.crops, snap, first))
        best[name] = Rate(best[name].per_cpu_s, best[name].per_wall_s, cold.per_wall_s)
    stages = {}
    for name, loader in loaders.items():
        stages[name] = {k: v for k, v in loader.metrics().items() if k.endswith("_s")}
        loader.close()
    return best, rounds, stages


def random_crops(shapes: Sequence[tuple[int, ...]], n: int, snap: int, first: int) -> Crops:
    """The `n` crops from the `first` on that a loader draws from volumes of these shapes.

    Starts are multiples of `snap`, or the last that fits.
    """
    volumes = np.arange(len(shapes))
    sampler = Sampler(LoaderConfig().seed, volumes, np.array(shapes), CROP, snap=snap)
    drawn = sampler.samples(first, n)
    crops = []
    for volume, (z, y, x) in zip(drawn.volume.tolist(), drawn.start.tolist(), strict=True):
        crops.append((volume, (z, y, x)))
    return crops


def evict(files: Sequence[Path]) -> None:
    """Ask the system to drop the files from its page cache, as far as it listens."""
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def table(rates: dict[str, Rate]) -> str:
    """The rates as text, with ratios to the reader at snap 16."""
    base = rates["mim3d reader, snap 16"]
    width = max(map(len, rates))
    head = f"{'':<{width}}  crops/CPU s  mim3d is  crops/s  cold crops/s"
    rows = [
        f"{name:<{width}}  {rate.per_cpu_s:11.0f}  {base.per_cpu_s / rate.per_cpu_s:7.2f}x"
        f"  {rate.per_wall_s:7.0f}  {rate.cold_per_wall_s or 0:12.0f}"
        for name, rate in rates.items()
    ]
    return "\n".join([head, *rows])


def figures_of(rates: dict[str, Rate], volumes: Sequence[np.ndarray]) -> dict[str, object]:
    """Rates and ratios for --json."""
    base = rates["mim3d reader, snap 16"].per_cpu_s
    return {
        "crop": list(CROP),
        "torch": torch.__version__,
        "cpus": len(os.sched_getaffinity(0)),
        "volumes": [{"shape": list(v.shape), "dtype": v.dtype.name} for v in volumes],
        "loader_over_reader": {
            name: rate.per_cpu_s / base for name, rate in rates.items() if "loader" in name
        },
        "rates": {name: vars(rate) for name, rate in rates.items()},
        "reader_over": {name: base / rate.per_cpu_s for name, rate in rates.items()},
    }


def _volumes(options: LoaderBench) -> list[np.ndarray]:
    if options.data is None:
        return [anatomy_like((192, 256, 256), seed) for seed in range(options.volumes)]
    names = sorted(options.data.rglob("*.npy")) + sorted(options.data.rglob("*.nii*"))
    large = [v for v in map(_loaded, names) if v.ndim == 3 and min(v.shape) >= max(CROP)]
    images = [v for v in large if len(np.unique(v[::7, ::7, ::7])) > MOST_CLASSES]
    if not images:
        raise ValueError(f"{options.data}: no image of at least {CROP} among {len(names)} files")
    return images


def _loaded(file: Path) -> np.ndarray:
    """Voxels as they are stored (z, y, x)."""
    if file.suffix == ".npy":
        return np.load(file)
    image = nifti1.load(file)
    return np.ascontiguousarray(np.asanyarray(cast(Any, image.dataobj).get_unscaled()).T)


def _readers(
    root: Path, shapes: Sequence[tuple[int, ...]], n_crops: int
) -> dict[str, tuple[int, Round]]:
    """mim3d's bare reader at three snaps, and straight to bfloat16."""
    with opened_corpus(root) as (corpus, _):
        table = corpus.table
    reader = ShardReader(table, root)

    def bare(volume: int, start: Triple, out: np.ndarray) -> None:
        reader.read_box(int(table.volumes["image"][volume]), start, CROP, out[None])

    rounded = np.empty((8, 1, *CROP), np.uint16)

    def half(volume: int, start: Triple, out: np.ndarray) -> None:
        # `out` only tells which place of the batch is due.
        place = rounded[out.__array_interface__["data"][0] // out.nbytes % len(rounded)]
        reader.read_box(int(table.volumes["image"][volume]), start, CROP, place, rescale=IDENTITY)

    contestants = {
        f"mim3d reader, snap {snap}": (snap, _round(bare, n_crops)) for snap in (16, 1, 32)
    }
    contestants["mim3d reader, bf16"] = (16, _round(half, n_crops))
    return contestants


def _loaders(root: Path) -> dict[str, Loader]:
    """The loader in the ways it is used on a CPU; two views only where DALI is installed."""
    ways: dict[str, dict[str, Any]] = {
        "mim3d loader": {},
        "mim3d loader, normalised + flips": {"normalise": "zscore", "augment": "mim"},
        "mim3d loader, two views by DALI": {"views": 2, "augment": "contrastive"},
        "mim3d loader, cache=host": {"cache": "host"},
        "mim3d loader, bf16": {"dtype": "bfloat16"},
    }
    if not found("nvidia.dali"):
        del ways["mim3d loader, two views by DALI"]
    options = {"crop_size": CROP, "micro_batch": 8, "normalise": "none"}
    return {
        name: Loader(root, LoaderConfig(**(options | changed))) for name, changed in ways.items()
    }


def _peers(
    folder: Path, root: Path, volumes: Sequence[np.ndarray], n_crops: int
) -> dict[str, tuple[int, Round]]:
    arrays = [root / f"v{i:04d}" / "0" for i in range(len(volumes))]
    made: dict[str, Callable[[], peers.ReadCrop]] = {
        "npy memmap": lambda: peers.memmap(_made(folder, "npy"), volumes),
        "blosc2 zstd-8 (nnU-Net, nnssl)": lambda: peers.blosc2_zstd(_made(folder, "z8"), volumes),
        "blosc2 lz4": lambda: peers.blosc2_lz4(_made(folder, "lz4"), volumes),
        "tensorstore, same corpus": lambda: peers.tensorstore_of(arrays),
        "zarr-python, same corpus": lambda: peers.zarr_python(arrays),
        "MONAI CacheDataset": lambda: peers.monai_cache(_made(folder, "monai"), volumes),
    }
    return {name: (16, _round(make(), n_crops)) for name, make in made.items()}


def _made(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def _round(read: peers.ReadCrop, n_crops: int) -> Round:
    """Read crops one after the other into a reused batch."""
    batch = np.empty((min(n_crops, 8), *CROP), np.float32)

    def run(crops: Crops) -> None:
        for i, (volume, start) in enumerate(crops):
            out = batch[i % len(batch)]
            read(volume, start, out)

    return run


def _loading(loader: Loader) -> Round:
    """Take as many batches as the crops need; the loader draws its own starts, snapped to 16."""

    def run(crops: Crops) -> None:
        for _ in range(len(crops) // loader.config.micro_batch):
            next(loader)

    return run


def _settle() -> float:
    """Wait until this process is idle, for loaders read ahead; the time when that began."""
    idle_s, patience_s = 0.05, 10.0
    first = began = time.perf_counter()
    while began - first < patience_s:  # a driver's thread may never rest
        before = time.process_time()
        time.sleep(idle_s)
        if time.process_time() - before < 0.02 * idle_s:
            break
        began = time.perf_counter()
    return began


def _timed(run: Round, crops: Crops) -> Rate:
    """Time a round until what it reads ahead is read, as it found the same read ahead."""
    _settle()
    wall, cpu = time.perf_counter(), time.process_time()
    run(crops)
    wall, cpu = _settle() - wall, time.process_time() - cpu
    return Rate(len(crops) / cpu, len(crops) / wall)
