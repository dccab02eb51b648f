"""OpenMind's two masked autoencoders, as published (Wald et al. 2025, "An OpenMind for 3D medical
vision self-supervised learning").

Every number is that of nnssl 7044864: trainers/masked_image_modeling/BaseMAETrainer.py for the
U-Net and BaseEvaMAETrainer.py (BS8) for Primus-M, over AbstractTrainer.py. What differs is told:
patches of a masked U-Net are exactly hidden ones; Primus's end is a linear layer, see
`models.primus.mae`; volumes keep their own spacing unless `convert --spacing 1 1 1`
makes it OpenMind's.
"""

from mim3d.dataio.loader.config import LoaderConfig
from mim3d.engine.distributed.config import ParallelConfig
from mim3d.engine.models.config import MAEConfig, ViTConfig
from mim3d.engine.models.primus.config import primus
from mim3d.engine.models.resenc.config import RESENC_L
from mim3d.engine.pretrain.config import PretrainConfig, PretrainLog
from mim3d.engine.pretrain.data import DataConfig
from mim3d.engine.runs.config import CheckpointConfig
from mim3d.engine.training.config import OptimConfig, ScheduleConfig

EPOCH, EPOCHS = 250, 1000
"""Steps of an epoch, and epochs."""
WARMUP_EPOCHS = 50
"""Of Primus."""
LOADER = LoaderConfig(augment="auto", cache="host", cache_bytes=256 << 30, threads=16)


def openmind_resenc() -> PretrainConfig:
    """ResEnc-L on 160^3 crops, three quarters of whose 16^3 blocks are zeros."""
    return PretrainConfig(
        method=MAEConfig(mask_ratio=0.75, loss="l2", normalise_target=False),
        vit=ViTConfig((160, 160, 160), (16, 16, 16)),
        resenc=RESENC_L,
        data=DataConfig(loader=LOADER),
        optim=OptimConfig(
            kind="sgd", momentum=0.99, weight_decay=3e-5, decays="all", clip_norm=12.0
        ),
        schedule=ScheduleConfig(lr=1e-2, kind="poly", warmup_steps=0, epoch_steps=EPOCH),
        parallel=ParallelConfig(compile=True),
        checkpoint=CheckpointConfig(every=10 * EPOCH, keep=3),
        log=PretrainLog(every=50, picture_every=40 * EPOCH),
        global_batch=8,
        steps=EPOCHS * EPOCH,
    )


def openmind_primus_m() -> PretrainConfig:
    """Primus-M on 160^3 crops, of whose 8^3 patches it sees a quarter."""
    vit = primus("M", 160, drop_path=0.2)
    return PretrainConfig(
        method=MAEConfig(
            mask_ratio=0.75,
            loss="l2",
            normalise_target=False,
            decoder_width=864,
            decoder_depth=2,
            decoder_heads=12,
        ),
        vit=vit,
        data=DataConfig(loader=LOADER),
        optim=OptimConfig(beta1=0.9, beta2=0.98, weight_decay=5e-2, decays="all", clip_norm=1.0),
        schedule=ScheduleConfig(
            lr=3e-4, kind="poly", warmup_steps=WARMUP_EPOCHS * EPOCH, epoch_steps=EPOCH
        ),
        parallel=ParallelConfig(compile=True),
        checkpoint=CheckpointConfig(every=10 * EPOCH, keep=3),
        log=PretrainLog(every=50, picture_every=40 * EPOCH),
        global_batch=8,
        steps=EPOCHS * EPOCH,
    )
