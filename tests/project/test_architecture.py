"""docs/architecture.md tells the folders and what each may import as test_house holds them."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()
HOUSE = runpy.run_path(str(Path(__file__).with_name("test_house.py")))
PICTURE = (ROOT / "docs/pictures/flow.svg").read_text()


def described(room: str) -> dict[str, set[str]]:
    """Folder -> what it may import, from the page's table of a room."""
    part = PAGE.split(f"### {room}\n")[1].split("\n#")[0]
    rows = re.findall(r"^\| `(\w+)/` \| .* \| (.*) \|$", part, re.MULTILINE)
    return {folder: set(re.findall(r"\w+", may)) for folder, may in rows}


@pytest.mark.parametrize("room", HOUSE["TABLES"])
def test_tables_are_those_of_the_house(room: str) -> None:
    held = {folder: set(row.split()) for folder, row in HOUSE["TABLES"][room].items()}
    page = described(room)
    assert list(page) == list(held)
    for folder, may in held.items():
        if page[folder] not in ({"all"}, {"all", "lazily"}):
            assert page[folder] == may, folder


@pytest.mark.parametrize("room", HOUSE["TABLES"])
def test_loose_files_are_named(room: str) -> None:
    loose = {file.stem for file in (ROOT / room).glob("*.py")} - {"__init__"}
    part = PAGE.split(f"### {room}\n")[1]
    assert loose <= set(re.findall(r"`(\w+)`", part.split("\n|")[0]))


def test_what_the_picture_names_exists() -> None:
    folders = {p.name for room in ("dataio", "engine") for p in (ROOT / room).iterdir()}
    boxes = set(re.findall(r">([a-z]+)</text>", PICTURE)) - {"masking", "encoder", "decoder"}
    boxes -= {"loss", "optimiser", "corpus", "report"}
    assert boxes
    assert boxes <= folders
