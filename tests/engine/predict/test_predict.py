"""Prediction of scans: validation's to the bit, resumable, what is broken takes no other along."""

import csv
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_finetune import small_finetune
from small_trial import Trial, loaded, save, voxels

from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.shard_reader import ShardReader
from mim3d.engine.commands.cli import main
from mim3d.engine.commands.weights.predict import main as command
from mim3d.engine.errors import CheckpointError, ConfigError
from mim3d.engine.finetune.config import FinetuneConfig
from mim3d.engine.finetune.segmentation import SegmentationTask
from mim3d.engine.finetune.trained import TRAINED, load_network, read_trained
from mim3d.engine.predict import predict as module
from mim3d.engine.predict.config import PredictConfig, ScanOptions
from mim3d.engine.predict.ledger import FAILED
from mim3d.engine.predict.own_grid import own_grid
from mim3d.engine.predict.predict import refuse_mirror, run_predict
from mim3d.engine.runs.files import read_json, read_jsonl, write_json


def by_validation(trial: Trial) -> dict[str, np.ndarray]:
    """What validation's code makes of every volume, (x, y, z) of its source."""
    corpus = Corpus.open(trial.corpus)
    trained = read_trained(trial.run)
    task = SegmentationTask(trained.config, corpus, torch.device("cpu"))
    net = load_network(trial.run, trained)
    found = {}
    for record in corpus.records:
        labels = task.predict(net, task.case(record.id))
        grid = own_grid(record)
        own = np.zeros(grid.own.shape, np.uint8)
        grid.turned(own)[...] = labels
        found[record.id] = own.T
    return found


def test_files_and_corpus_get_what_validation_gives_to_the_bit(
    trial: Trial, tmp_path: Path
) -> None:
    wanted = by_validation(trial)
    assert len({labels.tobytes() for labels in wanted.values()}) == 8
    for name, source in (("files", trial.nifti), ("corpus", trial.corpus)):
        report = run_predict(trial.run, source, tmp_path / name)
        assert (report.n_done, report.n_kept, report.failed) == (8, 0, ())
        assert report.classes == ("background", *class_names(trial))
        for id, labels in wanted.items():
            file = tmp_path / name / f"{id}.nii.gz"
            assert np.array_equal(voxels(file), labels), (name, id)
            source_image = loaded(trial.nifti / "imagesTr" / f"{id}.nii.gz")
            image = loaded(file)
            assert np.array_equal(image.affine, source_image.affine)
            header, own = image.header, source_image.header
            for field in ("qform_code", "sform_code", "pixdim", "xyzt_units", "descrip"):
                assert np.array_equal(header[field], own[field]), field
            assert header.get_data_dtype() == np.uint8
    assert not list(tmp_path.rglob(".scan*"))


def class_names(trial: Trial) -> list[str]:
    last = read_json(trial.run / "result.json")["rows"][-1]
    return last["class_names"]


def test_probabilities_sum_to_one_and_agree_with_the_labels(trial: Trial, tmp_path: Path) -> None:
    config = PredictConfig(probabilities=True, ids=(trial.images[0].name.split(".")[0],))
    run_predict(trial.run, trial.nifti, tmp_path, config)
    (file,) = (tmp_path / "probabilities").glob("*.nii.gz")
    image = loaded(file)
    shares = np.asarray(image.dataobj)
    assert shares.dtype == np.float32
    assert shares.shape[:3] == voxels(tmp_path / file.name).shape
    assert shares.shape[3] == len(class_names(trial)) + 1
    assert np.allclose(shares.sum(-1), 1, atol=1e-5)
    assert np.array_equal(shares.argmax(-1), voxels(tmp_path / file.name))
    assert np.array_equal(image.affine, loaded(trial.images[0]).affine)
    assert not list(tmp_path.glob(".prob*"))


def test_a_broken_file_is_listed_and_the_others_are_done(
    trial: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    for file in trial.images[:3]:
        shutil.copy(file, scans / file.name)
    good = trial.images[3].read_bytes()
    (scans / "bad.nii.gz").write_bytes(good[: len(good) // 2])
    (scans / "empty.nii.gz").write_bytes(b"")
    words = ["predict", str(trial.run), str(scans), str(tmp_path / "out")]
    assert main(words) == 3
    told = capsys.readouterr().out
    assert "2 scans could not be done" in told
    assert f"{scans / 'bad.nii.gz'}: " in told
    failed = read_jsonl(tmp_path / "out" / FAILED)
    assert {Path(each["path"]).name for each in failed} == {"bad.nii.gz", "empty.nii.gz"}
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 3
    (scans / "bad.nii.gz").write_bytes(good)  # "download or copy it again"
    (scans / "empty.nii.gz").unlink()
    assert main(words) == 0
    assert "1 scans done, 3 were there already" in capsys.readouterr().out
    assert not (tmp_path / "out" / FAILED).exists()
    whole = tmp_path / "whole"
    run_predict(trial.run, trial.images[3], whole)
    assert np.array_equal(
        voxels(tmp_path / "out" / "bad.nii.gz"), voxels(next(whole.glob("*.nii.gz")))
    )


def test_a_killed_run_goes_on_with_what_is_left(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = module.write_label_map, []

    def dies(*args: Any) -> list[str]:
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return write(*args)

    monkeypatch.setattr(module, "write_label_map", dies)
    with pytest.raises(KeyboardInterrupt):
        run_predict(trial.run, trial.nifti, tmp_path / "out")
    ledger = tmp_path / "out" / "predict.jsonl"
    text = ledger.read_bytes()
    ledger.write_bytes(text[:-20])  # a line that a power cut tore
    (tmp_path / "out" / ".scan.zarr" / "x").mkdir(parents=True)
    again = run_predict(trial.run, trial.nifti, tmp_path / "out")
    assert (again.n_done, again.n_kept) == (6, 2)
    third = run_predict(trial.run, trial.nifti, tmp_path / "out")
    assert (third.n_done, third.n_kept) == (0, 8)
    run_predict(trial.run, trial.nifti, tmp_path / "whole")
    for file in (tmp_path / "whole").glob("*.nii.gz"):
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()


def test_a_scan_that_changed_or_lost_its_file_is_done_again(trial: Trial, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    shutil.copytree(trial.nifti / "imagesTr", scans)
    run_predict(trial.run, scans, out)
    first, second = sorted(out.glob("*.nii.gz"))[:2]
    before = voxels(first)
    first.unlink()
    changed = loaded(scans / second.name)
    save(np.asarray(changed.dataobj)[::-1].copy(), changed.affine, scans / second.name)
    report = run_predict(trial.run, scans, out)
    assert (report.n_done, report.n_kept) == (2, 6)
    assert np.array_equal(voxels(first), before)


def test_a_folder_of_other_settings_or_of_another_network_is_refused(
    trial: Trial, tmp_path: Path
) -> None:
    image = trial.images[0]
    run_predict(trial.run, image, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"results with overlap 0.25, not 0.5: choose another"):
        run_predict(trial.run, image, tmp_path / "out", PredictConfig(overlap=0.5))
    run_predict(trial.run, image, tmp_path / "other", PredictConfig(overlap=0.5))
    other = tmp_path / "run"
    shutil.copytree(trial.run, other)
    weights = torch.load(other / "model.pt", weights_only=True)
    torch.save({name: tensor + 1e-3 for name, tensor in weights.items()}, other / "model.pt")
    with pytest.raises(CheckpointError, match="was changed or damaged"):
        run_predict(other, image, tmp_path / "third")
    told = read_json(other / TRAINED)
    write_json(other / TRAINED, {**told, "model_sha256": ""})
    with pytest.raises(ConfigError, match="model_sha256"):
        run_predict(other, image, tmp_path / "out")


def test_results_are_never_put_among_the_scans(trial: Trial) -> None:
    for place in (trial.nifti, trial.nifti / "imagesTr" / "predictions"):
        with pytest.raises(ConfigError, match="choose a folder outside it"):
            run_predict(trial.run, trial.nifti, place)
    with pytest.raises(ConfigError, match=r"s3://bucket/out is an address"):
        run_predict(trial.run, trial.nifti, "s3://bucket/out")


def test_mirroring_is_the_mean_over_reflections_and_only_for_who_saw_them(
    trial: Trial, tmp_path: Path
) -> None:
    config = PredictConfig(mirror=True, probabilities=True)
    image = trial.images[0]
    run_predict(trial.run, image, tmp_path / "out", config)
    plain = PredictConfig(probabilities=True)
    run_predict(trial.run, image, tmp_path / "plain", plain)
    found = [voxels(next((tmp_path / n / "probabilities").iterdir())) for n in ("out", "plain")]
    assert not np.allclose(found[0], found[1], atol=1e-4)
    assert np.allclose(found[0].sum(-1), 1, atol=1e-5)
    run = tmp_path / "upright"
    shutil.copytree(trial.run, run)
    told = read_json(run / TRAINED)
    told["config"]["augment"] = "upright"
    write_json(run / TRAINED, told)
    with pytest.raises(ConfigError, match="leave --mirror out"):
        run_predict(run, image, tmp_path / "x", config)
    run_predict(run, image, tmp_path / "x", plain)


@pytest.mark.parametrize(
    ("augment", "flips"),
    [("segmentation", True), ("spatial-segmentation", True), ("spatial", True),
     ("spatial-upright", False), ("none", False), ("of-a-plugin-not-here", False)],
)  # fmt: skip
def test_whoever_saw_flips_may_be_mirrored(augment: str, flips: bool) -> None:
    trained = FinetuneConfig()
    object.__setattr__(trained, "augment", augment)  # a plugin's name is refused without it
    if flips:
        refuse_mirror(PredictConfig(mirror=True), trained)
    else:
        with pytest.raises(ConfigError, match=f"augment {augment}"):
            refuse_mirror(PredictConfig(mirror=True), trained)
    refuse_mirror(PredictConfig(), trained)


def test_a_run_of_an_earlier_version_asks_for_its_corpus(trial: Trial, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trial.run, run)
    (run / TRAINED).unlink()
    image = trial.images[0]
    with pytest.raises(CheckpointError, match="name the corpus it was trained on by --corpus"):
        run_predict(run, image, tmp_path / "out")
    run_predict(run, image, tmp_path / "out", corpus=str(trial.corpus))
    run_predict(trial.run, image, tmp_path / "now")
    (old,), (new,) = ((tmp_path / n).glob("*.nii.gz") for n in ("out", "now"))
    assert old.read_bytes() == new.read_bytes()
    assert asdict(read_trained(run, str(trial.corpus)).scans) == asdict(
        read_trained(trial.run).scans
    )
    stored = read_json(run / "config.json")
    write_json(run / "config.json", {**stored, "corpus_sha256": "0" * 64})
    with pytest.raises(ConfigError, match="is not the corpus that"):
        run_predict(run, image, tmp_path / "other", corpus=str(trial.corpus))


@pytest.mark.parametrize("what", ["missing", "pretraining", "unfinished", "weightless", "none"])
def test_what_is_no_finished_run_is_told_in_one_line(
    trial: Trial, tmp_path: Path, what: str
) -> None:
    run = tmp_path / "run"
    if what != "missing":
        shutil.copytree(trial.run, run)
    match what:
        case "pretraining":
            (run / "encoder.safetensors").touch()
        case "unfinished":
            (run / "result.json").unlink()
        case "weightless":
            (run / "model.pt").unlink()
        case "none":
            (run / "config.json").unlink()
    wanted = {
        "missing": "no such folder",
        "pretraining": "is a pretraining run",
        "unfinished": "repeat its `mim3d finetune`",
        "weightless": "kept no network",
        "none": "is no run",
    }
    with pytest.raises(CheckpointError, match=wanted[what]):
        run_predict(run, trial.images[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit_their_run_are_refused(trial: Trial, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trial.run, run)
    (run / "model.pt").write_bytes(b"nothing")
    told = read_json(run / TRAINED)
    write_json(run / TRAINED, {**told, "model_sha256": ""})
    with pytest.raises(CheckpointError, match="does not fit the network of its run"):
        run_predict(run, trial.images[0], tmp_path / "out")


def test_the_last_words_of_finetune_are_a_command_that_runs(
    trial: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vit = "--vit.crop-size 16 16 16 --vit.patch-size 8 8 8 --vit.width 12 --vit.depth 2"
    out = tmp_path / "a run"
    words = ["finetune", "demo", "--corpus", str(trial.corpus), "--out", str(out)]
    words += [*vit.split(), "--vit.heads", "2", "--steps", "2", "--eval-every", "2"]
    assert main([*words, "--feature-size", "4", "--device", "cpu", "--overlap", "0"]) == 0
    told = capsys.readouterr().out
    for name in class_names(trial):
        assert any(line.startswith(name) for line in told.splitlines()), name
    last = told.splitlines()[-1]
    import shlex

    words = shlex.split(last[last.index("mim3d predict") :])
    assert main(words[1:]) == 0
    assert len(list((out / "predictions").glob("*.nii.gz"))) == 8


def test_unknown_ids_and_channel_counts_are_told(
    trial: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="holds no scan 'nobody'; its ids are like"):
        run_predict(trial.run, trial.nifti, tmp_path / "a", PredictConfig(ids=("nobody",)))
    scans = tmp_path / "two"
    scans.mkdir()
    for channel in (0, 1):
        shutil.copy(trial.images[0], scans / f"case_000{channel}.nii.gz")
    table = tmp_path / "two.csv"
    table.write_text(f"image_0,image_1\n{scans}/case_0000.nii.gz,{scans}/case_0001.nii.gz\n")
    outcome = command([str(trial.run), str(table), str(tmp_path / "b")])
    assert outcome.exit_code == 3
    assert "has 2 channels, and the network was trained on 1" in capsys.readouterr().out


def test_nan_is_set_aside_or_taken_as_told(trial: Trial, tmp_path: Path) -> None:
    image = loaded(trial.images[0])
    spoilt = np.asarray(image.dataobj).astype(np.float32)
    spoilt[0, 0, 0] = np.nan
    file = tmp_path / "nan.nii.gz"
    save(spoilt, image.affine, file)
    report = run_predict(trial.run, file, tmp_path / "a")
    assert [each.code for each in report.failed] == ["non-finite"]
    assert "--nan-policy zero" in report.failed[0].detail
    options = PredictConfig(scans=ScanOptions(nan_policy="zero"))
    assert run_predict(trial.run, file, tmp_path / "b", options).failed == ()
    words = [str(trial.run), str(file), str(tmp_path / "c"), "--nan-policy", "zero"]
    assert command(words).exit_code == 0


def test_voxels_of_other_sizes_and_headers_in_doubt_are_remarked(
    trial: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = loaded(trial.images[0])
    far = image.affine @ np.diag([4, 4, 4, 1])
    save(np.asarray(image.dataobj), far, tmp_path / "far.nii.gz")
    words = [str(trial.run), str(tmp_path / "far.nii.gz"), str(tmp_path / "a")]
    assert command(words).exit_code == 3
    assert "those learned from are of" in capsys.readouterr().out
    assert command(words).exit_code == 3  # kept, and still in doubt
    save(np.asarray(image.dataobj), image.affine, tmp_path / "doubt.nii")
    data = bytearray((tmp_path / "doubt.nii").read_bytes())
    sizes = np.frombuffer(bytes(data[80:92]), "<f4") * 1.2
    data[80:92] = sizes.astype("<f4").tobytes()
    (tmp_path / "doubt.nii").write_bytes(bytes(data))
    words = [str(trial.run), str(tmp_path / "doubt.nii"), str(tmp_path / "b")]
    assert command(words).exit_code == 3
    assert "sform is believed" in capsys.readouterr().out
    assert command([*words[:2], str(tmp_path / "c"), "--believe", "sform"]).exit_code == 0


def test_a_damaged_volume_of_a_corpus_is_listed(trial: Trial, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.zarr"
    shutil.copytree(trial.corpus, corpus)
    opened = Corpus.open(corpus)
    reader = ShardReader(opened.table, opened.root)
    victim = opened.records[2].id
    shard = corpus / opened.table.shard_path(int(opened.table.volumes["image"][2]))
    reader.close()
    data = bytearray(shard.read_bytes())
    data[40:60] = b"\xff" * 20
    shard.write_bytes(bytes(data))
    report = run_predict(trial.run, corpus, tmp_path / "out")
    assert report.n_done == 7
    assert [each.code for each in report.failed] == ["damaged"]
    assert victim in report.failed[0].detail


def test_a_classification_predicts_a_table(
    trial: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mim3d.engine.finetune.finetune import run_finetune

    result = run_finetune(small_finetune(trial.corpus, head="classify"), tmp_path / "run")
    for source in (trial.corpus, trial.nifti):
        out = tmp_path / source.name
        targets = str(trial.corpus.parent / "targets.csv")
        words = [str(tmp_path / "run"), str(source), str(out)]
        outcome = command([*words, "--labels", targets])
        assert outcome.figures["scored"] == 7
        assert outcome.exit_code == 3  # one subject has no target
        told = capsys.readouterr().out
        assert "has no row of" in told
        known, others = outcome.figures["trained_on"], outcome.figures["others"]
        assert known["subjects"] == sorted(result.subjects["train"])
        assert known["scored"] + others["scored"] == 7
        assert f"not trained on: balanced accuracy {others['balanced_accuracy']:.4f}" in told
        with (out / "classes.csv").open(newline="") as stream:
            rows = {row["id"]: row for row in csv.DictReader(stream)}
        assert len(rows) == 8
        for case in result.cases:
            row = rows[case["volume"]]
            shares = [float(row["p_even"]), float(row["p_odd"])]
            assert shares == pytest.approx(case["probabilities"], abs=1e-6)
            assert row["class"] == ("even", "odd")[int(np.argmax(shares))]
        with (out / "predict.jsonl").open() as stream:
            noted = [json.loads(line) for line in stream]
        exact = {each["volumes"][0]["volume"]: each["volumes"][0] for each in noted}
        for case in result.cases:
            assert exact[case["volume"]]["figures"] == list(case["probabilities"])
        assert command([*words, "--labels", targets]).figures["kept"] == 8
    for place in ("own", str(trial.nifti / "labelsTr")):  # before anything is predicted
        with pytest.raises(ConfigError, match="name a CSV with columns subject,target"):
            command([*words[:2], str(tmp_path / "new"), "--labels", place])
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("subject,target\nnobody,even\nnone,odd\n")
    with pytest.raises(ConfigError, match="none of the 8 subjects"):
        command([*words, "--labels", str(wrong)])
    wrong.write_text("subject,target\nnobody,even\nnone,purple\n")
    with pytest.raises(ConfigError, match="has the class 'purple'"):
        command([*words, "--labels", str(wrong)])


def test_a_regression_predicts_numbers(trial: Trial, tmp_path: Path) -> None:
    from mim3d.engine.finetune.finetune import run_finetune

    ages = tmp_path / "ages.csv"
    subjects = [record.subject for record in Corpus.open(trial.corpus).records]
    lines = [f"{subject},{31.5 + 3 * i}" for i, subject in enumerate(subjects)]
    ages.write_text("\n".join(["subject,target", *lines]) + "\n")
    config = small_finetune(trial.corpus, head="classify")
    data = replace(config.data, targets=str(ages))
    result = run_finetune(replace(config, head="regress", data=data), tmp_path / "run")
    outcome = command(
        [str(tmp_path / "run"), str(trial.nifti), str(tmp_path / "out"), "--labels", str(ages)]
    )
    assert outcome.exit_code == 0
    assert outcome.figures["scored"] == 8
    assert outcome.figures["mae"] > 0
    with (tmp_path / "out" / "values.csv").open(newline="") as stream:
        rows = {row["id"]: float(row["value"]) for row in csv.DictReader(stream)}
    for case in result.cases:
        assert rows[case["volume"]] == pytest.approx(case["predicted"], rel=1e-6)
