"""What a run will take, before it runs: time, memory, network and data, from arithmetic."""

import math
from dataclasses import dataclass

import torch

from mim3d.dataio.errors import first_line
from mim3d.engine.models.config import MAEConfig, SimCLRConfig, SimMIMConfig
from mim3d.engine.models.flops import run_flops
from mim3d.engine.models.registry import OWN_KINDS
from mim3d.engine.planning.corpus import CorpusFacts
from mim3d.engine.planning.machine import Machine
from mim3d.engine.planning.measured_run import MeasuredRate
from mim3d.engine.planning.memory import Memory, compute_bytes, memory_of
from mim3d.engine.planning.network import Traffic, traffic_of
from mim3d.engine.planning.operations import Work, step_work
from mim3d.engine.planning.sharding import sharding_dry_run
from mim3d.engine.planning.step_time import StepTime, step_time
from mim3d.engine.planning.supply import Supply, supply_of
from mim3d.engine.pretrain.config import PretrainConfig

OWN_METHODS = (MAEConfig, SimMIMConfig, SimCLRConfig)
TAKE_RECIPE = "take one with `mim3d bench step --recipe NAME --calibrate FILE`"
OUTSIDE = 0.25
"""Share of the device's time that may come from operations which the laws do not tell of."""


@dataclass(frozen=True)
class Plan:
    """The figures of a plan; per rank where not said otherwise."""

    gpus: int
    work: Work
    """Of a micro-batch."""
    parameters: int
    flops_per_crop: float
    flops_per_step: float
    """All ranks."""
    time: StepTime
    traffic: Traffic
    memory: Memory
    supply: Supply
    step_s: float
    hours: float
    crops: float
    """Of the run."""
    crops_per_s: float
    """All ranks."""
    utilisation: float | None
    """Share of the device's bf16 peak; None where that is not known."""
    basis: str
    """Where the time comes from."""
    outside: str
    """Why the time is not told; empty where it is."""

    @property
    def network_gb_per_s(self) -> float:
        """What the network must carry to be hidden behind the computing."""
        return self.traffic.nbytes / self.time.compute_s / 1e9


def make_plan(
    config: PretrainConfig,
    gpus: int,
    machine: Machine,
    facts: CorpusFacts | None = None,
    measured: MeasuredRate | None = None,
    work: Work | None = None,
) -> Plan:
    """Plan `config` on `gpus` devices of `machine`; a measured rate stands above its laws.

    `work` is that of another plan for the same micro-batch, where there is one.
    """
    micro_batch = config.micro_batch(gpus)
    shards = sharding_dry_run(config, gpus)
    dtype = torch.float32 if compute_bytes(config) == 4 else torch.bfloat16
    work, lost = (work, "") if work else followed(config, micro_batch, dtype)
    traffic = traffic_of(config, shards, gpus, machine, work)
    flops = run_flops(config.method, config.vit, config.backbone)
    total = flops * config.global_batch
    basis, outside = basis_of(machine), lost
    if measured is not None:
        time, basis, outside = measured.step_time(total, gpus), measured.basis, ""
    elif lost:
        time = StepTime({"unknown": math.inf}, 0.0, 0.0, 0.0, apart=True)
    else:
        time = step_time(config, gpus, machine, work, shards, traffic, facts)
        outside = outside_of(config, time, machine)
    peak = machine.constants.get("peak_tflops")
    crops_per_s = config.global_batch / time.step_s
    return Plan(
        gpus=gpus,
        work=work,
        parameters=shards.parameters,
        flops_per_crop=flops,
        flops_per_step=total,
        time=time,
        traffic=traffic,
        memory=memory_of(config, gpus, shards, micro_batch, facts, machine.memory_gb),
        supply=supply_of(config, gpus, crops_per_s, shards.parameters, machine, facts),
        step_s=time.step_s,
        hours=time.step_s * config.steps / 3600,
        crops=float(config.steps * config.global_batch),
        crops_per_s=crops_per_s,
        utilisation=None if peak is None else total / (time.step_s * gpus * peak.value * 1e12),
        basis=basis,
        outside=outside,
    )


def followed(config: PretrainConfig, micro_batch: int, dtype: torch.dtype) -> tuple[Work, str]:
    """The work of a micro-batch, or nothing and the reason why it is not known.

    A plugin's module may ask for values, which tensors without memory do not have.
    """
    if config.method.views == 2 and micro_batch < 2:
        return Work((), (), 0, 0), (
            "one pair a device has its negatives on the others, which is not followed: take fewer "
            "--gpus or a larger --global-batch"
        )
    try:
        return step_work(config, micro_batch, dtype), ""
    except Exception as error:
        if config.encoder.kind in OWN_KINDS and type(config.method) in OWN_METHODS:
            raise
        return Work((), (), 0, 0), (
            f"its module cannot be followed without computing ({first_line(error)}); "
            "--calibration RUN, a run of it on this device, tells"
        )


def basis_of(machine: Machine) -> str:
    """Where a machine's laws come from."""
    return machine.calibrated or "data sheets and the assumptions below; no calibration was given"


def outside_of(config: PretrainConfig, time: StepTime, machine: Machine) -> str:
    """Why laws do not tell of a step; empty where they do."""
    if machine.kind == "cpu" and config.parallel.compile:
        return (
            "its blocks are compiled, and a CPU's calibration is of blocks that are not: "
            "--parallel.no-compile"
        )
    if time.share(time.unknown_s) > OUTSIDE:
        return (
            f"{time.share(time.unknown_s):.0%} of it is in {', '.join(time.unknown[:3])}, of which "
            f"the calibration measured nothing: {TAKE_RECIPE}"
        )
    if time.share(time.far_s) > OUTSIDE:
        return (
            f"{time.share(time.far_s):.0%} of it is in operations over eight times as large as any "
            f"that the calibration measured: {TAKE_RECIPE}"
        )
    return ""
