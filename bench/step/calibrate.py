"""`mim3d bench step --calibrate FILE`: how long this machine takes for what steps are made of.

Small steps of several encoders run in interleaved rounds. Some are timed operation by operation,
and the laws of `mim3d plan` are fitted to the medians; others, of other sizes, are timed as wholes
and compared with what the laws tell of them. Both take turns, so that a busy machine slows both.
"""

import datetime
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mim3d.bench.corpora import bench_corpus, many_volumes
from mim3d.bench.noise import in_turn
from mim3d.bench.other_work import OtherWork
from mim3d.bench.step.contestants import forever, make_stepper, open_loader, random_batch
from mim3d.bench.step.fit import Sample, fitted, fitted_laws, least_squares, median_samples
from mim3d.bench.step.op_times import (
    Clock,
    Clocks,
    OperationTimes,
    Signature,
    clocks_of,
    time_operations,
)
from mim3d.bench.step.options import LR, StepBench
from mim3d.bench.step.probes import Probe, probes_of
from mim3d.bench.timing import settle
from mim3d.dataio.loader.batch import Batch
from mim3d.dataio.loader.loader import Loader
from mim3d.engine.arithmetic.config import Precision
from mim3d.engine.arithmetic.precision import choose_precision
from mim3d.engine.commands.outcome import Outcome
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.environment import machine, versions
from mim3d.engine.errors import ConfigError
from mim3d.engine.planning.calibration import (
    Calibration,
    Check,
    calibrated_machine,
    write_calibration,
)
from mim3d.engine.planning.laws import Law
from mim3d.engine.planning.machine import Constant
from mim3d.engine.planning.plan import make_plan
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.pretrain.recipes import recipe
from mim3d.engine.runs.files import refuse_address
from mim3d.engine.training.train_step import Stepper

ROUND_S = 0.15
"""Of a step's round, at least."""
TRUSTED = 0.25
"""Error of a check beyond which a calibration is warned of."""
READ_CROP, READ_VOLUMES, READ_BATCHES = 96, 3, 4
PRECISIONS: dict[torch.dtype, Precision] = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


@dataclass
class Timed:
    """A probe with its stepper, and what each round measured."""

    probe: Probe
    stepper: Stepper
    bare: nn.Module
    """The module whose operations are timed: on a GPU apart from FSDP's, in the run's type."""
    batch: Batch
    steps: int = 1
    whole: list[float] = field(default_factory=list)
    """Seconds of a step."""
    parts: list[OperationTimes] = field(default_factory=list)
    optimiser: list[float] = field(default_factory=list)

    @property
    def tensors(self) -> int:
        """Of parameters that are trained."""
        return sum(1 for p in self.stepper.model.parameters() if p.requires_grad)

    @property
    def parameters(self) -> int:
        """Elements of them."""
        return sum(p.numel() for p in self.stepper.model.parameters() if p.requires_grad)


def calibrate(options: StepBench, ranks: Ranks, file: Path) -> Outcome:
    """Measure, fit, check, and write the file."""
    if ranks.world > 1:
        raise ConfigError(
            f"--calibrate measures one rank, here are {ranks.world}: start it without torchrun"
        )
    refuse_address(file, "--calibrate")
    if file.is_dir():
        raise ConfigError(f"--calibrate {file} is a folder: name the file to write in it")
    asked = None
    if options.recipe:
        asked = recipe(options.recipe)
        asked = replace(asked, global_batch=options.global_batch or asked.global_batch)
    clocks = clocks_of(ranks.device)
    multiprocessors = 0
    if ranks.device.type == "cuda":
        multiprocessors = torch.cuda.get_device_properties(ranks.device).multi_processor_count
    timed = [
        prepared(probe, ranks) for probe in probes_of(ranks.device.type, asked, options.recipe)
    ]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mim3d-bench-")))
        loader = stack.enter_context(reading_loader(folder, ranks))
        reads: list[float] = []
        for one in timed:
            warm_up(one, clocks.whole)
        other = stack.enter_context(OtherWork())
        for number in range(options.rounds):
            for place in in_turn(list(map(str, range(len(timed)))), number):
                run_round(timed[int(place)], clocks, multiprocessors)
            reads.append(voxels_per_cpu_s(loader))
    found = calibration_of(timed, reads, ranks, clocks.name, multiprocessors, other)
    write_calibration(file, found)
    print(text_of(found, file, other))
    figures = {
        "file": str(file),
        "worst": found.worst,
        "checks": [vars(check) for check in found.checks],
        "others_cpu_share": other.share,
    }
    return Outcome(figures, lost=int(found.worst > TRUSTED))


def prepared(probe: Probe, ranks: Ranks) -> Timed:
    """A probe's model, optimiser and batch in memory."""
    batch = random_batch(probe.config, ranks)
    stepper = make_stepper(probe.config, ranks, probe.config.build(), forever(batch))
    bare = stepper.model
    if ranks.device.type == "cuda":
        dtype = choose_precision(probe.config.parallel.precision, ranks.device)
        bare = probe.config.build().to(ranks.device, dtype)
    return Timed(probe, stepper, bare, batch)


def warm_up(one: Timed, clock: Clock) -> None:
    """Two steps, and how many make a round of the second's length."""
    one.stepper.step(LR, measure=False)
    began = clock()
    one.stepper.step(LR, measure=False)
    one.steps = max(1, round(ROUND_S / max(clock() - began, 1e-4)))


def run_round(one: Timed, clocks: Clocks, multiprocessors: int) -> None:
    """Steps as they are, and for those that laws are fitted to one more by its parts."""
    clock = clocks.whole
    began = clock()
    for _ in range(one.steps):
        one.stepper.step(LR, measure=False)
    one.whole.append((clock() - began) / one.steps)
    if one.probe.role == "fit":
        one.parts.append(time_operations(one.bare, one.batch, clocks.operation, multiprocessors))
        if one.bare is not one.stepper.model:
            one.stepper.model(one.batch)[0].backward()
        began = clock()
        one.stepper.optimiser.step(LR)
        one.optimiser.append(clock() - began)


def reading_loader(folder: Path, ranks: Ranks) -> Loader:
    """A loader over a few volumes as large as scans, which keeps nothing: each crop is decoded."""
    side = READ_CROP
    volumes = many_volumes((2 * side, 2 * side, 2 * side), READ_VOLUMES)
    root = bench_corpus(folder / "corpus.zarr", volumes, workers=1)
    base = recipe("demo-mae")
    config = replace(
        base,
        vit=replace(base.vit, crop_size=(side,) * 3),
        data=replace(
            base.data,
            loader=replace(base.data.loader, cache="none", augment="mim", snap=16, threads=1),
        ),
        global_batch=4,
    )
    return open_loader(root, config, ranks)


def voxels_per_cpu_s(loader: Loader) -> float:
    """Voxels that a processor second reads, decodes and normalises."""
    settle()  # as many batches are read ahead at the end as at the beginning
    began = time.process_time()
    voxels = sum(next(loader).image.numel() for _ in range(READ_BATCHES))
    settle()
    return voxels / max(time.process_time() - began, 1e-9)


def calibration_of(
    timed: Sequence[Timed],
    reads: Sequence[float],
    ranks: Ranks,
    clock_name: str,
    multiprocessors: int,
    other: OtherWork,
) -> Calibration:
    """Laws and constants from the rounds, and the checks by them."""
    fits = [one for one in timed if one.probe.role == "fit"]
    rounds = [merged(one.parts[number] for one in fits) for number in range(len(reads))]
    laws = fitted_laws(median_samples(rounds)) | {"optimiser": optimiser_law(fits)}
    on_gpu = ranks.device.type == "cuda"
    dtype = choose_precision("auto", ranks.device)
    found = Calibration(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        kind="cuda" if on_gpu else "cpu",
        device=torch.cuda.get_device_name(ranks.device) if on_gpu else "cpu",
        machine={**machine(), "torch": versions()["torch"]},
        precision=PRECISIONS[dtype],
        clock=clock_name,
        laws=laws,
        constants={"read_gvoxels_per_core": measured_constant([r / 1e9 for r in reads], "Gvoxel/s")}
        | ({} if on_gpu else host_constants(fits)),
        met=tuple(sorted({key.names[0] for one in rounds for key in one})),
        multiprocessors=multiprocessors,
        notes=(
            f"{len(reads)} interleaved rounds; others used {other.text()} of the CPUs",
            *(f"fitted to {one.probe.name}" for one in fits),
        ),
    )
    checks = tuple(check_of(one, found) for one in timed if one.probe.role == "check")
    return replace(found, checks=checks)


def merged(parts: Iterable[OperationTimes]) -> Mapping[Signature, tuple[float, int]]:
    """Seconds and calls of each signature over several steps."""
    found: dict[Signature, tuple[float, int]] = {}
    for part in parts:
        for key, tally in part.tallies.items():
            seconds, calls = found.get(key, (0.0, 0))
            found[key] = (seconds + tally.seconds, calls + tally.calls)
    return found


def optimiser_law(fits: Sequence[Timed]) -> Law:
    """Of an update, from the medians of its rounds."""
    samples = [
        Sample(
            Signature(
                ("optimiser",),
                (("calls", float(one.tensors)), ("parameters", float(one.parameters))),
                float(one.parameters),
            ),
            statistics.median(one.optimiser),
            1.0,
        )
        for one in fits
    ]
    return fitted("optimiser", samples)


def host_constants(fits: Sequence[Timed]) -> dict[str, Constant]:
    """Microseconds an operation and a step that are in no operation, of one CPU.

    On a GPU device and host work at once, and a step does not tell them apart.
    """
    rounds = [host_seconds(fits, number) for number in range(len(fits[0].whole))]
    per_op, per_step = zip(*rounds, strict=True)
    return {
        "host_us_per_op": measured_constant([1e6 * each for each in per_op], "us"),
        "host_us_per_step": measured_constant([1e6 * each for each in per_step], "us"),
    }


def host_seconds(fits: Sequence[Timed], number: int) -> tuple[float, float]:
    """Seconds an operation and a step in a round: what a whole step takes beyond its parts."""
    rows = np.array([[float(one.parts[0].launches), 1.0] for one in fits])
    wholes = np.array([one.whole[number] for one in fits])
    inside = np.array([one.parts[number].seconds + one.optimiser[number] for one in fits])
    # A difference is as uncertain as what it is the difference of.
    found = least_squares(rows, wholes - inside, 1.0 / wholes)
    return float(found[0]), float(found[1])


def measured_constant(rounds: Sequence[float], unit: str) -> Constant:
    """The median of rounds, with their range as a share of it."""
    middle = max(statistics.median(rounds), 1e-3)
    return Constant(middle, unit, "measured", "measured", (max(rounds) - min(rounds)) / middle)


def check_of(one: Timed, found: Calibration) -> Check:
    """What the laws tell of a step beside what it took."""
    predicted = predicted_s(one.probe.config, found)
    return Check(one.probe.name, predicted, statistics.median(one.whole), tuple(one.whole))


def predicted_s(config: PretrainConfig, found: Calibration) -> float:
    """Seconds of a step as `mim3d plan` has it."""
    parallel = replace(config.parallel, precision=found.precision)
    return make_plan(replace(config, parallel=parallel), 1, calibrated_machine(found)).step_s


def text_of(found: Calibration, file: Path, other: OtherWork) -> str:
    """The checks for people."""
    lines = [
        f"{found.machine['processor'] if found.kind == 'cpu' else found.device}, "
        f"{found.precision}, {found.clock}; others used {other.text()} of the CPUs",
        f"{'a step of':<52} {'told ms':>8} {'took ms':>8} {'error':>6}",
    ]
    lines += [
        f"{check.setting:<52} {check.predicted_s * 1e3:>8.1f} {check.measured_s * 1e3:>8.1f} "
        f"{check.error:>+6.0%}"
        for check in found.checks
    ]
    if found.worst > TRUSTED:
        lines.append(
            f"warning: a step was told {found.worst:.0%} off: take more --rounds, or a time when "
            "the machine is quieter"
        )
    lines.append(f"written to {file}: mim3d plan RECIPE --calibration {file}")
    return "\n".join(lines)
