"""Every published number of OpenMind's recipes, with the line of nnssl 7044864 that has it."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from mim3d.engine.commands.plan import main as plan
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import MAEConfig
from mim3d.engine.models.flops import run_flops
from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.pretrain.config import PretrainConfig, config_identity
from mim3d.engine.pretrain.recipes import RENAMED, recipe
from mim3d.engine.training.config import ScheduleConfig
from mim3d.engine.training.schedule import lr_at

TRAINER = "training/nnsslTrainer/AbstractTrainer.py"
MAE = "training/nnsslTrainer/masked_image_modeling/BaseMAETrainer.py"
EVA = "training/nnsslTrainer/masked_image_modeling/BaseEvaMAETrainer.py"
PUBLISHED: list[tuple[str, str, Any, str]] = [
    ("resenc", "vit.crop_size", (160, 160, 160), f"{MAE}: config_plan.patch_size"),
    ("resenc", "vit.patch_size", (16, 16, 16), f"{MAE}: mask_creation(block_size=16)"),
    ("resenc", "method.mask_ratio", 0.75, f"{MAE}: mask_percentage"),
    ("resenc", "method.loss", "l2", f"{MAE}: build_loss, MAEMSELoss"),
    ("resenc", "method.normalise_target", False, "training/loss/mse_loss.py: MAEMSELoss"),
    ("resenc", "resenc.features", (32, 64, 128, 256, 320, 320), "get_res_enc_l"),
    ("resenc", "resenc.blocks", (1, 3, 4, 6, 6, 6), "get_res_enc_l"),
    ("resenc", "resenc.decoder_convs", 1, "get_res_enc_l"),
    ("resenc", "optim.kind", "sgd", f"{TRAINER}: configure_optimizers"),
    ("resenc", "optim.momentum", 0.99, f"{TRAINER}:159"),
    ("resenc", "optim.weight_decay", 3e-5, f"{TRAINER}:158"),
    ("resenc", "optim.decays", "all", f"{TRAINER}: network.parameters()"),
    ("resenc", "optim.clip_norm", 12.0, f"{MAE}: clip_grad_norm_(..., 12)"),
    ("resenc", "schedule.lr", 1e-2, f"{TRAINER}:157"),
    ("resenc", "schedule.kind", "poly", f"{TRAINER}: PolyLRScheduler"),
    ("resenc", "schedule.warmup_steps", 0, f"{TRAINER}: PolyLRScheduler"),
    ("resenc", "schedule.epoch_steps", 250, f"{TRAINER}:161"),
    ("resenc", "steps", 1000 * 250, f"{TRAINER}:161, 163"),
    ("resenc", "global_batch", 8, "OpenMind, training details: batch size 8"),
    ("primus", "vit.crop_size", (160, 160, 160), f"{EVA}: config_plan.patch_size"),
    ("primus", "vit.patch_size", (8, 8, 8), f"{EVA}: vit_patch_size"),
    ("primus", "vit.width", 864, f"{EVA}: embed_dim"),
    ("primus", "vit.depth", 16, f"{EVA}: encoder_eva_depth"),
    ("primus", "vit.heads", 12, f"{EVA}: encoder_eva_numheads"),
    ("primus", "vit.mlp_ratio", 8 / 3, "EvaMAE: mlp_ratio=4*2/3"),
    ("primus", "vit.drop_path", 0.2, f"{EVA}: drop_path_rate"),
    ("primus", "vit.layer_scale", 0.1, f"{EVA}: init_value"),
    ("primus", "vit.inner_norm", True, f"{EVA}: scale_attn_inner"),
    ("primus", "vit.registers", 0, "EvaMAE: num_register_tokens=0"),
    ("primus", "method.mask_ratio", 0.75, f"{MAE}: mask_percentage"),
    ("primus", "method.loss", "l2", f"{MAE}: build_loss, MAEMSELoss"),
    ("primus", "method.normalise_target", False, "training/loss/mse_loss.py: MAEMSELoss"),
    ("primus", "method.decoder_width", 864, "EvaMAE: decoder embed_dim"),
    ("primus", "method.decoder_depth", 2, f"{EVA}: decoder_eva_depth"),
    ("primus", "method.decoder_heads", 12, f"{EVA}: decoder_eva_numheads"),
    ("primus", "optim.kind", "adamw", f"{EVA}: configure_optimizers"),
    ("primus", "optim.beta1", 0.9, f"{EVA}: betas"),
    ("primus", "optim.beta2", 0.98, f"{EVA}: betas"),
    ("primus", "optim.weight_decay", 0.05, f"{EVA}: weight_decay"),
    ("primus", "optim.decays", "all", f"{EVA}: params = network.parameters()"),
    ("primus", "optim.clip_norm", 1.0, f"{EVA}: grad_clip"),
    ("primus", "schedule.lr", 3e-4, f"{EVA}: initial_lr"),
    ("primus", "schedule.kind", "poly", f"{EVA}: PolyLRScheduler_offset"),
    ("primus", "schedule.warmup_steps", 50 * 250, f"{EVA}: warmup_duration_whole_net"),
    ("primus", "schedule.epoch_steps", 250, f"{TRAINER}:161"),
    ("primus", "steps", 1000 * 250, f"{TRAINER}:161, 163"),
    ("primus", "global_batch", 8, f"{EVA}:289, BaseEvaMAETrainer_BS8"),
]
NAMES = {"resenc": "openmind-resenc-mae", "primus": "openmind-primus-m-mae"}


@pytest.mark.parametrize(("which", "field", "value", "source"), PUBLISHED)
def test_a_published_number(which: str, field: str, value: Any, source: str) -> None:
    found: Any = recipe(NAMES[which])
    for part in field.split("."):
        found = getattr(found, part)
    assert found == value, source


@pytest.mark.parametrize(("which", "teraflops"), [("resenc", 8.40), ("primus", 4.62)])
def test_a_crop_costs_what_it_should(which: str, teraflops: float) -> None:
    config = recipe(NAMES[which])
    flops = run_flops(config.method, config.vit, config.backbone)
    assert flops / 1e12 == pytest.approx(teraflops, rel=0.1)
    assert config.global_batch * config.steps == 2_000_000


@pytest.mark.parametrize("gpus", [1, 8])
@pytest.mark.parametrize("which", NAMES)
def test_it_is_planned_on_one_gpu_and_on_a_node(which: str, gpus: int) -> None:
    figures = plan([NAMES[which], "--gpus", str(gpus), "--device", "H200"]).figures
    config = recipe(NAMES[which])
    flops = run_flops(config.method, config.vit, config.backbone)
    assert figures["flops_per_step"] == pytest.approx(8 * flops)
    seconds = 2e6 * flops / (gpus * 989.4e12 * figures["utilisation"])
    assert figures["hours"] == pytest.approx(seconds / 3600, rel=1e-6)
    assert figures["loader_gb_per_s"] == pytest.approx(
        2 * 160**3 * figures["crops_per_s"] / gpus / 1e9
    )


def test_the_earlier_name_tells_the_new_one() -> None:
    for old, new in RENAMED.items():
        with pytest.raises(ConfigError, match="is now mae-vit-l-160-p8"):
            recipe(old)
        assert isinstance(recipe(new.partition(",")[0]), PretrainConfig)
    assert isinstance(recipe("openmind-primus-m-mae").vit, PrimusConfig)


def theirs(make: Any, epochs: int) -> list[float]:
    """Rates of each epoch, as nnU-Net's trainers set them at its beginning."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = make(optimiser)
    rates = []
    for epoch in range(epochs):
        current = next(s for start, s in reversed(schedulers) if epoch >= start)
        current.step(epoch)
        rates.append(optimiser.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize(
    ("lr", "warmup", "epochs"),
    [
        pytest.param(1e-2, 0, 1000, id="nnU-Net, and OpenMind's U-Net"),
        pytest.param(3e-4, 50, 1000, id="OpenMind's Primus-M"),
        pytest.param(1e-3, 50, 1000, id="PretrainedTrainer"),
        pytest.param(1e-4, 50, 1000, id="PretrainedTrainer_Primus"),
        pytest.param(1e-3, 15, 150, id="PretrainedTrainer_150ep"),
        pytest.param(1e-3, 15, 300, id="PretrainedTrainer_300ep"),
    ],
)
def test_rates_are_nnunets_on_every_epoch(lr: float, warmup: int, epochs: int) -> None:
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
    from nnunetv2.training.lr_scheduler.warmup import Lin_incr_LRScheduler, PolyLRScheduler_offset

    def make(optimiser: Any) -> list[tuple[int, Any]]:
        if not warmup:
            return [(0, PolyLRScheduler(optimiser, lr, epochs))]
        return [
            (0, Lin_incr_LRScheduler(optimiser, lr, warmup)),
            (warmup, PolyLRScheduler_offset(optimiser, lr, epochs, warmup)),
        ]

    ours = ScheduleConfig(lr=lr, kind="poly", warmup_steps=250 * warmup, epoch_steps=250)
    for epoch, wanted in enumerate(theirs(make, epochs)):
        for step in (250 * epoch, 250 * epoch + 117, 250 * epoch + 249):
            assert abs(lr_at(ours, step, 250 * epochs) - wanted) <= 1e-12


def test_epochs_must_hold_the_warm_up() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.epoch_steps 250 must .*divide"):
        ScheduleConfig(warmup_steps=100, epoch_steps=250)


def test_runs_of_before_keep_their_identity() -> None:
    plain = config_identity(recipe("demo-mae"))
    assert not {"momentum", "decays"} & set(plain["optim"])
    assert "epoch_steps" not in plain["schedule"]
    sgd = config_identity(recipe("openmind-resenc-mae"))
    assert {"momentum", "decays"} <= set(sgd["optim"])
    assert isinstance(recipe("openmind-resenc-mae").method, MAEConfig)
    assert replace(recipe("demo-mae").schedule, kind="poly").decay_start(500) == 60
