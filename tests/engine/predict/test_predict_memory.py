"""A CT of 512 x 512 x 800 in bounded memory: what is held is a window's depth, not the volume."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_trial import save

SHAPE = (512, 512, 800)
BOUND_BYTES = 2.0e9
"""Logits and weights of the whole volume alone are 3.4e9, its normalised voxels 0.8e9 more."""
CODE = """
import sys, torch
from dataclasses import replace
from pathlib import Path
from small_finetune import small_finetune
from mim3d.engine.finetune import trained as made
from mim3d.engine.finetune.run_folder import CONFIG, MODEL, RESULT
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.predict.predict import run_predict
from mim3d.engine.runs.files import write_json
from mim3d.engine.runs.scan_recipe import ScanRecipe
from mim3d.dataio.corpus.conversion import Conversion

torch.set_num_threads(1)
run, scan, out = map(Path, sys.argv[1:])
vit = ViTConfig((64, 128, 128), (32, 32, 32), width=8, depth=1, heads=1)
config = replace(small_finetune(run), vit=vit, head="linear", overlap=0.0)
told = made.Trained(config, ("background", "one", "two"), ScanRecipe(Conversion(), "zscore", 1))
run.mkdir()
torch.save(made.empty_network(told).state_dict(), run / MODEL)
for name in (CONFIG, RESULT):
    write_json(run / name, {})
made.write_trained(run, told)
report = run_predict(run, scan, out)
assert report.failed == (), report.failed
status = Path("/proc/self/status").read_text()
print("peak", next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_a_large_ct_is_predicted_within_a_bound(tmp_path: Path) -> None:
    scan = np.empty(SHAPE, np.int16, order="F")
    for z in range(SHAPE[2]):
        scan[:, :, z] = np.arange(SHAPE[0])[:, None] * 3 + np.arange(SHAPE[1]) - z % 97 - 1000
    save(scan, np.diag([0.7, 0.7, 0.8, 1.0]), tmp_path / "ct.nii")
    del scan
    words = [str(tmp_path / name) for name in ("run", "ct.nii", "out")]
    done = subprocess.run(
        [sys.executable, "-P", "-c", CODE, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    # Of its own pages: what getrusage tells of a child counts its parent's, from before exec.
    peak = int(done.stdout.split("peak ")[1].split()[0]) * 1024
    assert (tmp_path / "out" / "ct.nii.gz").exists()
    assert peak < BOUND_BYTES
