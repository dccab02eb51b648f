"""Dispatch a user can see, and launches that never wait for the device."""

import os
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mim3d.kernels import (
    assemble_kernel,
    decoder_tokens,
    gradient_scale,
    masked_loss_kernel,
    masked_norm_kernel,
    masking,
    patch_moments,
    patch_rows,
)
from mim3d.kernels.backend import HAS_TRITON, choose, decide, explain
from mim3d.kernels.codegen import recorded, specialise
from mim3d.kernels.masked_loss import masked_voxel_loss
from mim3d.kernels.masking import patch_masks
from mim3d.kernels.nt_xent import nt_xent
from mim3d.kernels.patch_rows import gather_patch_rows

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
SYNCS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_to_copy.cpu")


def test_cpu_tensors_go_to_the_reference_and_the_reason_is_told():
    assert choose(torch.zeros(1)) == "reference"
    assert "tensor on cpu" in decide("cpu").reason or not HAS_TRITON
    assert decide("cpu", backend="reference").reason == "asked for"
    assert "cpu: reference" in explain()


@needs_triton
def test_cuda_tensors_go_to_triton_but_never_in_float64():
    assert decide("cuda").implementation == "triton"
    choice = decide("cuda", float64=True)
    assert choice.implementation == "reference"
    assert "float64" in choice.reason


def test_an_impossible_or_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend='triton' cannot run"):
        choose(torch.zeros(1), "triton")
    with pytest.raises(ValueError, match="backend is 'cuda'; one of auto"):
        choose(torch.zeros(1), "cuda")


def test_nothing_needs_triton_to_import():
    """With triton hidden every module imports and the references run."""
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "hide = lambda name: name.split('.')[0] == 'triton'\n"
        "u.find_spec = lambda name, *a: None if hide(name) else find(name, *a)\n"
        "import torch\n"
        "from mim3d.kernels import assemble, decoder_tokens, masking, masked_loss, patch_rows\n"
        "from mim3d.kernels import nt_xent, backend\n"
        "m = masking.patch_masks(0, torch.arange(2), 8, 2)\n"
        "v = torch.ones(2, 1, 4, 4, 4)\n"
        "print(masked_loss.masked_voxel_loss(torch.zeros(2, 6, 8), v, m.masked_ids, (2, 2, 2)))\n"
        "print(patch_rows.gather_patch_rows(v, m.visible_ids, (2, 2, 2)).shape)\n"
        "assert 'triton.language' not in sys.modules, 'triton was imported'\n"
        "print(backend.explain())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "triton is not installed" in run.stdout


class Syncs(TorchDispatchMode):
    """Counts operations that would make the host wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += any(name in str(func) for name in SYNCS)
        return func(*args, **(kwargs or {}))


def test_the_counter_counts():
    with Syncs() as syncs:
        torch.ones(3).sum().item()
        torch.ones(3).nonzero()
    assert syncs.count == 2


@needs_triton
def test_no_launch_waits_for_the_device():
    volume, ids = torch.ones(2, 1, 8, 8, 8), torch.arange(8).expand(2, 8).contiguous()
    flip, start = torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.int64)
    scale, patch, crop = torch.ones(2), (4, 4, 4), (8, 8, 8)
    chunks, table = torch.zeros(1, 128, dtype=torch.uint8), torch.zeros(2, 1, 2, 2, 2).long()
    with (
        recorded(masked_loss_kernel, "loss_kernel") as losses,
        recorded(patch_moments, "moments_kernel"),
        recorded(patch_rows, "gather_kernel") as rows,
        recorded(masking, "rank_kernel") as ranks,
        recorded(masking, "key_kernel") as keys,
        recorded(assemble_kernel, "assemble_kernel") as crops,
        recorded(decoder_tokens, "tokens_kernel") as tokens,
        recorded(decoder_tokens, "sums_kernel") as sums,
        Syncs() as syncs,
    ):
        for shape in ((2, 8, 64), (2, 1, 8, 8, 8)):
            masked_loss_kernel.launch_loss(
                torch.ones(shape), volume, ids, volume, scale, scale, flip, start,
                patch, crop, "l1", 1.0, True, 8.0, True,
            )  # fmt: skip
        patch_rows.launch_gather(
            volume, ids, scale, scale, flip, start, patch, crop, torch.bfloat16
        )
        for n in (8, 5000):
            masking.launch_masks(torch.arange(2), 1, n, 2, "random", (1, 1, n), 1)
        assemble_kernel.launch_assemble(
            chunks, table, start, None, None, None, scale, scale, flip,
            crop, (4, 4, 4), torch.int16, "byte", 128, 1, torch.float32,
        )  # fmt: skip
        decoder_tokens.assemble_tokens(
            torch.ones(2, 2, 16),
            scale.new_ones(16),
            torch.ones(8, 16),
            ids[:, :2],
            ids[:, 2:],
            True,
        )
        decoder_tokens.sum_tokens(torch.ones(2, 8, 16), ids[:, :2], ids[:, 2:], True)
    counts = [len(launches) for launches in (losses, rows, ranks, keys, crops, tokens, sums)]
    assert counts == [2, 1, 1, 1, 1, 1, 1]
    assert syncs.count == 0


def test_no_public_function_and_no_backward_waits_for_the_device():
    """The part around the operations: checks, NT-Xent, and the gradients."""
    volume, patch = torch.randn(2, 1, 8, 8, 8), (4, 4, 4)
    with Syncs() as syncs:
        masks = patch_masks(3, torch.arange(2), 8, 2)
        rows = gather_patch_rows(volume, masks.visible_ids, patch, scale=torch.ones(2))
        weight, table = torch.randn(16, 64, requires_grad=True), torch.randn(8, 16)
        tokens = decoder_tokens.decoder_tokens(
            torch.nn.functional.linear(rows, weight), weight[:, 0], table.requires_grad_(),
            masks.visible_ids, masks.masked_ids,
        )  # fmt: skip
        loss = masked_voxel_loss(
            tokens[:, 2:] @ weight, volume, masks.masked_ids, patch, kind="l2", weight=volume > 0
        )
        first, second = tokens.mean(1), tokens.amax(1)
        (loss + nt_xent(first, second, 0.1)).backward()
    assert weight.grad is not None and table.grad is not None
    assert syncs.count == 0


@needs_triton
def test_batches_of_other_sizes_share_the_code_of_the_sums():
    def code(b: int) -> object:
        ids = torch.arange(8).expand(b, 8)
        with recorded(decoder_tokens, "sums_kernel") as launches:
            decoder_tokens.sum_tokens(torch.ones(b, 8, 16), ids[:, :2], ids[:, 2:], True)
        return specialise(launches[0])

    assert code(64) == code(37)


@needs_triton
def test_memory_that_is_not_aligned_is_compiled_as_such():
    """Code that trusted a pointer which begins anywhere would fault on a GPU."""
    line, ids = torch.zeros(2 * 512 + 8, dtype=torch.int16), torch.zeros(2, 1, dtype=torch.int64)
    aligned = []
    for begin in (0, 1, 8):
        volume = line[begin : begin + 1024].view(2, 1, 8, 8, 8)
        with recorded(patch_rows, "gather_kernel") as launches:
            patch_rows.launch_gather(
                volume, ids, None, None, None, None, (4, 4, 8), (8, 8, 8), torch.float32
            )
        aligned.append((0,) in specialise(launches[0])[2])
    assert line.data_ptr() % 16 == 0
    assert aligned == [True, False, True]


@needs_triton
def test_no_kernel_is_autotuned():
    """Ranks that tuned for themselves would run different code, and a run would not repeat."""
    import triton

    modules = (
        assemble_kernel, decoder_tokens, gradient_scale, masked_loss_kernel, masked_norm_kernel,
        masking, patch_moments, patch_rows,
    )  # fmt: skip
    kernels = [
        value
        for module in modules
        for name, value in vars(module).items()
        if name.endswith("_kernel")
    ]
    assert len(kernels) >= 8
    assert not any(isinstance(kernel, triton.runtime.Autotuner) for kernel in kernels)
