"""A torchx component: mim3d pretraining on any scheduler that torchx knows.

    torchx run -s local_cwd examples/torchx_pretrain.py:pretrain \\
        --recipe demo-mae --corpus corpus.zarr --run runs/demo --j 1x2
    torchx run -s slurm examples/torchx_pretrain.py:pretrain \\
        --recipe mae-vit-l-160-p8 --corpus /data/corpus.zarr --run /runs/l \\
        --j 8x8 --gpu 8 --cpu 128 --memMB 900000

`j` is nodes x processes a node. A process that dies is started again with all others, from the
last checkpoint.
"""

from torchx.components.dist import ddp
from torchx.specs import AppDef


def pretrain(
    *options: str,
    recipe: str,
    corpus: str,
    run: str,
    j: str = "1x8",
    gpu: int = 0,
    cpu: int = 2,
    memMB: int = 8192,
    restarts: int = 3,
    image: str = "",
) -> AppDef:
    """Pretrain RECIPE on CORPUS into RUN.

    Args:
        options: further options of `mim3d pretrain`, after --
        recipe: name of a recipe
        corpus: folder that `mim3d convert` wrote, seen by all nodes
        run: folder of the run, seen by all nodes
        j: nodes x processes a node
        gpu: GPUs a node to ask the scheduler for
        cpu: cores a node
        memMB: memory a node
        restarts: how often to start again after a process died
        image: container image, where the scheduler takes one
    """
    # One replica per node: parameters are sharded inside a node, gradients reduced between nodes.
    replicas = ["--parallel.replicate", j.split("x", maxsplit=1)[0]]
    if any(option.startswith("--parallel.replicate") for option in options):
        replicas = []  # an option may be given once: yours stands instead
    return ddp(
        "pretrain", recipe, "--data.corpus", corpus, "--out", run,
        *replicas, *options,
        m="mim3d.engine.commands.cli",
        name="mim3d",
        j=j,
        gpu=gpu,
        cpu=cpu,
        memMB=memMB,
        max_retries=restarts,
        image=image,
        env={"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
    )  # fmt: skip
