"""The public names: what each face exports, whence it comes, and that a face costs no import."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
FACE = ROOT / "engine" / "face"
# A name that is added here is a promise; one that goes away is a breaking change for CHANGELOG.md.
EXPORTED = {
    "mim3d": [
        "Artefacts", "Augmentation", "Conversion", "Corpus", "FinetuneConfig", "Loader",
        "LoaderConfig", "PredictConfig", "PretrainConfig", "Spatial", "__version__", "convert",
        "discover", "load_encoder", "opened_corpus", "read_volume", "recipe",
        "register_augmentation", "register_encoder", "register_method", "register_normalisation",
        "register_recipe", "run_finetune", "run_predict", "run_pretrain", "verify",
    ],
    "mim3d.kernels": [
        "assemble_crops", "gather_patch_rows", "masked_channel_losses", "masked_voxel_loss",
        "nt_xent", "patch_masks",
    ],
    "mim3d.dataio.sources": ["Discovery", "Source", "discover"],
    "mim3d.dataio.corpus": ["Conversion"],
    "mim3d.dataio.convert": ["ConversionReport", "convert"],
    "mim3d.dataio.reader": ["Corpus", "ShardReader", "opened_corpus", "read_volume"],
    "mim3d.dataio.loader": ["Batch", "Loader", "LoaderConfig"],
    "mim3d.dataio.inspect": ["export_corpus", "verify"],
    "mim3d.engine.models": [
        "EncoderShape", "MAE", "MAEConfig", "MethodConfig", "Objective", "SimCLR", "SimCLRConfig",
        "SimMIM", "SimMIMConfig", "StepOutput", "SwinConfig", "SwinEncoder", "ViT3D", "ViTConfig",
        "register_way",
    ],
    "mim3d.engine.runs": ["export_encoder", "load_encoder"],
    "mim3d.engine.pretrain": ["PretrainConfig", "recipe", "run_pretrain"],
    "mim3d.engine.finetune": ["FinetuneConfig", "run_finetune"],
    "mim3d.engine.predict": ["EmbedConfig", "PredictConfig", "run_embed", "run_predict"],
    "mim3d.engine.study": ["StudyConfig", "run_study"],
}  # fmt: skip
HEAVY = ("torch", "numpy", "zarr", "nibabel", "tyro", "rich")
NAMES = [(face, name) for face, names in EXPORTED.items() for name in names]


def stub_of(face: str) -> Path:
    """The file that lists a face's names."""
    folder = FACE if face == "mim3d" else ROOT.joinpath(*face.split(".")[1:])
    return folder / "__init__.pyi"


def homes(face: str) -> dict[str, str]:
    """Module of every name, as the stub imports it."""
    return {
        alias.name: f"{face}.{node.module}"
        for node in ast.parse(stub_of(face).read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_face_is_frozen_here() -> None:
    stubs = {
        file for room in ("kernels", "dataio", "engine") for file in (ROOT / room).rglob("*.pyi")
    }
    assert {stub_of(face) for face in EXPORTED} == stubs


@pytest.mark.parametrize("face", EXPORTED)
def test_faces_export_exactly_these_names(face: str) -> None:
    module = importlib.import_module(face)
    assert sorted(module.__all__) == EXPORTED[face]
    assert set(EXPORTED[face]) <= set(dir(module))
    assert {*homes(face), *(["__version__"] if face == "mim3d" else [])} == set(EXPORTED[face])


@pytest.mark.parametrize(("face", "name"), NAMES, ids=[f"{face}.{name}" for face, name in NAMES])
def test_names_are_what_the_stub_says(face: str, name: str) -> None:
    found = getattr(importlib.import_module(face), name)
    assert not isinstance(found, ModuleType)
    if name != "__version__":
        home = importlib.import_module(homes(face)[name])
        assert found is getattr(home, name)
        assert found.__doc__, "a public name says what it is"


def test_names_of_a_module_alike_stay_functions_once_it_is_imported() -> None:
    """Importing a submodule sets it as the package's attribute, over the function of its name."""
    alike = [
        (face, name)
        for face, name in NAMES
        if homes(face).get(name, "").rpartition(".")[2] == name and face != "mim3d"
    ]
    assert ("mim3d.dataio.inspect", "verify") in alike
    imports = "; ".join(f"import {face}.{name}" for face, name in alike)
    checks = "; ".join(f"assert callable({face}.{name}), '{face}.{name}'" for face, name in alike)
    python(f"{imports}; {checks}")


def test_faces_cost_no_import() -> None:
    imports = "; ".join(f"import {face}" for face in EXPORTED)
    assert python(f"import sys; {imports}; print([m for m in {HEAVY} if m in sys.modules])") == "[]"


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    for face in EXPORTED:
        with pytest.raises(AttributeError, match="Pretrainer"):
            _ = importlib.import_module(face).Pretrainer


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mim3d", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout


def test_types_are_shipped() -> None:
    assert (FACE / "py.typed").is_file()
    assert (Path(importlib.import_module("mim3d").__file__ or "").parent / "py.typed").is_file()
