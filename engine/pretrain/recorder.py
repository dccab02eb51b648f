"""Rows of a run as they are made: rates over the window, memory, stages, and where they go."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.models.flops import peak_bf16, run_flops
from mim3d.engine.pretrain.config import PretrainConfig, config_dict
from mim3d.engine.pretrain.run_folder import METRICS
from mim3d.engine.training.metrics import (
    JsonLines,
    LoaderDeltas,
    RateBasis,
    Row,
    Sink,
    TensorBoard,
    WeightsAndBiases,
    Window,
    memory_row,
)


class Recorder:
    """Makes rows on every rank and writes them on the first."""

    def __init__(self, config: PretrainConfig, out: Path, ranks: Ranks, step: int) -> None:
        self.ranks = ranks
        self.basis = rate_basis(config, ranks)
        self.deltas = LoaderDeltas()
        self.window = Window(time.perf_counter())
        self.last: Row = {}
        self._since_save: list[float] = []
        self._sinks: list[Sink] = []
        if not ranks.first:
            return
        self._sinks.append(JsonLines(out / METRICS, step))
        if config.log.tensorboard:
            self._sinks.append(TensorBoard(out / "tensorboard", step))
        if config.log.wandb:
            self._sinks.append(WeightsAndBiases(out, config_dict(config)))

    def open_window(self) -> None:
        """Begin to count steps and seconds anew."""
        self.window = Window(time.perf_counter())

    def count(self, waited: float) -> None:
        """One more step, which stood still `waited` seconds for data."""
        self.window.steps += 1
        self.window.waited += waited

    def pause(self, seconds: float) -> None:
        """Leave time that was not spent on steps out of the rates."""
        self.window.began += seconds

    def write(self, row: Row, stages: Mapping[str, float], loader: Mapping[str, Any]) -> None:
        """Complete a row with rates, stages of its step, loader and memory; begin a new window."""
        now = time.perf_counter()
        row |= self.window.rates(self.basis, now)
        row["world"] = self.ranks.world
        row["flops"] = row["step"] * self.basis.global_batch * self.basis.flops_per_crop
        row |= {f"stage_{name}_s": seconds for name, seconds in stages.items()}
        row |= self.deltas.row(loader, self.window.steps, now - self.window.began)
        row |= memory_row(self.ranks.device)
        self.last = row
        if math.isfinite(row["loss"]):
            self._since_save.append(row["loss"])
        for sink in self._sinks:
            sink.write(row)
        self.open_window()

    def mean_loss_since_save(self) -> float | None:
        """Mean of the rows' finite losses since the last call; None where there is none."""
        losses, self._since_save = self._since_save, []
        return sum(losses) / len(losses) if losses else None

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close()


def rate_basis(config: PretrainConfig, ranks: Ranks) -> RateBasis:
    """Constants of the run's rates."""
    on_gpu = ranks.device.type == "cuda"
    z, y, x = config.vit.crop_size
    return RateBasis(
        global_batch=config.global_batch,
        voxels_per_crop=z * y * x * config.vit.channels,
        flops_per_crop=run_flops(config.method, config.vit, config.swin),
        peak=peak_bf16(torch.cuda.get_device_name(ranks.device)) if on_gpu else None,
        world=ranks.world,
    )
