"""A study of seconds, for tests: three arms on eight labelled phantoms, one seed."""

from pathlib import Path

from small_finetune import VIT

from mim3d.engine.finetune.config import LabelledData
from mim3d.engine.finetune.splits import SplitConfig
from mim3d.engine.models.config import MAEConfig, SimCLRConfig
from mim3d.engine.study.config import ArmPlan, FinetunePlan, PretrainPlan, StudyConfig


def small_study(corpus: Path) -> StudyConfig:
    """Four steps of pretraining and two of fine-tuning, in this process."""
    mae = MAEConfig(decoder_width=16, decoder_depth=1, decoder_heads=2)
    return StudyConfig(
        name="small",
        data=LabelledData(str(corpus), split=SplitConfig(0.15, 0.15)),
        vit=VIT,
        seeds=(0,),
        arms=("scratch", "simclr", "mae"),
        pretrain=PretrainPlan(
            crops=32, mae=ArmPlan(mae, lr=2e-3, global_batch=8), simclr=small_simclr()
        ),
        finetune=FinetunePlan(steps=2, eval_every=1, global_batch=2, feature_size=4, overlap=0.0),
        workers=1,
        device="cpu",
        synthetic=True,
    )


def small_simclr(temperature: float = SimCLRConfig().temperature) -> ArmPlan[SimCLRConfig]:
    """SimCLR with a small projection."""
    method = SimCLRConfig(temperature=temperature, projection_hidden=16, projection_width=8)
    return ArmPlan(method, lr=1e-3, global_batch=8)
