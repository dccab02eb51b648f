"""SwinUNETR over our Swin encoder: MONAI's own network, fine-tuned from a SimMIM run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinUNETR
from small_run import make_corpus, small_config

from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.config import FinetuneConfig, LabelledData
from mim3d.engine.finetune.finetune import run_finetune
from mim3d.engine.finetune.network import build_segmentation, step_flops
from mim3d.engine.finetune.splits import SplitConfig, Splits
from mim3d.engine.models.config import SwinConfig, ViTConfig
from mim3d.engine.models.swin import SwinEncoder
from mim3d.engine.models.swin_unetr import SwinDecoder, SwinSegmentationNet
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.study.config import StudyConfig
from mim3d.engine.study.plan import pretrain_config, pretrainings
from mim3d.engine.study.recipes import study

SWIN = SwinConfig(feature_size=12, depths=(1, 1, 1, 1), heads=(1, 2, 3, 4), window=4)
VIT = ViTConfig((32, 32, 64), (8, 8, 8), width=12, depth=1, heads=1)


def small_net(image_skip: bool = True) -> SwinSegmentationNet:
    torch.manual_seed(3)
    net = SwinSegmentationNet(SwinEncoder(SWIN, VIT), SwinDecoder(SWIN, VIT, 3, image_skip))
    return net.eval()


@torch.no_grad()
def test_it_is_monais_network_with_our_encoder() -> None:
    net = small_net()
    theirs = SwinUNETR(
        1,
        3,
        feature_size=12,
        depths=SWIN.depths,
        num_heads=SWIN.heads,
        window_size=SWIN.window,
    ).eval()
    state = {f"swinViT.{name}": value for name, value in net.encoder.swin.state_dict().items()}
    state |= dict(net.decoder.unetr.state_dict())
    theirs.load_state_dict(state, strict=True)
    volume = torch.randn(2, 1, 32, 32, 64)
    assert torch.equal(net(volume), theirs(volume))


@torch.no_grad()
def test_without_the_skip_the_decoder_knows_the_image_by_the_encoder_alone() -> None:
    net, volume = small_net(image_skip=False), torch.randn(1, 1, 32, 32, 64)
    maps = net.encoder.swin(volume, True)
    assert torch.equal(net.decoder(volume, maps), net.decoder(torch.randn_like(volume), maps))
    assert not torch.equal(net(volume), net(torch.randn_like(volume)))
    with_skip = small_net()
    assert not torch.equal(with_skip.decoder(volume, maps), with_skip.decoder(volume * 2, maps))


@pytest.mark.slow
def test_simmim_on_swin_is_fine_tuned_from_its_weights(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, subjects=8)
    pretrained = replace(small_config(corpus, "simmim"), vit=VIT, swin=SWIN, steps=2)
    run_pretrain(pretrained, tmp_path / "run")
    config = FinetuneConfig(
        data=LabelledData(str(corpus), split=SplitConfig(0.15, 0.15)),
        init=str(tmp_path / "run"),
        vit=VIT,
        swin=SWIN,
        steps=2,
        global_batch=1,
        eval_every=2,
        overlap=0.0,
        device="cpu",
    )
    net = build_segmentation(config, 3)
    fresh = build_segmentation(replace(config, init=""), 3)
    name = "swin.layers1.0.blocks.0.attn.qkv.weight"
    ours, scratch = net.encoder.state_dict()[name], fresh.encoder.state_dict()[name]
    assert not torch.equal(ours, scratch)
    same = zip(net.decoder.parameters(), fresh.decoder.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in same)
    result = run_finetune(config, tmp_path / "tuned")
    assert [row["step"] for row in result.rows] == [0, 2, 2]
    assert result.step_flops > 0
    with pytest.raises(ConfigError, match="feature_size 12 instead of 24"):
        build_segmentation(replace(config, swin=replace(SWIN, feature_size=24)), 3)


def test_step_flops_count_encoder_and_decoder() -> None:
    config = FinetuneConfig(vit=VIT, swin=SWIN, global_batch=2)
    whole = step_flops(config, small_net())
    frozen = step_flops(replace(config, freeze=True), small_net())
    assert 0 < frozen < whole
    assert step_flops(replace(config, global_batch=4), small_net()) == pytest.approx(2 * whole)


def test_what_swin_cannot_do_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="head linear reads one token per patch"):
        FinetuneConfig(swin=SWIN, head="linear")
    with pytest.raises(ConfigError, match="deepest map one voxel"):
        SwinDecoder(SWIN, replace(VIT, crop_size=(32, 32, 32)), 2)
    with pytest.raises(ConfigError, match="hold mae or linear"):
        StudyConfig(swin=SWIN)
    with pytest.raises(ConfigError, match="FLOPs of a ViT"):
        replace(study("swin"), matching=("crops", "flops"))


def test_every_arm_of_the_swin_study_gets_the_swin() -> None:
    config = study("swin")
    splits = Splits(("a", "b"), ("c",), ("d",), ("a", "b"), (), ())
    made = [pretrain_config(config, wanted, splits) for wanted in pretrainings(config)]
    n_seeds = len(config.seeds) + len(config.finetune.tuning_seeds)
    assert [run.swin for run in made] == [config.swin] * 2 * n_seeds
