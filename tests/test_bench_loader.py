"""The loader bench at a tiny size: every contestant runs and label maps are left out."""

import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Image

from mim3d.bench.corpora import anatomy_like
from mim3d.bench.loader import main


@pytest.mark.slow
def test_real_files_are_measured_and_label_maps_left_out(tmp_path, capsys):
    image = anatomy_like((97, 112, 100), 0)
    Nifti1Image(image.T, np.eye(4)).to_filename(tmp_path / "mr.nii.gz")
    np.save(tmp_path / "labels.npy", (image > 500).astype(np.uint8))
    np.save(tmp_path / "small.npy", image[:50])
    options = ["--data", str(tmp_path), "--rounds", "1", "--crops", "8", "--work", str(tmp_path)]
    figures = main(options).figures
    assert figures["volumes"] == [{"shape": [97, 112, 100], "dtype": "int16"}]
    rates = figures["rates"]
    assert rates["mim3d reader, snap 16"]["per_cpu_s"] > 0
    assert rates["mim3d loader, normalised + flips"]["per_cpu_s"] > 0
    assert figures["loader_over_reader"]["mim3d loader"] > 0
    assert figures["stages"]["mim3d loader"]["decode_s"] > 0
    assert figures["reader_over"]["mim3d reader, snap 16"] == 1
    assert "mim3d loader, bf16" in capsys.readouterr().out


def test_a_folder_without_volumes_is_told(tmp_path):
    with pytest.raises(ValueError, match="no image of at least"):
        main(["--data", str(tmp_path)])
