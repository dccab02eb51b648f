"""The C sources: no warnings, headers known to setuptools and told in the README, formatted."""

import re
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest

from mim3d.dataio.native import extension

ROOT = Path(__file__).resolve().parents[3]
NATIVE = ROOT / "dataio" / "native"
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
MODULES = {entry["name"].rpartition(".")[2]: entry for entry in SETUPTOOLS["ext-modules"]}
HEADERS = {file.name for file in NATIVE.glob("*.h")}


def included(file: Path) -> set[str]:
    """Headers of this folder that a file includes, and those that they include."""
    found: set[str] = set()
    for name in re.findall(r'^#include "(\w+\.h)"$', file.read_text(), re.MULTILINE):
        found |= {name} | included(NATIVE / name)
    return found


def test_every_source_is_a_module_that_is_loaded_and_told() -> None:
    sources = {f"_{file.stem}" for file in NATIVE.glob("*.c")}
    assert set(MODULES) == set(extension.LOOPS) == sources
    for name in sources:
        loaded = extension.loaded(name)
        assert loaded is None or loaded.__name__.endswith(name)


def test_a_module_built_from_earlier_sources_is_left_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, function in extension.NEWEST.items():
        assert f'"{function}", ' in (NATIVE / f"{name[1:]}.c").read_text()
    monkeypatch.setattr(extension, "NEWEST", {"_chunks": "a_later_function"})
    assert extension.loaded.__wrapped__("_chunks") is None


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_change_of_any_header_builds_the_module_anew(name: str) -> None:
    depends = {Path(each).name for each in MODULES[name]["depends"]}
    assert depends == included(ROOT / MODULES[name]["sources"][0])


def test_the_readme_knows_every_file_and_no_other() -> None:
    text = (NATIVE / "README.md").read_text()
    files = HEADERS | {file.name for file in NATIVE.glob("*.c")}
    assert set(re.findall(r"\b\w+\.[ch]\b", text)) == files
    assert set().union(*(included(file) for file in NATIVE.glob("*.c"))) == HEADERS


@pytest.mark.parametrize("level", ["-O1", pytest.param("-O3", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", sorted(MODULES))
def test_sources_compile_without_a_warning(name: str, level: str, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    flags = ["-Wall", "-Wextra", "-Werror", "-std=gnu11", "-fPIC", "-c", level]
    source = ROOT / MODULES[name]["sources"][0]
    include = sysconfig.get_paths()["include"]
    subprocess.run(
        [compiler, *flags, f"-isystem{include}", str(source), "-o", str(tmp_path / "o")], check=True
    )


def test_sources_are_formatted() -> None:
    formatter = shutil.which("clang-format")
    if formatter is None:
        pytest.skip("no clang-format: pip install 'mim3d[lint]'")
    files = [str(file) for kind in ("*.c", "*.h") for file in sorted(NATIVE.glob(kind))]
    subprocess.run([formatter, "--dry-run", "-Werror", *files], check=True, cwd=ROOT)
