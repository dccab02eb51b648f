"""`mim3d bench loader --remote`: the loader on a store with latency, beside what people use."""

import os
import shutil
import tempfile
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.bench.loader.crops import CROP, found_volumes, random_crops
from mim3d.bench.noise import as_json, in_turn
from mim3d.bench.other_work import OtherWork
from mim3d.bench.remote.rounds import Rate, timed
from mim3d.bench.remote.server import slow_server
from mim3d.bench.remote.streams import Place, contestants, from_loader, loader_of
from mim3d.bench.remote.table import LOCAL, RESIDENT, ratios, table
from mim3d.dataio.finite import refuse_not_finite, refuse_outside
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome

CT_SHAPE = (336, 500, 480)
ZARR_SHARE = 8  # one of so many crops


@dataclass(frozen=True)
class RemoteBench:
    """Compare reading of random 96^3 crops from a store that answers late, in batches of 8.

    The store is a process of its own on this machine; everyone reads the same crops of the same
    corpus, with defaults unless named, and nothing is kept: every crop comes from the store. A
    rate is the median of `rounds` interleaved rounds with their range. `resident` is the second
    time that the same crops are read with cache=host, `local disk` the same corpus by its folder,
    and `obstore, nothing decoded` merely fetches what the loader fetches: its client's own limit.
    Requests and bytes are what the store sent meanwhile, for crops to come too.
    """

    peers: bool = False
    """Also time tensorstore with 32, 128 and 512 requests, and zarr-python over obstore."""
    latency_ms: tuple[float, ...] = (0.0, 10.0, 30.0, 100.0)
    """Of every request."""
    mb_per_s: float = 80.0
    """Bandwidth of every request."""
    volumes: int = 4
    """Generated int16 volumes of 336 x 500 x 480 voxels, as a CT of chest and abdomen."""
    crops: int = 192
    """Crops timed per round; near a store few are flattered by what was read ahead."""
    warm: int = 128
    """Crops taken before: as many as are read ahead."""
    rounds: int = 3
    """In which everyone takes turns; medians count."""
    data: Path | None = None
    """Folder with .npy (z, y, x) or NIfTI volumes instead of generated ones."""
    work: Path | None = None
    """Where to put the corpus (a temporary folder otherwise, deleted afterwards)."""

    def __post_init__(self) -> None:
        """Counts that can be."""
        refuse_not_finite(self)
        refuse_outside(self, "volumes crops rounds", 1)
        refuse_outside(self, "warm latency_ms", 0)
        refuse_outside(self, "mb_per_s", above=0)


def main(words: list[str]) -> Outcome:
    """Run the bench and print a table for each latency."""
    options = parse(RemoteBench, words, "mim3d bench loader --remote", RemoteBench.__doc__)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="mim3d-bench-", dir=options.work))
    figures: dict[str, Any] = {
        "crop": list(CROP), "cpus": len(os.sched_getaffinity(0)), "mb_per_s": options.mb_per_s,
        "latencies": {},
    }  # fmt: skip
    try:
        if options.data:
            volumes = found_volumes(options.data)
        else:
            volumes = [anatomy_like(CT_SHAPE, seed) for seed in range(options.volumes)]
        figures["volumes"] = [list(voxels.shape) for voxels in volumes]
        root = corpus_of(folder / "corpus.zarr", volumes)
        shutil.rmtree(folder / "corpus.zarr-nifti")
        shapes = [voxels.shape for voxels in volumes]
        del volumes
        for latency in options.latency_ms:
            figures["latencies"][f"{latency:g}"] = at_latency(options, root, shapes, latency)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Outcome(figures)


def at_latency(
    options: RemoteBench, root: Path, shapes: list[tuple[int, ...]], latency_ms: float
) -> dict[str, Any]:
    """Rates of every contestant in each round at one latency, and the ratios they make."""
    rounds: dict[str, list[Rate]] = {}
    bandwidth = 1e6 * options.mb_per_s
    with slow_server(root.parent, latency_ms / 1e3, bandwidth) as address, OtherWork() as others:
        for number in range(options.rounds):
            each = one_round(options, root, shapes, address, latency_ms, number)
            for name, rate in each.items():
                rounds.setdefault(name, []).append(rate)
    needed = needed_bytes(root, options.crops)
    print(table(f"{latency_ms:g} ms, {options.mb_per_s:g} MB/s", rounds, needed), flush=True)
    if others.busy:
        print(f"  others used {others.share:.0%} of the CPUs meanwhile", flush=True)
    return {
        "rounds": {name: [asdict(rate) for rate in rates] for name, rates in rounds.items()},
        "ratios": as_json(ratios(rounds)),
        "needed_bytes": needed,
        "others_cpu_share": others.share,
    }


def one_round(
    options: RemoteBench,
    root: Path,
    shapes: list[tuple[int, ...]],
    address: str,
    latency_ms: float,
    number: int,
) -> dict[str, Rate]:
    """Everyone once, over the same crops."""
    total = options.warm + options.crops
    first = number * total
    crops = random_crops(shapes, total + 256, 16, first)  # some to read ahead
    arrays = tuple(f"{root.name}/v{i:04d}/0" for i in range(len(shapes)))
    place = Place(address, latency_ms, arrays, crops)
    found = {}
    streams = contestants(place, first, options.peers)
    for name in in_turn(list(streams), number):
        share = ZARR_SHARE if name.startswith("zarr") else 1  # it takes a hundred times as long
        found[name] = timed(streams[name](), address, options.warm // share, options.crops // share)
    local = partial(from_loader, str(root), first, cache="none")
    timed(local(), "", options.warm, options.crops)  # the page cache holds the crops from here on
    found[LOCAL] = timed(local(), "", options.warm, options.crops)
    found[RESIDENT] = resident(f"{address}/{root.name}", first, total, options)
    return found


def resident(corpus: str, first: int, total: int, options: RemoteBench) -> Rate:
    """The second time that the same crops are read, with compressed chunks kept in memory."""
    ahead = 256  # crops that were announced beyond the last
    with loader_of(corpus, cache="host", cache_bytes=8 << 30) as loader:
        state = loader.state_dict() | {"sample": first}
        loader.load_state_dict(state)
        for _ in range((total + ahead) // 8):
            next(loader)
        loader.load_state_dict(state)
        return timed(nullcontext(loader), "", options.warm, options.crops)


def needed_bytes(root: Path, crops: int) -> float:
    """Stored bytes of a crop's chunks, on average."""
    with loader_of(str(root), cache="none", prefetch=1) as loader:
        for _ in range(crops // 8):
            next(loader)
        metrics = loader.metrics()
    return metrics["bytes_read"] / metrics["crops"]
