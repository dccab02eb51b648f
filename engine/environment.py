"""What this machine has: versions, devices, and which optional parts are missing and why.

Nothing here imports a CUDA library that raises without a driver; presence is told by metadata.
"""

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

REQUIRED = [
    "mim3d",
    "torch",
    "numpy",
    "zarr",
    "numcodecs",
    "google-crc32c",
    "xxhash",
    "nibabel",
    "isal",
    "deflate",
    "scipy",
    "safetensors",
    "tyro",
    "rich",
]
BY_EXTRA = {
    "monai": ("decoders, losses and Swin", "train"),
    "matplotlib": ("pictures of corpora, runs and studies", "train"),
    "tensorboard": ("TensorBoard events of a run", "train"),
    "triton": ("fused kernels on a GPU", "train"),
    "jinja2": ("a study's report", "study"),
    "obstore": ("corpora on s3://, gs://, http://", "remote"),
    "distributed": ("conversion on a Dask cluster", "dask"),
    "huggingface_hub": ("encoders on the Hugging Face Hub", "hub"),
    "simpleitk": (".mha, .mhd and .nrrd", "containers"),
    "nvidia-libnvcomp-cu13": ("decompression on a GPU", "gpu"),
    "torchao": ("matrix products in float8", "fp8"),
}
"""Distribution -> what needs it, and the extra of mim3d that installs it."""
DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")


@dataclass(frozen=True)
class Optional:
    """One optional part: whether it is there, its version or state, and how to get it."""

    name: str
    present: bool
    detail: str


def versions() -> dict[str, str]:
    """Versions of what every use needs, 'missing' where it is not there, and of extras' parts."""
    extras = {name: found for name in BY_EXTRA if (found := _version(name))}
    return {name: _version(name) or "missing" for name in REQUIRED} | extras


def machine() -> dict[str, str]:
    """Interpreter, system, processor cores this process may use, memory."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_gib = psutil.virtual_memory().total / 2**30
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(cores),
        "memory": f"{memory_gib:.1f} GiB",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
    }


def devices() -> list[dict[str, str]]:
    """CUDA devices as torch sees them, an empty list on a machine without one."""
    import torch

    rows = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        rows.append(
            {
                "device": f"cuda:{index}",
                "name": found.name,
                "memory": f"{found.total_memory / 2**30:.1f} GiB",
                "capability": f"{found.major}.{found.minor}",
                "multiprocessors": str(found.multi_processor_count),
            }
        )
    return rows


def optional_parts() -> list[Optional]:
    """DALI, nvCOMP, apex and the rest, each with its remedy when missing."""
    extras = [
        _distribution(name, use, f"pip install 'mim3d[{extra}]'")
        for name, (use, extra) in BY_EXTRA.items()
    ]
    return [
        *extras,
        _dali(),
        _c_loops(),
        _apex(),
        _distribution("wandb", "Weights & Biases logging", "pip install wandb"),
        _program("torchrun", "several ranks a machine", "comes with torch"),
    ]


def torch_build() -> dict[str, str]:
    """Which torch build this is and what it can reach."""
    import torch

    return {
        "torch": torch.__version__,
        "cuda of the build": str(torch.version.cuda),
        "cuda available": str(torch.cuda.is_available()),
        "nccl": str(torch.distributed.is_nccl_available()),
        "gloo": str(torch.distributed.is_gloo_available()),
    }


def as_figures() -> Mapping[str, object]:
    """Everything above in one mapping, as `mim3d env --json` writes it."""
    return {
        "versions": versions(),
        "machine": machine(),
        "torch": torch_build(),
        "devices": devices(),
        "kernels": kernel_backends(),
        "optional": {part.name: part.detail for part in optional_parts()},
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _distribution(name: str, use: str, remedy: str) -> Optional:
    found = _version(name)
    detail = f"{found} ({use})" if found else f"missing: {use} needs it; {remedy}"
    return Optional(name, found is not None, detail)


def _program(name: str, use: str, remedy: str) -> Optional:
    found = shutil.which(name)
    detail = f"{found} ({use})" if found else f"missing from PATH: {use} needs it; {remedy}"
    return Optional(name, found is not None, detail)


def _dali() -> Optional:
    found = [(name, _version(name)) for name in DALI if _version(name)]
    if not found:
        need = "rotations, zooms and blur on a GPU need it, a CPU does not"
        remedy = "pip install 'mim3d[cuda13]' (or 'mim3d[cuda12]' for CUDA 12 drivers)"
        return Optional("nvidia-dali", False, f"missing: {need}; {remedy}")
    if len(found) > 1:
        names = ", ".join(name for name, _ in found)
        return Optional(
            "nvidia-dali", False, f"{names} share files: pip uninstall both, then install one"
        )
    use = "rotations, zooms and blur on a GPU; a CPU runs without"
    return Optional("nvidia-dali", True, f"{found[0][0]} {found[0][1]} ({use})")


def _c_loops() -> Optional:
    """The loops that install with the package where there is a compiler."""
    from mim3d.dataio.native.extension import LOOPS, crop_loops, not_built

    missing = not_built()
    if not missing:
        does = f"{', '.join(LOOPS.values())}; by {crop_loops().instructions()}"
        return Optional("loops in C", True, f"built ({does})")
    left = ", ".join(f"{name} ({LOOPS[name]})" for name in missing)
    return Optional(
        "loops in C",
        False,
        f"not built: {left}; numcodecs and numpy give the same bits, slower; "
        "install a C compiler and pip install again",
    )


def kernel_backends() -> dict[str, str]:
    """Which implementation `backend="auto"` runs for tensors of each device, and why."""
    from mim3d.kernels.backend import explain

    rows = (line.partition(": ") for line in explain().splitlines())
    return {device: choice for device, _, choice in rows}


def _apex() -> Optional:
    """NVIDIA apex by its compiled module; PyPI's `apex` is an unrelated authentication package."""
    if find_spec("apex") is None:
        return Optional("apex", False, "missing: optional FusedAdam/FusedLAMB; build NVIDIA's apex")
    if find_spec("amp_C") is None:
        return Optional(
            "apex",
            False,
            "found, but without NVIDIA's compiled amp_C: either PyPI's unrelated 'apex' "
            "(pip uninstall apex) or a build without --cpp_ext --cuda_ext",
        )
    return Optional("apex", True, "NVIDIA apex with amp_C (FusedAdam, FusedLAMB)")
