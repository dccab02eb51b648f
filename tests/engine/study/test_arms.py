"""Encoders as arms: how they are written, what cannot be, and a whole study of three."""

from dataclasses import replace
from pathlib import Path

import pytest
from small_finetune import make_labelled_corpus
from small_study import small_study

from mim3d.engine.analysis.family import first_groups, read_family
from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.summary import summarise
from mim3d.engine.commands.cli import main
from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.splits import Splits
from mim3d.engine.models.config import MAEConfig, SwinConfig
from mim3d.engine.models.flops import crop_flops
from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.models.resenc.config import ResEncConfig
from mim3d.engine.report.report import build_report
from mim3d.engine.runs.files import file_sha256, read_json, read_jsonl
from mim3d.engine.study.arms import (
    arms_of,
    differences,
    encoder_arms,
    encoder_of,
    refuse_arms,
    with_own_decoders,
)
from mim3d.engine.study.config import StudyConfig, Variant
from mim3d.engine.study.costs import parameters
from mim3d.engine.study.encoders import ENCODERS, EncoderShapes
from mim3d.engine.study.plan import (
    crops_seen,
    finetune_config,
    method_config,
    pretrain_config,
    pretrainings,
    scored_cells,
)
from mim3d.engine.study.recipes import STUDIES, demo, study
from mim3d.engine.study.run import run_study
from mim3d.engine.study.variation import varied

SPLITS = Splits(("a", "b"), ("c",), ("d",), ("a", "b", "u"), (), ())
ALL = ("scratch", "simclr", "mae", "simmim")
SHAPES = EncoderShapes(
    PrimusConfig((16, 16, 16), (8, 8, 8), width=24, depth=1, heads=2),
    ResEncConfig((4, 8), (1, 1)),
    SwinConfig(12, (1, 1, 1, 1), (1, 1, 1, 1), 2),
    swin_crop=(64, 64, 64),
)


def four(**changes: object) -> StudyConfig:
    return replace(demo(), arms=ALL, encoders=ENCODERS, heads=("own",), **changes)  # pyright: ignore[reportArgumentType]


def test_encoders_multiply_the_arms_but_for_those_that_cannot_be() -> None:
    config = four()
    assert encoder_arms(config) == {
        "vit": [*ALL],
        "primus": [*ALL],
        "resenc": ["scratch", "simclr", "mae"],
        "swin": ["scratch", "simclr", "simmim"],
    }
    told = differences(config)
    assert [line.split()[0] for line in told] == ["simmim@resenc", "mae@swin", "mae@primus"]
    assert "72 wide in the place of 64" in told[2]
    keys = {cell.key for cell in scored_cells(config, {})}
    assert len(keys) == len(scored_cells(config, {})) == 2 * 14


def test_an_arm_may_name_its_encoder() -> None:
    arms = ("scratch", "mae", "scratch@primus", "mae@primus", "mine@primus=/a@b=c")
    config = replace(demo(), arms=arms)
    found = [(arm.name, arm.encoder, arm.path) for arm in arms_of(config)]
    assert found == [
        ("scratch", "", ""),
        ("mae", "", ""),
        ("scratch", "primus", ""),
        ("mae", "primus", ""),
        ("mine", "primus", "/a@b=c"),
    ]
    assert [p.key for p in pretrainings(config)] == ["mae", "mae_primus"]


def test_the_studys_own_encoder_keeps_its_folders() -> None:
    """What ran without --encoders is not run again with them."""
    alone, more = demo(), replace(demo(), encoders=("vit", "primus"))
    assert {p.key for p in pretrainings(alone)} < {p.key for p in pretrainings(more)}
    assert {c.key for c in scored_cells(alone, {})} < {c.key for c in scored_cells(more, {})}
    named = replace(alone, arms=("scratch@vit", "simclr@vit", "mae@vit"))
    assert {c.key for c in scored_cells(alone, {})} == {c.key for c in scored_cells(named, {})}


def test_each_encoder_has_its_shape_and_its_own_decoder() -> None:
    config = four()
    cells = {(c.encoder, c.arm): c for c in scored_cells(config, {}) if c.seed == 0}
    made = {key: finetune_config(config, cell, SPLITS, Path("out")) for key, cell in cells.items()}
    heads = {encoder: run.head for (encoder, arm), run in made.items() if arm == "scratch"}
    assert heads == {"": "unetr", "primus": "patch", "resenc": "unetr", "swin": "unetr"}
    assert made["resenc", "mae"].resenc == config.shapes.resenc
    assert made["swin", "simclr"].swin == config.shapes.swin
    assert made["swin", "simclr"].vit.crop_size == (64, 64, 64)
    assert isinstance(made["primus", "mae"].vit, PrimusConfig)
    for one in pretrainings(config):
        run, cell = pretrain_config(config, one, SPLITS), made[one.encoder, one.arm]
        assert run.encoder == cell.encoder
        assert cell.init.endswith(one.key)


def test_equal_flops_are_those_of_the_same_encoder() -> None:
    config = four(matching=("flops",), flops_of="simclr")
    for one in pretrainings(config):
        shape = encoder_of(config, one.encoder, one.variant)
        method = method_config(config, one.arm, one.variant, one.encoder)
        simclr = method_config(config, "simclr", one.variant, one.encoder)
        spent = crop_flops(method, shape.vit, shape.backbone).training * crops_seen(config, one)
        paid = crop_flops(simclr, shape.vit, shape.backbone).training * config.pretrain.crops
        assert spent == pytest.approx(paid, rel=0.01)


@pytest.mark.parametrize("name", STUDIES)
def test_every_named_study_takes_four_encoders(name: str) -> None:
    """With the heads it has by itself, ablations apart, which are of one."""
    base = study(name)
    config, line = with_own_decoders(replace(base, encoders=ENCODERS), base)
    if config.ablation or "scratch" not in config.arms:
        with pytest.raises(ConfigError, match="name one, such as --encoders vit"):
            refuse_arms(config)
        return
    assert "--heads chooses" in line
    assert config.heads == ("own",)
    refuse_arms(config)
    for one in pretrainings(config):
        pretrain_config(config, one, SPLITS)


@pytest.mark.parametrize(
    ("arms", "encoders", "heads", "words"),
    [
        (("scratch@swin", "mae@swin"), (), ("own",), "arm mae@swin: MAE drops tokens"),
        (("scratch", "mae@primus"), (), ("own",), "add scratch@primus"),
        (("scratch", "mae"), ("vit", "swin"), ("own",), "swin has scratch alone"),
        (("scratch", "mae"), ("vit", "resenc"), ("tokens",), "take --heads own"),
        (("scratch", "mae", "mine=/run"), ("primus",), ("own",), "write mine@ENCODER=/run"),
    ],
)
def test_what_cannot_be_compared_is_refused(arms, encoders, heads, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as told:
        refuse_arms(replace(demo(), arms=arms, encoders=encoders, heads=heads))
    assert "\n" not in str(told.value)


def test_the_remedies_that_refusals_name_are_accepted() -> None:
    base = replace(demo(), heads=("own",))
    for arms, encoders in (
        (("scratch", "mae", "scratch@primus", "mae@primus"), ()),
        (("scratch", "mae", "simclr@swin"), ("vit", "swin")),
        (("scratch", "mae"), ("vit",)),
        (("scratch", "mae", "mine@primus=/run"), ("primus",)),
        (("scratch", "mae", "mine=/run"), ("primus", "vit")),
    ):
        refuse_arms(replace(base, arms=arms, encoders=encoders))


def test_one_decoder_under_two_names_is_refused() -> None:
    both = replace(demo(), heads=("own", "unetr"))
    with pytest.raises(ConfigError, match=r"heads own is unetr here, .*: leave own out"):
        refuse_arms(both)
    refuse_arms(replace(both, heads=("unetr",)))
    refuse_arms(replace(both, encoders=("vit", "primus"), arms=("scratch", "mae")))


@pytest.mark.parametrize("word", ["mae@unet", "mae@", "@primus", "moco@primus", "a@b=c", "@vit=c"])
def test_arms_that_are_none_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="arms"):
        replace(demo(), arms=("scratch", word))


@pytest.mark.parametrize("crop", [(40, 40, 40), (32, 32, 32)])
def test_swins_crop_is_refused_by_its_own_name(crop: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match=r"shapes.swin_crop .* --shapes.swin-crop 64 64 64"):
        EncoderShapes(swin_crop=crop)
    assert EncoderShapes(swin_crop=(64, 64, 64)).swin_crop == (64, 64, 64)
    assert EncoderShapes(swin_crop=(32, 32, 64)).swin_crop == (32, 32, 64)


def test_settings_are_varied_on_one_encoder() -> None:
    with pytest.raises(ConfigError, match="name one, such as --encoders primus"):
        varied(replace(demo(), encoders=("vit", "primus")), ["mask_ratio=0.3,0.6"])
    with pytest.raises(ConfigError, match="ResEnc U-Net"):
        varied(replace(demo(), encoders=("resenc",)), ["width=96,48"])
    config = varied(replace(demo(), encoders=("primus",)), ["mask_ratio=0.3,0.6", "patch=8,16"])
    patches = {
        encoder_of(config, "primus", variant).vit.patch_size[0] for variant in config.variants
    }
    assert patches == {8, 16}


def test_an_ablation_takes_one_other_encoder() -> None:
    """Also of an arm alone; but not of a setting that the encoder has not."""
    for name, encoder in (("mask", "resenc"), ("decode", "primus")):
        base = study(name)
        config, _ = with_own_decoders(replace(base, encoders=(encoder,)), base)
        refuse_arms(config)
        assert {cell.encoder for cell in scored_cells(config, {})} == {encoder}
    alone = replace(study("decode"), encoders=("resenc",), heads=("own",))
    with pytest.raises(ConfigError, match="vary decode_fraction is of a ViT"):
        refuse_arms(alone)


def test_the_share_of_decoded_patches_is_a_setting() -> None:
    config = varied(replace(demo(), arms=("scratch", "mae")), ["decode_fraction=1,0.5,0.25"])
    methods = [method_config(config, "mae", variant) for variant in config.variants]
    assert [m.decode_fraction for m in methods if isinstance(m, MAEConfig)] == [1.0, 0.5, 0.25]
    assert {cell.variant for cell in scored_cells(config, {}) if cell.arm == "scratch"} == {
        Variant()
    }


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyConfig, Path]:
    """Three encoders with their own decoders, a seed and two steps each."""
    place = tmp_path_factory.mktemp("arms")
    base = small_study(make_labelled_corpus(place / "phantom"))
    config = replace(
        base,
        arms=("scratch", "mae"),
        encoders=("vit", "primus", "resenc"),
        shapes=SHAPES,
        heads=("own",),
        vit=replace(base.vit, crop_size=(16, 16, 16)),
    )
    assert run_study(config, place / "study").failed == {}
    return config, place / "study"


def test_a_study_of_three_encoders_compares_within_each(ran: tuple[StudyConfig, Path]) -> None:
    _, out = ran
    loaded = Study.load(out)
    groups = summarise(loaded)
    assert [g.group.title.split(",")[0] for g in groups] == ["ViT", "Primus", "ResEnc U-Net"]
    for group in groups:
        assert group.reference == "scratch"
        assert [arm.arm for arm in group.arms] == ["scratch", "mae"]
        assert all(c.encoder == group.group.encoder for c in group.comparisons)
    assert read_family(loaded, *first_groups(groups)).size == 3
    kept = read_json(out / "study.json")
    assert [n["encoder"] for n in kept["networks"]] == ["vit", "primus", "resenc"]
    rows = read_jsonl(out / "results.jsonl")
    assert all(row["cpu_seconds"] > 0 for row in rows)
    page = build_report(out).read_text("utf-8")
    for words in ("What each encoder costs", "Primus, own decoder", "ResEnc U-Net, own decoder"):
        assert words in page


def test_cells_carry_the_hash_of_their_encoders_weights(ran: tuple[StudyConfig, Path]) -> None:
    _, out = ran
    rows = [row for row in read_jsonl(out / "results.jsonl") if row["arm"] == "mae"]
    for encoder, folder in (("vit", "mae"), ("primus", "mae_primus"), ("resenc", "mae_resenc")):
        own = {row["pretraining_sha256"] for row in rows if row["encoder"] == encoder}
        weights = out / "pretrain" / f"{folder}_seed-0" / "encoder.safetensors"
        assert own == {file_sha256(weights)[:16]}


def test_parameters_are_those_of_the_networks_that_were_trained(
    ran: tuple[StudyConfig, Path],
) -> None:
    from safetensors.torch import load_file

    _, out = ran
    for network in read_json(out / "study.json")["networks"]:
        folder = "mae" if network["kind"] == "vit" else f"mae_{network['kind']}"
        tensors = load_file(out / "pretrain" / f"{folder}_seed-0" / "encoder.safetensors")
        stored = sum(tensor.numel() for tensor in tensors.values())
        assert 0 < network["encoder_parameters"] <= stored
        assert network["decoder_parameters"] > 0


def test_parameters_of_swin_are_counted_too() -> None:
    config = replace(four(), shapes=SHAPES)
    cell = next(cell for cell in scored_cells(config, {}) if cell.encoder == "swin")
    made = finetune_config(config, cell, SPLITS, Path("out"))
    encoder, decoder = parameters(made, 2)
    assert encoder == sum(
        p.numel() for p in encoder_of(config, "swin", Variant()).make().parameters()
    )
    assert decoder


def test_weights_of_another_encoder_are_refused_before_any_work(
    ran: tuple[StudyConfig, Path], tmp_path: Path
) -> None:
    config, out = ran
    run = out / "pretrain" / "mae_primus_seed-0"
    given = replace(config, encoders=(), heads=("own",), arms=("scratch", f"mine={run}"))
    with pytest.raises(ConfigError, match=rf"write mine@primus={run}.*beside scratch@primus"):
        run_study(given, tmp_path / "study")
    assert not (tmp_path / "study" / "cells").exists()
    arms = ("scratch@primus", f"mine@primus={run}")
    result = run_study(replace(given, arms=arms), tmp_path / "study")
    assert result.failed == {}
    (entry,) = read_json(tmp_path / "study" / "pretraining.json")
    assert (entry["arm"], entry["encoder"]) == ("mine", "primus")


def test_the_command_takes_encoders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "hippocampus", "--encoders", "vit", "primus", "resenc", "swin"]
    words += ["--data.corpus", str(tmp_path / "none.zarr"), "--out", str(tmp_path / "study")]
    assert main(words) == 2
    shown = capsys.readouterr()
    assert "none.zarr" in shown.err
    assert (
        "heads own, each encoder's own decoder, in the place of unetr, tokens, linear" in shown.out
    )
    assert "simmim@resenc is left out" in shown.out
