"""Single conversions, timed: `python -m mim3d.bench.convert.jobs NAME FOLDER FILES RESULT SIDE`.

A job gets a list of NIfTI files, an empty folder and the side of a chunk, and reports CPU seconds
(its children's too), wall seconds and how far memory rose above what the imports took. Imports are
done before.
"""

import json
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mim3d.bench.convert.peers import prepare_script

Prepare = Callable[[Sequence[str], Path, int], Callable[[], Any]]


@dataclass(frozen=True)
class Measured:
    """One timed job; `peak_bytes` is above the process's size when it began."""

    cpu_s: float
    wall_s: float
    peak_bytes: int
    bytes_out: int
    detail: dict[str, float]


def prepare_mim3d(
    files: Sequence[str], folder: Path, side: int, workers: int = 1
) -> Callable[[], Any]:
    """The whole conversion as `mim3d convert` does it."""
    from mim3d.dataio.convert.run import convert
    from mim3d.dataio.corpus.conversion import Conversion
    from mim3d.dataio.sources.source import Source

    sources = [Source(Path(f).name.split(".")[0], (f,)) for f in files]

    def run() -> None:
        report = convert(sources, folder / "corpus.zarr", Conversion(chunk=side), workers=workers)
        if report.n_quarantined:
            raise RuntimeError(f"quarantined: {report.rejections}")

    return run


def prepare_floor(files: Sequence[str], folder: Path, side: int) -> Callable[[], Any]:
    """What no converter can avoid: inflate the bytes, encode the chunks; nothing else.

    `encode` is numcodecs, chunk by chunk, as any script has it; `encode_compiled`, beside it,
    is the converter's own loop over the same library.
    """
    import deflate
    from isal import igzip
    from nibabel.nifti1 import load

    from mim3d.dataio.chunks.codec import ChunkCodec, single_threaded
    from mim3d.dataio.chunks.encode import ChunkEncoder
    from mim3d.dataio.chunks.gather import slab_chunks

    single_threaded()
    zipped = [Path(f).read_bytes() for f in files]
    volumes = [np.asanyarray(load(f).dataobj).T for f in files]
    codecs = [ChunkCodec("lz4", v.dtype.name, (side,) * 3) for v in volumes]

    def timed(work: Callable[[], Any]) -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    def run() -> dict[str, float]:
        inflate = {
            "libdeflate": sum(timed(lambda d=d: deflate.gzip_decompress(d)) for d in zipped),
            "isal": sum(timed(lambda d=d: igzip.decompress(d)) for d in zipped),
        }
        encode = compiled = 0.0
        for codec, volume in zip(codecs, volumes, strict=True):
            for z in range(0, volume.shape[0], side):
                chunks = slab_chunks(volume[z : z + side], (side,) * 3, volume.dtype.name)
                encode += timed(lambda chunks=chunks, codec=codec: list(map(codec.encode, chunks)))
                parts = ChunkEncoder(codec).parts(chunks)
                compiled += timed(lambda parts=parts: deque(parts, maxlen=0))
        encoding = {"encode": encode, "encode_compiled": compiled}
        return {**inflate, **encoding, "floor": min(inflate.values()) + encode}

    return run


def jobs() -> dict[str, Prepare]:
    """Every job by name; peers are imported only when asked for."""
    from mim3d.bench.convert.peers import PEERS

    return {
        "mim3d": prepare_mim3d,
        "mim3d-2": lambda files, folder, side: prepare_mim3d(files, folder, side, workers=2),
        "script": prepare_script,
        "floor": prepare_floor,
        **PEERS,
    }


def measure(run: Callable[[], Any], folder: Path) -> Measured:
    """Time a prepared job."""
    before_bytes = reset_peak()
    before, began = cpu_seconds(), time.perf_counter()
    detail = run()
    wall = time.perf_counter() - began
    cpu = cpu_seconds() - before
    written = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    peak = max(status_bytes("VmHWM") - before_bytes, 0)
    return Measured(cpu, wall, peak, written, detail if isinstance(detail, dict) else {})


def cpu_seconds() -> float:
    """User and system seconds of this process and of its finished children."""
    own, children = (
        resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def reset_peak() -> int:
    """Set the kernel's high-water mark to what the process takes now, and return that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed: the mark then includes the imports
        return 0
    return status_bytes("VmHWM")


def status_bytes(field: str) -> int:
    """A field of /proc/self/status in bytes; 0 where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith(field + ":")), 0)


def main() -> None:
    """Run the job named on the command line; figures go to the file named last."""
    name, folder, listing, result, side = sys.argv[1:]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    files = json.loads(Path(listing).read_text())
    prepared = jobs()[name](files, Path(folder), int(side))
    Path(result).write_text(json.dumps(asdict(measure(prepared, Path(folder)))))


if __name__ == "__main__":
    main()
