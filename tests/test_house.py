"""The house style that a machine can check: sizes, reading order, no re-exports, no left-overs."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("kernels", "dataio", "engine", "bench")
FILES = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
PACKAGES = sorted(file for file in FILES if file.name == "__init__.py")
LONGEST_FILE, LONGEST_FUNCTION = 400, 100


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_are_small(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines"


@pytest.mark.parametrize("file", PACKAGES, ids=lambda file: file.parent.name)
def test_each_room_names_its_files_in_its_docstring(file: Path) -> None:
    tree = ast.parse(file.read_text())
    told = set(re.findall(r"\w+", ast.get_docstring(tree) or ""))
    modules = {other.stem for other in file.parent.glob("*.py")} - {"__init__"}
    assert modules <= told, f"not named in the docstring: {sorted(modules - told)}"


@pytest.mark.parametrize("file", PACKAGES, ids=lambda file: file.parent.name)
def test_rooms_re_export_nothing(file: Path) -> None:
    nodes = ast.walk(ast.parse(file.read_text()))
    assert not [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


def test_no_module_queries_a_device_at_import() -> None:
    asks = re.compile(r"torch\.cuda\.(is_available|device_count|current_device|get_device)")
    for file in FILES:
        for node in ast.parse(file.read_text()).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert not asks.search(ast.unparse(node)), f"{file}: {ast.unparse(node)}"
