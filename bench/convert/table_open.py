"""How long a rank waits for the packed chunk table of a large corpus, and what it then holds."""

import json
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from mim3d.dataio.corpus.manifest import Intensity, LabelRecord, VolumeRecord
from mim3d.dataio.corpus.names import MANIFEST, TABLE
from mim3d.dataio.corpus.table_file import packed
from mim3d.dataio.corpus.table_rows import TABLE_FORMAT, section_of
from mim3d.dataio.corpus.table_writer import build_table

SHAPE = (160, 192, 160)  # 150 chunks of 32^3
OPEN = """
import json, sys, time
import numpy, psutil
from mim3d.dataio.corpus.chunk_table import ChunkTable
process = psutil.Process()
before = process.memory_full_info()
began, cpu = time.perf_counter(), time.process_time()
table = ChunkTable.open(sys.argv[1])
took, cpu = time.perf_counter() - began, time.process_time() - cpu
after = process.memory_full_info()
name = table.volume_id(table.n_volumes // 2)
assert table.index(name) == table.n_volumes // 2 and table.subject(0)
print(json.dumps({"open_s": took, "open_cpu_s": cpu, "n": table.n_volumes,
    "private_mb": (after.uss - before.uss) / 1e6, "resident_mb": (after.rss - before.rss) / 1e6}))
"""


def measure_table(entries: int, scratch: Path) -> dict[str, Any]:
    """Write a synthetic table of `entries` labelled volumes and open it in a fresh process."""
    root = scratch / "table.zarr"
    root.mkdir(parents=True)
    write_synthetic_table(root, entries)
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(root)], capture_output=True, text=True, check=True
    )
    opened = json.loads(done.stdout)
    size = sum(p.stat().st_size for p in root.glob("chunks.*")) / 1e6
    return {"entries": entries, "table_mb": size, **opened}


def write_synthetic_table(root: Path, entries: int) -> None:
    """A table as a conversion would leave it, without the volumes it speaks of."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(9_000, 60_000, 150)
    index = np.stack([np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes], axis=1)
    points = {c: rng.integers(0, 160, (64, 3)).astype(np.uint32) for c in (1, 2)}
    first = synthetic_record()
    records = [
        replace(first, id=f"volume-{i:07d}", subject=f"sub-{i // 2:07d}") for i in range(entries)
    ]
    tables = build_table(records, 32, lambda *_: index, lambda _: points)
    with (root / MANIFEST).open("wb") as manifest:
        manifest.truncate(entries)  # only its size is looked at
    facts = {
        "format": TABLE_FORMAT,
        "label_names": ["seg"],
        "manifest_bytes": entries,
        "manifest_sha256": sha256(b"").hexdigest(),
    }
    parts = packed(facts, {section_of(name): array for name, array in tables.items()})
    with (root / TABLE).open("wb") as file:
        file.writelines(parts)


def synthetic_record() -> VolumeRecord:
    """A plain record of a labelled int16 volume."""
    intensity = Intensity(0.0, 4000.0, 300.0, 200.0, 0.0, 2500.0)
    label = LabelRecord("seg", "uint8", {0: 4_900_000, 1: 8_000, 2: 7_200}, "l", "", "", 90_000)
    identity = tuple(tuple(float(v) for v in row) for row in np.eye(4))
    return VolumeRecord(
        id="", sources=("s",), source_hash=("",), subject="", group="", split="", shape=SHAPE,
        channels=1, dtype="int16", slope=1.0, intercept=0.0, spacing_mm=(1.0, 1.0, 1.0),
        affine=identity, original_orientation="RAS", original_affine=identity,
        original_shape=SHAPE, affine_from="sform", affine_code=1, obliquity_deg=0.0,
        intensity=intensity, foreground=intensity, foreground_rule="otsu",
        foreground_threshold=50.0,
        foreground_box=((0, 0, 0), SHAPE), n_nan=0, n_inf=0, source_dtype="int16",
        cast_max_error=0.0, labels=(label,), shard_sha256="", shard_bytes=4_000_000,
        metadata_sha256="",
    )  # fmt: skip
