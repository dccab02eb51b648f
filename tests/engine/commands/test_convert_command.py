import json

import nibabel as nib
import numpy as np
import pytest

from mim3d.engine.commands.cli import main


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
    printed = capsys.readouterr().out
    assert "case9.nii.gz" in printed and "1 truncated" in printed
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
    assert main(["convert", *words]) == 3
    printed = capsys.readouterr().out
    assert "3 sources, 3 volumes" in printed and "case7.nii.gz" in printed
    got = figures(tmp_path)
    assert got["voxel_bytes"] == 3 * 30 * 31 * 32 * 2
    assert 0.2 < got["estimated_bytes"] / got["voxel_bytes"] < 1.2 and got["estimated_seconds"] > 0
    assert not (tmp_path / "c").exists()


def test_a_dry_run_tells_every_id_in_full(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    long = "p" * 90
    for i in range(22):
        (folder / f"{long}{i:02d}.nii.gz").write_bytes((folder / "case0.nii.gz").read_bytes())
    json_file = tmp_path / "figures.json"
    assert main(["convert", str(folder), "x", "--dry-run", "--json", str(json_file)]) == 0
    printed = capsys.readouterr().out
    assert f"\n{long}16  30 31 32  1 " in printed and "... and 5 more" in printed
    found = figures(tmp_path)["found"]
    assert [item["id"] for item in found][3:] == [f"{long}{i:02d}" for i in range(22)]
    assert found[0]["images"] == [str(folder / "case0.nii.gz")]
    assert found[0]["shape"] == [30, 31, 32] and found[0]["subject"] == "case0"


def test_a_dry_run_tells_bad_labels_and_keeps_their_images(folder, tmp_path, capsys):
    other = nib.Nifti1Image(np.zeros((9, 9, 9), np.uint8), np.eye(4))
    nib.save(other, folder / "case0_seg.nii.gz")
    fraction = np.full((30, 31, 32), 0.5, np.float32)
    nib.save(nib.Nifti1Image(fraction, np.diag([-1, 1, 1, 1])), folder / "case1_seg.nii.gz")
    json_file = tmp_path / "figures.json"
    assert main(["convert", str(folder), "x", "--dry-run", "--json", str(json_file)]) == 3
    assert figures(tmp_path)["sources"] == 3
    codes = {item["code"] for item in figures(tmp_path)["skipped"]}
    assert codes == {"other-grid", "label-not-integer"}


def test_what_is_taken_for_an_image_is_warned_of(folder, tmp_path, capsys):
    (folder / "mask_of_me.nii.gz").write_bytes((folder / "case0.nii.gz").read_bytes())
    words = ["convert", str(folder), str(tmp_path / "c"), "--workers", "1"]
    assert main([*words, "--json", str(tmp_path / "figures.json")]) == 3
    assert "warning: " in (printed := capsys.readouterr().out) and "mask_of_me.nii.gz" in printed
    called, copied = figures(tmp_path)["warnings"]
    assert "called like a label" in called and "same content under several subjects" in copied
    again = [*words, "--accept-doubts", "--json", str(tmp_path / "figures.json")]
    assert main(again) == 0 and figures(tmp_path)["warnings"] == []
    assert main(["inspect", str(tmp_path / "c"), "--no-pictures"]) == 0


def test_a_label_map_among_images_is_told_by_its_voxels(folder, tmp_path, capsys):
    parts = np.random.default_rng(1).integers(0, 4, (30, 31, 32)).astype(np.int16)
    nib.save(nib.Nifti1Image(parts, np.diag([-1, 1, 1, 1])), folder / "other.nii.gz")
    words = ["convert", str(folder), str(tmp_path / "c"), "--workers", "1"]
    assert main(words) == 3
    printed = capsys.readouterr().out
    assert "1 image of 4 hold few whole numbers (4 in" in printed and "other.nii.gz" in printed
    (tmp_path / "cohort.csv").write_text("image,label\nimages/case0.nii.gz,images/other.nii.gz\n")
    words = ["convert", str(tmp_path / "cohort.csv"), str(tmp_path / "d"), "--workers", "1"]
    assert main(words) == 0


def test_subjects_are_shown_doubted_and_told(folder, tmp_path, capsys):
    for number, name in enumerate(("P1_1", "P1_2", "P2_1")):
        (folder / f"case{number}.nii.gz").rename(folder / f"{name}.nii.gz")
    words = ["convert", str(folder), str(tmp_path / "c"), "--workers", "1"]
    for command in ([*words, "--dry-run"], words, ["inspect", words[2], "--no-pictures"]):
        assert main(command) == 3
        printed = " ".join(capsys.readouterr().out.split())
        assert "3 volumes of 3 subjects" in printed and "numbers of 1 person" in printed
    table = tmp_path / "who.csv"
    table.write_text("file,subject\nP1_1,A\nP1_2.nii.gz,A\nP2_1,B\n")
    for how in (["--subject", "^(P[0-9]+)_"], ["--subjects", str(table)], ["--accept-doubts"]):
        assert main([*words, *how]) == 0  # who was declared stays so where names are accepted
        assert "3 volumes of 2 subjects" in capsys.readouterr().out
        assert main(["inspect", words[2], "--no-pictures"]) == 0
    assert main([*words, "--dataset", "ours", "--subject", "^(P[0-9]+)_"]) == 0
    assert "ours/P1 (as declared) has 2" in capsys.readouterr().out
    words[2] += "2"
    assert main([*words, "--accept-doubts"]) == 0
    assert "3 volumes of 3 subjects" in capsys.readouterr().out


@pytest.mark.parametrize("names", [("dsA", "dsB"), ("data", "data2"), ("raw_1", "raw_2")])
def test_a_second_data_set_with_the_same_names_is_told_and_kept_apart(tmp_path, capsys, names):
    rng = np.random.default_rng(3)
    for name in names:
        for visit in (1, 2):
            path = tmp_path / name / f"sub-01/ses-{visit}/anat/sub-01_ses-{visit}_T1w.nii.gz"
            path.parent.mkdir(parents=True)
            voxels = rng.normal(300, 90, (20, 21, 22)).astype(np.int16)
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)

    def run(name, *more, to="c"):
        words = ["convert", str(tmp_path / name), str(tmp_path / to), "--workers", "1", *more]
        return main(words), capsys.readouterr().out

    assert run(names[0])[0] == 0
    code, found = run(names[1])
    assert code == 3 and "1 subject with volumes in several places" in found
    for name in names:
        code, found = run(name, "--dataset", f"of-{name}", to="d")
        assert code == 0
    assert "4 volumes of 2 subjects" in found


def test_a_label_of_as_many_frames_tells_a_time_series(tmp_path):
    rng = np.random.default_rng(5)
    voxels = rng.normal(300, 90, (16, 17, 18, 3)).astype(np.int16)
    label = (voxels > 300).astype(np.uint8)
    (tmp_path / "p1").mkdir()
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "p1" / "p1_sa.nii.gz")
    nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / "p1" / "p1_sa_gt.nii.gz")
    words = ["convert", str(tmp_path / "p1"), str(tmp_path / "c"), "--workers", "1"]
    assert main([*words, "--dry-run"]) == main(words) == 0


@pytest.mark.parametrize("is_described", [True, False])
def test_modalities_in_the_fourth_dimension_are_no_silent_volumes(tmp_path, capsys, is_described):
    rng = np.random.default_rng(4)
    root = tmp_path / "Task01"
    pairs = []
    for number in (1, 2):
        pair = {"image": f"imagesTr/B_{number}.nii.gz", "label": f"labelsTr/B_{number}.nii.gz"}
        voxels = rng.normal(300, 90, (16, 17, 18, 3)).astype(np.int16)
        for kind, array in (("image", voxels), ("label", (voxels[..., 0] > 300).astype(np.uint8))):
            (root / pair[kind]).parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), root / pair[kind])
        pairs.append(pair)
    if is_described:
        modality = {"0": "FLAIR", "1": "T1w", "2": "T2w"}
        described = {"modality": modality, "labels": {"0": "no", "1": "yes"}, "training": pairs}
        (root / "dataset.json").write_text(json.dumps(described))
    words = ["convert", str(root), str(tmp_path / "c"), "--workers", "1"]
    for command in ([*words, "--dry-run"], words, ["inspect", words[2], "--no-pictures"]):
        assert main(command) == 3
        printed = " ".join(capsys.readouterr().out.split())
        assert "convert with --time-axis channels into a new corpus" in printed
        assert ("3 frames, FLAIR, T1w, T2w" in printed) == is_described
    assert main([*words, "--accept-doubts"]) == 0
    words[2] += "2"
    for more in (["--dry-run"], []):
        assert main([*words, "--time-axis", "channels", *more]) == 0
    assert "2 volumes of 2 subjects" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (["--subject", "(P1"], "no regular expression"),
        (["--subject", "^X"], "tells the subject of none of 3 files such as case0.nii.gz"),
        (["--subjects", "none.csv"], "cannot be read"),
        (["--subject", "a", "--subjects", "b"], "tell one"),
    ],
)
def test_subjects_told_wrongly_end_in_one_line(folder, tmp_path, capsys, how, expected):
    assert main(["convert", str(folder), str(tmp_path / "c"), *how]) == 2
    assert expected in capsys.readouterr().err


def test_a_pattern_or_table_that_leaves_some_out_is_told(folder, tmp_path, capsys):
    words = ["convert", str(folder), str(tmp_path / "c"), "--workers", "1"]
    assert main([*words, "--subject", "(case0)"]) == 3
    assert (
        "--subject tells no subject of 2 volumes (such as case1.nii.gz)" in capsys.readouterr().out
    )
    (tmp_path / "who.tsv").write_text("file\tsubject\ncase0\tA\ncase1\tB\ncase2\tC\nx\tD\n")
    assert main([*words, "--subjects", str(tmp_path / "who.tsv")]) == 3
    assert "1 row of" in (out := capsys.readouterr().out) and "(such as x) name no file" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["SRC", "c", "--workers", "-3"], "workers -3 must be between 1 and 1024"),
        (["SRC", "c", "--workers", "q"], "--workers takes INT, got q"),
        (["SRC", "c", "--spacing", "1", "1"], "--spacing-mm takes FLOAT FLOAT FLOAT, got 1, 1"),
        (["SRC", "c", "--window", "-inf", "100"], "window (-inf, 100.0)"),
        (["SRC", "c", "--layout", "minc"], "layout 'minc': one of auto"),
        (["SRC", "c", "--dtyp", "x"], "Unrecognized options: --dtyp, x"),
        (["SRC"], "DST"),
        (["SRC", ""], "DST is empty"),
        (["SRC", "SRC/case0.nii.gz"], "case0.nii.gz: is a file, and a corpus is a folder"),
        (["a.nii", "b.nii", "c.nii", "d"], "put a glob in quotes"),
    ],
)
def test_wrong_words_end_in_one_line(folder, capsys, words, expected):
    assert main(["convert", *(w.replace("SRC", str(folder)) for w in words)]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1 and "[bold]" not in error


@pytest.mark.parametrize("command", ["verify", "inspect", "export-nifti"])
def test_wrong_words_of_other_commands_end_in_one_line(capsys, command):
    assert main([command, "--no-such"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"see mim3d {command} --help" in error


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["verify", "c", "--workers", "0"], "workers 0 must be between 1 and 1024"),
        (["inspect", "c", "--volumes", "0"], "volumes 0: at least 1"),
        (["inspect", "c", "--rows", "-1"], "rows -1: 0 or more"),
    ],
)
def test_numbers_out_of_range(capsys, words, expected):
    assert main(words) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "export-nifti"])
def test_a_folder_that_cannot_be_written_is_named(folder, tmp_path, capsys, command):
    corpus, blocked = str(tmp_path / "c"), tmp_path / "file"
    assert main(["convert", str(folder), corpus, "--workers", "1"]) == 0
    blocked.write_text("in the way")
    where = ["--out"] if command == "inspect" else []
    assert main([command, corpus, *where, str(blocked / "deep")]) == 2
    error = capsys.readouterr().err
    assert "cannot be written" in error and str(blocked) in error and "[Errno" not in error


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
    same = ["--spacing=2,2,2", "--orient=LPS", "--window=-10,300", "--dtype=uint8"]
    assert main(["convert", str(folder), str(tmp_path / "c"), "--workers", "1", *same]) == 0


def test_damage_exits_3_and_no_corpus_exits_2(folder, tmp_path, capsys):
    assert main(["convert", str(folder), str(tmp_path / "c"), "--workers", "1"]) == 0
    shard = tmp_path / "c" / "case1" / "0" / "c.0.0.0"
    content = bytearray(shard.read_bytes())
    content[100] ^= 4
    shard.write_bytes(bytes(content))
    assert main(["verify", str(tmp_path / "c"), "--json", str(tmp_path / "figures.json")]) == 3
    assert "case1/0/c.0.0.0: bad-chunk: chunk 0" in capsys.readouterr().out
    assert figures(tmp_path)["problems"][0]["code"] == "bad-chunk"
    assert main(["verify", str(tmp_path)]) == 2
    assert "not a corpus" in capsys.readouterr().err


def test_a_damaged_volume_is_mended_by_deleting_it(folder, tmp_path):
    import shutil

    assert main(["convert", str(folder), str(tmp_path / "c"), "--workers", "1"]) == 0
    shutil.rmtree(tmp_path / "c" / "case1")
    assert main(["verify", str(tmp_path / "c")]) == 3
    assert main(["convert", str(folder), str(tmp_path / "c"), "--workers", "1"]) == 0
    assert main(["verify", str(tmp_path / "c")]) == 0
