"""`mim3d plan RECIPE --gpus N`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mim3d.dataio.finite import refuse_not_finite, refuse_outside
from mim3d.dataio.remote.forecast import StoreNeed, store_need
from mim3d.dataio.remote.link import FIRST_BYTES_PER_S
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome
from mim3d.engine.errors import ConfigError
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.pretrain.recipes import idle_fields, recipe

if TYPE_CHECKING:
    from mim3d.engine.planning.corpus import CorpusFacts
    from mim3d.engine.planning.plan import Plan

DESCRIPTION = """Time, memory, network and loader need of a recipe, before it runs.

Sharding is done for real on a fake group of N ranks; time is FLOPs over the device's bf16 peak
times its utilisation: measured where --calibration names a run, else an assumption that is said.
"""
MOST_GPUS = 1024
LEAST_MS = 5.0
"""Of arithmetic a micro-batch: two thousand kernels take about as long to be started."""


@dataclass(frozen=True)
class PlanArgs:
    """What to plan for."""

    config: Annotated[PretrainConfig, tyro.conf.arg(name="")]
    gpus: int = 8
    """Devices, up to 1024."""
    device: str = "H200"
    """Their name, for the bf16 peak (H200, H100, A100, B200, L40S, ...)."""
    peak_tflops: float = 0.0
    """bf16 peak of a device not known here, TFLOP/s."""
    utilisation: float = 0.0
    """Share of the peak reached, in (0, 1]; 0 takes the calibration's, or 0.4."""
    calibration: Path | None = None
    """Run folder, metrics.jsonl or --json file of a step bench on the same kind of device."""
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
    args, raised = with_enough_crops(args)
    plan = planned(args)
    facts = None
    if args.config.data.corpus:
        from mim3d.engine.planning.corpus import corpus_facts

        facts = corpus_facts(args.config)
    print(table(plan, args, facts))
    store = store_figures(args, plan.crops_per_s / args.gpus)
    if store:
        print(store_line(store))
    if raised:
        print(raised)
    for doubt in facts.doubts if facts else ():
        print(f"warning: {doubt}")
    if args.memory_gb and plan.memory_gb > 0.9 * args.memory_gb:
        raise ConfigError(
            f"a rank needs about {plan.memory_gb:.1f} GB and the device has {args.memory_gb:g}: "
            f"{remedy(plan)}"
        )
    more = {"store": dataclasses.asdict(store) | {"in_flight": store.in_flight}} if store else {}
    figures = {**dataclasses.asdict(plan), "global_batch": args.config.global_batch, **more}
    figures |= {"device": args.device, "in_range": not out_of_range(plan, args)}
    if facts is None:
        return Outcome(figures)
    return Outcome({**figures, "corpus": dataclasses.asdict(facts)}, lost=len(facts.doubts))


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


def store_line(need: StoreNeed) -> str:
    """The same for people, with what to do where requests do not suffice."""
    enough = f"of {need.requests} that it may have (--data.remote-requests)"
    if need.in_flight > need.requests:
        enough = (
            f"but {need.requests} give {need.most_crops_per_s:.4g} crops/s: raise "
            f"--data.remote-requests to {need.in_flight}, or keep chunks (--data.cache disk:FOLDER)"
        )
    rate = need.crops_per_s * need.mb_per_crop
    return (
        f"{'store':<13} {rate:.4g} MB/s for each rank while nothing is kept: {need.in_flight} "
        f"requests in flight at {need.latency_ms:g} ms and {need.mb_per_s:g} MB/s each, {enough}"
    )


def remedy(plan: "Plan") -> str:
    """What makes a rank need less; the chunks kept on the device first, they cost only speed."""
    less = "raise --gpus or --parallel.grad-accum, or set --parallel.recompute"
    return f"lower --data.cache-bytes, {less}" if plan.cache_gb else less


def with_enough_crops(args: PlanArgs) -> tuple[PlanArgs, str]:
    """The plan's arguments with a batch that divides over the devices, and a line that says so."""
    config = args.config
    parts = args.gpus * config.parallel.grad_accum
    if config.global_batch % parts == 0:
        return args, ""
    batch = -(-config.global_batch // parts) * parts
    raised = dataclasses.replace(config, global_batch=batch)
    return dataclasses.replace(args, config=raised), (
        f"planned with --global-batch {batch}: the recipe's {config.global_batch} does not divide "
        f"over {args.gpus} devices x {config.parallel.grad_accum}, and `mim3d pretrain` would "
        f"refuse it; the learning rate was chosen for {config.global_batch}"
    )


def planned(args: PlanArgs) -> "Plan":
    """Check the arguments and make the plan."""
    from mim3d.engine.models.flops import peak_bf16
    from mim3d.engine.planning.measured_run import read_calibration
    from mim3d.engine.planning.plan import ASSUMED_MFU, make_plan

    peak = args.peak_tflops * 1e12 or peak_bf16(args.device)
    if not peak:
        raise ConfigError(f"the peak of {args.device!r} is not known: set --peak-tflops")
    share, basis = ASSUMED_MFU, f"assumed: no calibration was given, {ASSUMED_MFU:.0%} is usual"
    if args.calibration is not None:
        share, basis = read_calibration(args.calibration, peak)
    if args.utilisation:
        share, basis = args.utilisation, "as told by --utilisation"
    if not 0.0 < share <= 1.0:
        raise ConfigError(f"utilisation {share:.3g} ({basis}) must lie in (0, 1]: another device?")
    return make_plan(args.config, args.gpus, peak, share, basis)


def out_of_range(plan: "Plan", args: PlanArgs) -> str:
    """Why time cannot be told of FLOPs; empty where it can.

    Below LEAST_MS a micro-batch a step is as long as its kernels take to be started, which no
    share of a peak tells; a measured run of the same kind does.
    """
    each = plan.step_s * 1e3 / args.config.parallel.grad_accum
    if args.calibration is not None or each >= LEAST_MS:
        return ""
    return (
        f"not told: its arithmetic alone takes {each:.2g} ms a micro-batch, less than starting its "
        "kernels; --calibration RUN, a run of it on this device, tells"
    )


def table(plan: "Plan", args: PlanArgs, facts: "CorpusFacts | None" = None) -> str:
    """The plan for people; what its model cannot tell is not printed."""
    config, unknown = args.config, out_of_range(plan, args)
    peak = plan.flops_per_step / (plan.step_s * plan.utilisation * plan.gpus)
    accumulated = cache = ""
    if plan.accumulated_gb:
        accumulated = f", accumulated gradients {plan.accumulated_gb:.3g}"
    if plan.cache_gb:
        cache = f", chunks kept on the device {plan.cache_gb:.3g} (--data.cache-bytes)"
    rows = [
        ("parameters", f"{plan.parameters / 1e6:.1f} M"),
        ("crops a step", f"{config.global_batch} ({config.micro_batch(plan.gpus)} a micro-batch)"),
        ("arithmetic", f"{plan.flops_per_step / 1e12:.3g} TFLOP a step"),
        ("devices", f"{plan.gpus} x {args.device}, {peak / 1e12:.4g} TFLOP/s each in bf16"),
        ("utilisation", f"{plan.utilisation:.1%} of that (MFU), {plan.basis}"),
        ("time", unknown or f"{plan.step_s * 1e3:.4g} ms a step, {plan.hours:.4g} h for "
                            f"{config.steps} steps"),
        ("throughput", (unknown and "not told") or f"{plan.crops_per_s:.4g} crops/s"),
        ("loader", (unknown and "not told")
                   or f"{plan.loader_gb_per_s:.3g} GB/s of int16 voxels for each rank"),
        ("memory", f"{plan.memory_gb:.3g} GB a rank: state {plan.state_gb:.3g}, gathered "
                   f"{plan.gathered_gb:.3g}, activations {plan.activation_gb:.3g}" + accumulated
                   + cache),
        ("network", f"{plan.network_gb_per_step:.3g} GB a rank and step" + ("" if unknown else
                    f", {plan.network_gb_per_s:.3g} GB/s to hide behind arithmetic")),
    ]  # fmt: skip
    if facts is not None:
        rows.insert(0, ("corpus", facts.row()))
    return "\n".join(f"{name:<13} {value}" for name, value in rows)
