"""Whose a folder of results is: the network's that made any, not one's whose call made nothing."""

from pathlib import Path

import numpy as np
import pytest
from small_trial import Trial, save

from mim3d.engine.commands.weights.predict import main as predict
from mim3d.engine.errors import ConfigError
from mim3d.engine.runs.files import read_json


def test_a_call_that_made_nothing_claims_no_folder(trial: Trial, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    (scans / "p.nii.gz").write_bytes(b"x")
    words = [str(trial.run), str(scans), str(out)]
    assert predict([*words, "--overlap", "0"]).exit_code == 3
    assert read_json(out / "predict.json")["overlap"] == 0
    data = np.random.default_rng(0).integers(0, 400, (18, 17, 19)).astype(np.int16)
    save(data, np.diag([1.5, 1.5, 1.5, 1.0]), scans / "p.nii.gz")
    assert predict(words).figures["done"] == 1
    (out / "predict.jsonl").unlink()  # its maps are there, and of that network
    with pytest.raises(ConfigError, match=r"overlap 0.25, not 0.0: choose another DST$"):
        predict([*words, "--overlap", "0"])
