"""What no run of a study could be built from is told before the first pretraining."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from small_finetune import VIT, make_labelled_corpus, small_finetune

from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.reader.corpus import Corpus
from mim3d.engine.commands import compare, finetune, pretrain
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.cli import main
from mim3d.engine.commands.compare import StudyArgs
from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.config import LabelledData
from mim3d.engine.finetune.finetune import run_finetune
from mim3d.engine.finetune.splits import SplitConfig, make_splits
from mim3d.engine.models.config import SwinConfig, ViTConfig
from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.models.registry import EncoderShape
from mim3d.engine.runs.encoder_file import save_encoder
from mim3d.engine.study.config import StudyConfig, Variant
from mim3d.engine.study.encoders import TINY_SHAPES
from mim3d.engine.study.plan import scored_cells, tuning_cells
from mim3d.engine.study.preflight import refuse_impossible
from mim3d.engine.study.run import run_study, splits_of

PRIMUS = PrimusConfig((16, 16, 16), (8, 8, 8), width=24, depth=2, heads=2)


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


def test_weights_that_are_not_there_and_too_few_labels_are_told_before_anything_is_written(
    corpus: Path, tmp_path: Path
) -> None:
    study = tmp_path / "study"
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    arms = ("scratch", f"mine={tmp_path / 'nowhere'}", f"torn={tmp_path / 'torn.safetensors'}")
    with pytest.raises(ConfigError, match=r"nothing was started") as told:
        run_study(study_of(corpus, arms=arms, labels=(6.0,)), study)
    for part in ("arm mine: ", "nowhere is not there", "arm torn: ", "labels 6: 6 labelled"):
        assert part in str(told.value)
    assert "\n" not in str(told.value)
    assert not study.exists()


def test_the_options_that_give_enough_labels_do(corpus: Path, tmp_path: Path) -> None:
    opened = Corpus.open(corpus)
    config = study_of(corpus, labels=(6.0,))
    splits = make_splits(opened.records, "seg", config.data.split)
    with pytest.raises(ConfigError) as told:
        refuse_impossible(config, opened, splits, tmp_path)
    found = re.search(r"set --labels (\d+), .*(--data\.split\.test)", str(told.value))
    assert found is not None

    def asked(words: list[str]) -> StudyConfig:
        return parse(StudyArgs, words, "mim3d compare", default=StudyArgs(config=config)).config

    fewer = asked(["--labels", found[1]])
    refuse_impossible(fewer, opened, splits, tmp_path)
    held = asked([found[2], "0"])
    refuse_impossible(held, opened, make_splits(opened.records, "seg", held.data.split), tmp_path)


def test_the_same_subjects_by_two_names_are_refused_and_one_name_is_not(
    corpus: Path, tmp_path: Path
) -> None:
    """A share and a number that come to the same would be run and reported as two."""
    found = Corpus.open(corpus)
    several = study_of(corpus, labels=(1.0, 2.0, 0.4, 4.0))
    splits = splits_of(several, found)
    assert len(splits.train) == 4
    with pytest.raises(ConfigError, match=r"nothing was started") as refused:
        refuse_impossible(several, found, splits, tmp_path)
    assert "labels 2 and 0.4 are the same 2 of 4 subjects" in str(refused.value)
    assert "labels 1 and 4 are the same 4 of 4 subjects" in str(refused.value)
    for labels in ((1.0, 2.0), (4.0, 0.4)):
        refuse_impossible(study_of(corpus, labels=labels), found, splits, tmp_path)


def test_weights_that_have_gone_are_not_asked_of_an_arm_that_is_done(
    corpus: Path, tmp_path: Path
) -> None:
    opened = Corpus.open(corpus)
    config = study_of(corpus, arms=("scratch", f"mine={tmp_path / 'gone'}"))
    splits = make_splits(opened.records, "seg", config.data.split)
    cells = [*tuning_cells(config), *scored_cells(config, {})]
    results = [tmp_path / "cells" / cell.key / "result.json" for cell in cells]
    for result in results:
        result.parent.mkdir(parents=True)
        result.write_text("{}")
    refuse_impossible(config, opened, splits, tmp_path)
    results[-1].unlink()
    with pytest.raises(ConfigError, match="gone is not there"):
        refuse_impossible(config, opened, splits, tmp_path)


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


@pytest.mark.parametrize(
    ("own", "word"),
    [(replace(VIT, width=24), "mine"), (PRIMUS, "mine@primus")],
)
def test_a_given_encoder_of_another_size_is_refused_with_options_that_fit_it(
    corpus: Path, tmp_path: Path, own: ViTConfig, word: str
) -> None:
    """Before: once scratch and the pretrainings were done, which may take days."""
    given = tmp_path / "given"
    given.mkdir()
    save_encoder(given, own, EncoderShape(own).make().state_dict(), {"method": "mae"})
    config = study_of(corpus, arms=("scratch", f"{word}={given}"), heads=("own",))
    config = replace(config, shapes=replace(TINY_SHAPES, primus=replace(PRIMUS, depth=3)))
    if "@" in word:
        config = replace(config, arms=("scratch@primus", f"{word}={given}"))
    with pytest.raises(ConfigError, match=r"nothing was started.*instead of") as told:
        run_study(config, tmp_path / "study")
    assert not (tmp_path / "study").exists()
    options = re.findall(r"--[a-z.-]+ [\d.]+", str(told.value))
    assert options
    words = [word for option in options for word in option.split()]
    asked = parse(StudyArgs, words, "mim3d compare", default=StudyArgs(config=config)).config
    opened = Corpus.open(corpus)
    splits = make_splits(opened.records, "seg", config.data.split)
    refuse_impossible(asked, opened, splits, tmp_path / "study")


def test_what_a_study_learns_from_is_asked_for_before_anything_is_written(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    study, table = tmp_path / "study", str(corpus.parent / "targets.csv")
    plain = study_of(corpus)
    for config, words in (
        (study_of(corpus, heads=("classify",)), "needs --data.targets FILE.csv"),
        (replace(plain, data=replace(plain.data, targets=table)), "add --heads classify, or leave"),
        (replace(plain, device="cuda"), "no CUDA device is visible: set --device cpu"),
        (with_ignored(plain, "label:mask"), "has no label 'mask'; its labels: seg"),
    ):
        with pytest.raises(Mim3dError, match=re.escape(words)):
            run_study(config, study)
        assert not study.exists()
    opened = Corpus.open(corpus)
    for config in (with_ignored(plain, "label:seg"), with_ignored(plain, "padding")):
        refuse_impossible(config, opened, splits_of(config, opened), study)
    split = SplitConfig(0.3, 0.2)
    data = replace(plain.data, targets=table, split=split)
    splits_of(study_of(corpus, heads=("classify",), data=data), opened)


def with_ignored(config: StudyConfig, word: str) -> StudyConfig:
    simmim = config.pretrain.simmim
    simmim = replace(simmim, method=replace(simmim.method, ignore=(word,)))
    return replace(config, pretrain=replace(config.pretrain, simmim=simmim))


def test_fewer_crops_than_a_step_takes_are_refused_with_how_many_do(
    corpus: Path, tmp_path: Path
) -> None:
    """They would be made up to one step in silence, and two numbers of crops be one."""
    plain = study_of(corpus, arms=("scratch", "mae"), matching=("crops", "flops"))
    plain = replace(plain, flops_of="simclr", pretrain=replace(plain.pretrain, crops=3))
    opened = Corpus.open(corpus)
    splits = splits_of(plain, opened)
    with pytest.raises(ConfigError, match="fewer than one step takes") as told:
        refuse_impossible(plain, opened, splits, tmp_path)
    least = re.findall(r"set (--pretrain.crops \d+) at least", str(told.value))
    assert len(least) == 2
    words, default = max(least, key=lambda option: int(option.split()[1])), StudyArgs(config=plain)
    asked = parse(StudyArgs, words.split(), "mim3d compare", default=default).config
    refuse_impossible(asked, opened, splits, tmp_path)


@pytest.mark.parametrize("inside", ["", "runs/study"])
def test_a_corpus_is_no_place_for_a_study(corpus: Path, inside: str) -> None:
    before = sorted(corpus.rglob("*"))
    with pytest.raises(ConfigError, match="is a Zarr store: choose an --out that is not a corpus"):
        run_study(study_of(corpus), corpus / inside)
    with pytest.raises(ConfigError, match="is a Zarr store"):
        run_finetune(small_finetune(corpus), corpus / inside)
    assert sorted(corpus.rglob("*")) == before
