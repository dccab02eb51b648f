"""The house style that a machine can check: sizes, who may import whom, no circles."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("kernels", "dataio", "engine", "bench")
FILES = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
PACKAGES = sorted(file for file in FILES if file.name == "__init__.py")
LONGEST_FILE, LONGEST_FUNCTION = 400, 100
FEWEST, MOST = 5, 18
FACE = "engine/face"
SMALL = {"dataio/native", FACE, "dataio", "engine"}
"""C beside it, a face, loose files: fewer than five are meant."""
FLAT = {"kernels"}
RIDDLES = {"told", "tell", "tells", "voice", "house", "floors", "stuff"}
"""Names that could hold anything: say what it is (warnings, message, declared, expected...)."""

# The table "what may import what" of ARCHITECTURE: a folder may import what stands in its row, the
# loose files of its own room, and itself.
DATAIO = {
    "native": "",
    "storage": "",
    "remote": "storage",
    "nifti": "storage",
    "chunks": "native",
    "subjects": "nifti",
    "labels": "nifti subjects",
    "sources": "labels subjects nifti storage",
    "corpus": "chunks storage",
    "convert": "sources subjects nifti corpus chunks storage native",
    "reader": "corpus chunks remote storage",
    "device": "reader corpus chunks native",
    "transforms": "native",
    "loader": "device reader corpus chunks native remote transforms",
    "inspect": "reader corpus subjects nifti chunks storage",
}
ENGINE = {
    "arithmetic": "",
    "models": "arithmetic",
    "distributed": "arithmetic",
    "runs": "models distributed",
    "bucket": "runs distributed",
    "transfer": "runs models distributed",
    "training": "runs models distributed arithmetic",
    "finetune": "training transfer bucket runs models distributed arithmetic",
    "probe": "finetune training transfer runs models distributed arithmetic",
    "pretrain": "probe training transfer bucket runs models distributed arithmetic",
    "planning": "pretrain training runs models distributed arithmetic",
    "predict": "finetune training runs models distributed",
    "study": "finetune pretrain training transfer runs models distributed",
    "analysis": "study runs",
    "report": "analysis study runs",
    "commands": (
        "models distributed runs bucket transfer training finetune probe pretrain planning "
        "predict study analysis report"
    ),
    "face": "",
}
BENCH = {
    "gpu": "",
    "convert": "",
    "kernels": "",
    "loader": "gpu",
    "remote": "loader",
    "step": "kernels",
}
TABLES = {"dataio": DATAIO, "engine": ENGINE, "bench": BENCH}
ABOVE = {"kernels": "", "dataio": "kernels", "engine": "kernels dataio", "bench": "dataio engine"}


def place(file: Path) -> tuple[str, str]:
    """Room and folder; the folder of a loose file is empty."""
    parts = file.relative_to(ROOT).parts
    return parts[0], parts[1] if len(parts) > 2 else ""


def module_file(name: str) -> Path | None:
    """The file of a dotted mim3d name, a package's being its __init__."""
    base = ROOT.joinpath(*name.split(".")[1:])
    if base.with_suffix(".py").is_file():
        return base.with_suffix(".py")
    return base / "__init__.py" if (base / "__init__.py").is_file() else None


def imported(node: ast.AST) -> Iterator[Path]:
    """Files of this project that an import statement names."""
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mim3d"):
        for alias in node.names:
            found = module_file(f"{node.module}.{alias.name}") or module_file(str(node.module))
            if found is not None:
                yield found
    elif isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.startswith("mim3d.") and (found := module_file(alias.name)):
                yield found


def imports(file: Path) -> set[Path]:
    return {to for node in ast.walk(ast.parse(file.read_text())) for to in imported(node)}


IMPORTS = {file: imports(file) for file in FILES}


def may_import(file: Path, to: Path) -> bool:
    (room, folder), (to_room, to_folder) = place(file), place(to)
    if room == "engine" and folder in {"face", "commands"} and to_room != "bench":
        return True
    if to_room == "bench" and room != "bench":
        return file == ROOT / "engine/commands/bench.py"
    if to_room != room:
        return to_room in {*ABOVE[room].split(), "kernels" if room == "bench" else ""}
    if room in FLAT or to_folder in ("", folder):
        return True
    return bool(folder) and to_folder in TABLES[room][folder].split()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_follow_the_table(file: Path) -> None:
    wrong = [str(to.relative_to(ROOT)) for to in IMPORTS[file] if not may_import(file, to)]
    assert not wrong, f"{file.relative_to(ROOT)} may not import {sorted(wrong)}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_imports_a_face(file: Path) -> None:
    faces = {to for to in IMPORTS[file] if to.name == "__init__.py"}
    assert not faces, f"imports through a face: {sorted(map(str, faces))}"


def test_folders_stand_in_the_order_of_their_imports() -> None:
    for rows in TABLES.values():
        seen: set[str] = set()
        for folder, row in rows.items():
            assert set(row.split()) <= seen, f"{folder} may import what stands below it"
            seen.add(folder)


def test_no_circle_between_files() -> None:
    done: set[Path] = set()

    def visit(file: Path, path: tuple[Path, ...]) -> None:
        assert file not in path, " -> ".join(
            str(f.relative_to(ROOT)) for f in (*path[path.index(file) :], file)
        )
        if file not in done:
            for to in IMPORTS.get(file, ()):
                visit(to, (*path, file))
            done.add(file)

    for file in FILES:
        visit(file, ())


@pytest.mark.parametrize("package", PACKAGES, ids=lambda file: str(file.parent.relative_to(ROOT)))
def test_folders_are_neither_thin_nor_full(package: Path) -> None:
    folder = str(package.parent.relative_to(ROOT))
    n = len([file for file in package.parent.glob("*.py") if file.name != "__init__.py"])
    assert n <= MOST, f"{folder} has {n} files"
    assert n >= FEWEST or folder in SMALL, f"{folder} has {n} files only"


def test_every_folder_has_a_row() -> None:
    for room, rows in TABLES.items():
        assert {file.parent.name for file in (ROOT / room).glob("*/__init__.py")} == rows.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_are_small(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_names_say_what_they_hold(file: Path) -> None:
    names = {file.stem}
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.alias(asname=str(name)):
                names.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
    riddles = {name for name in names if name.strip("_").lower() in RIDDLES}
    assert not riddles, f"what do {sorted(riddles)} hold?"


@pytest.mark.parametrize("file", PACKAGES, ids=lambda file: str(file.parent.relative_to(ROOT)))
def test_each_folder_names_its_files_in_its_docstring(file: Path) -> None:
    tree = ast.parse(file.read_text())
    found = set(re.findall(r"\w+", ast.get_docstring(tree) or ""))
    modules = {other.stem for other in file.parent.glob("*.py")} - {"__init__", "__main__"}
    folders = {other.parent.name for other in file.parent.glob("*/__init__.py")}
    assert modules | folders <= found, f"not named: {sorted((modules | folders) - found)}"


@pytest.mark.parametrize("file", PACKAGES, ids=lambda file: str(file.parent.relative_to(ROOT)))
def test_faces_import_nothing_of_ours(file: Path) -> None:
    assert not IMPORTS[file]


def test_no_module_queries_a_device_at_import() -> None:
    asks = re.compile(r"torch\.cuda\.(is_available|device_count|current_device|get_device)")
    for file in FILES:
        for node in ast.parse(file.read_text()).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert not asks.search(ast.unparse(node)), f"{file}: {ast.unparse(node)}"


def test_tests_mirror_the_rooms() -> None:
    known = {folder.parent.relative_to(ROOT) for folder in PACKAGES}
    known |= {Path("support"), Path("project")}
    for file in (ROOT / "tests").rglob("test_*.py"):
        assert file.parent.relative_to(ROOT / "tests") in known, file
