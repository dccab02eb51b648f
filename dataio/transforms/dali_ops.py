"""Nodes of the DALI graph: one augmented view, and the label turned with it."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from mim3d.dataio.transforms.graph import GraphSpec

fn: Any = importlib.import_module("nvidia.dali.fn")
types: Any = importlib.import_module("nvidia.dali.types")

BLUR_WINDOW = 5


def view_of(spec: GraphSpec, image: Any, given: Mapping[str, Any]) -> Any:
    """One view (c, z, y, x): resized box, rotation, blur, gain and bias, as far as asked for."""
    if not given:
        return image
    image = _channels_last(spec, image)
    image = _resized(spec, image, given, types.INTERP_LINEAR)
    image = _turned(spec, image, given, types.INTERP_LINEAR, spec.channels)
    if "sigma" in given:
        image = _where(given["blurred"], _blurred, image, given["sigma"])
    if "gain" in given:
        image = image * given["gain"] + given["bias"]
    return _channels_first(spec, image)


def label_of(spec: GraphSpec, label: Any, given: Mapping[str, Any]) -> Any:
    """The label (z, y, x) resized and turned as the image was, by the nearest voxel."""
    if not given:
        return label
    label = fn.expand_dims(label, axes=[3], new_axis_names="C")
    label = _resized(spec, label, given, types.INTERP_NN)
    return fn.squeeze(_turned(spec, label, given, types.INTERP_NN, 1), axes=[3])


def _resized(spec: GraphSpec, image: Any, given: Mapping[str, Any], interpolation: Any) -> Any:
    """Stretch the box of interest, which never overhangs, to the whole crop."""
    if "roi_start" not in given:
        return image

    def resize(chosen: Any, start: Any, end: Any) -> Any:
        return fn.resize(
            chosen,
            roi_start=start,
            roi_end=end,
            size=list(spec.crop_size),
            interp_type=interpolation,
            antialias=False,
        )

    if "resized" not in given:
        return resize(image, given["roi_start"], given["roi_end"])
    return _where(given["resized"], resize, image, given["roi_start"], given["roi_end"])


def _turned(
    spec: GraphSpec, image: Any, given: Mapping[str, Any], interpolation: Any, channels: int
) -> Any:
    """Rotate the chosen samples about z, y or x; image and label alike repeat the border.

    A rotation about an axis is a 2-D warp of pictures whose channels are that axis and the
    channels: thirty times faster on a CPU than DALI's 3-D warp.
    """
    if "matrix" not in given:
        return image
    for name, perm in (
        ("turn_z", (1, 2, 0, 3)),
        ("turn_y", (0, 2, 1, 3)),
        ("turn_x", (0, 1, 2, 3)),
    ):
        shape = [(*spec.crop_size, channels)[axis] for axis in perm]
        turn = _turn(perm, shape, interpolation)
        image = _where(given[name], turn, image, given["matrix"])
    return image


def _turn(perm: tuple[int, ...], shape: list[int], interpolation: Any) -> Callable[..., Any]:
    """Make a rotation of (z, y, x, c), of `shape` after `perm`, in its first two axes."""
    back = [perm.index(axis) for axis in range(4)]

    def turn(chosen: Any, matrix: Any) -> Any:
        moved = perm != (0, 1, 2, 3)
        if moved:
            chosen = fn.transpose(chosen, perm=perm, transpose_layout=False, output_layout="DHWC")
        flat = fn.reshape(chosen, shape=[*shape[:2], shape[2] * shape[3]], layout="HWC")
        flat = fn.warp_affine(flat, matrix=matrix, interp_type=interpolation)
        turned = fn.reshape(flat, shape=shape, layout="DHWC")
        if moved:
            turned = fn.transpose(turned, perm=back, transpose_layout=False, output_layout="DHWC")
        return turned

    return turn


def _blurred(chosen: Any, sigma: Any) -> Any:
    return fn.gaussian_blur(chosen, sigma=sigma, window_size=BLUR_WINDOW)


def _where(predicate: Any, change: Callable[..., Any], image: Any, *arguments: Any) -> Any:
    """Apply `change` to the samples of the batch where `predicate` holds.

    The split and merge that DALI's own `if` statements become; costly operators then run on the
    chosen samples alone.
    """
    chosen, rest = fn._conditional.split(image, predicate=predicate)
    given = [fn._conditional.split(each, predicate=predicate)[0] for each in arguments]
    return fn._conditional.merge(change(chosen, *given), rest, predicate=predicate)


def _channels_last(spec: GraphSpec, image: Any) -> Any:
    if spec.channels == 1:
        return fn.reshape(image, src_dims=[1, 2, 3, 0], layout="DHWC")
    return fn.transpose(image, perm=[1, 2, 3, 0], output_layout="DHWC")


def _channels_first(spec: GraphSpec, image: Any) -> Any:
    if spec.channels == 1:
        return fn.reshape(image, src_dims=[3, 0, 1, 2], layout="CDHW")
    return fn.transpose(image, perm=[3, 0, 1, 2], output_layout="CDHW")
