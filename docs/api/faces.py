"""Hook of mkdocs: writes the API pages from the `__all__` of every public folder.

`<!-- faces -->` becomes the table of all names, `<!-- faces: dataio -->` the reference of a room.
"""

import ast
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"<!-- faces(?:: (\w+))? -->")


def faces() -> dict[str, list[str]]:
    """Public module -> its public names, in the order of the rooms; `mim3d` itself first."""
    stubs = [ROOT / "engine/face/__init__.pyi"]
    for room in ("dataio", "kernels", "engine"):
        found = sorted((ROOT / room).rglob("__init__.pyi"))
        stubs += [stub for stub in found if stub not in stubs]
    return {module(stub): names(stub) for stub in stubs}


def module(stub: Path) -> str:
    """Dotted name of the package that a stub describes."""
    folder = stub.parent.relative_to(ROOT)
    return "mim3d" if folder.name == "face" else ".".join(("mim3d", *folder.parts))


def names(stub: Path) -> list[str]:
    """What `__all__` of a stub lists."""
    for node in ast.parse(stub.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [name for name in ast.literal_eval(node.value) if not name.startswith("_")]
    return []


def origin(face: str, name: str) -> str:
    """Where a public name is defined, from the stub's import."""
    folder = "engine/face" if face == "mim3d" else face.removeprefix("mim3d.").replace(".", "/")
    for node in ast.parse((ROOT / folder / "__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            return f"{face}.{node.module}.{name}"
    raise LookupError(f"{face} lists {name} in __all__ and imports it from nowhere")


def table() -> str:
    """Every face and its names, each a link to its entry."""
    entries = {origin(face, name) for face, all in faces().items() for name in all}
    rows = ["| module | names |", "|---|---|"]
    for face, all in faces().items():
        links = (
            f"[`{name}`][{origin(face, name)}]" for name in all if origin(face, name) in entries
        )
        rows.append(f"| `{face}` | {', '.join(links)} |")
    return "\n".join(rows)


def reference(room: str) -> str:
    """Entries of every name of a room's faces."""
    parts = []
    for face, all in faces().items():
        if face.split(".")[1:2] != [room]:
            continue
        parts.append(f"## `{face}`\n")
        parts += [
            f"::: {origin(face, name)}\n    options:\n      heading: {face}.{name}\n"
            for name in all
        ]
    return "\n".join(parts)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks of a page."""
    return MARK.sub(lambda found: reference(found[1]) if found[1] else table(), markdown)
