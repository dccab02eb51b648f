"""DST: nothing there is replaced that is not of the same scan, and what is left is told."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_trial import Trial, loaded, save, voxels

from mim3d.engine.commands.weights.embed import main as embed
from mim3d.engine.commands.weights.predict import main as predict
from mim3d.engine.errors import ConfigError
from mim3d.engine.predict import predict as module
from mim3d.engine.predict.ledger import FAILED
from mim3d.engine.runs.files import read_jsonl

SHAPE = (18, 17, 19)


def scan(place: Path, seed: int = 0) -> Path:
    """A scan of noise."""
    place.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(seed).integers(0, 400, SHAPE).astype(np.int16)
    save(data, np.diag([1.5, 1.5, 1.5, 1.0]), place)
    return place


def words(trial: Trial, folder: Path, *more: str) -> list[str]:
    return [str(trial.run), str(folder / "scans"), str(folder / "out"), *more]


@pytest.mark.parametrize("name", ["p.nii.gz", "failed.jsonl", "predict.jsonl"])
def test_a_file_of_somebody_else_is_never_replaced(trial: Trial, tmp_path: Path, name: str) -> None:
    scan(tmp_path / "scans" / "p.nii.gz")
    (tmp_path / "scans" / "bad.nii.gz").write_bytes(b"x")
    theirs = tmp_path / "out" / name
    theirs.parent.mkdir()
    theirs.write_text('{"id": "mine", "files": []}\n')
    before = theirs.read_bytes()
    with pytest.raises(ConfigError, match=f"{name} is there, and `mim3d predict` did not write"):
        predict(words(trial, tmp_path))
    assert theirs.read_bytes() == before
    theirs.rename(tmp_path / "away")  # "move that file away"
    assert predict(words(trial, tmp_path)).figures["done"] == 1


def test_tables_and_probabilities_of_somebody_else_stay(trial: Trial, tmp_path: Path) -> None:
    one = scan(tmp_path / "scans" / "p.nii.gz")
    label = tmp_path / "p.nii.gz"
    save(np.ones(SHAPE, np.uint8), loaded(one).affine, label)
    assert predict(words(trial, tmp_path)).exit_code == 0
    table = tmp_path / "out" / "scores.csv"
    table.write_text("mine")
    with pytest.raises(ConfigError, match=r"scores.csv is there, and `mim3d predict` did not"):
        predict(words(trial, tmp_path, "--labels", str(label)))
    assert table.read_text() == "mine"
    table.unlink()
    for _ in range(2):
        assert predict(words(trial, tmp_path, "--labels", str(label))).figures["scored"] == 1
    share = tmp_path / "more" / "probabilities" / "p.nii.gz"
    share.parent.mkdir(parents=True)
    share.write_text("mine")
    place = [*words(trial, tmp_path)[:2], str(tmp_path / "more"), "--probabilities"]
    with pytest.raises(ConfigError, match=r"probabilities/p.nii.gz is there"):
        predict(place)
    pooled = tmp_path / "features" / "pooled.npz"
    pooled.parent.mkdir()
    pooled.write_text("mine")
    with pytest.raises(ConfigError, match=r"pooled.npz is there, and `mim3d embed` did not"):
        embed([*words(trial, tmp_path)[:2], str(pooled.parent)])
    assert pooled.read_text() == share.read_text() == "mine"


def test_the_frame_of_somebody_else_sets_its_scan_aside(trial: Trial, tmp_path: Path) -> None:
    one = loaded(scan(tmp_path / "scans" / "p.nii.gz"))
    series = np.stack([np.asarray(one.dataobj)] * 2, -1)
    save(series, one.affine, tmp_path / "scans" / "q.nii.gz")
    theirs = tmp_path / "out" / "q--t001.nii.gz"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    outcome = predict(words(trial, tmp_path))
    assert (outcome.exit_code, outcome.figures["done"]) == (3, 1)
    assert theirs.read_text() == "mine"
    (failed,) = read_jsonl(tmp_path / "out" / FAILED)
    assert "q--t001.nii.gz is there" in failed["detail"]
    theirs.unlink()
    outcome = predict(words(trial, tmp_path))
    assert (outcome.exit_code, outcome.figures["done"], outcome.figures["kept"]) == (0, 1, 1)


def test_a_map_that_was_corrected_by_hand_stays(
    trial: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = scan(tmp_path / "scans" / "p.nii.gz")
    assert predict(words(trial, tmp_path)).exit_code == 0
    made = tmp_path / "out" / "p.nii.gz"
    os.utime(made)
    assert predict(words(trial, tmp_path)).exit_code == 0  # touched, and the same
    save(np.ones(SHAPE, np.uint8), loaded(made).affine, made)
    by_hand = made.read_bytes()
    assert predict(words(trial, tmp_path)).exit_code == 3
    assert f"{made} was changed since it was written, and is kept" in capsys.readouterr().out
    scan(one, seed=1)
    assert predict(words(trial, tmp_path)).exit_code == 3
    assert "is to be done again, and" in capsys.readouterr().out
    assert made.read_bytes() == by_hand
    made.rename(tmp_path / "by_hand.nii.gz")  # "move that file away"
    assert predict(words(trial, tmp_path)).exit_code == 0
    assert made.exists()


def test_a_run_that_was_killed_after_it_wrote_goes_on(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan(tmp_path / "scans" / "p.nii.gz")
    write = module.write_label_map

    def dies(*args: object) -> list[str]:
        write(*args)  # pyright: ignore[reportArgumentType]
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_label_map", dies)
    with pytest.raises(KeyboardInterrupt):
        predict(words(trial, tmp_path))
    assert (tmp_path / "out" / "p.nii.gz").exists()
    monkeypatch.undo()
    assert predict(words(trial, tmp_path)).figures["done"] == 1


def test_a_file_called_exactly_so_has_the_name(
    trial: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    near = scan(tmp_path / "scans" / "a b.nii.gz", seed=1)
    alone = predict(words(trial, tmp_path))
    assert alone.exit_code == 0
    first = voxels(tmp_path / "out" / "a_b.nii.gz")
    scan(tmp_path / "scans" / "a_b.nii.gz", seed=2)
    scan(tmp_path / "scans" / "a" / "b.nii.gz", seed=3)
    fresh = [*words(trial, tmp_path)[:2], str(tmp_path / "fresh")]
    outcome = predict(fresh)
    assert (outcome.exit_code, outcome.figures["done"]) == (3, 3)
    told = capsys.readouterr().out
    assert f"{near} is called a_b--" in told
    exact = tmp_path / "exact"
    assert predict([str(trial.run), str(tmp_path / "scans" / "a_b.nii.gz"), str(exact)]).lost == 0
    made = (tmp_path / "fresh" / "a_b.nii.gz").read_bytes()
    assert made == (exact / "a_b.nii.gz").read_bytes()
    # Where the other one has the name already, it keeps it.
    outcome = predict(words(trial, tmp_path))
    assert (outcome.exit_code, outcome.figures["kept"], outcome.figures["done"]) == (3, 1, 2)
    assert np.array_equal(voxels(tmp_path / "out" / "a_b.nii.gz"), first)
    near.rename(near.with_name("other.nii.gz"))
    shutil.rmtree(tmp_path / "scans" / "a")
    assert predict([*fresh[:2], str(tmp_path / "last")]).exit_code == 0


def test_another_scan_of_the_same_name_is_refused(trial: Trial, tmp_path: Path) -> None:
    scan(tmp_path / "scans" / "p.nii.gz")
    assert predict(words(trial, tmp_path)).exit_code == 0
    made = tmp_path / "out" / "p.nii.gz"
    before = made.read_bytes()
    other = scan(tmp_path / "second" / "p.nii.gz", seed=1)
    call = [str(trial.run), str(other.parent), str(tmp_path / "out")]
    with pytest.raises(
        ConfigError, match=r"p.nii.gz is of .*, and that of .* would take its place"
    ):
        predict(call)
    with pytest.raises(ConfigError, match="would take its place: name another DST"):
        predict([str(trial.run), str(other), str(tmp_path / "out")])
    assert made.read_bytes() == before
    made.rename(tmp_path / "kept.nii.gz")  # "move that file away"
    assert predict(call).figures["done"] == 1


def test_a_scan_that_moved_or_was_copied_is_the_same(trial: Trial, tmp_path: Path) -> None:
    scan(tmp_path / "scans" / "p.nii.gz")
    predict(words(trial, tmp_path))
    (tmp_path / "scans").rename(tmp_path / "moved")
    call = [str(trial.run), str(tmp_path / "moved"), str(tmp_path / "out")]
    assert predict(call).figures["kept"] == 1
    shutil.copytree(tmp_path / "moved", tmp_path / "scans", copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "moved")
    assert predict(words(trial, tmp_path)).exit_code == 0


def test_what_is_left_of_other_scans_is_told(
    trial: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = scan(tmp_path / "scans" / "p.nii.gz")
    two = scan(tmp_path / "scans" / "q.nii.gz", seed=1)
    predict(words(trial, tmp_path))
    assert predict(words(trial, tmp_path, "--ids", "p")).figures["leftovers"] == []
    two.unlink()
    capsys.readouterr()
    assert len(predict(words(trial, tmp_path)).figures["leftovers"]) == 1
    told = capsys.readouterr().out
    gone = tmp_path / "out" / "q.nii.gz"
    assert f"also holds results of 1 scan that SRC does not have (such as {gone}, of {two})" in told
    gone.unlink()  # "delete them"
    assert predict(words(trial, tmp_path)).figures["leftovers"] == []
    one.write_bytes(b"broken since")
    outcome = predict(words(trial, tmp_path))
    assert outcome.exit_code == 3
    assert "of an earlier call, not of its scan as it is now" in outcome.figures["leftovers"][0]
    features = [*words(trial, tmp_path)[:2], str(tmp_path / "features")]
    scan(one)
    scan(two)
    embed(features)
    two.unlink()
    assert "q.safetensors" in embed(features).figures["leftovers"][0]


def test_frames_that_are_no_more_are_told(trial: Trial, tmp_path: Path) -> None:
    one = loaded(scan(tmp_path / "other" / "p.nii.gz"))
    data = np.asarray(one.dataobj)
    (tmp_path / "scans").mkdir()
    for n in (3, 2):
        save(np.stack([data] * n, -1), one.affine, tmp_path / "scans" / "q.nii.gz")
        figures = predict(words(trial, tmp_path)).figures
    assert figures["leftovers"][0].startswith(str(tmp_path / "out" / "q--t002.nii.gz"))
    (tmp_path / "out" / "q--t002.nii.gz").unlink()
    assert predict(words(trial, tmp_path)).figures["leftovers"] == []


def test_the_remedies_for_nan_and_headers_work_in_the_same_folder(
    trial: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = loaded(scan(tmp_path / "scans" / "p.nii.gz"))
    data = np.asarray(one.dataobj).astype(np.float32)
    data[0, 0, 0] = np.nan
    save(data, one.affine, tmp_path / "scans" / "q.nii.gz")
    doubtful = tmp_path / "scans" / "r.nii"
    save(np.asarray(one.dataobj), one.affine, doubtful)
    header = bytearray(doubtful.read_bytes())
    header[80:92] = (np.frombuffer(bytes(header[80:92]), "<f4") * 1.2).astype("<f4").tobytes()
    doubtful.write_bytes(bytes(header))
    assert predict(words(trial, tmp_path)).figures["done"] == 2
    told = capsys.readouterr().out
    assert "--nan-policy zero takes them as 0" in told
    assert "keep" not in told
    assert "say so by --believe sform, qform or pixdim" in told
    outcome = predict(words(trial, tmp_path, "--nan-policy", "keep"))
    assert (outcome.exit_code, outcome.figures["done"], outcome.figures["kept"]) == (3, 0, 2)
    assert "of which a network makes nothing" in capsys.readouterr().out
    outcome = predict(words(trial, tmp_path, "--nan-policy", "zero"))
    assert (outcome.figures["done"], outcome.figures["kept"]) == (1, 2)
    assert outcome.figures["failed"] == []
    believed = words(trial, tmp_path, "--nan-policy", "zero", "--believe")
    outcome = predict([*believed, "sform"])
    assert (outcome.exit_code, outcome.figures["done"], outcome.figures["kept"]) == (0, 1, 2)
    outcome = predict([*believed, "pixdim"])
    assert (outcome.exit_code, outcome.figures["done"], outcome.figures["kept"]) == (0, 1, 2)
    zooms = loaded(tmp_path / "out" / "r.nii.gz").header.get_zooms()
    assert zooms == pytest.approx([1.8] * 3)
    assert predict(words(trial, tmp_path)).figures["done"] == 1  # r as at first
    assert "--nan-policy zero takes them as 0" in capsys.readouterr().out


def test_options_of_files_are_not_for_a_corpus(trial: Trial, tmp_path: Path) -> None:
    call = [str(trial.run), str(trial.corpus), str(tmp_path / "out")]
    with pytest.raises(ConfigError, match="--nan-policy says how files are read"):
        predict([*call, "--nan-policy", "zero"])
    assert predict(call).exit_code == 0


def test_scans_of_which_there_is_little_to_see_are_doubted(
    trial: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    affine = np.diag([1.5, 1.5, 1.5, 1.0])
    noise = np.random.default_rng(0).integers(0, 400, (20, 20, 20)).astype(np.int16)
    kinds = {
        "small": noise[:9, :, :],
        "slice": noise[:, :, :1],
        "flat": noise[:, :, 0],
        "constant": noise * 0 + 7,
    }
    scan(tmp_path / "scans" / "good.nii.gz")
    for name, data in kinds.items():
        save(data, affine, tmp_path / "scans" / f"{name}.nii.gz")
    outcome = predict(words(trial, tmp_path))
    assert (outcome.exit_code, outcome.figures["done"]) == (3, 5)
    doubts = {Path(line.split(":")[0]).name: line for line in outcome.figures["doubts"]}
    assert sorted(doubts) == sorted(f"{name}.nii.gz" for name in kinds)
    assert (
        "20 x 20 x 9 voxels (z, y, x), less than the crop of 16 x 16 x 16"
        in (doubts["small.nii.gz"])
    )
    for name in ("slice", "flat"):
        assert "one slice, less than the crop" in doubts[f"{name}.nii.gz"]
    assert "every voxel is 7" in doubts["constant.nii.gz"]
    assert predict(words(trial, tmp_path)).exit_code == 3  # kept, and still in doubt
    assert "every voxel is 7" in capsys.readouterr().out
    assert embed([*words(trial, tmp_path)[:2], str(tmp_path / "features")]).exit_code == 3


def test_a_guessed_orientation_is_doubted(trial: Trial, tmp_path: Path) -> None:
    one = loaded(scan(tmp_path / "scans" / "p.nii.gz"))
    image = type(one)(np.asarray(one.dataobj), None)
    image.header.set_zooms((1.5, 1.5, 1.5))
    image.to_filename(tmp_path / "scans" / "q.nii.gz")
    outcome = predict(words(trial, tmp_path))
    (doubt,) = outcome.figures["doubts"]
    assert "q.nii.gz: no sform and no qform: left and right are a guess" in doubt
    image.set_sform(one.affine, 1)  # "set one in its header"
    image.to_filename(tmp_path / "scans" / "q.nii.gz")
    assert predict(words(trial, tmp_path)).exit_code == 0


def test_names_that_differ_by_case_or_accent_alone_are_told(trial: Trial, tmp_path: Path) -> None:
    scan(tmp_path / "scans" / "Ärger.nii.gz")
    other = scan(tmp_path / "scans" / "arger.nii.gz", seed=1)
    (doubt,) = predict(words(trial, tmp_path)).figures["doubts"]
    assert "in DST, as " in doubt
    other.rename(other.with_name("b.nii.gz"))  # "rename one"
    outcome = predict([*words(trial, tmp_path)[:2], str(tmp_path / "second")])
    assert outcome.exit_code == 0


def test_label_maps_and_nothing_finite_are_no_scans(trial: Trial, tmp_path: Path) -> None:
    one = loaded(scan(tmp_path / "scans" / "p.nii.gz"))
    mask = (np.asarray(one.dataobj) > 200).astype(np.uint8)
    save(mask, one.affine, tmp_path / "scans" / "q.nii.gz")
    save(np.full(SHAPE, np.nan, np.float32), one.affine, tmp_path / "scans" / "r.nii.gz")
    figures = predict(words(trial, tmp_path)).figures
    (doubt,) = figures["doubts"]
    assert "q.nii.gz: few whole numbers, as label maps have" in doubt
    assert "none of its 5814 voxels is finite" in figures["failed"][0]["detail"]
    assert "--nan-policy" not in figures["failed"][0]["detail"]  # which would not help
    scan(tmp_path / "labelsTr" / "p.nii.gz")
    called = predict([str(trial.run), str(tmp_path / "labelsTr"), str(tmp_path / "third")])
    assert "called like a label" in called.figures["doubts"][0]
    assert "--accept-doubts" not in called.figures["doubts"][0]  # an option of convert's


def test_words_that_mean_nothing_are_refused(trial: Trial, tmp_path: Path) -> None:
    scan(tmp_path / "scans" / "p.nii.gz")
    file, table = tmp_path / "file", tmp_path / "table.csv"
    file.write_text("mine")
    table.write_text("subject,target\np,1\n")
    base = words(trial, tmp_path)
    with pytest.raises(ConfigError, match="is a file: name a folder for the results"):
        predict([*base[:2], str(file)])
    with pytest.raises(ConfigError, match="is empty; name all three"):
        predict([*base[:2], ""])
    for empty in (["--labels", ""], ["--labels="]):
        with pytest.raises(ConfigError, match="--labels is empty"):
            predict([*base, *empty])
    with pytest.raises(ConfigError, match=r"table.csv: no label map \(.nii, ...\)"):
        predict([*base, "--labels", str(table)])
    assert file.read_text() == "mine"


def test_a_table_that_somebody_changed_stays(trial: Trial, tmp_path: Path) -> None:
    one = scan(tmp_path / "scans" / "p.nii.gz")
    save(np.ones(SHAPE, np.uint8), loaded(one).affine, tmp_path / "p.nii.gz")
    call = words(trial, tmp_path, "--labels", str(tmp_path / "p.nii.gz"))
    for _ in range(3):
        assert predict(call).figures["scored"] == 1
    table = tmp_path / "out" / "scores.csv"
    edited = table.read_text() + "my,own,row\n"
    table.write_text(edited)
    with pytest.raises(ConfigError, match=r"scores.csv was changed since it was written"):
        predict(call)
    assert table.read_text() == edited
    table.rename(tmp_path / "mine.csv")  # "move that file away"
    assert predict(call).figures["scored"] == 1


def test_predictions_and_features_share_a_folder(trial: Trial, tmp_path: Path) -> None:
    scan(tmp_path / "scans" / "p.nii.gz")
    for command in (predict, embed, predict, embed):
        outcome = command(words(trial, tmp_path))
        assert (outcome.exit_code, outcome.figures["leftovers"]) == (0, [])
    (tmp_path / "scans" / "bad.nii.gz").write_bytes(b"x")
    embed(words(trial, tmp_path))
    predict(words(trial, tmp_path, "--ids", "p"))
    (tmp_path / "out" / "predict.json").unlink()  # as after a crash at the very start
    assert predict(words(trial, tmp_path, "--ids", "p")).figures["done"] == 1


def test_a_refusal_claims_nothing_and_other_settings_delete_nothing(
    trial: Trial, tmp_path: Path
) -> None:
    one = scan(tmp_path / "scans" / "p.nii.gz")
    save(np.ones(SHAPE, np.uint8), loaded(one).affine, tmp_path / "p.nii.gz")
    table = tmp_path / "out" / "scores.csv"
    table.parent.mkdir()
    table.write_text("mine")
    call = words(trial, tmp_path, "--labels", str(tmp_path / "p.nii.gz"))
    with pytest.raises(ConfigError, match=r"scores.csv is there"):
        predict(call)
    assert {file.name for file in table.parent.iterdir()} == {"scores.csv", ".lock"}
    assert predict(words(trial, tmp_path, "--overlap", "0")).figures["done"] == 1
    with pytest.raises(ConfigError, match=r"overlap 0.0, not 0.25: choose another DST$"):
        predict(words(trial, tmp_path))
    assert table.read_text() == "mine"
    call[2] = str(tmp_path / "other")  # "choose another DST"
    assert predict(call).figures["scored"] == 1


def test_rows_of_other_ids_that_go_are_told(trial: Trial, tmp_path: Path) -> None:
    for number, name in enumerate("pq"):
        one = scan(tmp_path / "scans" / f"{name}.nii.gz", number)
        (tmp_path / "labels").mkdir(exist_ok=True)
        save(np.ones(SHAPE, np.uint8), loaded(one).affine, tmp_path / "labels" / one.name)
    call = words(trial, tmp_path, "--labels", str(tmp_path / "labels"))
    assert predict([*call, "--ids", "p"]).figures["leftovers"] == []
    assert "such as p, 1 in all" in predict([*call, "--ids", "q"]).figures["leftovers"][0]
    outcome = predict(call)  # "leave --ids out for all"
    assert (outcome.figures["leftovers"], outcome.figures["scored"]) == ([], 2)
