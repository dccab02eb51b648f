"""What no run of a study could be built from is told before the first pretraining."""

from dataclasses import replace
from pathlib import Path

import pytest
from small_finetune import VIT, make_labelled_corpus

from mim3d.dataio.reader.corpus import Corpus
from mim3d.engine.commands import compare, finetune, pretrain
from mim3d.engine.commands.cli import main
from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.config import LabelledData
from mim3d.engine.finetune.splits import SplitConfig, make_splits
from mim3d.engine.models.config import SwinConfig
from mim3d.engine.study.config import StudyConfig, Variant
from mim3d.engine.study.preflight import refuse_impossible
from mim3d.engine.study.run import run_study


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled_corpus(tmp_path_factory.mktemp("phantom"))


def study_of(corpus: Path, **changes: object) -> StudyConfig:
    data = LabelledData(str(corpus), split=SplitConfig(0.15, 0.15))
    base = StudyConfig(data=data, vit=VIT, arms=("scratch", "simmim"), seeds=(0,), workers=1)
    return replace(base, **changes)  # pyright: ignore[reportArgumentType]


def test_an_impossible_variant_is_refused_before_any_work(corpus: Path, tmp_path: Path) -> None:
    """Swin's crop of 48 voxels: only the encoder itself knows."""
    swin = SwinConfig(12, (1, 1, 1, 1), (1, 2, 2, 4), 4)
    vit = replace(VIT, crop_size=(32, 32, 32), patch_size=(16, 16, 16))
    variants = (Variant(crop=32), Variant(crop=48))
    config = study_of(corpus, vit=vit, swin=swin, variants=variants)
    with pytest.raises(ConfigError, match=r"nothing was started.*crop-48.*multiple of 32") as told:
        run_study(config, tmp_path / "study")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "study" / "pretrain").exists()
    assert not (tmp_path / "study" / "cells").exists()


def test_channels_that_the_corpus_lacks_are_refused(corpus: Path, tmp_path: Path) -> None:
    config = study_of(corpus, vit=replace(VIT, channels=2))
    with pytest.raises(ConfigError, match=r"nothing was started.*set --vit.channels"):
        run_study(config, tmp_path / "study")


def test_a_study_that_can_be_run_passes(corpus: Path, tmp_path: Path) -> None:
    opened = Corpus.open(corpus)
    config = study_of(corpus, variants=(Variant(), Variant(crop=24), Variant(depth=1)))
    splits = make_splits(opened.records, "seg", config.data.split)
    refuse_impossible(config, opened, splits, tmp_path)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (pretrain, ["btcv-swin-simmim", "--data.corpus", "none.zarr"]),
        (finetune, ["swinunetr-96", "--data.corpus", "none.zarr"]),
        (compare, ["swin", "--data.corpus", "none.zarr"]),
    ],
)
def test_swins_crop_is_an_option_of_swin(
    command: object, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is understood: what is refused is the corpus. Help lists it, and no idle option."""
    name = command.__name__.rsplit(".", 1)[1]  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(SystemExit):
        main([name, words[0], "--help"])
    shown = "".join(capsys.readouterr().out.split())
    assert "--swin.crop-size" in shown
    assert "--swin.channels" in shown
    for idle in ("--vit.width", "--vit.heads", "--drop-path", "--flops-of"):
        assert idle not in shown
    crop = ["--swin.crop-size", "64", "64", "96", "--out", str(tmp_path / "run")]
    assert main([name, *words, *crop]) == 2
    assert "none.zarr" in capsys.readouterr().err
