"""Artefacts equal the formulas of TorchIO 1.2 and MONAI, and follow from their numbers alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.transforms.intensity.array import GibbsNoise
from scipy.ndimage import map_coordinates
from torch.utils._python_dispatch import TorchDispatchMode

from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.transforms.artefacts import NAMES, NO_ARTEFACTS, parsed_artefacts
from mim3d.dataio.transforms.crop_artefacts import n_draws, with_artefacts
from mim3d.dataio.transforms.intensity_artefacts import (
    TERMS,
    bias_field,
    low_resolution,
    multiplied,
    powered,
)
from mim3d.dataio.transforms.kspace import ghosting, truncated

SIZES = [(12, 15, 10), (7, 1, 9), (16, 16, 16)]


def crop(size, channels=2, seed=0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((channels, *size)).astype(np.float32))


def torchio_bias_field(size, coefficients) -> np.ndarray:
    """torchio 1.2.1, augmentation/intensity/random_bias_field.py, generate_bias_field."""
    ranges = [np.arange(-n, n) + 0.5 for n in np.array(size) / 2]
    field = np.zeros(size)
    x, y, z = (mesh / mesh.max() if mesh.max() > 0 else mesh for mesh in np.meshgrid(*ranges))
    i = 0
    for x_order in range(4):
        for y_order in range(4 - x_order):
            for z_order in range(4 - (x_order + y_order)):
                term = coefficients[i] * x**x_order * y**y_order * z**z_order
                field += np.transpose(term, (1, 0, 2))
                i += 1
    return np.exp(field)


def torchio_ghosting(tensor: torch.Tensor, ghosts: int, axis: int, strength: float) -> torch.Tensor:
    """torchio 1.2.1, augmentation/intensity/random_ghosting.py, add_artifact."""
    spectrum = torch.fft.fftshift(torch.fft.fftn(tensor.double()))
    middle = spectrum.shape[axis] // 2
    kept = spectrum.select(axis, middle).clone()
    planes: list[slice] = [slice(None)] * 3
    planes[axis] = slice(None, None, ghosts)
    spectrum[tuple(planes)] *= 1 - strength
    spectrum.select(axis, middle).copy_(kept)
    return torch.fft.ifftn(torch.fft.ifftshift(spectrum)).real


def torchio_anisotropy(voxels: np.ndarray, axis: int, factor: float) -> np.ndarray:
    """torchio 1.2.1, RandomAnisotropy: Resample (nearest) to a spacing `factor` times as large,
    then (linear) back; the borders, which SimpleITK makes 0, repeated."""
    n = voxels.shape[axis]
    taken = max(1, int(np.floor(n / factor)))
    at = (n - 1) / 2 + (np.arange(taken) - (taken - 1) / 2) * factor
    thick = voxels.take(np.clip(np.floor(at + 0.5).astype(int), 0, n - 1), axis)
    back = (np.arange(n) - (n - 1) / 2) / factor + (taken - 1) / 2
    grid = np.indices(voxels.shape).astype(float)
    shape = [1, 1, 1]
    shape[axis] = n
    grid[axis] = back.reshape(shape)
    return map_coordinates(thick.astype(float), grid, order=1, mode="nearest")


@pytest.mark.parametrize("size", SIZES)
def test_a_bias_field_is_torchios(size):
    coefficients = np.random.default_rng(1).uniform(-0.5, 0.5, len(TERMS))
    field = bias_field(size, coefficients.tolist(), torch.zeros(1))
    wanted = torchio_bias_field(size, coefficients)
    np.testing.assert_allclose(field.numpy(), wanted, rtol=1e-5)
    image = crop(size).abs()  # from 0, as TorchIO takes it
    image[:, 0, 0, 0] = 0
    np.testing.assert_allclose(multiplied(image, field), image * wanted, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_ghosts_are_torchios_and_keep_the_mean(size, axis):
    for ghosts, strength in ((4, 0.5), (7, 1.0), (1, 0.8), (40, 0.9)):
        image = crop(size)
        got = ghosting(image, ghosts, axis, strength)
        for channel, voxels in enumerate(image):
            wanted = torchio_ghosting(voxels, ghosts, axis, strength).numpy()
            np.testing.assert_allclose(got[channel], wanted, atol=1e-5)
        np.testing.assert_allclose(got.mean((1, 2, 3)), image.mean((1, 2, 3)), atol=1e-5)


@pytest.mark.parametrize("size", [(12, 15, 10), (16, 16, 16), (9, 20, 11)])
def test_k_space_is_cut_off_as_monai_does(size):
    for alpha in (0.0, 0.3, 0.55, 0.7):
        image = crop(size)
        wanted = torch.as_tensor(GibbsNoise(alpha)(image))
        np.testing.assert_allclose(truncated(image, alpha), wanted, atol=1e-5)


def test_the_mean_is_kept_in_the_smallest_crops():
    for size in ((1, 1, 1), (2, 2, 2), (1, 3, 2)):
        image = crop(size) + 5
        for changed in (truncated(image, 0.7), ghosting(image, 4, 1, 1.0)):
            np.testing.assert_allclose(changed.mean((1, 2, 3)), image.mean((1, 2, 3)), atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_are_torchios(size, axis):
    for factor in (1.5, 2.0, 3.7, 50.0):
        image = crop(size)
        got = low_resolution(image, axis, factor)
        for channel, voxels in enumerate(image.numpy()):
            wanted = torchio_anisotropy(voxels, axis, factor)
            np.testing.assert_allclose(got[channel], wanted, atol=1e-5)


def test_a_power_is_torchios_of_the_range_from_0_to_1():
    image = crop((6, 7, 8), channels=3)
    image[2] = 4.0  # one value
    got = powered(image, [0.8, 1.3, 2.0])
    for channel, gamma in ((0, 0.8), (1, 1.3)):
        low, high = image[channel].min(), image[channel].max()
        wanted = ((image[channel] - low) / (high - low)) ** gamma * (high - low) + low
        np.testing.assert_allclose(got[channel], wanted, atol=1e-6)
    assert (got[2] == 4).all()


class Copies(TorchDispatchMode):
    """Writes down of each copy from a device to another whether it is queued."""

    def __init__(self) -> None:
        super().__init__()
        self.queued: list[bool] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result, options = func(*args, **(kwargs or {})), kwargs or {}
        crosses = func is torch.ops.aten._to_copy.default and args[0].device != result.device
        if crosses:
            self.queued.append(options.get("non_blocking", False))
        return result


def test_the_host_does_not_wait_for_the_device_it_changes_a_crop_on(monkeypatch):
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda made: pinned.append(made) or made)
    kind = parsed_artefacts([f"{name}=1" for name in NAMES])
    with Copies() as copies:
        found = with_artefacts(
            torch.empty(2, 8, 9, 10, device="meta"), kind, np.full(n_draws(2), 0.4)
        )
    assert found.device.type == "meta"
    assert copies.queued == [True] * len(pinned)
    assert len(pinned) == 7
    with_artefacts(torch.zeros(2, 8, 9, 10), kind, np.full(n_draws(2), 0.4))
    assert len(pinned) == 7


def test_chances_of_one_and_none_and_numbers_decide():
    image = crop((12, 10, 14))
    u = np.random.default_rng(3).random(n_draws(2))
    assert with_artefacts(image, NO_ARTEFACTS, u) is image
    before, seen = image.clone(), []
    for name in NAMES:
        kind = parsed_artefacts([f"{name}=1"])
        assert kind.possible
        changed = with_artefacts(image, kind, u)
        assert torch.equal(image, before)  # is left as it was
        assert changed.shape == image.shape and changed.dtype == torch.float32
        assert changed.isfinite().all() and not torch.equal(changed, image)
        assert torch.equal(changed, with_artefacts(image, kind, u))
        seen.append(changed)
    assert len({tuple(each.flatten()[:5].tolist()) for each in seen}) == len(NAMES)
    never = parsed_artefacts([f"{name}=0.5" for name in NAMES])
    assert with_artefacts(image, never, np.full(n_draws(2), 0.5)) is image


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("bias=0.3", "a name of bias-field"), ("gamma", "write NAME=CHANCE"),
        ("gamma=2", "a chance in"), ("gamma=nan", "a chance in"), ("=0.3", "write NAME=CHANCE"),
        ("gamma=-0.1", "a chance in"), ("bias_field=0.3", "a name of bias-field"),
    ],
)  # fmt: skip
def test_what_is_no_chance_of_an_artefact_is_refused(wrong, said):
    with pytest.raises(Mim3dError, match=said):
        parsed_artefacts([wrong])
    with pytest.raises(Mim3dError, match="twice"):
        parsed_artefacts(["gamma=0.1", "gamma=0.1"])
    assert parsed_artefacts(["gamma=0.3"]).gamma == 0.3  # as the message says


@pytest.mark.parametrize(
    "wrong",
    [{"gamma": 1.5}, {"ghosts": (0, 3)}, {"downsampling": (0.5, 2)}, {"coefficient": -1},
     {"truncation": (0.7, 0.3)}, {"log_gamma": (0, float("nan"))}, {"ghost_strength": (0, 2)}],
)  # fmt: skip
def test_strengths_that_cannot_be_are_refused(wrong):
    with pytest.raises(Mim3dError, match=next(iter(wrong))):
        replace(NO_ARTEFACTS, **wrong)
