"""Encoders fitted to another run: shapes from their card, crops, channels, rates, who was seen."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from monai.networks.nets.vit import ViT
from small_finetune import VIT, make_labelled_corpus, small_finetune
from small_run import small_config

from mim3d.dataio.reader.corpus import Corpus
from mim3d.engine.commands.cli import main
from mim3d.engine.distributed.process_group import process_ranks
from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.config import FinetuneConfig, identity
from mim3d.engine.finetune.encoder import build_encoder
from mim3d.engine.finetune.finetune import fitted, make_task, run_finetune
from mim3d.engine.finetune.rates import is_held, layer_of, lr_scale
from mim3d.engine.finetune.trained import load_network, read_trained
from mim3d.engine.models.config import SwinConfig, ViTConfig
from mim3d.engine.models.vit import ViT3D
from mim3d.engine.pretrain.data import DataConfig
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.runs.encoder_file import save_encoder
from mim3d.engine.runs.files import read_json
from mim3d.engine.training.config import OptimConfig, ScheduleConfig
from mim3d.engine.training.optim import ShardedOptimiser
from mim3d.engine.training.schedule import lr_at
from mim3d.engine.training.sharding import shard_objective
from mim3d.engine.training.trainer import Trainer
from mim3d.engine.transfer.seen import TRAINED_ON, keep_trained_on, seen_lines
from mim3d.engine.transfer.start_report import Start


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled_corpus(tmp_path_factory.mktemp("phantom"))


@pytest.fixture(scope="module")
def pretrained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on all subjects, of an encoder as the fine-tuning tests have it."""
    out = tmp_path_factory.mktemp("pretrained") / "run"
    run_pretrain(small_config(corpus, vit=VIT, steps=1), out)
    return out


def encoder_of(folder: Path, vit: ViTConfig = VIT) -> Path:
    torch.manual_seed(1)
    folder.mkdir(exist_ok=True)
    save_encoder(folder, vit, ViT3D(vit).state_dict(), {"normalise": "zscore"})
    return folder


def test_the_command_takes_the_shape_from_the_card_and_fits_what_is_told(
    corpus: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe's ViT is another; the crop of the option is another than the card's."""
    words = [
        *("finetune", "demo", "--data.corpus", str(corpus), f"--init={pretrained}"),
        *("--out", str(tmp_path / "run"), "--steps", "1", "--head", "linear"),
        *("--vit.crop-size", "16", "16", "24", "--device", "cpu", "--init-channels", "0"),
    ]
    assert main(words) == 0
    vit = read_json(tmp_path / "run" / "config.json")["vit"]
    assert (vit["width"], vit["depth"], vit["crop_size"]) == (12, 2, [16, 16, 24])
    printed = capsys.readouterr().out
    assert f"{pretrained} holds: 12 features x 2 blocks, crop (16, 16, 16)" in printed
    assert "tensors taken, 0 resized" in printed
    assert "TEST SUBJECTS WERE PRETRAINED ON" in printed
    out = tmp_path / "run"
    assert load_network(out, read_trained(out)).get_submodule("encoder")


def test_positions_channels_and_patches_are_fitted_and_told(tmp_path: Path) -> None:
    source = encoder_of(tmp_path / "run", replace(VIT, position="learned"))
    vit = ViTConfig((16, 16, 32), (16, 16, 16), 4, 12, 2, 2, position="learned")
    starts: list[Start] = []
    config = FinetuneConfig(init=str(source), vit=vit, head="linear")
    encoder = build_encoder(config, starts)
    assert starts[0].resized == [
        "patch_embed (1 channel inflated to 4)",
        "patch_embed (patch (8, 8, 8) to (16, 16, 16))",
        "pos_embed ((2, 2, 2) to (1, 1, 2))",
    ]
    assert not starts[0].doubts
    (note,) = fitted(starts)  # which reports list
    assert note.startswith(f"{source}: resized to fit: patch_embed (1 channel inflated to 4), ")
    assert encoder(torch.zeros(1, 4, 16, 16, 32)).shape == (1, 2, 12)
    with pytest.raises(ConfigError, match=r"width 12 instead of 24; set --vit.width 12, or"):
        build_encoder(replace(config, vit=replace(vit, width=24)))
    with pytest.raises(ConfigError, match=r"holds a vit encoder.*mim3d finetune unetr-vit-b-96"):
        build_encoder(replace(config, swin=SwinConfig(), head="unetr", vit=ViTConfig()))


def test_the_same_shape_is_taken_to_the_bit(pretrained: Path) -> None:
    from safetensors.torch import load_file

    encoder = build_encoder(FinetuneConfig(init=str(pretrained), vit=VIT))
    stored = load_file(pretrained / "encoder.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in encoder.state_dict().items())


def test_a_monai_encoder_is_an_arm_with_its_shape_from_its_tensors(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    net = ViT(1, (16, 16, 16), (8, 8, 8), 24, 96, num_layers=2, num_heads=3, qkv_bias=True)
    file = tmp_path / "monai.pt"
    torch.save(net.state_dict(), file)
    words = [
        *("finetune", "demo", "--data.corpus", str(corpus), "--init", str(file), "--steps", "1"),
        *(
            "--out",
            str(tmp_path / "run"),
            "--head",
            "linear",
            "--vit.heads",
            "3",
            "--device",
            "cpu",
        ),
    ]
    assert main(words) == 0
    vit = read_json(tmp_path / "run" / "config.json")["vit"]
    wanted = {"crop_size": [16, 16, 16], "patch_size": [8, 8, 8], "width": 24, "heads": 3}
    assert {name: vit[name] for name in wanted} == wanted
    assert (
        "does not tell its attention heads: 1 is a guess; --vit.heads N" in capsys.readouterr().out
    )
    config = FinetuneConfig(init=str(file))
    assert len(identity(config)["init"]) == 64


def test_weights_that_lack_a_part_end_with_exit_code_3(corpus: Path, tmp_path: Path) -> None:
    state = ViT3D(VIT).state_dict()
    torch.save({name: t for name, t in state.items() if "1.norm2" not in name}, tmp_path / "w.pt")
    words = [
        *("finetune", "demo", "--data.corpus", str(corpus), "--init", str(tmp_path / "w.pt")),
        *("--out", str(tmp_path / "run"), "--head", "linear", "--vit.heads", "2", "--steps", "1"),
        *("--vit.crop-size", "16", "16", "16", "--device", "cpu"),
    ]
    assert main(words) == 3
    assert len(read_json(tmp_path / "run" / "result.json")["doubts"]) == 2


def test_rates_fall_layer_by_layer() -> None:
    config = replace(small_finetune(Path()), layer_decay=0.5, encoder_lr_scale=0.8)
    names = ("decoder.x", "encoder.norm.weight", "encoder.blocks.1.mlp.fc1.weight")
    names += ("encoder.blocks.0.norm1.bias", "encoder.patch_embed.weight", "encoder.pos_embed")
    rates = [lr_scale(config, f"net.{name}") for name in names]
    assert rates == pytest.approx([1.0, 0.8, 0.4, 0.2, 0.1, 0.1])
    assert layer_of("net.encoder.swin.layers3.0.blocks.0.attn.qkv.weight", 4) == 3
    assert layer_of("net.encoder.swin.patch_embed.proj.weight", 4) == 0
    assert {lr_scale(small_finetune(Path()), f"net.{name}") for name in names} == {1.0}


def test_the_head_trains_alone_then_the_rate_rises_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = ScheduleConfig(1e-2, kind="poly", warmup_steps=2)
    rates = [lr_at(schedule, step, 6, 2) for step in range(6)]
    assert rates == pytest.approx([5e-3, 1e-2, 5e-3, 1e-2, 1e-2, 1e-2 * 0.5**0.9])
    config = small_finetune(corpus, head="linear", steps=6, head_steps=2, schedule=schedule)
    moved: list[tuple[bool, bool]] = []
    plain = Trainer.one_step

    def one_step(self: Trainer) -> None:
        local = self.stepper.optimiser.local
        before = {name: piece.detach().clone() for name, piece in local.items()}
        plain(self)
        changed = {name for name, piece in local.items() if not torch.equal(piece, before[name])}
        parts = [any(is_held(config, name) == held for name in changed) for held in (True, False)]
        moved.append((parts[0], parts[1]))

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "one_step", one_step)
        run_finetune(config, tmp_path / "run")
    assert moved == [(False, True)] * 2 + [(True, True)] * 4
    for wrong in ({"head_steps": 6}, {"head_steps": 1, "freeze": True}, {"layer_decay": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            replace(config, **wrong)


def test_without_them_groups_and_identity_are_what_they_were(corpus: Path) -> None:
    config = small_finetune(corpus)
    known = identity(config)
    assert not {"head_steps", "layer_decay", "drop_path", "init_axes", "init_channels"} & set(known)
    task = make_task(config, Corpus.open(corpus), None, torch.device("cpu"))
    with process_ranks(60.0, "cpu") as ranks:
        part = shard_objective(task, OptimConfig(), config.parallel, ranks)
        assert isinstance(part.optimiser, ShardedOptimiser)
        assert len(part.optimiser.inner.param_groups) == 2


def test_drop_path_skips_branches_in_training_alone() -> None:
    encoder = build_encoder(FinetuneConfig(vit=replace(VIT, depth=3), drop_path=0.9))
    plain = build_encoder(FinetuneConfig(vit=replace(VIT, depth=3)))
    volume = torch.randn(4, 1, 16, 16, 16)
    assert [block.drop_path for block in encoder.get_submodule("blocks")] == [0.0, 0.45, 0.9]  # pyright: ignore
    torch.manual_seed(0)
    assert not torch.equal(encoder(volume), plain(volume))
    encoder.eval()
    torch.testing.assert_close(encoder(volume), plain(volume))
    with pytest.raises(ConfigError, match=r"drop_path 0.1 is of plain ViTs"):
        FinetuneConfig(swin=SwinConfig(), drop_path=0.1)


def test_who_was_pretrained_on_is_told_by_files_and_by_names(
    corpus: Path, pretrained: Path, tmp_path: Path
) -> None:
    records = Corpus.open(corpus).records
    subjects = sorted({record.subject for record in records})
    (line,) = seen_lines(str(pretrained), records, subjects[:2], "test")
    assert f"2 OF 2 TEST SUBJECTS WERE PRETRAINED ON by {pretrained}: {subjects[0]}" in line
    assert seen_lines(str(pretrained / "encoder.safetensors"), records, subjects[:1], "test")
    others = [replace(record, source_hash=("xxh3:0",)) for record in records]
    (line,) = seen_lines(str(pretrained), others, subjects[:2], "validation")
    assert line.startswith("2 of 2 validation subjects bear names that")
    assert seen_lines(str(tmp_path), records, subjects, "test") == []
    keep_trained_on(tmp_path, others[:1])
    keep_trained_on(tmp_path, records[1:2])
    assert read_json(tmp_path / TRAINED_ON)["subjects"] == sorted(
        {record.subject for record in records[:2]}
    )


def test_a_fine_tuned_run_tells_whom_it_and_its_weights_were_trained_on(
    corpus: Path, tmp_path: Path
) -> None:
    """As an encoder of the next run: it knows more of these subjects than a pretraining does."""
    records = Corpus.open(corpus).records
    names = sorted({record.subject for record in records})
    began = encoder_of(tmp_path / "began", VIT)
    keep_trained_on(began, [record for record in records if record.subject == names[0]])
    config = small_finetune(corpus, steps=1, eval_every=1, init=str(began), labels=2.0)
    config = replace(config, train=tuple(names[1:4]), validation=(names[4],), test=())
    run_finetune(config, tmp_path / "run")
    seen = set(read_json(tmp_path / "run" / "result.json")["subjects"]["train"]) | {names[0]}
    for source in (tmp_path / "run", tmp_path / "run" / "model.pt"):
        told = {n for n in names if seen_lines(str(source), records, [n], "test")}
        assert told == seen


REMEDIES: dict[str, Callable[[DataConfig, tuple[str, ...]], DataConfig]] = {
    "--data.held-out-subjects": lambda data, names: replace(data, held_out_subjects=names)
}


def test_holding_subjects_out_of_pretraining_silences_the_line(
    corpus: Path, tmp_path: Path
) -> None:
    records = Corpus.open(corpus).records
    names = tuple(sorted({record.subject for record in records})[:2])
    config = small_config(corpus, vit=VIT, steps=1)
    data = REMEDIES["--data.held-out-subjects"](config.data, names)
    run_pretrain(replace(config, data=data), tmp_path / "run")
    assert seen_lines(str(tmp_path / "run"), records, names, "test") == []
    assert seen_lines(str(tmp_path / "run"), records, [records[-1].subject], "test")
