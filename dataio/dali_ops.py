"""Nodes of the DALI graph: one augmented view, and the label turned with it."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from mim3d.dataio.graph_spec import GraphSpec

fn: Any = importlib.import_module("nvidia.dali.fn")
types: Any = importlib.import_module("nvidia.dali.types")

BLUR_WINDOW = 5


def view_of(spec: GraphSpec, image: Any, given: Mapping[str, Any]) -> Any:
    """One view: resized crop with flip, rotation, blur, gain and bias, as far as asked for."""
    if not given:
        return image
    image = _channels_last(spec, image)
    if "roi_start" in given:
        image = fn.resize(
            image,
            roi_start=given["roi_start"],
            roi_end=given["roi_end"],
            size=list(spec.crop_size),
            interp_type=types.INTERP_LINEAR,
            antialias=False,
        )
    if "turn" in given:
        image = _turned(image, given, types.INTERP_LINEAR)
    if "sigma" in given:
        image = _where(given["blurred"], _blurred, image, given["sigma"])
    if "gain" in given:
        image = image * given["gain"] + given["bias"]
    return _channels_first(spec, image)


def label_of(spec: GraphSpec, label: Any, given: Mapping[str, Any]) -> Any:
    """The label turned as the image was: nearest voxel, border voxels repeated outside."""
    if "turn" not in given:
        return label
    label = fn.expand_dims(label, axes=[3], new_axis_names="C")
    return fn.squeeze(_turned(label, given, types.INTERP_NN), axes=[3])


def _turned(image: Any, given: Mapping[str, Any], interpolation: Any) -> Any:
    """Rotate and zoom the chosen samples; outside, image and label alike repeat the border."""

    def warp(chosen: Any, matrix: Any) -> Any:
        return fn.warp_affine(chosen, matrix=matrix, interp_type=interpolation, inverse_map=True)

    return _where(given["turn"], warp, image, given["matrix"])


def _blurred(chosen: Any, sigma: Any) -> Any:
    return fn.gaussian_blur(chosen, sigma=sigma, window_size=BLUR_WINDOW)


def _where(predicate: Any, change: Callable[[Any, Any], Any], image: Any, argument: Any) -> Any:
    """Apply `change` to the samples of the batch where `predicate` holds.

    The split and merge that DALI's own `if` statements become; costly operators then run on the
    chosen samples alone.
    """
    chosen, rest = fn._conditional.split(image, predicate=predicate)
    argument, _ = fn._conditional.split(argument, predicate=predicate)
    return fn._conditional.merge(change(chosen, argument), rest, predicate=predicate)


def _channels_last(spec: GraphSpec, image: Any) -> Any:
    if spec.channels == 1:
        return fn.reshape(image, src_dims=[1, 2, 3, 0], layout="DHWC")
    return fn.transpose(image, perm=[1, 2, 3, 0], output_layout="DHWC")


def _channels_first(spec: GraphSpec, image: Any) -> Any:
    if spec.channels == 1:
        return fn.reshape(image, src_dims=[3, 0, 1, 2], layout="CDHW")
    return fn.transpose(image, perm=[3, 0, 1, 2], output_layout="CDHW")
