"""The file that `mim3d bench step --calibrate` writes: a machine's laws, as measured on it."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mim3d.engine.arithmetic.config import Precision
from mim3d.engine.errors import CheckpointError, ConfigError
from mim3d.engine.models.flops import peak_bf16
from mim3d.engine.planning.laws import COLUMNS, Law, Laws
from mim3d.engine.planning.machine import ASSUMED, Constant, Machine, known_machine, with_given
from mim3d.engine.runs.files import read_json, write_json

WHAT, FORMAT = "mim3d step calibration", 1
TAKE = "take another with `mim3d bench step --calibrate FILE`"
NEEDED = ("product", "pass", "optimiser")
"""Families without which nothing can be told."""


@dataclass(frozen=True)
class Check:
    """A step that the laws were not fitted to: seconds predicted beside those measured."""

    setting: str
    predicted_s: float
    measured_s: float
    rounds: tuple[float, ...] = ()

    @property
    def error(self) -> float:
        """Of the prediction, as a share of what was measured."""
        return self.predicted_s / self.measured_s - 1.0


@dataclass(frozen=True)
class Calibration:
    """A machine's laws and constants, and how well they told of steps."""

    date: str
    kind: Literal["cuda", "cpu"]
    device: str
    """cpu, or the GPU's name."""
    machine: dict[str, str]
    precision: Precision
    """fp32, bf16 or fp16: the laws are of that type's arithmetic."""
    clock: str
    """What seconds are: of the processor, of the wall clock, of the device."""
    laws: dict[str, Law]
    constants: dict[str, Constant]
    met: tuple[str, ...] = ()
    """Names of all operations that were timed, with a law of their own or not."""
    checks: tuple[Check, ...] = ()
    multiprocessors: int = 0
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def worst(self) -> float:
        """The largest error of its checks."""
        return max((abs(check.error) for check in self.checks), default=math.nan)

    def text(self) -> str:
        """Its origin in a line."""
        words = f"calibrated on {self.date}, {self.machine.get('processor', self.device)}"
        if self.kind == "cuda":
            words = f"calibrated on {self.date}, {self.device}"
        if not self.checks:
            return f"{words}; not checked"
        return f"{words}; {len(self.checks)} steps told within {self.worst:.0%}"

    def refuse_device(self, asked: str) -> None:
        """A ConfigError where another device is planned for."""
        if asked and asked != self.device:
            raise ConfigError(
                f"--device {asked} with a calibration of {self.device} ({self.date}): leave "
                "--device out, or take one there with `mim3d bench step --calibrate FILE`"
            )

    def refuse_precision(self, asked: str) -> None:
        """A ConfigError where another arithmetic is planned for."""
        if asked not in {"auto", self.precision}:
            raise ConfigError(
                f"--parallel.precision {asked} with a calibration of {self.precision}: set "
                f"--parallel.precision {self.precision}, or take one of {asked}"
            )


def calibration_in(path: Path) -> Calibration | None:
    """A calibration; None where it is a run or the figures of a bench."""
    if not path.is_file() or path.suffix == ".jsonl":
        return None
    try:
        plain = read_json(path)
    except CheckpointError as error:
        raise ConfigError(f"{path} cannot be read as a calibration: {TAKE}") from error
    if isinstance(plain, dict) and "tflops_per_s" in plain:
        return None
    return read_calibration(path)


def read_calibration(file: Path) -> Calibration:
    """A calibration; ConfigError where the file is none, damaged, or of another format."""
    try:
        plain = read_json(file)
    except (CheckpointError, OSError) as error:
        raise ConfigError(f"{file} cannot be read as a calibration: {TAKE}") from error
    if not isinstance(plain, dict) or plain.get("what") != WHAT:
        raise ConfigError(f"{file} is no calibration: {TAKE}")
    if plain.get("format") != FORMAT:
        raise ConfigError(
            f"{file} is a calibration of format {plain.get('format')!r}, this version reads "
            f"{FORMAT}: {TAKE}"
        )
    try:
        return parsed(plain)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{file} is damaged ({type(error).__name__}: {error}): {TAKE}") from None


def parsed(plain: Mapping[str, Any]) -> Calibration:
    """From plain values; KeyError, TypeError or ValueError where they are not right."""
    laws = {name: parsed_law(name, law) for name, law in plain["laws"].items()}
    missing = [name for name in NEEDED if name not in laws]
    if missing:
        raise ValueError(f"no law of {', '.join(missing)}")
    if plain["kind"] not in {"cuda", "cpu"}:
        raise ValueError(f"kind {plain['kind']!r}")
    constants = {
        name: Constant(
            positive(name, each["value"]), str(each["unit"]), str(each["source"]), "measured",
            float(each["spread"]),
        )
        for name, each in plain["constants"].items()
    }  # fmt: skip
    return Calibration(
        date=str(plain["date"]),
        kind=plain["kind"],
        device=str(plain["device"]),
        machine={str(key): str(value) for key, value in plain["machine"].items()},
        precision=parsed_precision(plain["precision"]),
        clock=str(plain["clock"]),
        laws=laws,
        constants=constants,
        met=tuple(map(str, plain["met"])),
        checks=tuple(
            Check(
                str(each["setting"]),
                positive("predicted_s", each["predicted_s"]),
                positive("measured_s", each["measured_s"]),
                tuple(map(float, each["rounds"])),
            )
            for each in plain["checks"]
        ),
        multiprocessors=int(plain["multiprocessors"]),
        notes=tuple(map(str, plain["notes"])),
    )


def parsed_law(name: str, plain: Mapping[str, Any]) -> Law:
    """A family's law; ValueError where a column is none of its kind's or not a duration."""
    kind = name.split(" ", maxsplit=1)[0]
    if kind not in COLUMNS:
        raise ValueError(f"a law of {name!r}")
    seconds = {}
    for column, value in plain["seconds"].items():
        if column not in COLUMNS[kind]:
            raise ValueError(f"column {column!r} of {name}")
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{column} of {name} is {value!r}")
        seconds[column] = float(value)
    if not any(seconds.values()):
        raise ValueError(f"the law of {name} is 0")
    return Law(
        seconds,
        "measured",
        spread=float(plain["spread"]),
        largest=positive(f"largest of {name}", plain["largest"]),
        samples=int(plain["samples"]),
    )


def parsed_precision(value: Any) -> Precision:
    """A type of arithmetic; ValueError where it is none."""
    if value not in {"fp32", "bf16", "fp16"}:
        raise ValueError(f"precision {value!r}")
    return value


def positive(name: str, value: Any) -> float:
    """A number above 0; ValueError where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value!r}")
    return float(value)


def write_calibration(file: Path, found: Calibration) -> None:
    """Write it whole, or not at all."""
    plain = json.loads(json.dumps(asdict(found)))
    for law in plain["laws"].values():
        del law["source"], law["roofline"]
    write_json(file, {"what": WHAT, "format": FORMAT, **plain})


def calibrated_machine(found: Calibration, given: Mapping[str, float] | None = None) -> Machine:
    """The machine that was measured; what it was not asked is assumed, or a data sheet's."""
    constants = dict(ASSUMED)
    if found.kind == "cuda":
        reached = unknown_peak(found)
        constants = dict(known_machine(found.device, peak_tflops=reached).constants)
        if reached:
            words = "what its products reached: its sheet is not known"
            constants["peak_tflops"] = Constant(reached, "TFLOP/s", words, "measured")
    constants |= found.constants
    return Machine(
        found.device,
        found.kind,
        Laws(found.laws, found.multiprocessors, met=frozenset(found.met)),
        with_given(constants, given or {}),
        found.text(),
    )


def unknown_peak(found: Calibration) -> float:
    """TFLOP/s of a device whose peak is not known: what its products reached."""
    if peak_bf16(found.device):
        return 0.0
    seconds = found.laws["product"].seconds.get("flops", 0.0)
    return 1e-12 / seconds if seconds else 1.0
