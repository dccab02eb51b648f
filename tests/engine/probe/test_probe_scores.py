"""The two classifiers of a probe beside scikit-learn's, and patches' classes beside plain loops."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from mim3d.engine.probe.samples import UNTOLD, patch_classes, patch_sample
from mim3d.engine.probe.scores import (
    TEMPERATURE,
    Features,
    accuracy,
    balanced_accuracy,
    knn_classes,
    linear_classes,
)


def cloud(seed, n=60, width=7, classes=3):
    """Overlapping classes of unequal size: both classifiers err on some rows."""
    rng = np.random.default_rng(seed)
    y = rng.choice(classes, n, p=[0.6, 0.3, 0.1])
    x = rng.normal(size=(n, width)) * rng.uniform(0.5, 2, width) + rng.normal(size=width)
    x[:, :classes] += np.eye(classes)[y] * 3
    x[:, -1] = 4.0  # tells nothing
    return x, y


def both_sides(seed):
    x, y = cloud(seed)
    known = Features(torch.tensor(x[:40]), torch.tensor(y[:40]))
    return known, torch.tensor(x[40:]), y[40:]


@pytest.mark.parametrize("seed", range(4))
def test_knn_is_scikit_learns(seed):
    train, asked, _ = both_sides(seed)
    weights: Any = lambda far: np.exp((1 - far) / TEMPERATURE)  # noqa: E731
    oracle = KNeighborsClassifier(9, metric="cosine", algorithm="brute", weights=weights)
    oracle.fit(train.values.numpy(), train.classes.numpy())
    found = knn_classes(train, asked, 9, 3)
    assert found.tolist() == oracle.predict(asked.numpy()).tolist()
    assert len(set(found.tolist())) > 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ridge", [1e-4, 0.01, 1.0])
def test_the_linear_probe_is_scikit_learns_ridge(seed, ridge):
    train, asked, truth = both_sides(seed)
    x, y = train.values.numpy(), train.classes.numpy()
    scale = StandardScaler().fit(x)
    counts = np.bincount(y)
    oracle = Ridge(alpha=ridge * len(y)).fit(
        scale.transform(x), np.eye(3)[y], sample_weight=(len(y) / 3 / counts)[y]
    )
    wanted = oracle.predict(scale.transform(asked.numpy())).argmax(1)
    found = linear_classes(train, asked, ridge, 3)
    assert found.tolist() == wanted.tolist()
    assert balanced_accuracy(found, torch.tensor(truth)) == pytest.approx(
        balanced_accuracy_score(truth, wanted)
    )
    assert accuracy(found, torch.tensor(truth)) == pytest.approx((wanted == truth).mean())


def test_few_rows_of_many_features_and_a_class_nobody_has():
    train, asked, _ = both_sides(0)
    few = Features(train.values[:5].repeat(1, 40), torch.tensor([0, 2, 0, 2, 2]))
    wide = asked.repeat(1, 40)
    assert set(linear_classes(few, wide, 0.01, 3).tolist()) <= {0, 2}
    assert set(knn_classes(few, wide, 20, 3).tolist()) <= {0, 2}


@settings(max_examples=40)
@given(
    st.integers(0, 2**31),
    st.tuples(*[st.integers(1, 3)] * 3),
    st.tuples(*[st.integers(1, 3)] * 3),
    st.floats(0.05, 1.0),
)
def test_classes_of_patches_beside_loops(seed, grid, cell, foreground):
    shape = tuple(g * c for g, c in zip(grid, cell, strict=True))
    rng = np.random.default_rng(seed)
    label = rng.choice([UNTOLD, 0, 0, 0, 2, 5], shape)
    found = patch_classes(label, cell, foreground).reshape(grid)
    for place in np.ndindex(*grid):
        part = tuple(slice(p * c, (p + 1) * c) for p, c in zip(place, cell, strict=True))
        voxels = label[part].ravel().tolist()
        told = [v for v in voxels if v != UNTOLD]
        labelled = [v for v in told if v > 0]
        if 2 * len(told) < len(voxels):
            wanted = UNTOLD
        elif not labelled or len(labelled) < foreground * len(told):
            wanted = 0
        else:
            wanted = max(sorted(set(labelled)), key=labelled.count)
        assert found[place] == wanted


def test_crops_with_labelled_patches_come_first_and_classes_share_alike():
    starts = [(z, 0, 0) for z in range(10)]
    labelled = {(3, 0, 0), (7, 0, 0)}

    def classes_at(start):
        return np.array([0] * 6 + [1, 1] if start in labelled else [0] * 7 + [UNTOLD])

    found = patch_sample(starts, classes_at, (2, 6), 2, np.random.default_rng(0))
    assert set(found.starts) == labelled
    assert sorted(found.classes.tolist()) == [0, 0, 0, 1, 1, 1]
    again = patch_sample(starts, classes_at, (2, 6), 2, np.random.default_rng(0))
    assert again.starts == found.starts
    assert np.array_equal(again.patches, found.patches)
