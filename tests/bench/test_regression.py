"""A run beside the baseline: what moved by more than its noise, told and never failed."""

import copy
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mim3d.bench.convert.jobs import Measured
from mim3d.bench.convert.options import ConvertBench
from mim3d.bench.convert.summary import ratios_by_round
from mim3d.bench.kernels.cases import OURS
from mim3d.bench.kernels.options import KernelsBench
from mim3d.bench.loader.options import LoaderBench
from mim3d.bench.regression import BASELINE, STAGES, changes, main, ratios_of
from mim3d.bench.step.options import OptimBench, StepBench
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.bench import STAGES as COMMANDS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench/results"
READER = "mim3d reader, snap 16"
FIGURES: dict[str, Any] = {
    "convert": {
        "voxel_mb": 100.0,
        "files": 4,
        "ratios": {"mim3d_over_floor_cpu": 1.0, "two_workers_speed": 1.8},
        "rounds": {"mim3d_over_floor_cpu": [0.99, 1.0, 1.01], "two_workers_speed": [1.8, 1.2]},
        "scaling": {"busy": False},
    },
    "loader": {
        "volumes": [{"dtype": "int16", "shape": [9, 9, 9]}],
        "rates": {
            READER: {"per_cpu_s": 100.0},
            "mim3d loader": {"per_cpu_s": 90.0},
            "blosc2": {"per_cpu_s": 50.0},
        },
        "rounds": {READER: [100.0, 98.0], "mim3d loader": [90.0, 88.0], "blosc2": [50.0, 49.0]},
    },
    "kernels": {
        "device": "CPU, 1 thread",
        "implementation": "reference",
        "rows": [
            {"operation": "loss", "shape": "B2", "variant": variant, "ratio": ratio}
            | {"low": ratio * 0.99, "high": ratio * 1.01}
            for variant, ratio in ((OURS, 1.0), ("eager", 3.0))
        ],
    },
    "optim": {
        "parameters_per_rank": 10,
        "device": "cpu",
        "seconds": {"mim3d, clipped": 1.0, "torch AdamW fused": 2.0},
        "rounds": {"mim3d, clipped": [1.0, 1.01], "torch AdamW fused": [2.0, 2.0]},
    },
    "step": {
        "method": "mae",
        "global_batch": 2,
        "device": "cpu",
        "loader_over_memory": 0.98,
        "rounds": {"in memory": [0.98, 0.98], "loader": [1.0, 1.0]},
    },
    "views": {
        "crop": 96,
        "ratios": {"ours over DALI": {"value": 5.0, "rounds": [4.9, 5.1]}},
    },
    "spatial": {
        "crop": 160,
        "ratios": {"mim3d over nnssl's way": {"value": 9.0, "rounds": [8.9, 9.1]}},
    },
}  # fmt: skip


def written(file: Path, figures: object) -> Path:
    file.write_text(json.dumps(figures))
    return file


@pytest.fixture
def kept(tmp_path) -> Path:
    """FIGURES saved as a baseline."""
    baseline = tmp_path / "kept/baseline.json"
    assert main([str(written(tmp_path / "old.json", FIGURES)), "--save", str(baseline)]) == 0
    return baseline


def told(tmp_path: Path, kept: Path, figures: object, capsys) -> str:
    file = written(tmp_path / "bench.json", figures)
    capsys.readouterr()
    assert main([str(file), "--baseline", str(kept)]) == 0
    return capsys.readouterr().out


def test_every_stage_of_the_command_has_its_ratios() -> None:
    assert set(STAGES) == set(COMMANDS)
    assert {ratio.stage for ratio in ratios_of(FIGURES)} == set(COMMANDS)
    for ratio in ratios_of(FIGURES):
        assert min(ratio.rounds) <= ratio.value <= max(ratio.rounds)


def test_the_same_run_moved_nothing(tmp_path, kept, capsys) -> None:
    out = told(tmp_path, kept, FIGURES, capsys)
    assert "0 of 9 ratios moved by more than their noise" in out
    assert "no baseline" not in out


def test_what_moved_is_told_with_its_direction(tmp_path, kept, capsys) -> None:
    now = copy.deepcopy(FIGURES)
    now["convert"]["ratios"]["mim3d_over_floor_cpu"] = 1.2
    now["convert"]["rounds"]["mim3d_over_floor_cpu"] = [1.2, 1.21]
    now["loader"]["rates"]["blosc2"]["per_cpu_s"] = 40.0
    now["loader"]["rounds"]["blosc2"] = [40.0, 39.2]
    out = told(tmp_path, kept, now, capsys)
    assert re.search(r"mim3d_over_floor_cpu +1\.000 +1\.200 +\+20\.0% +5\.0% +WORSE", out)
    assert re.search(r"reader, snap 16 over blosc2 +2\.000 +2\.500 +\+25\.0% .* better", out)
    assert "2 of 9 ratios moved" in out


def test_a_move_within_the_noise_of_either_run_is_none(tmp_path, kept, capsys) -> None:
    now = copy.deepcopy(FIGURES)
    now["convert"]["ratios"]["two_workers_speed"] = 1.3  # the baseline's rounds lie 0.6 apart
    now["step"]["loader_over_memory"] = 0.8
    now["step"]["rounds"] = {"in memory": [0.8, 0.98], "loader": [1.0, 1.0]}
    now["optim"]["seconds"]["torch AdamW fused"] = 2.08  # 4 %, with quiet rounds
    now["optim"]["rounds"]["torch AdamW fused"] = [2.08, 2.08]
    assert "0 of 9 ratios moved" in told(tmp_path, kept, now, capsys)


def test_one_round_tells_no_noise_and_is_taken_to_have_some(tmp_path, kept, capsys) -> None:
    now = copy.deepcopy(FIGURES)
    now["optim"]["seconds"]["torch AdamW fused"] = 2.16
    now["optim"]["rounds"] = {"mim3d, clipped": [1.0], "torch AdamW fused": [2.16]}
    assert "0 of 9 ratios moved" in told(tmp_path, kept, now, capsys)
    now["optim"]["rounds"] = {"mim3d, clipped": [1.0] * 2, "torch AdamW fused": [2.16] * 2}
    assert "1 of 9 ratios moved" in told(tmp_path, kept, now, capsys)


def test_other_work_and_a_busy_machine_are_not_compared(tmp_path, kept, capsys) -> None:
    now = copy.deepcopy(FIGURES)
    now["convert"]["scaling"]["busy"] = True
    now["loader"]["volumes"][0]["dtype"] = "uint8"
    now["step"]["device"] = "NVIDIA H200"
    out = told(tmp_path, kept, now, capsys)
    assert "0 of 5 ratios moved" in out
    assert "3 ratios of this run have no baseline" in out


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"convert": {}}', '{"loader": 3}', '{"kernels": {"rows": 1}}']
)
def test_what_is_no_figures_is_refused_with_the_way_to_get_them(tmp_path, capsys, text) -> None:
    file = tmp_path / "bench.json"
    file.write_text(text)
    assert main([str(file)]) == 2
    refused = capsys.readouterr().err.strip()
    assert len(refused.splitlines()) == 1
    assert f"mim3d bench all --json {file}" in refused
    assert list(tmp_path.iterdir()) == [file]
    file.unlink()
    assert main([str(file)]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[]",
        "{}",
        '{"benchmarks": []}',
        '{"benchmarks": [{"fullname": "a", "stats": {}}]}',
    ],
)
def test_what_is_no_baseline_is_refused_and_the_remedy_works(tmp_path, capsys, text) -> None:
    baseline, file = tmp_path / "baseline.json", written(tmp_path / "bench.json", FIGURES)
    if text is not None:
        baseline.write_text(text)
    assert main([str(file), "--baseline", str(baseline)]) == 2
    refused = capsys.readouterr().err.strip()
    assert len(refused.splitlines()) == 1
    remedy = re.search(r"--save \S+", refused)
    assert remedy is not None
    assert main([str(file), *shlex.split(remedy[0])]) == 0
    assert main([str(file), "--baseline", str(baseline)]) == 0


def test_the_stored_baseline_is_what_results_keep() -> None:
    stored = json.loads(BASELINE.read_text())
    assert stored["machine_info"]["machine"]
    assert stored["machine_info"]["date"]
    kept = {}
    for source in {bench["extra_info"]["from"] for bench in stored["benchmarks"]}:
        for ratio in ratios_of(json.loads((RESULTS / source).read_text())):
            kept[source, ratio.name] = ratio.value
    found = {
        (bench["extra_info"]["from"], bench["name"]): bench["extra_info"]["ratio"]
        for bench in stored["benchmarks"]
    }
    assert found == kept
    assert len(found) > 15


def test_the_earlier_loader_is_told_as_slower(tmp_path, capsys) -> None:
    later = tmp_path / "later.json"
    assert main([str(RESULTS / "2026-11-26-loader-cpu/loader.json"), "--save", str(later)]) == 0
    figures = json.loads((RESULTS / "2026-11-25-loader-cpu/loader.json").read_text())
    out = told(tmp_path, later, figures, capsys)
    assert re.search(r"over blosc2 lz4 +1\.728 +1\.049 +-39\.3% .* WORSE", out)


def test_the_stored_baseline_compares_with_itself(tmp_path, capsys) -> None:
    figures = json.loads((RESULTS / "2026-11-30-loader-cpu/loader.json").read_text())
    out = told(tmp_path, BASELINE, figures, capsys)
    assert "two-cpu-cores.json (2026-11-25 to 2026-11-30, 2 virtual" in out
    assert "0 of 14 ratios moved" in out


def test_pytest_benchmark_compares_the_files(tmp_path, kept) -> None:
    assert main([str(written(tmp_path / "bench.json", FIGURES)), "--baseline", str(kept)]) == 0
    found, new = changes(tmp_path / "bench-ratios.json", kept)
    assert (len(found), new) == (9, [])
    code = "import sys; from pytest_benchmark.cli import main; sys.exit(main())"
    words = [
        "compare",
        "kept/baseline.json",
        "bench-ratios.json",
        "--between",
        "median",
        "--time-unit",
        "s",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "torch AdamW fused over ours" in done.stdout


def test_every_stage_takes_the_options_of_a_short_run() -> None:
    for module in (ConvertBench, LoaderBench, KernelsBench):
        assert parse(module, ["--peers", "--rounds", "1"], "bench", None).rounds == 1
    for module in (OptimBench, StepBench):
        assert parse(module, ["--peers", "--rounds", "1"], "bench", None).rounds == 1


def test_rounds_of_a_conversion_hold_its_ratios() -> None:
    def measured(cpu_s: float, peak: int = 6, floor: float = 1.0) -> Measured:
        return Measured(cpu_s, cpu_s, peak, 1, {"floor": floor})

    runs = {
        "mim3d": [measured(1.0, 6), measured(2.0, 4)],
        "script": [measured(3.0), measured(4.0)],
        "floor": [measured(9.0, floor=0.5), measured(9.0, floor=1.0)],
    }
    assert ratios_by_round(runs, 2) == {
        "script_over_mim3d_cpu": [3.0, 2.0],
        "mim3d_over_floor_cpu": [2.0, 2.0],
        "peak_over_largest_volume": [3.0, 2.0],
    }
