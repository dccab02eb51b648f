"""bench/gpu.sh takes its whole road at tiny sizes on a CPU, so no GPU time is spent on typos."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "bench" / "gpu.sh"), *words, str(folder)],
        env=os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.slow
def test_the_cpu_road_leaves_tables_pictures_and_a_summary(tmp_path: Path) -> None:
    ran = run(tmp_path, "--cpu-check")
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["cpu_check"] is True
    assert {stage["outcome"] for stage in summary["stages"].values()} == {"ok"}
    kernels = json.loads((tmp_path / "kernels.json").read_text())["kernels"]
    assert kernels["kernels_figures"] is False
    assert "NOT the kernels' figures" in (tmp_path / "kernels.md").read_text()
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) <= 8


def test_a_failing_stage_is_told_and_does_not_stop_the_others(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no torch here; exit 3\n")
    broken.chmod(0o755)
    ran = run(tmp_path / "out", "--cpu-check", PYTHON=str(broken))
    assert ran.returncode == 1
    stages = json.loads((tmp_path / "out" / "summary.json").read_text())["stages"]
    assert [stage["outcome"] for stage in stages.values()] == ["failed, exit 3"] * 2
