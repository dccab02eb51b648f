"""The masked-voxel loss against MAE's own formulation in float64, with autograd's gradient."""

import pytest
import torch
from kernel_inputs import (
    DTYPES,
    TERMS,
    assert_close,
    random_ids,
    random_volume,
    value_and_gradient,
)
from torch import Tensor
from torch.autograd import forward_ad

from mim3d.kernels import masked_loss_kernel, patch_moments
from mim3d.kernels.masked_loss import KINDS, masked_channel_losses, masked_voxel_loss
from mim3d.kernels.patch_grid import row_width


def patchify(volume: Tensor, patch) -> Tensor:
    """(b, n, c*p) in MAE's manner: reshape, permute, reshape."""
    b, c, z, y, x = volume.shape
    pz, py, px = patch
    tiles = volume.reshape(b, c, z // pz, pz, y // py, py, x // px, px)
    return tiles.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, -1, c * pz * py * px)


def maes_loss(prediction, volume, ids, patch, kind, normalise, weight=None) -> Tensor:
    """facebookresearch/mae forward_loss over the masked patches; prediction tokens or dense.

    Normalised targets by the mean and variance of each channel's part of a patch.
    """
    target = patchify(volume.double(), patch)
    if normalise:
        apart = target.unflatten(-1, (volume.shape[1], -1))
        mean, var = apart.mean(-1, keepdim=True), apart.var(-1, keepdim=True)
        target = ((apart - mean) / (var + 1e-6) ** 0.5).flatten(-2)
    index = ids[..., None].expand(-1, -1, target.shape[2])
    if prediction.dim() == 5:
        prediction = patchify(prediction, patch).gather(1, index)
    target = target.gather(1, index)
    terms = TERMS[kind](prediction[..., : target.shape[2]], target, reduction="none")
    if weight is not None:
        weight = weight.double().expand(volume.shape)
        terms = terms * patchify(weight, patch).gather(1, index)
    return terms.sum() / terms.numel()


SHAPE, PATCH, COUNT = (2, 2, 8, 10, 9), (4, 5, 3), 120


@pytest.mark.parametrize("form", ["token", "padded", "dense"])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient(where, kind, normalise, form):
    backend, device = where
    volume, ids = random_volume(SHAPE), random_ids(2, 12, 5)
    width = {"token": COUNT, "padded": row_width(2, PATCH), "dense": 0}[form]
    shape = SHAPE if form == "dense" else (2, 5, width)
    prediction = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(2)
    got = value_and_gradient(
        masked_voxel_loss, prediction.to(device), volume.to(device), ids.to(device), PATCH,
        kind=kind, normalise_target=normalise, backend=backend,
    )  # fmt: skip
    wanted = value_and_gradient(maes_loss, prediction.double(), volume, ids, PATCH, kind, normalise)
    assert_close(got, wanted)


FORMS = ("token", "padded", "dense")


def three_modalities(scales=(1.0, 100.0, 5000.0)):
    """A volume (2, 3, 8, 10, 9) of channels on very different scales and offsets, and its ids."""
    volume = torch.stack(
        [(random_volume((2, 8, 10, 9), torch.float32, k) + 200 * k) * s / 50
         for k, s in enumerate(scales)], 1
    )  # fmt: skip
    return volume, random_ids(2, 12, 5)


def predictions(form, seed=3):
    generator = torch.Generator().manual_seed(seed)
    width = {"token": 180, "padded": row_width(3, PATCH), "dense": 0}[form]
    shape = (2, 3, 8, 10, 9) if form == "dense" else (2, 5, width)
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_each_channel_is_normalised_and_scored_by_itself(where, kind, chunked, form, monkeypatch):
    """The parts are those of each channel scored alone, their sum and gradient MAE's in float64."""
    backend, device = where
    if chunked:
        monkeypatch.setattr(masked_loss_kernel, "MAX_TILE", 32)
        monkeypatch.setattr(patch_moments, "BLOCK", 32)
    volume, ids = three_modalities()
    prediction, options = predictions(form), {"kind": kind, "normalise_target": True}
    got = value_and_gradient(
        masked_voxel_loss, prediction.to(device), volume.to(device), ids.to(device), PATCH,
        backend=backend, **options,
    )  # fmt: skip
    wanted = value_and_gradient(maes_loss, prediction.double(), volume, ids, PATCH, kind, True)
    assert_close(got, wanted)
    loss, parts = masked_channel_losses(
        prediction.to(device), volume.to(device), ids.to(device), PATCH, backend=backend, **options
    )
    assert parts.shape == (3,) and not parts.requires_grad
    torch.testing.assert_close(parts.sum(), loss)
    for c in range(3):
        own = prediction[:, c : c + 1] if form == "dense" else prediction[..., 60 * c : 60 * c + 60]
        alone = maes_loss(own.double(), volume[:, c : c + 1], ids, PATCH, kind, True)
        torch.testing.assert_close(3 * parts[c].cpu().double(), alone, rtol=2e-6, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_the_scale_of_one_channel_is_nothing_to_the_others(where, form):
    backend, device = where
    prediction, ids = predictions(form).to(device), three_modalities()[1].to(device)

    def parts(*scales):
        volume = three_modalities(scales)[0].to(device)
        _, found = masked_channel_losses(
            prediction, volume, ids, PATCH, normalise_target=True, backend=backend
        )
        return found

    plain, scaled = parts(1.0, 1.0, 1.0), parts(1.0, 4096.0, 1.0)
    assert torch.equal(plain[[0, 2]], scaled[[0, 2]])
    torch.testing.assert_close(plain[1], scaled[1], rtol=1e-4, atol=0)


def test_a_channel_without_spread_has_targets_of_zero_and_no_nan(where):
    backend, device = where
    volume, ids = three_modalities()
    volume[:, 1] = 12345.678
    prediction = predictions("token")
    prediction[..., 60:120] = 0
    leaf = prediction.to(device).requires_grad_()
    loss, parts = masked_channel_losses(
        leaf, volume.to(device), ids.to(device), PATCH, normalise_target=True, backend=backend
    )
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert parts[1] == 0 and parts.isfinite().all() and gradient.isfinite().all()
    assert not gradient[..., 60:120].any()


@pytest.mark.parametrize("form", FORMS)
def test_every_channel_may_have_an_intensity_of_its_own(where, form):
    backend, device = where
    volume, ids = three_modalities()
    scale = torch.tensor([[1.0, 0.01, 0.0002], [2.0, 0.02, 0.0004]])
    shift = torch.tensor([[0.5, -3.0, 1.0], [0.0, 2.0, -1.0]])
    prediction = predictions(form)
    got = value_and_gradient(
        masked_voxel_loss, prediction.to(device), volume.to(device), ids.to(device), PATCH,
        kind="l2", scale=scale.to(device), shift=shift.to(device), backend=backend,
    )  # fmt: skip
    wide = (2, 3, 1, 1, 1)
    values = volume.double() * scale.view(wide) + shift.view(wide)
    wanted = value_and_gradient(maes_loss, prediction.double(), values, ids, PATCH, "l2", False)
    assert_close(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_volume_dtype(where, dtype):
    backend, device = where
    volume, ids = random_volume((2, 1, 4, 8, 8), dtype), random_ids(2, 8, 6)
    prediction = torch.randn(2, 6, 32)
    got = value_and_gradient(
        masked_voxel_loss, prediction.to(device), volume.to(device), ids.to(device), (2, 4, 4),
        normalise_target=True, backend=backend,
    )  # fmt: skip
    wanted = value_and_gradient(maes_loss, prediction.double(), volume, ids, (2, 4, 4), "l1", True)
    assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_predictions(where, kind, dtype):
    backend, device = where
    volume, ids = random_volume((2, 1, 4, 8, 8)), random_ids(2, 8, 3)
    prediction = torch.randn(2, 3, 32).to(dtype)
    got = value_and_gradient(
        masked_voxel_loss, prediction.to(device), volume.to(device), ids.to(device), (2, 4, 4),
        kind=kind, normalise_target=True, backend=backend,
    )  # fmt: skip
    wanted = value_and_gradient(maes_loss, prediction.double(), volume, ids, (2, 4, 4), kind, True)
    assert_close(got, wanted, 2**-7 if backend == "triton" and device == "cpu" else 2**-8)


@pytest.mark.parametrize("form", ["token", "dense"])
@pytest.mark.parametrize("channels", [1, 2])
def test_weight_intensity_flip_and_start_go_together(where, channels, form):
    backend, device = where
    volume = random_volume((2, 2, 9, 8, 12))
    weight = torch.rand(2, channels, 9, 8, 12)
    crop, patch, ids = (6, 8, 8), (3, 4, 4), random_ids(2, 8, 3)
    scale, shift = torch.tensor([0.01, 0.002]), torch.tensor([0.5, -1.0])
    flip = torch.tensor([[True, False, True], [False, True, False]])
    start = torch.tensor([[1, 0, 4], [3, 0, 2]])
    per_sample = {"scale": scale, "shift": shift, "flip": flip, "start": start, "weight": weight}
    moved = {key: value.to(device) for key, value in per_sample.items()}
    prediction = torch.randn((2, 2, *crop) if form == "dense" else (2, 3, 96))
    got = value_and_gradient(
        masked_voxel_loss, prediction.to(device), volume.to(device), ids.to(device), patch,
        kind="l2", **moved, crop_size=crop, backend=backend,
    )  # fmt: skip
    cut = [tuple(slice(s, s + c) for s, c in zip(row, crop, strict=True)) for row in start.tolist()]
    axes = [[a + 1 for a in range(3) if row[a]] for row in flip.tolist()]

    def prepared(tensor):
        boxes = [tensor[i][(slice(None), *cut[i])].flip(axes[i]) for i in range(2)]
        return torch.stack(boxes).double()

    values = prepared(volume) * scale.view(-1, 1, 1, 1, 1) + shift.view(-1, 1, 1, 1, 1)
    wanted = value_and_gradient(
        maes_loss, prediction.double(), values, ids, patch, "l2", False,
        prepared(weight).expand(values.shape),
    )  # fmt: skip
    assert_close(got, wanted)


@pytest.mark.parametrize("masked", [1, 7])
def test_one_masked_and_all_but_one(where, masked):
    backend, device = where
    volume, ids = random_volume((1, 1, 4, 4, 8)), random_ids(1, 8, masked)
    prediction = torch.randn(1, masked, 16)
    got = value_and_gradient(
        masked_voxel_loss, prediction.to(device), volume.to(device), ids.to(device), (2, 2, 4),
        backend=backend,
    )  # fmt: skip
    wanted = value_and_gradient(maes_loss, prediction.double(), volume, ids, (2, 2, 4), "l1", False)
    assert_close(got, wanted)


def test_patches_beyond_one_tile_are_scored_in_chunks(where, monkeypatch):
    backend, device = where
    monkeypatch.setattr(masked_loss_kernel, "TILE", 32)
    monkeypatch.setattr(masked_loss_kernel, "MAX_TILE", 32)
    monkeypatch.setattr(patch_moments, "BLOCK", 32)
    volume, ids = random_volume(SHAPE), random_ids(2, 12, 2)
    prediction = torch.randn(2, 2, COUNT)
    got = value_and_gradient(
        masked_voxel_loss, prediction.to(device), volume.to(device), ids.to(device), PATCH,
        normalise_target=True, backend=backend,
    )  # fmt: skip
    wanted = value_and_gradient(maes_loss, prediction.double(), volume, ids, PATCH, "l1", True)
    assert_close(got, wanted)


@pytest.mark.parametrize("chunked", [False, True])
def test_constant_patches_have_targets_of_exactly_zero(where, chunked, monkeypatch):
    backend, device = where
    if chunked:
        monkeypatch.setattr(masked_loss_kernel, "MAX_TILE", 16)
        monkeypatch.setattr(patch_moments, "BLOCK", 16)
    volume = torch.full((1, 1, 4, 4, 8), -1000.3, device=device)
    ids = random_ids(1, 4, 2).to(device)
    prediction = torch.zeros(1, 2, 32, device=device, requires_grad=True)
    loss = masked_voxel_loss(
        prediction, volume, ids, (4, 4, 2), normalise_target=True, backend=backend
    )
    (gradient,) = torch.autograd.grad(loss, prediction)
    assert loss.item() == 0
    assert not gradient.any()


def test_float16_gradients_of_raw_int16_do_not_overflow(where):
    """Twice the difference is 2^17 here, float16 ends at 2^16; the gradient itself is small."""
    backend, device = where
    volume = torch.full((1, 1, 4, 4, 8), 32767, dtype=torch.int16, device=device)
    ids, prediction = random_ids(1, 8, 5).to(device), torch.full((1, 5, 16), -32768.0)
    got = value_and_gradient(
        masked_voxel_loss, prediction.half().to(device), volume, ids, (2, 2, 4), kind="l2",
        backend=backend,
    )  # fmt: skip
    wanted = value_and_gradient(
        maes_loss, prediction.double(), volume.cpu(), ids.cpu(), (2, 2, 4), "l2", False
    )
    assert_close(got, wanted, 2**-10)


def test_a_weight_may_be_a_bool_mask(where):
    backend, device = where
    volume, ids = random_volume(SHAPE).to(device), random_ids(2, 12, 5).to(device)
    prediction, mask = torch.randn(2, 5, COUNT, device=device), volume[:, :1] > 0
    options = {"normalise_target": True, "backend": backend}
    got, wanted = (
        value_and_gradient(
            masked_voxel_loss, prediction, volume, ids, PATCH, weight=weight, **options
        )
        for weight in (mask, mask.float())
    )
    assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])
    assert got[0] > 0


@pytest.mark.parametrize("layout", ["transposed", "channels_last", "sliced"])
def test_strides_do_not_matter(where, layout):
    backend, device = where
    volume, ids = random_volume((2, 2, 4, 4, 8)).to(device), random_ids(2, 4, 2).to(device)
    dense = torch.randn(2, 2, 4, 4, 8, device=device)
    tokens = torch.randn(2, 2, 64, device=device)
    prediction = {
        "transposed": tokens.transpose(1, 2).contiguous().transpose(1, 2),
        "channels_last": dense.to(memory_format=torch.channels_last_3d),
        "sliced": torch.cat([dense, dense], 4)[..., 4:12],
    }[layout]
    strided = volume.to(memory_format=torch.channels_last_3d)
    arguments = {"patch_size": (2, 4, 4), "normalise_target": True}
    got = value_and_gradient(
        masked_voxel_loss, prediction, strided, ids, **arguments, backend=backend
    )
    wanted = value_and_gradient(
        masked_voxel_loss, prediction.contiguous().cpu().double(), volume.cpu(), ids.cpu(),
        **arguments, backend="reference",
    )  # fmt: skip
    assert_close(got, wanted)


def test_incoming_gradient_scales_and_the_graph_can_be_kept(where):
    backend, device = where
    volume, ids = random_volume((1, 1, 4, 4, 4)).to(device), random_ids(1, 8, 4).to(device)
    prediction = torch.randn(1, 4, 8, device=device, requires_grad=True)
    loss = masked_voxel_loss(prediction, volume, ids, (2, 2, 2), backend=backend)
    once = torch.autograd.grad(loss, prediction, retain_graph=True)[0].clone()
    thrice = torch.autograd.grad(3 * loss, prediction, retain_graph=True)[0].clone()
    again = torch.autograd.grad(loss * 5, prediction)[0]
    torch.testing.assert_close(thrice, 3 * once)
    torch.testing.assert_close(again, 5 * once)


def test_float16_gradients_do_not_underflow_under_a_loss_scale(where):
    backend, device = where
    volume, ids = random_volume((1, 1, 4, 4, 4)).to(device), random_ids(1, 8, 4).to(device)
    prediction = torch.randn(1, 4, 8, device=device).half().requires_grad_()
    loss = masked_voxel_loss(
        prediction, volume, ids, (2, 2, 2), denominator=2.0**26, backend=backend
    )
    (gradient,) = torch.autograd.grad(loss * 2.0**16, prediction)
    assert torch.equal(gradient.abs(), torch.full_like(gradient, 2.0**-10))


def test_repeats_bit_for_bit_and_leaves_its_inputs_alone(where):
    backend, device = where
    volume, ids = random_volume(SHAPE).to(device), random_ids(2, 12, 5).to(device)
    prediction = torch.randn(2, 5, COUNT, device=device)
    copies = prediction.clone(), volume.clone(), ids.clone()
    options = {"normalise_target": True, "backend": backend}
    first = value_and_gradient(masked_voxel_loss, prediction, volume, ids, PATCH, **options)
    second = value_and_gradient(masked_voxel_loss, prediction, volume, ids, PATCH, **options)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    for tensor, copy in zip((prediction, volume, ids), copies, strict=True):
        assert torch.equal(tensor, copy)


def test_no_gradient_is_computed_where_none_is_asked_for(where):
    backend, device = where
    volume, ids = random_volume(SHAPE).to(device), random_ids(2, 12, 5).to(device)
    prediction = torch.randn(2, 5, COUNT, device=device, requires_grad=True)
    with torch.no_grad():
        silent = masked_voxel_loss(prediction, volume, ids, PATCH, backend=backend)
    assert not silent.requires_grad
    assert torch.equal(silent, masked_voxel_loss(prediction, volume, ids, PATCH, backend=backend))


@pytest.mark.parametrize("form", ["token", "dense"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind, form):
    volume, ids = random_volume((1, 1, 4, 2, 4)), random_ids(1, 4, 2)
    shape = (1, 2, 8) if form == "token" else (1, 1, 4, 2, 4)
    prediction = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def loss(tensor):
        return masked_voxel_loss(
            tensor, volume, ids, (2, 2, 2), kind=kind, normalise_target=True,
            weight=torch.rand(volume.shape, generator=torch.Generator().manual_seed(1)),
        )  # fmt: skip

    assert torch.autograd.gradcheck(loss, (prediction,))


@pytest.mark.parametrize("channels", [1, 2])
def test_registration_is_sound(where, channels):
    backend, device = where
    volume, ids = random_volume((2, channels, 4, 4, 4)).to(device), random_ids(2, 8, 2).to(device)
    tokens, dense = torch.randn(2, 2, 8 * channels), torch.randn(2, channels, 4, 4, 4)
    transposed = torch.randn(2, 8 * channels, 2).transpose(1, 2)
    options = ((2, 2, 2), (4, 4, 4), "l1", 1.0, True, 32.0, True, backend == "triton")
    for prediction in (tokens, transposed, dense, dense.transpose(2, 4)):
        torch.library.opcheck(
            torch.ops.mim3d.masked_voxel_loss.default,
            (prediction.to(device), volume, ids, None, None, None, None, None, *options),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_compiles_as_one_graph(where, dtype):
    backend, device = where
    volume, ids = random_volume((2, 1, 4, 4, 4)).to(device), random_ids(2, 8, 2).to(device)

    def loss(prediction):
        return 3 * masked_voxel_loss(prediction * 2, volume, ids, (2, 2, 2), backend=backend)

    prediction = torch.randn(2, 2, 8, device=device).to(dtype)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got, wanted = (value_and_gradient(f, prediction) for f in (compiled, loss))
    assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])


def test_one_graph_serves_batches_of_any_size(where):
    """A count of the batch's voxels in the graph would compile it again for each size."""
    backend, device = where
    graphs = []

    def counted(graph, inputs):
        graphs.append(graph)
        return graph

    def loss(prediction, volume, ids):
        return masked_voxel_loss(prediction * 2, volume, ids, (2, 2, 2), backend=backend)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counted)
    for b in (3, 5, 7):  # no other size's number: dynamo would take them for one
        volume, ids = random_volume((b, 1, 4, 4, 4)).to(device), random_ids(b, 8, 2).to(device)
        prediction = torch.randn(b, 2, 8, device=device)
        got, wanted = (value_and_gradient(f, prediction, volume, ids) for f in (compiled, loss))
        assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])
    assert len(graphs) == 1


def test_forward_mode_is_refused(where):
    backend, device = where
    volume, ids = random_volume((1, 1, 2, 2, 2)).to(device), random_ids(1, 1, 1).to(device)
    prediction = torch.randn(1, 1, 8, device=device)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(prediction, prediction)
        with pytest.raises(RuntimeError, match="no forward-mode derivative"):
            masked_voxel_loss(dual, volume, ids, (2, 2, 2), kind="l2", backend=backend)


def test_the_function_is_not_differentiable_twice(where):
    backend, device = where
    volume, ids = random_volume((1, 1, 2, 2, 2)).to(device), random_ids(1, 1, 1).to(device)
    prediction = torch.randn(1, 1, 8, device=device, requires_grad=True)
    loss = masked_voxel_loss(prediction, volume, ids, (2, 2, 2), kind="l2", backend=backend)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(loss, prediction, create_graph=True)
