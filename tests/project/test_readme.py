"""README and docs do what they say: blocks run, links lead somewhere, tables are their JSON."""

import re
from pathlib import Path

import pytest
from pages import NEEDS, ROOT, Block, blocks, run, runnable

from mim3d.bench.figures import BLOCK, main, rewritten
from mim3d.dataio.sources.phantom import make_cohort
from mim3d.engine.commands.cli import COMMANDS

README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
OTHERS = ["CONTRIBUTING.md", "LOG.md", "CHANGELOG.md", "examples/README.md"]
PAGES = [README, *DOCS, *(ROOT / name for name in OTHERS)]
RESULTS = sorted((ROOT / "bench/results").rglob("*.md"))
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
LANGUAGES = {"sh", "python", "text", "json", "console", "yaml", "toml", "bibtex"}


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


LONG = pytest.mark.timeout(1700)
"""Whichever test comes first takes README's whole walk, each block of which has minutes."""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder where README's walk has been taken: nifti/, corpus.zarr, runs/."""
    folder = tmp_path_factory.mktemp("world")
    make_cohort(folder / "nifti", 12, field_of_view_mm=40)
    for block in runnable(README):
        carry_out(block, README, folder)
    return folder


def carry_out(block: Block, page: Path, folder: Path) -> None:
    done = run(block, folder)
    assert done.returncode == 0, (
        f"{name(page)}:{block.line}\n{block.text}\n{done.stdout[-1500:]}\n{done.stderr[-2500:]}"
    )


@pytest.mark.slow
@LONG
def test_the_readme_runs_from_top_to_bottom(world: Path) -> None:
    assert (world / "runs/mae/pretext.json").exists()
    assert (world / "encoder.safetensors").exists()


@pytest.mark.slow
@pytest.mark.real
def test_the_walk_works_on_the_hippocampi_of_the_decathlon(tmp_path: Path, real_data: Path) -> None:
    (tmp_path / "nifti").symlink_to(real_data / "msd_task04_hippocampus")
    (walk,) = [block for block in runnable(README) if "convert nifti/ corpus.zarr " in block.text]
    carry_out(walk, README, tmp_path)
    assert (tmp_path / "runs/segment/result.json").exists()


@pytest.mark.slow
@LONG
@pytest.mark.parametrize("page", [page for page in DOCS if runnable(page)], ids=name)
def test_blocks_of_the_docs_run(page: Path, world: Path) -> None:
    for block in runnable(page):
        carry_out(block, page, world)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_say_what_they_are(page: Path) -> None:
    for block in blocks(page):
        assert block.kind in LANGUAGES, f"{name(page)}:{block.line}: a block of {block.kind!r}"
        assert not block.needs or block.needs in NEEDS, f"{name(page)}:{block.line}"


@pytest.mark.parametrize("page", [*PAGES, *RESULTS], ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    gone = [
        link
        for link in LINK.findall(page.read_text())
        if not re.match(r"https?:|mailto:", link) and not (page.parent / link).exists()
    ]
    assert not gone, f"{name(page)}: {gone}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_tables_of_figures_are_those_of_the_json(page: Path) -> None:
    text = page.read_text()
    assert rewritten(text) == text, "python -m mim3d.bench.figures writes them again"


def test_a_table_that_is_behind_is_told(tmp_path, monkeypatch, capsys) -> None:
    page = tmp_path / "README.md"
    page.write_text(README.read_text().replace("×", "!", 1))
    monkeypatch.setattr("mim3d.bench.figures.ROOT", tmp_path)
    assert main(["--check"]) == 1
    assert "README.md: differs" in capsys.readouterr().out
    assert main([]) == 0
    assert main(["--check"]) == 0
    assert page.read_text() == README.read_text()


def test_the_picture_of_the_study_is_that_of_the_results() -> None:
    kept = "2026-11-25-hippocampus-stronger-control/ten-seeds/figures/speedup-by-target.png"
    shown = (ROOT / "docs/pictures/speedup-by-target.png").read_bytes()
    assert shown == (ROOT / "bench/results" / kept).read_bytes()


def test_every_command_stands_in_the_readme() -> None:
    for command in COMMANDS:
        assert re.search(rf"^\| `mim3d {command}\b", README.read_text(), re.MULTILINE), command


def test_the_readme_has_tables_of_figures() -> None:
    assert {found[2] for found in BLOCK.finditer(README.read_text())} >= {
        "convert",
        "loader",
        "study",
    }
