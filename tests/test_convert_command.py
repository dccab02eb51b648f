import json

import nibabel as nib
import numpy as np
import pytest

from mim3d.engine.cli import main


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    images = tmp_path / "images"
    images.mkdir()
    for i in range(3):
        voxels = rng.integers(0, 400, (30, 31, 32)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.diag([-1, 1, 1, 1])), images / f"case{i}.nii.gz")
    return images


def figures(tmp_path):
    return json.loads((tmp_path / "figures.json").read_text())


def test_convert_verify_and_convert_again(folder, tmp_path, capsys):
    words = [
        str(folder),
        str(tmp_path / "c"),
        "--workers",
        "1",
        "--json",
        str(tmp_path / "figures.json"),
    ]
    assert main(["convert", *words]) == 0
    assert figures(tmp_path)["n_converted"] == 3
    assert main(["convert", *words]) == 0
    assert (figures(tmp_path)["n_converted"], figures(tmp_path)["n_unchanged"]) == (0, 3)
    assert main(["verify", str(tmp_path / "c"), "--sources"]) == 0
    assert "3 volumes" in capsys.readouterr().out


def test_a_bad_file_is_named_and_exits_3(folder, tmp_path, capsys):
    bad = folder / "case9.nii.gz"
    bad.write_bytes((folder / "case0.nii.gz").read_bytes()[:-40])
    words = [
        str(folder),
        str(tmp_path / "c"),
        "--workers",
        "1",
        "--json",
        str(tmp_path / "figures.json"),
    ]
    assert main(["convert", *words]) == 3
    told = capsys.readouterr().out
    assert "case9.nii.gz" in told and "1 truncated" in told
    assert figures(tmp_path)["quarantine"] == {"truncated": 1}
    assert figures(tmp_path)["n_volumes"] == 3


def test_a_dry_run_tells_and_writes_nothing(folder, tmp_path, capsys):
    (folder / "case7.nii.gz").write_bytes(b"nothing of the kind")
    words = [
        str(folder),
        str(tmp_path / "c"),
        "--dry-run",
        "--json",
        str(tmp_path / "figures.json"),
    ]
    assert main(["convert", *words]) == 0
    told = capsys.readouterr().out
    assert "3 sources, 3 volumes" in told and "case7.nii.gz" in told
    got = figures(tmp_path)
    assert got["voxel_bytes"] == 3 * 30 * 31 * 32 * 2
    assert 0.2 < got["estimated_bytes"] / got["voxel_bytes"] < 1.2 and got["estimated_seconds"] > 0
    assert not (tmp_path / "c").exists()


def test_options_by_their_short_names(folder, tmp_path):
    words = [
        "--spacing",
        "2",
        "2",
        "2",
        "--orient",
        "LPS",
        "--window",
        "-10",
        "300",
        "--dtype",
        "uint8",
    ]
    assert main(["convert", str(folder), str(tmp_path / "c"), "--workers", "1", *words]) == 0
    recipe = json.loads((tmp_path / "c" / "zarr.json").read_text())["attributes"]["mim3d"][
        "conversion"
    ]
    assert recipe["spacing_mm"] == [2.0, 2.0, 2.0] and recipe["orientation"] == "LPS"
    assert recipe["window"] == [-10.0, 300.0] and recipe["dtype"] == "uint8"


def test_damage_exits_3_and_no_corpus_exits_2(folder, tmp_path, capsys):
    assert main(["convert", str(folder), str(tmp_path / "c"), "--workers", "1"]) == 0
    shard = tmp_path / "c" / "case1" / "0" / "c" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[100] ^= 4
    shard.write_bytes(bytes(content))
    assert main(["verify", str(tmp_path / "c"), "--json", str(tmp_path / "figures.json")]) == 3
    assert "case1/0/c/0/0/0: bad-chunk: chunk 0" in capsys.readouterr().out
    assert figures(tmp_path)["problems"][0]["code"] == "bad-chunk"
    shard.parents[4].joinpath("zarr.json").unlink()
    assert main(["verify", str(tmp_path)]) == 2
    assert "not a corpus" in capsys.readouterr().err


def test_a_damaged_volume_is_mended_by_deleting_it(folder, tmp_path):
    import shutil

    assert main(["convert", str(folder), str(tmp_path / "c"), "--workers", "1"]) == 0
    shutil.rmtree(tmp_path / "c" / "case1")
    assert main(["verify", str(tmp_path / "c")]) == 3
    assert main(["convert", str(folder), str(tmp_path / "c"), "--workers", "1"]) == 0
    assert main(["verify", str(tmp_path / "c")]) == 0
