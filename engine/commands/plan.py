"""`mim3d plan RECIPE --gpus N`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mim3d.dataio.finite import refuse_not_finite, refuse_outside
from mim3d.dataio.remote.forecast import StoreNeed, store_need
from mim3d.dataio.remote.link import FIRST_BYTES_PER_S
from mim3d.engine.commands.arguments import parse, refuse_without_value
from mim3d.engine.commands.outcome import Outcome
from mim3d.engine.errors import ConfigError
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.pretrain.recipes import idle_fields, recipe

if TYPE_CHECKING:
    from mim3d.engine.planning.machine import Machine
    from mim3d.engine.planning.measured_run import MeasuredRate
    from mim3d.engine.planning.plan import Plan

DESCRIPTION = """Time, memory, network and data need of a recipe, before it runs.

The model runs over tensors without memory, so that every operation of a step is known; each takes
what a calibration (`mim3d bench step --calibrate FILE`, on the machine that is meant) measured, or
what data sheets and the assumptions below the plan let expect. Sharding is done for real on a fake
group of N ranks. Exit code 3 where more is needed than the machine has, the batch
does not divide over the ranks, or the time cannot be told.
"""
MOST_GPUS = 1024
USUAL_GPUS, USUAL_DEVICE = 8, "H200"


@dataclass(frozen=True)
class PlanArgs:
    """What to plan for."""

    config: Annotated[PretrainConfig, tyro.conf.arg(name="")]
    gpus: int | None = None
    """Devices, up to 1024; 8 where not given, 1 with a CPU's calibration."""
    device: str = ""
    """Their name (H200, H100, A100, B200, L40S, ...); the calibration's, else H200."""
    peak_tflops: float = 0.0
    """bf16 peak of a device not known here, TFLOP/s."""
    utilisation: float = 0.0
    """Share of the peak reached, in (0, 1]: the time is computed from it alone."""
    calibration: Path | None = None
    """What `mim3d bench step --calibrate` wrote; or a run's folder, its metrics.jsonl or the --json
    file of a step bench, on the same kind of device."""
    assume: tuple[str, ...] = ()
    """NAME=VALUE ...: constants to take instead of those that the plan names as assumed."""
    store_latency_ms: float = 0.0
    """Of a request to the store of a corpus named by an address; where it or the next is given, the
    plan says how many requests must be in flight."""
    store_mb_per_s: float = 0.0
    """Bandwidth of one request; 0 takes 80."""
    memory_gb: float = 0.0
    """Memory of a device; where given, a plan that needs more than 90 % of it is refused."""

    def __post_init__(self) -> None:
        """Numbers that can be; 0 stands for what is not given."""
        refuse_not_finite(self, kind=ConfigError)
        if self.gpus is not None:
            refuse_outside(self, "gpus", 1, MOST_GPUS, kind=ConfigError)
        zero_or_more = "peak_tflops memory_gb utilisation store_latency_ms store_mb_per_s"
        refuse_outside(self, zero_or_more, 0, kind=ConfigError)


def main(words: list[str]) -> Outcome:
    """Run the command."""
    if not words or words[0] in {"-h", "--help"}:
        words = ["demo-mae", "--help"]
    config = recipe(words[0])
    args = parse(
        PlanArgs,
        words[1:],
        default=PlanArgs(config),
        prog=f"mim3d plan {words[0]}",
        description=DESCRIPTION,
        left_out=idle_fields(config),
    )
    refuse_without_value("--assume", args.assume, words[1:])
    return planned(args)


def planned(args: PlanArgs) -> Outcome:
    """Make the plan, print it, and say where it asks for too much."""
    from mim3d.engine.planning.corpus import corpus_facts
    from mim3d.engine.planning.needs import needs_of
    from mim3d.engine.planning.plan import make_plan
    from mim3d.engine.planning.text import plan_text, wrapped

    machine, measured = machine_of(args)
    args, raised = with_enough_crops(settled(args, machine))
    gpus = args.gpus or 1
    config = args.config.for_ranks(gpus)
    facts = corpus_facts(config) if config.data.corpus else None
    if facts is not None and facts.unlike:
        loader = dataclasses.replace(config.data.loader, cache="host")  # as the loader itself does
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, loader=loader))
    plan = make_plan(config, gpus, machine, facts, measured)
    print(plan_text(config, plan, machine, facts, measured is not None))
    store = None if plan.outside else store_figures(args, plan.crops_per_s / gpus)
    if store:
        print(wrapped("store", store_words(store)))
    refuse_too_large(args, plan)
    needs = needs_of(config, plan, machine, facts)
    warnings = [raised] if raised else []
    warnings += [*(facts.doubts if facts else ()), *(need.text for need in needs)]
    for warning in warnings:
        print(wrapped("warning:", warning))
    figures = figures_of(plan, machine, config) | {"warnings": warnings}
    if store:
        figures["store"] = dataclasses.asdict(store) | {"in_flight": store.in_flight}
    if facts is not None:
        figures["corpus"] = dataclasses.asdict(facts)
    return Outcome(figures, lost=len(warnings) + bool(plan.outside))


def figures_of(plan: "Plan", machine: "Machine", config: PretrainConfig) -> dict[str, Any]:
    """For --json; what the model does not tell of is null."""
    in_range = not plan.outside
    memory, time, traffic = plan.memory, plan.time, plan.traffic
    of_time = {
        "step_s": plan.step_s,
        "hours": plan.hours,
        "crops_per_s": plan.crops_per_s,
        "utilisation": plan.utilisation,
        "device_s": time.device,
        "host_s": time.host_s,
        "network_s": time.network_s,
        "network_exposed_s": time.exposed_s,
        "network_gb_per_s": plan.network_gb_per_s,
        "bound_by": time.bound,
        "loader_gb_per_s": plan.supply.gb_per_s,
        "loader_cores": plan.supply.cores,
        "disk_gb_per_s": plan.supply.stored_gb_per_s,
    }
    return {
        "gpus": plan.gpus,
        "device": machine.name,
        "global_batch": config.global_batch,
        "parameters": plan.parameters,
        "crops": plan.crops,
        "flops_per_crop": plan.flops_per_crop,
        "flops_per_step": plan.flops_per_step,
        **(of_time if in_range else dict.fromkeys(of_time)),
        "network_gb_per_step": traffic.nbytes / 1e9,
        "memory_gb": memory.device,
        **{f"{name}_gb": gb for name, gb in dataclasses.asdict(memory).items()},
        "stored_tb": plan.supply.stored_tb,
        "checkpoint_gb": plan.supply.checkpoint_gb,
        "basis": plan.basis,
        "in_range": in_range,
        "outside": plan.outside,
        "constants": {name: dataclasses.asdict(c) for name, c in machine.constants.items()},
    }


def machine_of(args: PlanArgs) -> "tuple[Machine, MeasuredRate | None]":
    """The machine planned for, and a rate that stands above its laws where one is given."""
    from mim3d.engine.planning.calibration import calibrated_machine, calibration_in
    from mim3d.engine.planning.machine import known_machine
    from mim3d.engine.planning.measured_run import MeasuredRate, measured_rate

    given = assumed_values(args.assume)
    found = calibration_in(args.calibration) if args.calibration else None
    if found is not None:
        found.refuse_device(args.device)
        found.refuse_precision(args.config.parallel.precision)
        machine = calibrated_machine(found, given)
    else:
        machine = known_machine(args.device or USUAL_DEVICE, args.peak_tflops, given)
    measured = None
    if args.calibration and found is None:
        measured = measured_rate(args.calibration)
    peak = machine.constants.get("peak_tflops")
    if args.utilisation:
        if peak is None:
            raise ConfigError("--utilisation is a share of a GPU's peak: leave --calibration out")
        rate = args.utilisation * peak.value * 1e12
        measured = MeasuredRate(rate, f"{args.utilisation:.1%} of the peak, as --utilisation says")
    if measured and peak and not 0 < measured.flops_per_s / (peak.value * 1e12) <= 1:
        share = measured.flops_per_s / (peak.value * 1e12)
        raise ConfigError(
            f"utilisation {share:.3g} ({measured.basis}) must lie in (0, 1]: another device?"
        )
    if args.memory_gb and machine.kind == "cuda":
        machine = machine.with_memory(args.memory_gb, "as given by --memory-gb")
    return machine, measured


def assumed_values(words: tuple[str, ...]) -> dict[str, float]:
    """Numbers of NAME=VALUE."""
    found = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise ConfigError(f"--assume {word}: write NAME=NUMBER") from None
    return found


def settled(args: PlanArgs, machine: "Machine") -> PlanArgs:
    """With what stands for itself on the machine: how many devices, and auto's precision."""
    config, gpus = args.config, args.gpus
    if machine.kind == "cuda":
        return dataclasses.replace(args, gpus=gpus or USUAL_GPUS)
    if gpus not in {None, 1}:
        raise ConfigError(
            f"--gpus {gpus} with the calibration of a CPU, which tells of one process: --gpus 1"
        )
    if config.parallel.precision == "auto":
        parallel = dataclasses.replace(config.parallel, precision="fp32")
        config = dataclasses.replace(config, parallel=parallel)
    return dataclasses.replace(args, config=config, gpus=1)


def refuse_too_large(args: PlanArgs, plan: "Plan") -> None:
    """A ConfigError where a rank needs more than the memory that was named."""
    from mim3d.engine.planning.needs import FULL, less_memory

    room = FULL * args.memory_gb
    if args.memory_gb and plan.memory.device > room:
        cache = plan.memory.cache
        kept = f", of which {cache:.1f} for volumes kept there," if cache else ""
        raise ConfigError(
            f"a rank needs about {plan.memory.device:.1f} GB{kept} and of the device's "
            f"{args.memory_gb:g} {room:.3g} can be filled: {less_memory(args.config, plan, room)}"
        )


def store_figures(args: PlanArgs, crops_per_s: float) -> StoreNeed | None:
    """What a rank at this speed asks of the store; None where nothing is said of it."""
    if not (args.store_latency_ms or args.store_mb_per_s):
        return None
    config = args.config
    return store_need(
        config.vit.crop_size,
        config.vit.channels,
        crops_per_s,
        config.data.loader.remote_requests,
        args.store_latency_ms,
        args.store_mb_per_s or FIRST_BYTES_PER_S / 1e6,
    )


def store_words(need: StoreNeed) -> str:
    """The same for people, with what to do where requests do not suffice."""
    enough = f"of {need.requests} that it may have (--data.remote-requests)"
    if need.in_flight > need.requests:
        enough = (
            f"but {need.requests} give {need.most_crops_per_s:.4g} crops/s: raise "
            f"--data.remote-requests to {need.in_flight}, or keep chunks (--data.cache disk:FOLDER)"
        )
    rate = need.crops_per_s * need.mb_per_crop
    return (
        f"{rate:.4g} MB/s for each rank while nothing is kept: {need.in_flight} "
        f"requests in flight at {need.latency_ms:g} ms and {need.mb_per_s:g} MB/s each, {enough}"
    )


def with_enough_crops(args: PlanArgs) -> tuple[PlanArgs, str]:
    """The plan's arguments with a batch that divides over the devices, and a line that says so."""
    config = args.config
    gpus = args.gpus or 1
    parts = gpus * config.parallel.grad_accum
    if config.global_batch % parts == 0:
        return args, ""
    batch = -(-config.global_batch // parts) * parts
    raised = dataclasses.replace(config, global_batch=batch)
    return dataclasses.replace(args, config=raised), (
        f"planned with --global-batch {batch}: the {config.global_batch} asked for do not divide "
        f"over {gpus} devices x {config.parallel.grad_accum}, and `mim3d pretrain` would refuse "
        f"them; set --global-batch {batch}, with a learning rate chosen for it"
    )
