"""Fine-tuning on a small converted phantom: the seed's promises, resuming, refusals."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_finetune import VIT, make_labelled_corpus, small_finetune

from mim3d.dataio.reader.corpus import Corpus
from mim3d.engine.commands import finetune as command
from mim3d.engine.distributed.process_group import process_ranks
from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.config import FinetuneConfig, identity, input_mismatch
from mim3d.engine.finetune.encoder import require_same_shape
from mim3d.engine.finetune.finetune import (
    make_task,
    open_loader,
    resolve_splits,
    run_finetune,
)
from mim3d.engine.finetune.network import build_segmentation, step_flops
from mim3d.engine.finetune.run_folder import claim
from mim3d.engine.finetune.segmentation import SegmentationTask, middle_slice, n_classes
from mim3d.engine.finetune.splits import SplitConfig
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.models.vit import ViT3D
from mim3d.engine.runs.encoder_file import STATISTICS, save_encoder
from mim3d.engine.runs.files import write_json


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled_corpus(tmp_path_factory.mktemp("phantom"))


@pytest.fixture
def config(corpus: Path) -> FinetuneConfig:
    return small_finetune(corpus)


def save_random_encoder(folder: Path, vit: ViTConfig = VIT) -> Path:
    folder.mkdir()
    torch.manual_seed(5)
    save_encoder(folder, vit, ViT3D(vit).state_dict(), {"method": "mae"})
    return folder


def test_a_run_scores_at_fixed_steps_and_the_test_set_once(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    result = run_finetune(config, tmp_path / "run")
    seen = [(row["split"], row["step"]) for row in result.rows]
    assert seen == [("validation", 0), ("validation", 2), ("validation", 4), ("test", 4)]
    last = result.rows[-1]
    assert 0 <= last["score"] <= 1
    assert len(last["dice_by_class"]) == 3
    assert last["flops"] == pytest.approx(4 * result.step_flops)
    assert {case["split"] for case in result.cases} == {"validation", "test"}
    assert len(result.cases) == len(result.subjects["validation"]) + len(result.subjects["test"])
    with np.load(tmp_path / "run" / "pictures.npz", allow_pickle=False) as slices:
        assert slices["0.truth"].shape == slices["0.prediction"].shape
    again = run_finetune(config, tmp_path / "run")
    assert again.rows == result.rows


def test_arms_of_one_seed_share_decoder_and_crops(config: FinetuneConfig, tmp_path: Path) -> None:
    pretrained = replace(config, init=str(save_random_encoder(tmp_path / "enc")))
    corpus = Corpus.open(config.data.corpus)
    one, two = (
        make_task(c, corpus, None, torch.device("cpu")).net.state_dict()
        for c in (config, pretrained)
    )
    equal = {key for key, value in one.items() if torch.equal(value, two[key])}
    assert equal >= {key for key in one if key.startswith("decoder.")}
    assert "encoder.patch_embed.weight" not in equal
    with process_ranks(60.0, "cpu") as ranks:
        loaders = [open_loader(c, ranks, resolve_splits(c, corpus)) for c in (config, pretrained)]
        first, second = (next(loader) for loader in loaders)
        assert torch.equal(first.image, second.image)
        assert torch.equal(first.sample, second.sample)
        for loader in loaders:
            loader.close()


def test_seeds_differ_and_the_encoder_is_the_checkpoints(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    one = build_segmentation(config, 3).state_dict()
    same, other = (build_segmentation(replace(config, seed=s), 3).state_dict() for s in (0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(
        one["decoder.out.conv.conv.weight"], other["decoder.out.conv.conv.weight"]
    )
    folder = save_random_encoder(tmp_path / "enc")
    loaded = build_segmentation(replace(config, init=str(folder)), 3).encoder.state_dict()
    torch.manual_seed(5)
    for key, tensor in ViT3D(VIT).state_dict().items():
        assert torch.equal(loaded[key], tensor)


def test_freeze_trains_the_head_only(config: FinetuneConfig) -> None:
    net = build_segmentation(replace(config, freeze=True), 3)
    assert not any(p.requires_grad for p in net.encoder.parameters())
    assert all(p.requires_grad for p in net.decoder.parameters())
    whole, frozen = (step_flops(replace(config, freeze=f), net) for f in (False, True))
    assert frozen < whole


def test_another_architecture_is_refused_by_name(config: FinetuneConfig, tmp_path: Path) -> None:
    folder = save_random_encoder(tmp_path / "enc", replace(VIT, width=24))
    with pytest.raises(ConfigError, match="width 24 instead of 12"):
        build_segmentation(replace(config, init=str(folder)), 3)
    require_same_shape("x", VIT, VIT, "vit")


def test_a_folder_of_another_run_is_refused(config: FinetuneConfig, tmp_path: Path) -> None:
    claim(config, tmp_path)
    claim(replace(config, threads=2), tmp_path)
    with pytest.raises(ConfigError, match="global_batch 2, not 3"):
        claim(replace(config, global_batch=3), tmp_path)


def test_bad_fields_name_themselves(config: FinetuneConfig) -> None:
    with pytest.raises(ConfigError, match="both --train and --validation"):
        replace(config, train=("a",))
    with pytest.raises(ConfigError, match="targets"):
        replace(config, head="classify")
    with pytest.raises(ConfigError, match="steps"):
        replace(config, steps=0)


def test_labels_that_are_not_there(config: FinetuneConfig, corpus: Path) -> None:
    records = Corpus.open(corpus).records
    with pytest.raises(ConfigError, match="no foreground"):
        n_classes(records, "nothing")
    task = SegmentationTask(config, Corpus.open(corpus), torch.device("cpu"))
    notes = task.notes([])
    assert len(notes) == 3
    assert "class 1 (near nuclei) does not occur in the 0 training subjects" in notes[0]
    assert "no score there" in task.notes([], "validation")[0]


def test_middle_slice() -> None:
    truth = np.zeros((5, 4, 4), np.uint8)
    assert middle_slice(truth) == 2
    truth[3, 1:3] = 1
    assert middle_slice(truth) == 3


def test_classification_runs_on_targets_of_a_table(
    config: FinetuneConfig, corpus: Path, tmp_path: Path
) -> None:
    subjects = sorted({record.subject for record in Corpus.open(corpus).records})
    table = tmp_path / "targets.csv"
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["subject", "target"])
        writer.writerows((s, "even" if i % 2 == 0 else "odd") for i, s in enumerate(subjects[1:]))
    data = replace(config.data, targets=str(table), split=SplitConfig(0.3, 0.2))
    wanted = replace(config, head="classify", data=data, steps=2)
    result = run_finetune(wanted, tmp_path / "run")
    last = result.rows[-1]
    assert {"accuracy", "auroc"} <= last.keys()
    assert "1 of 8 subjects have no target: they can pretrain" in result.notes[0]
    assert last["class_names"] == ["even", "odd"]
    assert {case["class_name"] for case in result.cases} <= {"even", "odd"}
    assert len(last["recall_by_class"]) == 2
    assert sum(result.cases[0]["probabilities"]) == pytest.approx(1.0)


def test_the_command_runs_a_recipe_and_names_what_is_missing(corpus: Path, tmp_path: Path) -> None:
    words = [
        "demo",
        "--data.corpus",
        str(corpus),
        "--out",
        str(tmp_path / "run"),
        "--head",
        "linear",
    ]
    words += ["--vit.crop-size", "16", "16", "16", "--vit.width", "12", "--vit.depth", "1"]
    words += ["--vit.heads", "2", "--steps", "1", "--eval-every", "1", "--global-batch", "1"]
    outcome = command.main(words)
    assert outcome.figures["step"] == 1
    assert (tmp_path / "run" / "model.pt").exists()
    with pytest.raises(ConfigError, match=r"--data\.corpus"):
        command.main(["demo"])
    with pytest.raises(ConfigError, match="name a recipe first"):
        command.main([])
    with pytest.raises(ConfigError, match="unetr-vit-b-96"):
        command.main(["unet"])


def test_a_run_is_of_one_corpus_and_one_table_of_targets(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    corpus, targets, out = tmp_path / "corpus.zarr", tmp_path / "targets.csv", tmp_path / "run"
    corpus.mkdir()
    (corpus / "manifest.jsonl").write_text("{}")
    targets.write_text("subject,target\n")
    data = replace(config.data, corpus=str(corpus), targets=str(targets))
    config = replace(config, data=data)
    claim(config, out)
    moved = replace(data, corpus="/moved/away.zarr")
    claim(replace(config, data=moved), out)
    (corpus / "manifest.jsonl").write_text("{ }")
    with pytest.raises(ConfigError, match=r"a run on another corpus .*choose another --out"):
        claim(config, out)
    (corpus / "manifest.jsonl").write_text("{}")
    claim(config, out)
    targets.write_text("subject,target\na,1\n")
    with pytest.raises(ConfigError, match="a run on another targets"):
        claim(config, out)


def test_a_folder_from_before_corpora_were_told_is_gone_on_with(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    write_json(tmp_path / "config.json", identity(config))
    claim(config, tmp_path)


def test_intensities_that_the_encoder_does_not_know_are_told(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    save_encoder(tmp_path, VIT, ViT3D(VIT).state_dict(), {"normalise": "window:-175:250"})
    message = input_mismatch(replace(config, init=str(tmp_path)))
    assert len(message) == 1
    assert "--data.normalise window:-175:250" in message[0]
    data = replace(config.data, normalise="window:-175:250")
    assert input_mismatch(replace(config, init=str(tmp_path), data=data)) == []
    assert input_mismatch(config) == []


@pytest.mark.parametrize(
    ("normalise", "channels", "expected"),
    [
        ("zscore", 1, ""),
        ("zscore", 2, "the same statistics for all channels"),
        ("window:0:9", 2, ""),
        ("clip-zscore", 1, "the mean and deviation of unclipped voxels"),
    ],
)
def test_an_encoder_of_a_version_that_pooled_channels_is_told(
    config: FinetuneConfig, tmp_path: Path, normalise: str, channels: int, expected: str
) -> None:
    vit = replace(VIT, channels=channels)
    given = replace(
        config, init=str(tmp_path), vit=vit, data=replace(config.data, normalise=normalise)
    )
    save_encoder(tmp_path, vit, ViT3D(vit).state_dict(), {"normalise": normalise})
    assert [expected in line for line in input_mismatch(given)] == [True] * bool(expected)
    now = {"normalise": normalise, "statistics": STATISTICS}
    save_encoder(tmp_path, vit, ViT3D(vit).state_dict(), now)
    assert input_mismatch(given) == []


def test_another_number_of_channels_is_told_before_the_first_step(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"vit\.channels is 2, the volumes of .* have 1"):
        run_finetune(replace(config, vit=replace(VIT, channels=2)), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"clip_norm": -1.0}, "must not be negative"),
        ({"weight_decay": -1e-3}, "must not be negative"),
        ({"weight_decay": float("nan")}, "must be a finite number"),
    ],
)
def test_norms_and_decays_that_would_climb_are_refused(change: dict[str, float], why: str) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(change))} .*{why}"):
        FinetuneConfig(**change)  # pyright: ignore[reportArgumentType]


def test_voxels_to_ignore_weigh_nothing(config: FinetuneConfig) -> None:
    corpus = Corpus.open(config.data.corpus)
    task = SegmentationTask(config, corpus, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, task.classes, 6, 6, 6, generator=generator)
    label = torch.randint(0, task.classes, (2, 1, 6, 6, 6), generator=generator)
    task.ignore = 255
    assert torch.allclose(task.known_loss(logits, label), task.dice_ce(logits, label), atol=1e-5)
    label[:, :, :3] = 255
    other = logits.clone()
    other[:, :, :3] = torch.randn(2, task.classes, 3, 6, 6, generator=generator)
    assert torch.equal(task.known_loss(logits, label), task.known_loss(other, label))
    assert torch.isfinite(task.known_loss(logits, torch.full_like(label, 255)))
