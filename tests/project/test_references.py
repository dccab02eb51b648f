"""What tests compare with is there, as pinned, beside the torch that was there before."""

import importlib.metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from references import prepare_torchvision

ROOT = Path(__file__).resolve().parents[2]
LINES = (ROOT / "tests" / "references.txt").read_text().splitlines()
PINNED = [Requirement(line) for line in LINES if line and not line.startswith("#")]


@pytest.mark.parametrize("wanted", PINNED, ids=lambda wanted: wanted.name)
def test_a_reference_is_installed_as_pinned(wanted: Requirement) -> None:
    assert importlib.metadata.version(wanted.name).partition("+")[0] in wanted.specifier
    assert str(wanted) in (ROOT / "constraints.txt").read_text().splitlines()


def test_the_reference_imports_whichever_torch_is_installed() -> None:
    prepare_torchvision()
    prepare_torchvision()
    from dynamic_network_architectures.architectures.primus import Primus

    network = Primus(1, 24, (8, 8, 8), 2, 1, 1, input_shape=(16, 16, 16))
    assert network(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 2, 16, 16, 16)
