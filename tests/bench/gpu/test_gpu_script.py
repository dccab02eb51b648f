"""bench/gpu.sh takes its whole road at tiny sizes on a CPU, so no GPU time is spent on typos."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mim3d.bench.gpu.summary import BIG, step_line

ROOT = Path(__file__).resolve().parents[3]
IMAGE = {
    "torch", "triton", "numpy", "scipy", "matplotlib", "einops", "safetensors", "tensorboard",
    "psutil", "rich", "jinja2", "xxhash", "typing_extensions",
}  # fmt: skip


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "bench" / "gpu.sh"), *words, str(folder)],
        env=os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1600,
    )


@pytest.mark.slow
@pytest.mark.timeout(1700)
def test_the_cpu_road_leaves_tables_pictures_and_a_summary(tmp_path: Path) -> None:
    ran = run(tmp_path, "--cpu-check")
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["cpu_check"] is True
    assert list(summary["stages"]) == [
        "ready", "step", "feed", "loader", "kernels", "tests", "compiled", "dali", "profile",
    ]  # fmt: skip
    assert {stage["outcome"] for stage in summary["stages"].values()} == {"ok"}
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {check["outcome"] for check in figures["ready"]["checks"].values()} == {"ok"}
    assert figures["kernels"]["kernels_figures"] is False
    assert figures["step"]["over_eager"] > 0
    assert figures["feed"]["fed_by"] == "loader"
    assert "NOT the kernels' figures" in (tmp_path / "kernels.md").read_text()
    assert "MAE step, x eager formulation: not" not in (tmp_path / "results.md").read_text()
    assert "== eager recipe" in (tmp_path / "profile.txt").read_text()
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) <= 8


def broken_python(folder: Path) -> str:
    file = folder / "python"
    file.write_text("#!/bin/sh\necho no torch here; exit 7\n")
    file.chmod(0o755)
    return str(file)


def test_a_failing_stage_is_told_and_does_not_stop_the_others(tmp_path: Path) -> None:
    ran = run(tmp_path / "out", "--cpu-check", PYTHON=broken_python(tmp_path))
    assert ran.returncode == 1
    stages = json.loads((tmp_path / "out" / "summary.json").read_text())["stages"]
    outcomes = {name: stage["outcome"] for name, stage in stages.items()}
    failed, absent = "failed, exit 7", "absent"
    assert outcomes == {
        "ready": failed, "step": failed, "feed": failed, "loader": failed, "kernels": failed,
        "tests": failed, "compiled": failed, "dali": absent, "profile": failed,
    }  # fmt: skip
    page = (tmp_path / "out" / "results.md").read_text()  # the shell's, without python
    assert "failed, exit 7" in page
    assert "no torch here" in page


def test_some_stages_only(tmp_path: Path) -> None:
    words = ("--cpu-check", "--stages", "step,tests")
    ran = run(tmp_path / "out", *words, PYTHON=broken_python(tmp_path))
    assert ran.returncode == 1
    stages = json.loads((tmp_path / "out" / "summary.json").read_text())["stages"]
    assert list(stages) == ["step", "tests"]
    wrong = run(tmp_path / "out", "--stages", "tests,cooking")
    assert wrong.returncode == 2
    assert "no stage cooking" in wrong.stderr


def test_without_an_install_the_version_is_found(tmp_path: Path) -> None:
    """The converter and checkpoints ask for it, and a GPU machine installs nothing."""
    run(tmp_path / "out", "--cpu-check", "--stages", "tests", PYTHON=broken_python(tmp_path))
    asked = "import importlib.metadata as m; print(m.version('mim3d'))"
    told = subprocess.run(
        [sys.executable, "-S", "-P", "-c", asked],
        env={"PYTHONPATH": str(ROOT / "build" / "names")},
        capture_output=True,
        text=True,
        check=True,
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert told.stdout.strip() == project["version"]


def test_a_stage_out_of_time_tells_what_it_has_and_the_next_one_runs(tmp_path: Path) -> None:
    """At the limit a python gets SIGINT, so that pytest still names what failed."""
    file = tmp_path / "python"
    slow = (
        "import time; print('seen so far')\n"
        "try: time.sleep(60)\nexcept BaseException: print('told')"
    )
    file.write_text(
        f'#!/bin/sh\ncase "$*" in *pytest*) exec {sys.executable} -u -c "{slow}";; esac\nexit 0\n'
    )
    file.chmod(0o755)
    script = (ROOT / "bench" / "gpu.sh").read_text().replace("stage tests 130", "stage tests 1")
    copy = tmp_path / "bench" / "gpu.sh"
    copy.parent.mkdir()
    copy.write_text(script.replace('cd "$(dirname "$0")/.."', f"cd {ROOT}"))
    ran = subprocess.run(
        ["bash", str(copy), "--cpu-check", "--stages", "tests,compiled", str(tmp_path / "out")],
        env=os.environ | {"PYTHON": str(file)},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert ran.returncode == 1
    stages = json.loads((tmp_path / "out" / "summary.json").read_text())["stages"]
    assert stages["tests"]["outcome"] == "out of time"
    assert stages["compiled"]["outcome"] == "ok"
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "seen so far" in log
    assert "told" in log


def test_sizes_are_told_for_a_transfer_of_64_mib() -> None:
    told = subprocess.run(
        ["bash", str(ROOT / "bench" / "gpu.sh"), "--sizes"],
        capture_output=True,
        text=True,
        check=True,
    )
    sizes = dict(line.split() for line in told.stdout.splitlines())
    assert 0 < float(sizes["tree"]) <= float(sizes["first-call"]) < 64


def script_limits() -> dict[str, int]:
    """Seconds that the script gives each stage."""
    text = (ROOT / "bench" / "gpu.sh").read_text()
    plain = re.findall(r"\bstage (\w+) (\d+) ", text)
    benches = re.findall(r"\bbench (\w+) \w+ (\d+) ", text)
    return {name: int(limit) for name, limit in [*plain, *benches]}


def test_the_stages_of_a_call_fit_ten_minutes() -> None:
    text, limits = (ROOT / "bench" / "gpu.sh").read_text(), script_limits()
    budget = int(re.findall(r"budget=(\d+) patience=1", text)[0])
    calls = re.findall(r"bench/gpu.sh --stages ([a-z,]+)\n", text)
    assert len(calls) == 2
    for call in calls:
        assert sum(limits[name] for name in call.split(",")) <= budget
    assert set(",".join(calls).split(",")) | {"ncu"} == set(limits)
    assert limits["profile"] + limits["ncu"] < budget


def test_a_script_that_is_stopped_leaves_its_page(tmp_path: Path) -> None:
    file = tmp_path / "python"
    slow = "import time\nprint('begun', flush=True)\ntime.sleep(60)"
    tests = f'*" -m pytest "*) exec {sys.executable} -u -c "{slow}";;'
    summary = f'*summary.py*) exec {sys.executable} "$@";;'
    file.write_text(f'#!/bin/sh\ncase "$*" in {summary} {tests} esac\nexit 0\n')
    file.chmod(0o755)
    out = tmp_path / "out"
    script = subprocess.Popen(
        ["bash", str(ROOT / "bench" / "gpu.sh"), "--cpu-check", "--stages", "step,tests", str(out)],
        env=os.environ | {"PYTHON": str(file)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert script.stdout is not None
    for line in script.stdout:
        if line.startswith("== tests"):
            break
    script.terminate()
    assert script.wait(240) == 143
    script.stdout.close()
    stages = json.loads((out / "summary.json").read_text())["stages"]
    assert [stage["outcome"] for stage in stages.values()] == ["ok", "stopped from outside"]
    assert "| tests | stopped from outside |" in (out / "results.md").read_text()


def test_the_summary_holds_figures_against_targets(tmp_path: Path) -> None:
    shape = BIG[0]
    rows = [
        {"operation": "loss int16", "shape": shape, "variant": name, "seconds": s, "share": 0.9}
        for name, s in (("mim3d", 1.0), ("MAE", 12.0), ("compiled clean", 1.5), ("compiled MAE", 3))
    ]
    kernels = {"kernels_figures": True, "copy_bytes_per_s": 4.3e12, "rows": rows}
    (tmp_path / "kernels.json").write_text(json.dumps({"kernels": kernels}))
    one = {"value": 1.2, "low": 1.1, "high": 1.3, "resolved": True}
    two = {"value": 1.01, "low": None, "high": None, "resolved": False}
    ratios = {"over MIM-Med3D": one, "over nnssl": two}
    (tmp_path / "tests.tail").write_text("1 failed\n")
    (tmp_path / "step.json").write_text(
        json.dumps({"step": {"over_eager": 1.2, "ratios": ratios, "device": "a GPU"}})
    )
    (tmp_path / "feed.json").write_text('{"step": {"crops')  # the stage was killed as it wrote
    checks = {"DALI": {"outcome": "absent: no DALI", "seconds": 0.1}}
    (tmp_path / "ready.json").write_text(json.dumps({"ready": {"checks": checks}}))
    rate = {"crops_per_s": 6000.0, "stages": {"copy": 0.01, "inflate": 0.6}}
    gpu = {"rates": {"cache=device": rate}, "not_available": {"cache=none": "no DALI"}}
    (tmp_path / "loader.json").write_text(json.dumps({"loader": {"gpu": gpu}}))
    out = tmp_path / "out"
    out.mkdir()
    stages = {"kernels": {"outcome": "ok", "seconds": 3}}
    (out / "summary.json").write_text(json.dumps({"stages": stages}))
    subprocess.run(
        [sys.executable, "-S", str(ROOT / "bench" / "gpu" / "summary.py"), str(tmp_path), str(out)],
        check=True,
    )
    text = (out / "results.md").read_text()
    assert f"loss int16 {shape}, x eager MAE: 12 (at least 10: met)" in text
    assert f"loss int16 {shape}, x best torch.compile: 1.5 (at least 2: MISSED)" in text
    assert f"loss int16 {shape}, share of copy bandwidth: 0.9 (at least 0.85: met)" in text
    assert f"loss float32 {shape}, x eager MAE: not measured (at least 10)" in text
    assert "MAE step, x eager formulation: 1.2 (at least 1.15: met)" in text
    ratio = {"low": 1.1, "high": 1.3}
    unsure = step_line({"over_eager": 1.2, "ratios": {"over eager recipe": ratio}})
    assert unsure == "MAE step, x eager formulation: 1.2 (at least 1.15: unresolved)"
    sure = step_line({"over_eager": 1.2, "ratios": {"over eager recipe": ratio | {"low": 1.16}}})
    assert sure.endswith("met)")
    assert "loader on the GPU, cache=device, crops/s: 6000 (at least 5700: met)" in text
    assert "loader, cache=device: 6000 crops/s; copy 1%, inflate 60%" in text
    assert "loader, cache=none: no DALI" in text
    assert "DALI: absent: no DALI" in text
    assert "data-stall share: not measured" in text
    assert text.startswith("# Results of bench/gpu.sh on a GPU\n")
    assert "- step, over MIM-Med3D: 1.200 (1.100 to 1.300)\n" in text
    assert "- step, over nnssl: 1.010 (one round), unresolved\n" in text
    assert "## The end of stage tests\n\n```\n1 failed\n```" in text
    assert json.loads((out / "figures.json").read_text())["step"]["over_eager"] == 1.2


def test_every_dependency_is_in_the_image_or_among_the_wheels() -> None:
    """A package added to the project must not be missing on a machine without an index."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = (ROOT / "bench" / "gpu-wheels").glob("*.txt")
    wheels = {
        line.partition("==")[0]
        for file in lists
        for line in file.read_text().splitlines()
        if not line.startswith("#")
    }
    needed = {re.split(r"[><=; ]", line)[0] for line in project["dependencies"]}
    assert needed <= wheels | IMAGE
    assert needed - IMAGE
