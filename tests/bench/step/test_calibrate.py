"""What a calibration fits, on operations whose law is known, and the command from end to end."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mim3d.bench.other_work import OtherWork
from mim3d.bench.step import calibrate, probes, stage
from mim3d.bench.step.fit import Sample, fitted, fitted_laws, median_samples
from mim3d.bench.step.op_times import Signature
from mim3d.engine.commands.plan import main as plan
from mim3d.engine.errors import ConfigError
from mim3d.engine.planning.calibration import Check, read_calibration

RESULTS = Path(__file__).resolve().parents[3] / "bench/results/2026-11-30-plan-cpu"


def passing(name, nbytes):
    columns = (("calls", 1.0), ("bytes", nbytes), ("spilled", max(0.0, nbytes - 2**20)))
    return Signature((f"pass {name}", "pass"), columns, nbytes)


def samples_of(name, seconds, sizes, calls=1.0):
    return [Sample(passing(name, size), seconds(size), calls) for size in sizes]


SIZES = [1e3, 1e4, 1e5, 1e6, 1e7]


def test_a_law_is_found_again():
    law = fitted("pass add", samples_of("add", lambda n: 2e-6 + 3e-10 * n, SIZES))
    assert law.seconds["calls"] == pytest.approx(2e-6)
    assert law.seconds["bytes"] == pytest.approx(3e-10)
    assert law.seconds["spilled"] == pytest.approx(0, abs=1e-13)
    assert law.spread < 1e-9
    assert law.largest == 1e7


def test_no_unit_takes_less_than_nothing_and_the_sum_is_kept():
    """Noise, and bytes that seem to take time back."""
    rng = np.random.default_rng(0)
    group = [
        Sample(passing("add", n), 1e-4 * rng.uniform(0.8, 1.2) - 1e-12 * n, 3.0) for n in SIZES
    ]
    law = fitted("pass add", group)
    assert min(law.seconds.values()) >= 0
    told = sum(one.calls * law.of(dict(one.signature.columns)) for one in group)
    assert told == pytest.approx(sum(one.calls * one.seconds for one in group))


def test_names_of_little_time_or_few_sizes_share_a_law():
    groups = [
        *samples_of("add", lambda n: 1e-9 * n, SIZES),
        *samples_of("rare", lambda n: 1e-15 * n, SIZES),
        *samples_of("once", lambda n: 1e-9 * n, SIZES[:2]),
    ]
    assert set(fitted_laws(groups)) == {"pass", "pass add"}


def test_a_busy_round_does_not_count():
    key = passing("add", 1e5)
    rounds = [{key: (4e-3, 2)}, {key: (90e-3, 2)}, {key: (6e-3, 2)}]
    (one,) = median_samples(rounds)
    assert one.seconds == pytest.approx(3e-3)
    assert one.calls == 2


def few_probes(_, asked, name):
    vit = probes.vit
    found = [vit("fit", 24, 1, 2, 16, 8, 2), vit("fit", 48, 2, 2, 16, 8, 3)]
    found.append(vit("check", 48, 1, 2, 16, 8, 2))
    return [*found, probes.Probe(name, probes.eager(asked), "fit")] if asked else found


def test_the_command_writes_what_a_plan_reads(tmp_path, capsys, monkeypatch):
    for name, value in {"READ_CROP": 16, "ROUND_S": 0.0, "probes_of": few_probes}.items():
        monkeypatch.setattr(calibrate, name, value)
    file = tmp_path / "cal.json"
    words = ["demo-simclr", "--global-batch", "2"]
    outcome = stage.main(["--calibrate", str(file), "--rounds", "2"])
    figures = plan([*words, "--calibration", str(file)]).figures
    assert not figures["in_range"]
    assert "mim3d bench step --recipe NAME --calibrate FILE" in figures["outside"]
    words = ["--recipe", *words]
    outcome = stage.main(["--calibrate", str(file), "--rounds", "2", *words])
    assert f"mim3d plan RECIPE --calibration {file}" in capsys.readouterr().out
    found = read_calibration(file)
    assert found.kind == "cpu"
    assert {"product", "attention", "pass", "optimiser"} <= found.laws.keys()
    assert found.constants["read_gvoxels_per_core"].value > 0
    assert outcome.exit_code == (3 if found.worst > 0.25 else 0)
    (check,) = found.checks
    assert len(check.rounds) == 2
    assert outcome.figures["worst"] == pytest.approx(abs(check.error))
    figures = plan([*words[1:], "--calibration", str(file)]).figures
    assert figures["device"] == "cpu"
    assert figures["in_range"]


def test_a_calibration_that_tells_badly_is_warned_of():
    checks = (Check("a step", 1.3, 1.0, (1.0,)), Check("another", 1.0, 1.0, (1.0,)))
    found = dataclasses.replace(committed(), checks=checks)
    assert "a step was told 30% off" in calibrate.text_of(found, Path("cal.json"), OtherWork())
    assert "warning" not in calibrate.text_of(committed(), Path("cal.json"), OtherWork())


@pytest.mark.parametrize("place", ["s3://bucket/cal.json", "."])
def test_what_cannot_be_written_is_refused_before_anything_is_measured(place):
    with pytest.raises(ConfigError, match="--calibrate"):
        stage.main(["--calibrate", place])


def committed():
    return read_calibration(RESULTS / "calibration.json")


def test_committed_predictions_are_those_of_today_and_within_a_quarter():
    """Recomputed from the committed laws: no step is timed."""
    found = committed()
    configs = {probe.name: probe.config for probe in probes.cpu_probes() if probe.role == "check"}
    assert len(found.checks) >= 8
    assert configs.keys() == {check.setting for check in found.checks}
    for check in found.checks:
        today = calibrate.predicted_s(configs[check.setting], found)
        assert today == pytest.approx(check.measured_s, rel=0.25), check.setting
        assert today == pytest.approx(check.predicted_s, rel=0.05), check.setting


def test_the_committed_table_is_the_file_s():
    table = (RESULTS / "README.md").read_text()
    for check in committed().checks:
        row = f"| {check.setting} | {check.measured_s * 1e3:.1f} | {check.predicted_s * 1e3:.1f} "
        assert row + f"| {check.error:+.0%} |" in table


def test_encoders_batches_patches_and_crops_differ_in_what_was_checked():
    checked = [probe.config for probe in probes.cpu_probes() if probe.role == "check"]
    assert {one.encoder.kind for one in checked} == {"vit", "primus", "resenc"}
    assert len({one.vit.crop_size for one in checked}) > 1
    assert len({one.vit.patch_size for one in checked}) > 1
    fits = [probe.config for probe in probes.cpu_probes() if probe.role == "fit"]
    assert not [one for one in checked if one in fits]
