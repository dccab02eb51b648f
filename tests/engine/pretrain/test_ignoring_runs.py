"""Runs that ignore voxels, on an nnssl-like collection: from its files to the verdict."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_run import small_config

from mim3d.dataio.convert.run import ConversionReport, convert
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.loader.loader import Loader
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.sources.discover import discover
from mim3d.engine.commands import pretrain
from mim3d.engine.pretrain.config import PretrainConfig, config_identity
from mim3d.engine.pretrain.pretrain import remarks, run_pretrain
from mim3d.engine.runs.files import read_json
from mim3d.engine.training.corpus import CorpusFit
from mim3d.engine.training.metrics import read_rows

SHAPE = (20, 24, 36)
MASK = "label:anonymization_mask"


def saved(path: Path, voxels: np.ndarray) -> str:
    nib.save(nib.Nifti1Image(voxels.transpose(2, 1, 0), np.eye(4)), path)
    return path.name


def head(seed: int) -> np.ndarray:
    """A bright ball in air, whose face (low y) was taken off."""
    z, y, x = np.indices(SHAPE)
    middle = (z - 10) ** 2 / 81 + (y - 12) ** 2 / 121 + (x - 18) ** 2 / 250 < 1
    voxels = np.random.default_rng(seed).normal(300, 40, SHAPE) * middle
    voxels[:, :6] = 0
    return voxels.astype(np.int16)


def collection(root: Path) -> None:
    """Two data sets, two modalities, two sessions; of masks one is of another grid, one is missing,
    one covers its whole image, one image has none."""
    face = np.zeros(SHAPE, np.uint8)
    face[:, :6] = 1
    masks = {
        "face": saved(root / "face.nii.gz", face),
        "elsewhere": saved(root / "elsewhere.nii.gz", face[:-2]),
        "whole": saved(root / "whole.nii.gz", np.ones(SHAPE, np.uint8)),
        "gone": "gone.nii.gz",
    }
    of_ds2 = {"2": "elsewhere", "3": "gone", "4": "whole", "5": ""}
    datasets: dict[str, Any] = {}
    for number, (dataset, subject) in enumerate(
        [("ds1", "1"), ("ds1", "2"), ("ds2", "1"), *(("ds2", s) for s in of_ds2)]
    ):
        images = []
        for k, modality in enumerate(("T1w", "FLAIR")):
            name = f"{dataset}-{subject}-{modality}.nii.gz"
            mask = masks.get(of_ds2.get(subject, "face") if dataset == "ds2" else "face")
            images.append(
                {
                    "name": saved(root / name, head(2 * number + k)),
                    "modality": modality,
                    "image_info": {},
                    "image_path": f"$nnssl_raw/{root.name}/{name}",
                    "associated_masks": {
                        "anonymization_mask": mask and f"$nnssl_raw/{root.name}/{mask}",
                        "anatomy_mask": None,
                    },
                }
            )
        sessions = {f"ses-{number % 2}": {"session_id": "s", "images": images}}
        people = datasets.setdefault(dataset, {"dataset_index": dataset, "subjects": {}})
        people["subjects"][subject] = {"subject_id": subject, "sessions": sessions}
    about = {"collection_index": 745, "collection_name": "Dataset745", "datasets": datasets}
    (root / "pretrain_data.json").write_text(json.dumps(about))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, ConversionReport]:
    root = tmp_path_factory.mktemp("Dataset745")
    collection(root)
    found = discover(str(root))
    report = convert(found.sources, root / "c.zarr", workers=1, skipped=found.skipped)
    return root / "c.zarr", report


@pytest.fixture(scope="module")
def corpus(made) -> Path:
    return made[0]


def config_of(
    corpus: Path,
    ignored: tuple[str, ...] = ("padding", "air", MASK),
    method: str = "mae",
    where: tuple[str, ...] = (),
    accum: int = 1,
    **changes: Any,
) -> PretrainConfig:
    base = small_config(corpus, method, **changes)
    part: Any = base.method
    loader = dataclasses.replace(base.data.loader, where=where)
    return dataclasses.replace(
        base,
        method=dataclasses.replace(part, ignore=ignored),
        data=dataclasses.replace(base.data, loader=loader),
        parallel=dataclasses.replace(base.parallel, grad_accum=accum),
    )


def test_masks_stand_beside_their_images_and_bad_ones_cost_no_image(made):
    corpus, report = made
    records = {record.id: record for record in Corpus.open(corpus).records}
    assert len(records) == 14
    have = {id for id, record in records.items() if record.labels}
    assert have == {
        f"{person}_ses-{k}_{person.replace('_', '-')}-{modality}"
        for person, k in (("ds1_1", 0), ("ds1_2", 1), ("ds2_1", 0), ("ds2_4", 1))
        for modality in ("T1w", "FLAIR")
    }
    codes = sorted(each.code for each in report.rejections)
    assert codes == ["missing-label", "other-grid", "other-grid"]
    some = records["ds2_1_ses-0_ds2-1-T1w"]
    assert (some.group, some.session, some.channel_names) == ("ds2", "ses-0", ("T1w",))
    assert [label.name for label in some.labels] == ["anonymization_mask"]


def test_what_a_user_types_reaches_the_loss(corpus, tmp_path, capfd):
    words = [
        *("demo-mae", "--data.corpus", str(corpus), "--out", str(tmp_path / "run")),
        *("--method.ignore", "padding", "air", MASK),
        *("--data.where", "modality=T1w", "--data.shares", "ds1=1", "ds2=1"),
        *("--vit.crop-size", "16", "16", "32", "--steps", "2", "--global-batch", "2"),
    ]
    assert pretrain.main(words).exit_code == 0
    out = "".join(capfd.readouterr())
    assert "3 of 7 volumes have no label 'anonymization_mask'" in out
    assert "label 'anonymization_mask' covers 1 of 7 volumes whole" in out
    assert "next: mim3d embed" in out  # its one label is what is ignored
    stored = read_json(tmp_path / "run" / "config.json")
    assert stored["method"]["ignore"] == ["padding", "air", MASK]
    assert all(0 < row["counted"] < 1 for row in read_rows(tmp_path / "run" / "metrics.jsonl"))


def test_padding_is_said_to_be_learned_or_not(corpus):
    config = config_of(corpus, ())
    ignoring = config_of(corpus, ("padding",))
    drawn = ignoring.data.loader_config(ignoring.vit, ignoring.method, 4, 0)
    with Loader(corpus, drawn) as loader:
        (one,) = remarks(ignoring, CorpusFit(14, 3), loader.weights)
    (other,) = remarks(config, CorpusFit(14, 3))
    assert one.endswith("are padded, and padding is not scored")
    assert other.endswith("padding is learned (--method.ignore padding leaves it out)")


def test_accumulation_changes_no_figure(corpus, tmp_path):
    """Also where a micro-batch is a crop of which nothing counts."""
    curves = []
    for accum in (1, 4):
        config = config_of(corpus, where=("subject=ds2_1,ds2_4",), accum=accum, steps=4)
        run_pretrain(config, tmp_path / f"{accum}")
        curves.append(read_rows(tmp_path / f"{accum}" / "metrics.jsonl"))
    for row, other in zip(*curves, strict=True):
        for name, rel in (("loss", 2e-6), ("counted", 1e-6), ("grad_norm", 1e-4)):
            assert row[name] == pytest.approx(other[name], rel=rel)
    assert 0 < curves[0][0]["counted"] < 0.5


@pytest.mark.parametrize("method", ["mae", "simmim", "resenc"])
def test_a_resumed_run_is_the_same_to_the_bit(corpus, tmp_path, method):
    config = config_of(corpus, method=method, steps=7, log=small_log(every=2))
    run_pretrain(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000007")
    (tmp_path / "cut" / "pretext.json").unlink()
    run_pretrain(config, tmp_path / "cut")
    one, other = (load_file(tmp_path / n / "encoder.safetensors") for n in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    rows, again = (read_rows(tmp_path / n / "metrics.jsonl") for n in ("whole", "cut"))
    for name in ("loss", "grad_norm", "counted", "patch_mean", "nearest_patch"):
        assert [row[name] for row in rows] == [row[name] for row in again]


def small_log(**changes: Any) -> Any:
    return dataclasses.replace(small_config("").log, **changes)


def test_verdict_and_held_out_scores_are_of_what_counts(corpus, tmp_path):
    """Of a head of noise in air: with raw targets its edge is what a patch's mean misses most."""
    config = config_of(corpus, ("air",), method="simmim", steps=3)
    data = dataclasses.replace(config.data, held_out_subjects=("ds1_1",), held_out_crops=4)
    figures = run_pretrain(dataclasses.replace(config, data=data), tmp_path / "run").figures
    assert figures["held_out_patch_mean"] > 0 and 0 < figures["held_out_counted"] < 1
    assert figures["pretext"]["held_out"]["loss"] == figures["held_out_loss"]
    everything = dataclasses.replace(config_of(corpus, (), method="simmim", steps=3), data=data)
    other = run_pretrain(everything, tmp_path / "other").figures
    assert "counted" not in other and "held_out_counted" not in other
    # Without air only the noise is left, of deviation 1 once z-scored: 0.8 in L1.
    assert 0.6 < figures["held_out_patch_mean"] < 1.0 < other["held_out_patch_mean"]


def test_steps_in_which_nothing_counted_say_so_and_break_nothing(tmp_path, capfd):
    """A volume of air but for one slice: not every crop shows it, and none is NaN."""
    voxels = np.zeros((24, 24, 40), np.int16)
    voxels[:, :, 0] = 500
    saved(tmp_path / "a.nii.gz", voxels)
    convert(discover(str(tmp_path)).sources, tmp_path / "c.zarr", workers=1)
    config = config_of(tmp_path / "c.zarr", ("air",), steps=6, global_batch=1)
    figures = run_pretrain(config, tmp_path / "run").figures
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert figures["pretext"]["learned"] is False
    for row in rows:
        assert (row["loss"] is None) == (row["counted"] == 0) == (row["patch_mean"] is None)
        assert row["grad_norm"] is not None and row["bad_steps"] == 0
    assert any(row["counted"] == 0 for row in rows)
    assert figures["pretext"]["loss"] == rows[-2]["loss"]  # the last one that has some
    out = "".join(capfd.readouterr())
    assert "nothing scored" in out and "nan" not in out


def test_a_label_that_the_corpus_lacks_is_one_line(corpus, tmp_path):
    with pytest.raises(CorpusError, match="has no label 'face'; its labels: anonymization_mask"):
        run_pretrain(config_of(corpus, ("label:face",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_ignored_belongs_to_the_run_and_nothing_does_not(corpus):
    plain, ignoring = config_of(corpus, ()), config_of(corpus)
    assert "ignore" not in config_identity(plain)["method"]
    assert config_identity(plain) == config_identity(small_config(corpus, "mae"))
    assert config_identity(ignoring) != config_identity(plain)


def test_a_loader_may_choose_modalities_beside_weights(corpus):
    config = config_of(corpus, where=("modality=FLAIR", "dataset=ds1"))
    drawn = config.data.loader_config(config.vit, config.method, 4, 0)
    with Loader(corpus, drawn) as loader:
        assert len(loader.sampler.volumes) == 2
        assert next(loader).weight is not None
