"""`pip install mim3d` alone converts and loads; what needs more says which extra brings it."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mim3d.dataio.extras import EXTRAS, MissingExtraError, extra, missing
from mim3d.dataio.sources.phantom import make_cohort
from mim3d.engine.environment import BY_EXTRA, REQUIRED

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {"nvidia": "nvidia-dali-cuda130"}
BLOCKED = sorted({*EXTRAS, "triton", "einops", "wandb"})
BLOCKER = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
"""
CORE_COMMANDS = [
    "verify corpus.zarr",
    "inspect corpus.zarr --no-pictures",
    "export-nifti corpus.zarr out",
    "env",
]


def bare(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python as it is where no extra is installed."""
    return subprocess.run(
        [sys.executable, "-P", "-c", BLOCKER + code],
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def command(words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program = f"from mim3d.engine.commands.cli import main\nsys.exit(main({words.split()!r}))"
    return bare(program, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bare")
    make_cohort(folder / "nifti", 2, field_of_view_mm=36)
    done = command("convert nifti corpus.zarr --workers 1", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_core_loads_crops(folder: Path) -> None:
    code = """
from mim3d import Loader, LoaderConfig, read_volume, verify, load_encoder
with Loader("corpus.zarr", LoaderConfig(crop_size=(16, 16, 16), micro_batch=2)) as loader:
    assert next(iter(loader)).image.shape == (2, 1, 16, 16, 16)
from mim3d.kernels import patch_masks, masked_voxel_loss
assert not {"monai", "matplotlib", "tensorboard", "triton"} & set(sys.modules)
"""
    done = bare(code, folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", CORE_COMMANDS)
def test_commands_of_the_core(words: str, folder: Path) -> None:
    done = command(words, folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "module"),
    [
        ("inspect corpus.zarr --out look", "matplotlib"),
        ("convert msd:Task04_Hippocampus other.zarr", "monai"),
        ("finetune demo --data.corpus corpus.zarr --out tuned", "monai"),
        ("convert s3://bucket/data other.zarr", "obstore"),
        ("export run safetensors e.safetensors --push lab/brain", "huggingface_hub"),
    ],
)
def test_a_missing_part_names_its_extra_in_one_line(words: str, module: str, folder: Path) -> None:
    done = command(words, folder)
    assert done.returncode == 2, done.stderr
    assert f"mim3d[{EXTRAS[module]}]" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (folder / "other.zarr").exists()


@pytest.mark.parametrize("module", EXTRAS)
def test_the_remedy_brings_the_module(module: str) -> None:
    error = missing(ModuleNotFoundError(name=f"{module}.part"))
    assert error is not None
    wanted = Requirement(str(error).split("'")[1])
    assert wanted.extras == {EXTRAS[module]}
    assert DISTRIBUTIONS.get(module, module) in brought(EXTRAS[module])


def brought(name: str) -> set[str]:
    """Distributions of an extra, those of the extras it includes too."""
    found = set()
    for line in PROJECT["optional-dependencies"][name]:
        wanted = Requirement(line)
        if wanted.name == "mim3d":
            found |= {d for other in wanted.extras for d in brought(other)}
        else:
            found.add(wanted.name)
    return found


@pytest.mark.parametrize("name", BY_EXTRA)
def test_env_names_the_extra_that_brings_a_part(name: str) -> None:
    assert name in brought(BY_EXTRA[name][1])


def test_env_calls_nothing_of_an_extra_required() -> None:
    core = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert set(REQUIRED) - {"mim3d"} <= core
    assert not set(REQUIRED) & set(BY_EXTRA)


def test_all_brings_every_part() -> None:
    needed = {DISTRIBUTIONS.get(module, module) for module in EXTRAS}
    assert needed <= brought("all")
    core = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert not core & {"monai", "matplotlib", "tensorboard", "jinja2", "triton"}


def test_a_module_of_our_own_that_is_missing_is_no_extra() -> None:
    with pytest.raises(ModuleNotFoundError) as found, extra():
        raise ModuleNotFoundError("No module named 'mim3d.nowhere'", name="mim3d.nowhere")
    assert not isinstance(found.value, MissingExtraError)
