"""The bench of turned crops runs, and nnssl's way gives what its libraries would."""

import numpy as np
import pytest
from scipy.ndimage import affine_transform

from mim3d.bench.loader import nnssl
from mim3d.bench.loader.spatial import main
from mim3d.dataio.transforms.placement import Placement

SMALL = ["--crop", "12", "--side", "24", "--crops", "4", "--rounds", "2", "--volumes", "2"]


def test_nnssl_reads_its_published_patch() -> None:
    assert nnssl.patch_of(160) == 257


def test_its_crop_is_scipys_of_order_3_about_the_middle_of_the_patch() -> None:
    patch = np.random.default_rng(0).standard_normal((19, 19, 19)).astype(np.float32)
    matrix = np.eye(3) + np.random.default_rng(1).standard_normal((3, 3)) * 0.1
    zero = (0, 0, 0)
    at = Placement(matrix, np.zeros(3), zero, zero, zero)
    offset = 9 - matrix @ np.full(3, 4.0)
    wanted = affine_transform(patch, matrix, offset.tolist(), output_shape=(9, 9, 9), order=3)
    np.testing.assert_allclose(nnssl.moved(patch, at, 9, 3), wanted, atol=1e-4)
    np.testing.assert_array_equal(nnssl.moved(patch, None, 9, 3), patch[5:14, 5:14, 5:14])


def test_contestants_take_turns(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("blosc2")
    figures = main([*SMALL, "--peers"]).figures
    rates = figures["per_cpu_s"]
    peers = {name for name in rates if "nnssl" in name}
    assert len(rates) == 4
    assert len(peers) == 2
    for name in peers:
        rounds = [a / b for a, b in zip(rates["mim3d"], rates[name], strict=True)]
        assert figures["ratios"][f"mim3d over {name}"]["rounds"] == pytest.approx(tuple(rounds))
    assert "crops of 12^3 a CPU-second" in capsys.readouterr().out
