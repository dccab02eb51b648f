"""What a conversion takes at most, beyond the size of the process, over its largest volume."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Image

from mim3d.bench.corpora import anatomy_like

SHAPE = (160, 256, 256)  # int16: 21 MB
# Bounds over the larger of the decoded source and the stored volume.
OPTIONS = {
    "as it is": ({}, 2.6),
    "window": ({"window": [100.0, 700.0]}, 2.6),
    "uint8": ({"dtype": "uint8"}, 2.6),
    "window and uint8": ({"window": [100.0, 700.0], "dtype": "uint8"}, 2.6),
    "float32": ({"dtype": "float32"}, 2.6),
    "foreground": ({"foreground": True}, 2.9),
    "coarser": ({"spacing_mm": [1.5, 1.5, 1.5]}, 2.9),
    "finer": ({"spacing_mm": [0.8, 0.9, 0.9]}, 2.6),
}
CHILD = """
import json, sys
from pathlib import Path
from mim3d.bench.convert_jobs import measure
from mim3d.dataio.conversion import Conversion
from mim3d.dataio.convert import convert
from mim3d.dataio.source import Source
import scipy.ndimage
source, folder, options = sys.argv[1:]
words = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(options).items()}
def run():
    made = convert([Source("v", (source,))], Path(folder), Conversion(**words), workers=1)
    assert not made.rejections
print("peak", measure(run, Path(folder)).peak_bytes)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("memory") / "v.nii.gz"
    voxels = np.ascontiguousarray(anatomy_like(SHAPE, 0).T)
    Nifti1Image(voxels, np.diag([-1, 1, 1, 1])).to_filename(file)
    return file


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", list(OPTIONS))
def test_the_peak_is_a_small_multiple_of_the_largest_volume(name, source, tmp_path):
    options, bound = OPTIONS[name]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(source), str(tmp_path / "c"), json.dumps(options)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak = int(done.stdout.split("peak ")[-1])
    line = json.loads((tmp_path / "c" / "manifest.jsonl").read_text())
    record = line.get("record", line)
    stored = np.prod(record["shape"]) * np.dtype(record["dtype"]).itemsize
    largest = max(2 * np.prod(SHAPE), stored)
    assert 0 < peak < bound * largest
