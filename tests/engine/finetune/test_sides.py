"""Classes that differ by their side, and crops that are flipped."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_finetune import small_finetune

from mim3d.dataio.convert.run import convert
from mim3d.dataio.sources.discover import discover
from mim3d.engine.commands import cli
from mim3d.engine.finetune.finetune import flipped_sides

SMALL = """
    --vit.crop-size 8 8 8 --vit.patch-size 4 4 4 --vit.width 12 --vit.depth 1 --vit.heads 1
    --feature-size 4 --steps 1 --eval-every 1 --global-batch 1 --overlap 0 --device cpu
""".split()  # noqa: SIM905  read as words of a command


@pytest.fixture(scope="module")
def parotids(tmp_path_factory):
    """Four heads in nnU-Net's form, whose two classes are the left and the right parotid."""
    root = tmp_path_factory.mktemp("Dataset001_Parotids")
    label = np.zeros((12, 12, 12), np.uint8)
    label[1:4], label[8:11] = 1, 2
    draw = np.random.default_rng(0)
    for i in range(4):
        image = (label * 100 + draw.integers(0, 50, label.shape)).astype(np.int16)
        for folder, name, voxels in (
            ("imagesTr", f"p_{i}_0000.nii.gz", image),
            ("labelsTr", f"p_{i}.nii.gz", label),
        ):
            (root / folder).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), root / folder / name)
    about = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "parotid_L": 1, "parotid_R": 2},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(about))
    convert(discover(str(root)).sources, root / "c.zarr", workers=1)
    return root / "c.zarr"


def test_classes_of_two_sides_are_told_of_where_crops_are_flipped(parotids, tmp_path, capsys):
    words = ["finetune", "demo", "--data.corpus", str(parotids), *SMALL]
    said = "CLASSES 'parotid_L' AND 'parotid_R' DIFFER BY THEIR SIDE, AND CROPS ARE FLIPPED"
    assert cli.main([*words, "--augment", "segmentation", "--out", str(tmp_path / "flipped")]) == 0
    out = "".join(capsys.readouterr())
    assert said in out
    assert "Set --augment upright, which flips none (now segmentation)" in out
    assert cli.main([*words, "--augment", "upright", "--out", str(tmp_path / "upright")]) == 0
    assert said not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("augment", "remedy"),
    [
        ("spatial-segmentation", "spatial-upright"),
        ("segmentation", "upright"),
        ("spatial-upright", ""),
        ("none", ""),
    ],
)
def test_the_remedy_is_of_the_same_kind(augment, remedy):
    names = ["left lung", "right lung", "lens L", "lens R"]
    lines = flipped_sides(small_finetune(Path("c"), augment=augment), names)
    assert bool(lines) == bool(remedy)
    assert all(f"Set --augment {remedy}," in line for line in lines)
    assert all(
        "'left lung' AND 'right lung' (and 1 more such pair) DIFFER" in line for line in lines
    )
    assert not flipped_sides(small_finetune(Path("c"), augment=augment), names[::2])
