import errno
import json
import time

import pytest
import torch

from mim3d.engine.errors import ConfigError
from mim3d.engine.pretrain.reconstruction import draw_reconstruction, mid_slice
from mim3d.engine.training.clocks import StageClock
from mim3d.engine.training.metrics import (
    JsonLines,
    LoaderDeltas,
    RateBasis,
    WeightsAndBiases,
    Window,
    memory_row,
    read_rows,
)


def test_rates_by_hand():
    basis = RateBasis(global_batch=8, voxels_per_crop=1000, flops_per_crop=1e9, peak=2e10, world=2)
    row = Window(began=10.0, steps=5, waited=0.5).rates(basis, now=12.0)
    assert row["crops_per_s"] == 20.0
    assert row["voxels_per_s"] == 20_000.0
    assert row["step_s"] == 0.4
    assert row["data_stall_share"] == 0.25
    assert row["tflops_per_s"] == pytest.approx(0.02)
    assert row["mfu_bf16"] == pytest.approx(2e10 / 4e10)


def test_an_unknown_peak_gives_no_utilisation():
    basis = RateBasis(8, 1000, 1e9, None, 1)
    assert Window(began=0.0, steps=1).rates(basis, now=1.0)["mfu_bf16"] is None


def test_stages_add_up_and_idle_clocks_cost_nothing():
    clock = StageClock(torch.device("cpu"))
    clock.begin(active=True)
    for stage, pause in (("data", 0.01), ("forward", 0.02), ("data", 0.01)):
        time.sleep(pause)
        clock.mark(stage)
    spent = clock.read()
    assert set(spent) == {"data", "forward"}
    assert spent["data"] >= 0.02
    assert spent["forward"] >= 0.02
    clock.begin(active=False)
    clock.mark("data")
    assert clock.read() == {}


def test_loader_counters_become_rates_of_the_window():
    deltas = LoaderDeltas()
    deltas.row({"read_s": 1.0, "bytes_read": 1e9, "replaced": 0.0}, steps=1, seconds=1.0)
    row = deltas.row({"read_s": 3.0, "bytes_read": 5e9, "replaced": 2.0}, steps=4, seconds=2.0)
    assert row == {"stage_read_s": 0.5, "bytes_read_gb_per_s": 2.0, "replaced": 2.0}


def test_rows_past_the_resumed_step_are_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": float(step)}) for step in (1, 2, 3)]
    file.write_text("\n".join(lines) + '\n{"step": 4, "lo')
    sink = JsonLines(file, resumed_step=2)
    sink.write({"step": 3, "loss": 9.0})
    sink.close()
    assert [(row["step"], row["loss"]) for row in read_rows(file)] == [(1, 1.0), (2, 2.0), (3, 9.0)]


def test_a_full_disk_at_the_start_keeps_the_rows_that_were(tmp_path, monkeypatch):
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": float(step)}) for step in (1, 2, 3)]
    file.write_text("\n".join(lines) + "\n")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        JsonLines(file, resumed_step=2)
    assert len(read_rows(file)) == 3


def test_rows_are_json_whatever_the_loss(tmp_path):
    sink = JsonLines(tmp_path / "metrics.jsonl", resumed_step=0)
    sink.write({"step": 1, "loss": float("nan"), "grad_norm": float("inf")})
    sink.close()
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 1, "loss": null, "grad_norm": null}\n'
    )


def test_memory_is_that_of_this_process():
    before = memory_row(torch.device("cpu"))["host_memory_gb"]
    held = torch.ones(50_000_000)
    assert memory_row(torch.device("cpu"))["host_memory_gb"] - before > 0.15
    assert held.sum() > 0


def test_wandb_missing_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        WeightsAndBiases(tmp_path, {})


@pytest.mark.parametrize("shape", [(2, 1, 16, 16, 16), (6, 2, 8, 12, 20), (1, 1, 8, 8, 8)])
def test_pictures_of_any_shape(tmp_path, shape):
    from matplotlib.image import imread

    volume = torch.randn(shape)
    file = tmp_path / "deep" / "p.png"
    draw_reconstruction(file, volume, volume * 0, volume, "title")
    pixels = imread(file)
    assert pixels.shape[1] > 1000
    assert pixels[..., :3].std() > 0.05


def test_slices_are_the_middle_ones():
    volume = torch.arange(2 * 3 * 4).reshape(2, 3, 4).numpy()
    assert mid_slice(volume, 0).tolist() == volume[1][::-1].tolist()
    assert mid_slice(volume, 2).shape == (2, 3)
