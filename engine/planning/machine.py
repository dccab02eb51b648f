"""What a plan takes a machine to be: laws of its operations, and constants with their sources.

A constant is measured (a calibration file has it), given on the command line, or assumed; the
last is said in every plan's output. Rates of data sheets are taken at the share that code is known
to reach of them.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mim3d.engine.errors import ConfigError
from mim3d.engine.models.flops import peak_bf16
from mim3d.engine.planning.laws import Law, Laws

Origin = Literal["sheet", "assumed", "measured", "given"]


@dataclass(frozen=True)
class Sheet:
    """What a data sheet says of a device: bytes, bytes a second one way, and multiprocessors."""

    memory_gb: float
    memory_gb_per_s: float
    multiprocessors: int
    link_gb_per_s: float
    """To its neighbours in the node: NVLink, or the PCIe bus."""


SHEETS = {
    "GB200": Sheet(186, 8000, 148, 900),
    "B200": Sheet(180, 8000, 148, 900),
    "GH200": Sheet(96, 4000, 132, 450),
    "H200 NVL": Sheet(141, 4800, 132, 450),
    "H200": Sheet(141, 4800, 132, 450),
    "H100 PCIe": Sheet(80, 2000, 114, 64),
    "H100 NVL": Sheet(94, 3900, 132, 300),
    "H100": Sheet(80, 3350, 132, 450),
    "A100": Sheet(80, 2039, 108, 300),
    "L40S": Sheet(48, 864, 142, 32),
    "L40": Sheet(48, 864, 142, 32),
    "A10G": Sheet(24, 600, 80, 32),
    "A10": Sheet(24, 600, 72, 32),
    "L4": Sheet(24, 300, 58, 32),
    "RTX 4090": Sheet(24, 1008, 128, 32),
    "RTX A6000": Sheet(48, 768, 84, 32),
}
"""By whole words of the device's name, from NVIDIA's sheets; of an A100 the one with 80 GB."""
HEAD_RATES = {32: 480 / 190, 64: 480 / 350, 96: 480 / 380, 128: 1.0}
"""How much slower attention is with heads of so many features, for it is bound by exponentials."""
BACKWARD_SHARE = 0.72
"""Of attention's forward rate, as flash attention's authors have it."""


@dataclass(frozen=True)
class Constant:
    """A number that a plan rests on."""

    value: float
    unit: str
    source: str
    origin: Origin = "assumed"
    spread: float = 0.0
    """As a share of the value, where it was measured."""


ASSUMED: dict[str, Constant] = {
    "product_share": Constant(0.8, "of the peak", "large bf16 products by cuBLAS"),
    "attention_share": Constant(0.485, "of the peak", "flash attention, heads of 128"),
    "convolution_share": Constant(0.35, "of the peak", "cuDNN in 3-D, channels last, a guess"),
    "memory_share": Constant(0.9, "of the sheet's", "passes over much memory"),
    "launch_us": Constant(1.5, "us", "between kernels that must wait"),
    "gpus_per_node": Constant(8, "GPUs", "as in DGX and HGX machines"),
    "network_gb_per_s": Constant(50, "GB/s a GPU", "between nodes, as in a DGX"),
    "network_share": Constant(0.8, "of it", "NCCL's usual share of a link"),
    "host_us_per_op": Constant(6, "us", "eager, counted on a CPU core"),
    "host_us_per_block": Constant(290, "us", "compiled, counted on a CPU core"),
    "host_us_per_shard": Constant(660, "us", "FSDP2's hooks, counted on a CPU"),
    "host_us_per_step": Constant(4000, "us", "ends, clipping, optimiser"),
    "host_us_per_crop": Constant(40, "us", "taking one, counted on a CPU core"),
    "decode_gb_per_s": Constant(40, "GB/s", "nvCOMP's lz4, low end of published"),
    "fetch_us_per_crop": Constant(101, "us", "for cache=device, counted on a CPU"),
    "host_us_per_graph": Constant(100, "us", "to repeat a step's CUDA graph, a guess"),
    "fp8_gain": Constant(1.5, "times bf16", "of float8 products, with their casts"),
    "read_gvoxels_per_core": Constant(1.9, "Gvoxel/s", "bench/results, 2026-11-30-loader"),
    "resample_gvoxels_per_core": Constant(0.08, "Gvoxel/s", "bench/results, 2026-11-30-spatial"),
    "turn_gvoxels_per_core": Constant(0.4, "Gvoxel/s", "bench/results, 2026-11-30-views"),
    "cores_per_gpu": Constant(14, "cores", "112 for 8 GPUs, as in a DGX"),
    "host_memory_gb": Constant(2000, "GB a node", "as in a DGX"),
    "disk_gb_per_s": Constant(6, "GB/s a node", "one NVMe drive, read in order"),
    "stored_bytes_per_voxel": Constant(0.9, "bytes", "int16 by lz4; CT, MR: 0.7 to 1.1"),
}
"""What is taken of a machine with GPUs unless a calibration or --assume says otherwise."""


@dataclass(frozen=True)
class Machine:
    """What the time of a step is computed with."""

    name: str
    kind: Literal["cuda", "cpu"]
    laws: Laws
    constants: dict[str, Constant] = field(default_factory=dict)
    calibrated: str = ""
    """When and on what its laws were measured; empty where they come from data sheets."""

    def value(self, name: str) -> float:
        """A constant's value."""
        return self.constants[name].value

    @property
    def memory_gb(self) -> float | None:
        """Memory of a device; None where it is not known, or is the host's."""
        constant = self.constants.get("memory_gb")
        if constant is None or self.kind != "cuda" or math.isinf(constant.value):
            return None
        return constant.value

    def with_memory(self, gb: float, source: str) -> "Machine":
        """The same, with as much memory on each device as `source` names."""
        given = Constant(gb, "GB", source, "given")
        return dataclasses.replace(self, constants=self.constants | {"memory_gb": given})


def with_given(constants: dict[str, Constant], given: Mapping[str, float]) -> dict[str, Constant]:
    """Constants with values from the command line; ConfigError where there is none of a name."""
    found = dict(constants)
    for name, value in given.items():
        if name not in constants:
            raise ConfigError(f"--assume {name}: no such constant; one of {', '.join(constants)}")
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"--assume {name}={value:g} must be a positive number")
        found[name] = dataclasses.replace(
            constants[name], value=value, source="as given by --assume", origin="given"
        )
    return found


def known_machine(
    name: str, peak_tflops: float = 0.0, given: Mapping[str, float] | None = None
) -> Machine:
    """A machine of such devices, from data sheets; `peak_tflops` of one that is not known here."""
    sheet = sheet_of(name)
    peak = peak_tflops * 1e12 or peak_bf16(name) or 0.0
    if not peak:
        raise ConfigError(f"the peak of {name!r} is not known: set --peak-tflops")
    origin: Origin = "given" if peak_tflops else "sheet"
    source = "as given by --peak-tflops" if peak_tflops else "NVIDIA's data sheet"
    constants = dict(ASSUMED)
    constants["peak_tflops"] = Constant(peak / 1e12, "TFLOP/s in bf16", source, origin)
    about, words = sheet, "NVIDIA's data sheet"
    if about is None:
        about, words = like_an_h200(peak), "an H200's for its arithmetic"
    from_sheet: Origin = "sheet" if sheet else "assumed"
    for key, value, unit in (
        ("memory_gb", about.memory_gb, "GB"),
        ("memory_gb_per_s", about.memory_gb_per_s, "GB/s"),
        ("link_gb_per_s", about.link_gb_per_s, "GB/s one way"),
    ):
        constants[key] = Constant(value, unit, words, from_sheet)
    machine = Machine(name, "cuda", Laws(), with_given(constants, given or {}))
    return dataclasses.replace(machine, laws=laws_of_sheet(machine, about.multiprocessors))


def like_an_h200(peak: float) -> Sheet:
    """A sheet for a device of which only the peak is known: memory unknown, rates in proportion."""
    h200, share = SHEETS["H200"], peak / 989.4e12
    rate = h200.memory_gb_per_s * share
    return Sheet(math.inf, rate, max(1, round(132 * share)), h200.link_gb_per_s * share)


def laws_of_sheet(machine: Machine, multiprocessors: int) -> Laws:
    """Rooflines at the shares of peak and bandwidth that are usually reached, in bf16."""
    peak, value = machine.value("peak_tflops") * 1e12, machine.value
    byte = 1 / (value("memory_share") * value("memory_gb_per_s") * 1e9)
    flop, attention = 1 / (value("product_share") * peak), 1 / (value("attention_share") * peak)
    element, launch = 2 * byte, value("launch_us") * 1e-6

    def law(arithmetic: dict[str, float], traffic: dict[str, float], kernels: float = 1) -> Law:
        return Law({"calls": kernels * launch} | arithmetic | traffic, "sheet", roofline=True)

    both = {"operands": element, "results": element}
    convolution = 1 / (value("convolution_share") * peak)
    families = {
        "product": law({"flops": flop}, both),
        "convolution": law({"padded": convolution}, both),
        "attention": law({"flops": attention}, {"rows": 2 * element}),
        "attention backward": law({"flops": attention / BACKWARD_SHARE}, {"rows": 5 * element}, 3),
        "pass": law({}, {"bytes": byte}),
        "optimiser": law({"parameters": 32 * byte}, {}, 0.1),  # tensors go in lists
    }
    return Laws(families, multiprocessors, HEAD_RATES)


def sheet_of(name: str) -> Sheet | None:
    """By whole words of the device's name, longest first, as its peak is found."""
    if "Laptop" in name:
        return None
    for part in sorted(SHEETS, key=len, reverse=True):
        if re.search(rf"\b{part}\b", name):
            return SHEETS[part]
    return None
