"""Patch embeddings for other channels and patches: what they compute, and what is refused."""

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_run import small_config
from torch import Tensor, nn

from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import SwinConfig, ViTConfig
from mim3d.engine.models.vit import ViT3D
from mim3d.engine.pretrain.pretrain import start_request
from mim3d.engine.runs.encoder_file import save_encoder
from mim3d.engine.transfer.patch_embedding import MOST_RESIZE, other_channels, other_patch
from mim3d.engine.transfer.start import StartRequest, start_from
from mim3d.engine.transfer.start_report import Start

VIT = ViTConfig((16, 16, 32), (8, 8, 8), width=24, depth=2, heads=2)


def embedded(kernel: Tensor, image: Tensor) -> Tensor:
    return nn.functional.conv3d(image, kernel, stride=kernel.shape[2:])


@settings(max_examples=30, deadline=None)
@given(before=st.integers(1, 4), now=st.integers(1, 4))
def test_equal_channels_give_what_equal_channels_gave(before: int, now: int) -> None:
    kernel = torch.randn(5, before, 2, 3, 4, dtype=torch.float64)
    image = torch.randn(1, 1, 4, 6, 8, dtype=torch.float64)
    other, how = other_channels(kernel.float(), now, "auto")
    assert bool(how) == (before != now)
    wanted = embedded(kernel, image.expand(-1, before, -1, -1, -1))
    found = embedded(other.double(), image.expand(-1, now, -1, -1, -1))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_map_chooses_each_channel() -> None:
    kernel = torch.randn(5, 2, 2, 2, 2)
    other, how = other_channels(kernel, 3, "1,-,0")
    assert torch.equal(other[:, 0], kernel[:, 1])
    assert torch.equal(other[:, 2], kernel[:, 0])
    torch.testing.assert_close(other[:, 1], kernel.mean(1))
    assert how == "channels 1, mean, 0 of 2"
    assert other_channels(kernel, 2, "0,1")[1] == ""
    for wrong in ("0,1", "0,1,2"):
        with pytest.raises(
            ConfigError, match=r"channels \(0 to 1\) or - for each of vit.channels 3"
        ):
            other_channels(kernel, 3, wrong)


@settings(max_examples=20, deadline=None)
@given(old=st.integers(2, 6), new=st.integers(2, 9))
def test_a_patch_made_larger_gives_the_token_it_gave(old: int, new: int) -> None:
    """FlexiViT's property, exact where no axis shrinks."""
    new = min(max(old, new), MOST_RESIZE * old)
    kernel = torch.randn(3, 2, old, 2, old, dtype=torch.float64)
    image = torch.randn(1, 2, old, 2, old, dtype=torch.float64)
    resized = nn.functional.interpolate(image, (new, 2, new), mode="trilinear")
    other, how = other_patch(kernel, (new, 2, new))
    assert bool(how) == (new != old)
    torch.testing.assert_close(embedded(other, resized), embedded(kernel, image))


def test_a_patch_made_smaller_keeps_a_smooth_images_token() -> None:
    kernel = nn.functional.interpolate(torch.randn(4, 1, 4, 4, 4), (16, 16, 16), mode="trilinear")
    flat = torch.ones(1, 1, 16, 16, 16)
    other, _ = other_patch(kernel, (8, 8, 8))
    torch.testing.assert_close(
        embedded(other, torch.ones(1, 1, 8, 8, 8)), embedded(kernel, flat), rtol=1e-3, atol=1e-3
    )
    with pytest.raises(ConfigError, match=r"set --vit.patch-size nearer"):
        other_patch(kernel, (2, 2, 2))


def encoder_run(folder: Path, vit: ViTConfig = VIT, **card: object) -> tuple[Path, ViT3D]:
    torch.manual_seed(1)
    encoder = ViT3D(vit)
    folder.mkdir(exist_ok=True)
    save_encoder(folder, vit, encoder.state_dict(), card)
    return folder, encoder


def started(source: Path, vit: ViTConfig, **changes: str) -> tuple[ViT3D, Start]:
    holder = nn.Module()
    holder.encoder = ViT3D(vit)
    start = start_from(holder, StartRequest(str(source), vit, **changes))  # pyright: ignore[reportArgumentType]
    return holder.encoder, start


def test_an_encoder_goes_to_other_channels_patches_and_crops(tmp_path: Path) -> None:
    source, encoder = encoder_run(tmp_path / "run")
    image = torch.randn(1, 1, 16, 16, 32)
    four, start = started(source, dataclasses.replace(VIT, channels=4))
    assert start.resized == ["patch_embed (1 channel inflated to 4)"]
    assert not start.doubts
    with torch.no_grad():
        torch.testing.assert_close(four(image.expand(-1, 4, -1, -1, -1)), encoder(image))
        coarse = dataclasses.replace(VIT, crop_size=(32, 32, 64), patch_size=(16, 16, 16))
        larger, start = started(source, coarse)
        assert start.resized == ["patch_embed (patch (8, 8, 8) to (16, 16, 16))"]
        blocks = nn.functional.interpolate(image[:, :, :8, :8, :8], (16, 16, 16), mode="trilinear")
        rows = blocks.reshape(1, 1, -1)
        mine = larger.patch_embed(rows)
        small = nn.functional.pad(
            image[:, :, :8, :8, :8].reshape(1, 1, -1), (0, VIT.row_width - 512)
        )
        torch.testing.assert_close(mine, encoder.patch_embed(small), rtol=1e-4, atol=1e-4)
    assert "resized: patch_embed" in "\n".join(start.lines())


def test_swins_kernel_goes_to_other_channels(tmp_path: Path) -> None:
    config = small_config("", "swin")
    module = config.build()
    encoder = module.get_submodule("encoder")
    kernel = encoder.state_dict()["swin.patch_embed.proj.weight"]
    assert isinstance(config.swin, SwinConfig)
    tmp_path.joinpath("run").mkdir()
    save_encoder(tmp_path / "run", config.vit, encoder.state_dict(), {}, config.swin)
    two = dataclasses.replace(
        config, vit=dataclasses.replace(config.vit, channels=2), init=str(tmp_path / "run")
    )
    other = two.build()
    start = start_from(other, start_request(two))
    assert "patch_embed (1 channel inflated to 2)" in start.resized
    taken = other.state_dict()["encoder.swin.patch_embed.proj.weight"]
    torch.testing.assert_close(taken, kernel.repeat(1, 2, 1, 1, 1) / 2)


def test_a_channel_map_is_an_option_of_weights_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="says nothing without --init"):
        small_config("", init_channels="0,0")
    with pytest.raises(ConfigError, match=r"init_channels 'a,b' must be auto, or"):
        small_config("", init="x", init_channels="a,b")
    source, encoder = encoder_run(tmp_path / "run", dataclasses.replace(VIT, channels=2))
    other, start = started(source, VIT, channels="1")
    assert start.resized == ["patch_embed (channels 1 of 2)"]
    kernel = encoder.patch_embed.weight[:, 512:1024]
    assert torch.equal(other.patch_embed.weight[:, :512], kernel)


def test_rows_without_a_card_are_left_where_they_may_be_anything(tmp_path: Path) -> None:
    encoder = ViT3D(VIT)
    save_file(encoder.state_dict(), tmp_path / "bare.safetensors")
    _, start = started(tmp_path / "bare.safetensors", dataclasses.replace(VIT, channels=2))
    assert any("whose channels and patch are not told" in left for left in start.left)
    assert start.doubts
