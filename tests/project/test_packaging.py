"""The rooms install as mim3d.* and as nothing else, with every subpackage."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from functools import partial
from pathlib import Path

import pytest

from mim3d.dataio.native.extension import LOOPS

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("kernels", "dataio", "engine", "bench")
FACE = ROOT / "engine" / "face"
TEMPLATES = ROOT / "engine" / "report" / "templates"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def package_folders() -> set[str]:
    """Every folder of modules by its installed name; engine/face is the package's root."""
    found = {"mim3d"}
    for room in ROOMS:
        for file in (ROOT / room).rglob("__init__.py"):
            if file.parent != FACE:
                found.add("mim3d." + ".".join(file.parent.relative_to(ROOT).parts))
    return found


def mapped_folder(package: str) -> Path:
    """Where setuptools takes a package from: its own entry, or below that of one that holds it."""
    folders = PROJECT["tool"]["setuptools"]["package-dir"]
    parts, below = package.split("."), []
    while ".".join(parts) not in folders:
        below.insert(0, parts.pop())
    return ROOT.joinpath(folders[".".join(parts)], *below)


def test_every_package_is_listed_and_mapped() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    assert set(setuptools["packages"]) == package_folders()
    assert mapped_folder("mim3d") == FACE
    for package in setuptools["packages"]:
        assert (mapped_folder(package) / "__init__.py").is_file(), package


def test_plain_kernels_is_refused_loudly() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import kernels"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "mim3d.kernels" in done.stderr
    assert "PYTHONPATH" in done.stderr


def test_imports_go_one_way() -> None:
    allowed = {
        "kernels": {"kernels"},
        "dataio": {"kernels", "dataio"},
        "engine": {"kernels", "dataio", "engine"},
        "bench": set(ROOMS),
    }
    for room in ROOMS:
        for file in (ROOT / room).rglob("*.py"):
            for line in file.read_text().splitlines():
                words = line.split()
                if len(words) > 1 and words[0] in {"import", "from"}:
                    parts = words[1].split(".")
                    if parts[0] != "mim3d" or len(parts) == 1:
                        continue
                    lazily = line.startswith(" ") and file.match("engine/commands/bench.py")
                    assert parts[1] in allowed[room] or lazily, f"{file}: {line.strip()}"


@pytest.mark.parametrize("module", ["mim3d.dataio.errors", "mim3d.engine.commands.cli"])
def test_light_modules_import_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


@pytest.fixture(scope="module")
def clean_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git would hand out: builds leave folders behind, and may pick up what lies about."""
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    tree = tmp_path_factory.mktemp("tree")
    for name in filter(None, done.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("bench/results/", "docs/")):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)
    return tree


@pytest.fixture(scope="module")
def sdist(clean_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution."""
    out = tmp_path_factory.mktemp("sdist")
    build = f"import setuptools.build_meta as b; b.build_sdist({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=clean_tree, check=True, capture_output=True)
    return next(out.glob("mim3d-*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution alone."""
    out = tmp_path_factory.mktemp("wheel")
    words = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out))
    subprocess.run([sys.executable, "-m", "pip", *words, str(sdist)], check=True)
    return next(out.glob("mim3d-*.whl"))


@pytest.mark.slow
def test_the_sdist_holds_all_that_is_built_from(sdist: Path) -> None:
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    rooms = [file for room in ROOMS for file in (ROOT / room).rglob("*.py")]
    native = [*(ROOT / "dataio/native").glob("*.c"), *(ROOT / "dataio/native").glob("*.h")]
    stubs = [*ROOT.glob("*/**/__init__.pyi"), FACE / "py.typed", *TEMPLATES.iterdir()]
    stubs = [file for file in stubs if ".venv" not in file.parts and "build" not in file.parts]
    missing = {str(file.relative_to(ROOT)) for file in (*rooms, *native, *stubs)} - names
    assert not missing


@pytest.mark.slow
def test_the_wheel_holds_the_rooms_under_mim3d_only(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"mim3d"}
    for package in package_folders():
        folder = package.replace(".", "/")
        assert f"{folder}/__init__.py" in names
        if (mapped_folder(package) / "__init__.pyi").is_file():
            assert f"{folder}/__init__.pyi" in names
    for template in TEMPLATES.iterdir():
        assert f"mim3d/engine/report/templates/{template.name}" in names
    assert {"mim3d/py.typed", "mim3d/__main__.py"} <= set(names)
    assert "mim3d/bench/baseline/two-cpu-cores.json" in names  # what a run is compared with
    assert not [name for name in names if name.startswith("mim3d/engine/face")]
    if shutil.which("cc"):
        for loop in LOOPS:
            assert f"mim3d/dataio/native/{loop}{sysconfig.get_config_var('EXT_SUFFIX')}" in names


@pytest.mark.slow
def test_a_clean_environment_runs_what_is_installed(wheel: Path, tmp_path: Path) -> None:
    """Its own interpreter, without links of a checkout; only the dependencies are lent."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    words = ("install", "--quiet", "--no-deps", str(wheel))
    # Of a PYTHONPATH with mim3d in it pip would think that nothing is to be installed.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, *words], check=True, env=environment)
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    code = f"""
import mim3d, importlib.metadata
from pathlib import Path
from mim3d.dataio.native.extension import not_built
assert Path(mim3d.__file__).is_relative_to({str(site)!r}), mim3d.__file__
assert mim3d.__version__ == {PROJECT["project"]["version"]!r}
assert mim3d.LoaderConfig().micro_batch and mim3d.recipe("demo-mae")
print(not_built())
"""
    run = partial(subprocess.run, env=environment, cwd=tmp_path, text=True, capture_output=True)
    done = run([str(python), "-c", code], check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]" or not shutil.which("cc")
    for command in ([str(python), "-m", "mim3d"], [str(python.with_name("mim3d"))]):
        done = run([*command, "--version"], check=False)
        assert (done.returncode, PROJECT["project"]["version"] in done.stdout) == (0, True)
    done = run([str(python.with_name("mim3d")), "env"], check=False)
    assert "loops in C" in done.stdout, done.stderr
