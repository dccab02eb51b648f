"""The kernels of attention: chosen, told, and refused where there are none."""

import pytest
import torch

from mim3d.engine.arithmetic.attention import attention_kernels, attention_of, head_widths
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import MAEConfig, SwinConfig, ViTConfig
from mim3d.engine.models.mae import MAE
from mim3d.engine.models.swin import SwinEncoder
from mim3d.engine.pretrain.recipes import recipe

CPU = torch.device("cpu")
MODEL = MAE(
    MAEConfig(decoder_width=48, decoder_depth=1, decoder_heads=2),
    ViTConfig((16, 16, 16), (8, 8, 8), width=24, depth=1, heads=2),
)


def test_what_torch_chooses_is_told_for_every_width_of_head() -> None:
    assert head_widths(MODEL) == [12, 24]
    assert attention_of(MODEL, "auto", torch.float32, CPU) == "flash"
    assert attention_of(MODEL, "math", torch.bfloat16, CPU) == "math"


@pytest.mark.parametrize("wanted", ["flash", "math"])
def test_what_is_wanted_computes(wanted) -> None:
    """By the name of the operation that runs."""
    given = torch.randn(1, 2, 8, 16, requires_grad=True)
    with attention_kernels(wanted), torch.profiler.profile() as seen:
        torch.nn.functional.scaled_dot_product_attention(given, given, given).sum().backward()
    flash = any("scaled_dot_product_flash" in event.key for event in seen.key_averages())
    assert flash == (wanted == "flash")


def test_a_kernel_that_is_not_there_is_refused_in_one_line() -> None:
    message = r"parallel\.attention cudnn: torch .* heads of 12 features in bfloat16 on cpu: set --"
    with pytest.raises(ConfigError, match=message):
        attention_of(MODEL, "cudnn", torch.bfloat16, CPU)
    attention_of(MODEL, "auto", torch.bfloat16, CPU)


def test_a_model_without_attention_of_ours_says_so() -> None:
    swin = SwinEncoder(
        SwinConfig(feature_size=12, depths=(1, 1, 1, 1), heads=(1, 2, 2, 4), window=4),
        ViTConfig((32, 32, 32), (16, 16, 16)),
    )
    assert attention_of(swin, "auto", torch.float32, CPU) == ""
    with pytest.raises(ConfigError, match=r"leave it at --parallel\.attention auto"):
        attention_of(swin, "flash", torch.float32, CPU)


def test_our_recipes_have_wide_heads_and_the_papers_keep_theirs() -> None:
    widths = {}
    for name in ("mae-vit-b-96", "mae-vit-l-128-p8", "mae-vit-h-128", "btcv-mae", "brats-mae"):
        method = recipe(name).method
        assert isinstance(method, MAEConfig)
        widths[name] = method.decoder_width // method.decoder_heads
    assert list(widths.values()) == [64, 128, 64, 32, 32]
