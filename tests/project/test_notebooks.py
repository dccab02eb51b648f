"""The notebooks run from top to bottom, on small data; what is committed holds no outputs."""

import os
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples/notebooks"
EXPECTED = {"loader_and_mae": "crops a second", "pretraining_to_prediction": "MAE: Dice"}
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    assert {file.stem for file in NOTEBOOKS} == set(EXPECTED)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_no_outputs_are_committed(file: Path) -> None:
    for cell in nbformat.read(file, 4).cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None


@pytest.mark.slow
@pytest.mark.timeout(1700)
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_it_runs(file: Path, tmp_path: Path, monkeypatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    small = {"STEPS": "12", "SCALE": "0.01", "WORK": str(tmp_path / "w"), "MPLBACKEND": "agg"}
    for name, value in {**small, "DATA": "", "CUDA_VISIBLE_DEVICES": ""}.items():
        monkeypatch.setitem(os.environ, name, value)
    notebook = nbformat.read(file, 4)
    where = {"metadata": {"path": tmp_path}}
    nbclient.NotebookClient(notebook, timeout=500, startup_timeout=300, resources=where).execute()
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    found = "".join(output.get("text", "") for output in outputs)
    assert EXPECTED[file.stem] in found
