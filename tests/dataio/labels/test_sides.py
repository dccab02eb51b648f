"""Names of classes that are told apart by left and right."""

import pytest

from mim3d.dataio.labels.sides import pairs_of_sides


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("left parotid", "right parotid"),
        ("Left Hippocampus", "Right-Hippocampus"),
        ("lung_left", "LUNG_RIGHT"),
        ("kidney_L", "kidney_R"),
        ("Parotid-l", "parotid r"),
        ("femur.L", "femur.R"),
        ("lungLeft", "lungRight"),
        ("leftlung", "rightlung"),
        ("PAROTIDLEFT", "RIGHTPAROTID"),
        ("kidneyL", "kidneyR"),
        ("ctx-lh-insula", "ctx-rh-insula"),
        ("rib left 1", "rib right 1"),
        ("Niere links", "Niere rechts"),
        ("Left", "Right"),
    ],
)
def test_pairs_are_found_however_the_side_is_written(left, right):
    assert pairs_of_sides(["liver", right, "spleen", left]) == [(left, right)]


@pytest.mark.parametrize(
    "names",
    [
        ("left kidney", "spleen"),
        ("cleft", "bright"),
        ("rib left 1", "rib right 2"),
        ("left lung", "right kidney"),
        ("left to right", "right to left"),
        ("L1", "L2", "class 1", "class 2"),
        ("parotid", "parotis"),
        (),
    ],
)
def test_other_names_are_no_pair(names):
    assert pairs_of_sides(names) == []


def test_every_pair_is_told_once():
    names = ["left eye", "right eye", "lens_L", "lens_R", "brain stem"]
    assert pairs_of_sides(names) == [("left eye", "right eye"), ("lens_L", "lens_R")]
