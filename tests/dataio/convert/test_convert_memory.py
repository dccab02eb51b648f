"""What a conversion takes at most, beyond the size of the process, over its largest volume."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Image

from mim3d.bench.corpora import anatomy_like
from mim3d.dataio.corpus.names import own_file

SHAPE = (160, 256, 256)  # int16: 21 MB
NEAR: dict[str, Any] = {"spacing_mm": [1.01, 1.0, 1.0]}  # about as many voxels as before
# Options, dtype of a label, channels, and the bound over the larger of the decoded source and the
# stored volume. None is above 3; about 8 MB of any peak do not grow with the volume.
CASES: dict[str, tuple[dict[str, Any], str, int, float]] = {
    "as it is": ({}, "", 1, 2.6),
    "as it is, label": ({}, "uint8", 1, 2.6),
    "as it is, wide label": ({}, "int16", 1, 2.9),
    "as it is, channels": ({}, "", 2, 2.8),
    "window": ({"window": [100.0, 700.0]}, "", 1, 2.6),
    "uint8": ({"dtype": "uint8"}, "", 1, 2.6),
    "window and uint8": ({"window": [100.0, 700.0], "dtype": "uint8"}, "", 1, 2.6),
    "float32": ({"dtype": "float32"}, "", 1, 2.6),
    "foreground": ({"foreground": True}, "", 1, 2.9),
    "coarser": ({"spacing_mm": [1.5, 1.5, 1.5]}, "", 1, 2.6),
    "coarser, label": ({"spacing_mm": [1.5, 1.5, 1.5]}, "uint8", 1, 2.8),
    "finer": ({"spacing_mm": [0.8, 0.9, 0.9]}, "", 1, 2.0),
    "near": (NEAR, "", 1, 2.0),
    "near, int16": (NEAR | {"dtype": "int16"}, "", 1, 2.8),
    "near, int16, label": (NEAR | {"dtype": "int16"}, "uint8", 1, 3.0),
    "near, int16, wide label": (NEAR | {"dtype": "int16"}, "int16", 1, 3.0),
    "near, int16, channels": (NEAR | {"dtype": "int16"}, "", 2, 2.8),
    "near, int16, foreground": (NEAR | {"dtype": "int16", "foreground": True}, "", 1, 2.8),
}
CHILD = """
import json, sys
from pathlib import Path
from mim3d.bench.convert.jobs import measure
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.convert.run import convert
from mim3d.dataio.sources.source import Source
import scipy.ndimage
images, labels, folder, options = map(json.loads, sys.argv[1:])
words = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
def run():
    source = Source("v", tuple(images), labels)
    made = convert([source], Path(folder), Conversion(**words), workers=1)
    assert not made.rejections
print("peak", measure(run, Path(folder)).peak_bytes)
"""


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc"
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """Two images and a label in two dtypes."""
    folder = tmp_path_factory.mktemp("memory")
    images = [anatomy_like(SHAPE, seed) for seed in range(2)]
    inside = (images[0] > 300).astype(np.uint8) + (images[0] > 600)
    written = {"image-0": images[0], "image-1": images[1], "uint8": inside, "int16": inside}
    for name, voxels in written.items():
        stored = voxels.astype("uint8" if name == "uint8" else "int16")
        nifti = Nifti1Image(np.ascontiguousarray(stored.T), np.diag([-1, 1, 1, 1]))
        nifti.to_filename(folder / f"{name}.nii.gz")
    return folder


def peak_of(images: list[str], labels: dict[str, str], folder: Path, options: dict) -> int:
    """Bytes that a conversion in a process of its own takes above what its imports took."""
    arguments = [json.dumps(word) for word in (images, labels, str(folder), options)]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split("peak ")[-1])


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("options", [{}, NEAR], ids=["as it is", "near"])
def test_frames_of_one_file_are_held_one_at_a_time(options, tmp_path):
    frames = np.stack([anatomy_like(SHAPE, seed) for seed in range(2)])
    nifti = Nifti1Image(np.ascontiguousarray(frames.T), np.diag([-1, 1, 1, 1]))
    nifti.to_filename(tmp_path / "frames.nii.gz")
    peak = peak_of([str(tmp_path / "frames.nii.gz")], {}, tmp_path / "c", options)
    assert len(own_file(tmp_path / "c", "manifest.jsonl").read_text().splitlines()) == 2
    assert 0 < peak < 2.7 * frames.nbytes  # a resampled frame is as large as the file


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("name", list(CASES))
def test_the_peak_is_a_small_multiple_of_the_largest_volume(name, sources, tmp_path):
    options, label, n_channels, bound = CASES[name]
    images = [str(sources / f"image-{channel}.nii.gz") for channel in range(n_channels)]
    labels = {"seg": str(sources / f"{label}.nii.gz")} if label else {}
    peak = peak_of(images, labels, tmp_path / "c", options)
    line = json.loads(own_file(tmp_path / "c", "manifest.jsonl").read_text())
    record = line.get("record", line)
    stored = n_channels * np.prod(record["shape"]) * np.dtype(record["dtype"]).itemsize
    largest = max(2 * n_channels * np.prod(SHAPE), stored)
    assert 0 < peak < bound * largest
