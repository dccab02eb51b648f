"""The Triton kernels themselves, run on the CPU by Triton's interpreter.

The variable that selects the interpreter is read when a kernel is defined, so each kernel test
module runs once more in a process of its own; there its `triton-cpu` cases replace `reference-cpu`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MODULES = (
    "masking", "patch_rows", "masked_loss", "gradient_scale", "decoder_tokens", "assemble",
    "masked_norm", "kernel_chain", "resample", "loss_weights",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_kernels_pass_in_the_interpreter(module: str) -> None:
    pytest.importorskip("triton")
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
    ]
    run = subprocess.run(
        [*command, "-m", "not gpu", "-k", "triton-cpu", str(HERE / f"test_{module}.py")],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
