"""A calibration's file: what is read back, what is refused, and what a plan makes of it."""

import dataclasses
import json

import pytest
import torch

from mim3d.engine.commands.plan import main
from mim3d.engine.errors import ConfigError
from mim3d.engine.planning.calibration import (
    Calibration,
    Check,
    calibrated_machine,
    read_calibration,
    write_calibration,
)
from mim3d.engine.planning.laws import Law, names_of
from mim3d.engine.planning.machine import Constant
from mim3d.engine.planning.operations import step_work
from mim3d.engine.planning.plan import make_plan
from mim3d.engine.pretrain.recipes import recipe

SMALL = ["demo-mae", "--vit.depth", "1", "--method.decoder-depth", "1"]


def law(**seconds):
    return Law(seconds or {"calls": 1e-5}, "measured", spread=0.1, largest=1e12, samples=9)


def calibration(**changes):
    laws = {"product": law(flops=1e-11), "attention": law(), "attention backward": law()}
    laws |= {"product backward": law(flops=1e-11), "pass": law(), "optimiser": law()}
    laws |= {f"pass {name}": law() for name in ("add", "gelu", "sum", "native_layer_norm")}
    found = Calibration(
        date="2026-11-30",
        kind="cpu",
        device="cpu",
        machine={"processor": "Abacus", "cores": "2"},
        precision="fp32",
        clock="processor seconds of one thread",
        laws=laws,
        constants={
            "host_us_per_op": Constant(2.0, "us", "measured", "measured", 0.1),
            "host_us_per_step": Constant(900.0, "us", "measured", "measured", 0.1),
        },
        met=tuple(laws),
        checks=(Check("a step", 1.1, 1.0, (0.9, 1.0, 1.2)),),
    )
    return dataclasses.replace(found, **changes)


def test_what_was_written_is_read_back(tmp_path):
    written = calibration()
    write_calibration(tmp_path / "cal.json", written)
    found = read_calibration(tmp_path / "cal.json")
    assert found == written
    assert found.worst == pytest.approx(0.1)
    assert "Abacus; 1 steps told within 10%" in found.text()


def test_a_plan_by_a_calibration_is_told_by_it_alone(tmp_path, capsys):
    file = tmp_path / "cal.json"
    passes = [f"pass {name}" for name in ("clone", "stack", "gelu_backward")]
    passes += ["pass native_layer_norm_backward", "pass mim3d.gather_patch_rows"]
    laws = calibration().laws | dict.fromkeys(passes, law())
    write_calibration(file, calibration(laws=laws, met=tuple(laws)))
    outcome = main([*SMALL, "--calibration", str(file)])
    printed = capsys.readouterr().out
    assert outcome.figures["gpus"] == 1
    assert outcome.figures["in_range"]
    assert "devices       1 x cpu" in printed
    assert "calibrated on 2026-11-30, Abacus" in printed
    assert "launch_us" not in printed
    slower = laws | {"product": law(flops=1e-9)}
    write_calibration(file, calibration(laws=slower, met=tuple(slower)))
    later = main([*SMALL, "--calibration", str(file)]).figures["step_s"]
    assert later > 2 * outcome.figures["step_s"]


@pytest.mark.parametrize("device", ["H200", "Abacus"])
def test_a_gpus_calibration_takes_host_and_network_as_assumed(device, tmp_path, capsys):
    file = tmp_path / "cal.json"
    found = calibration(kind="cuda", device=device, precision="bf16", constants={})
    config = dataclasses.replace(recipe("demo-mae"), global_batch=2)
    names = {names_of(one)[0] for one in step_work(config, 2, torch.bfloat16).operations}
    write_calibration(file, dataclasses.replace(found, met=tuple(sorted(names))))
    outcome = main([*SMALL, "--gpus", "2", "--calibration", str(file)])
    figures, printed = outcome.figures, capsys.readouterr().out
    assert figures["in_range"]
    assert (figures["gpus"], figures["device"]) == (2, device)
    assert f"devices       2 x {device}" in printed
    assert "product_share" not in printed
    for name in ("host_us_per_op", "network_gb_per_s", "network_share"):
        assert f"  {name}" in printed
    known = figures["constants"]["peak_tflops"]
    assert known["value"] == pytest.approx(989.4 if device == "H200" else 0.1)


DAMAGE = {
    "an empty file": "",
    "half a file": '{"what": "mim3d step cal',
    "a list": "[1, 2]",
    "another file's": '{"a": 1}',
}


@pytest.mark.parametrize("name", DAMAGE)
def test_files_that_are_no_calibration_are_refused_with_what_writes_one(name, tmp_path):
    file = tmp_path / "cal.json"
    file.write_text(DAMAGE[name])
    with pytest.raises(ConfigError, match=r"mim3d bench step --calibrate FILE"):
        main([*SMALL, "--calibration", str(file)])


CHANGES = {
    "a later format": (("format",), 2),
    "no laws": (("laws",), {}),
    "a law of nothing": (("laws", "product", "seconds", "flops"), 0.0),
    "time that runs back": (("laws", "product", "seconds", "flops"), -1e-9),
    "a column of another kind": (("laws", "product", "seconds", "scores"), 1e-9),
    "a law of what is not": (("laws", "magic"), {"seconds": {"calls": 1.0}}),
    "words for numbers": (("laws", "pass", "largest"), "many"),
    "a kind that is not": (("kind",), "tpu"),
    "a precision that is not": (("precision",), "fp7"),
    "a constant that is none": (("constants", "host_us_per_op", "value"), None),
    "nothing measured": (("checks", 0, "measured_s"), 0.0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_damaged_values_are_refused_in_a_line(name, tmp_path):
    file = tmp_path / "cal.json"
    write_calibration(file, calibration())
    plain = json.loads(file.read_text())
    path, value = CHANGES[name]
    place = plain
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(plain))
    with pytest.raises(
        ConfigError, match=r"take another with `mim3d bench step --calibrate"
    ) as one:
        main([*SMALL, "--calibration", str(file)])
    assert "\n" not in str(one.value)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--device", "H200"], "--device H200 with a calibration of cpu"),
        (["--gpus", "8"], "--gpus 8 with the calibration of a CPU"),
        (["--parallel.precision", "bf16"], "set --parallel.precision fp32"),
        (["--utilisation", "0.5"], "leave --calibration out"),
    ],
)
def test_another_machine_than_the_calibrated_one_is_refused(words, wanted, tmp_path):
    file = tmp_path / "cal.json"
    write_calibration(file, calibration())
    with pytest.raises(ConfigError, match=wanted):
        main([*SMALL, "--calibration", str(file), *words])


def outside(config, **changes):
    parallel = dataclasses.replace(config.parallel, precision="fp32")
    config = dataclasses.replace(config, parallel=parallel)
    return make_plan(config, 1, calibrated_machine(calibration(**changes))).outside


def test_what_the_laws_do_not_tell_of_is_not_told(capsys, tmp_path):
    config = recipe("demo-mae")
    laws = calibration().laws
    assert "the calibration measured nothing" in outside(config, laws=laws | {"pass": law(calls=1)})
    near = dataclasses.replace(laws["product"], largest=10.0)
    far = outside(config, laws=laws | {"product": near, "product backward": near})
    assert "over eight times as large" in far
    compiled = dataclasses.replace(config.parallel, compile=True)
    assert "--parallel.no-compile" in outside(dataclasses.replace(config, parallel=compiled))
    file = tmp_path / "cal.json"
    write_calibration(file, calibration())
    outcome = main([*SMALL, "--calibration", str(file), "--parallel.compile"])
    assert outcome.exit_code == 3
    figures = outcome.figures
    assert not figures["in_range"]
    assert figures["step_s"] is figures["loader_cores"] is None
    assert figures["memory_gb"] > 0
    printed = capsys.readouterr().out
    assert "time          not told: its blocks are compiled" in printed
    assert "crops/s" not in printed
    main([*SMALL, "--calibration", str(file), "--parallel.no-compile"])
    assert "blocks are compiled" not in capsys.readouterr().out


def test_a_convolution_of_one_crop_on_a_cpu_is_not_told():
    config = dataclasses.replace(recipe("demo-resenc-mae"), global_batch=1)
    laws = calibration().laws | dict.fromkeys(
        ["convolution", "convolution backward"], law(flops=1e-8)
    )
    assert "convolutions of one crop" in outside(config, laws=laws, met=tuple(laws))
    several = dataclasses.replace(config, global_batch=2)
    assert not outside(several, laws=laws, met=tuple(laws))
