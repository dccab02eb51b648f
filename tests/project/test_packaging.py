"""The rooms install as mim3d.* and as nothing else, with every subpackage."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("kernels", "dataio", "engine", "bench")
FACE = ROOT / "engine" / "face"
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


@pytest.mark.slow
def test_wheel_holds_the_rooms_under_mim3d_only(tmp_path: Path) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)),
        ],
        check=True,
    )
    names = zipfile.ZipFile(next(tmp_path.glob("mim3d-*.whl"))).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"mim3d"}
    for package in package_folders():
        assert f"{package.replace('.', '/')}/__init__.py" in names
    for template in (ROOT / "engine" / "report" / "templates").iterdir():
        assert f"mim3d/engine/report/templates/{template.name}" in names
