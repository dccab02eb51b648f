"""What the masked-voxel loss refuses, and that it names both values."""

from typing import Any

import pytest
import torch

from mim3d.kernels.masked_loss import masked_voxel_loss

VOLUME, IDS = torch.zeros(2, 1, 4, 4, 4), torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": torch.zeros(2, 3, 9)}, r"prediction has shape \(2, 3, 9\)"),
        ({"prediction": torch.zeros(2, 3, 8).int()}, "prediction has dtype torch.int32"),
        ({"kind": "huber"}, "kind is 'huber'"),
        ({"denominator": 0}, "denominator is 0.0"),
        ({"denominator": float("inf")}, "denominator is inf"),
        ({"masked_ids": IDS.to("meta")}, "masked_ids is on meta but what it goes with on cpu"),
        ({"prediction": torch.zeros(2, 3, 8, device="meta")}, "prediction is on meta"),
        ({"weight": VOLUME.to("meta")}, "weight is on meta"),
        ({"beta": float("nan")}, "beta nan"),
        ({"kind": "smooth_l1", "beta": float("inf")}, "beta inf"),
        ({"masked_ids": IDS + 8}, r"masked_ids reach from 8 to 8; they must lie in \[0, 8\)"),
        ({"masked_ids": IDS - 1}, "masked_ids reach from -1 to -1"),
        ({"scale": torch.ones(2, requires_grad=True)}, "scale requires a gradient"),
        ({"patch_size": 2}, r"patch_size is 2; three sizes are needed: \(2,\) \* 3"),
        (
            {"prediction": torch.zeros(0, 3, 8), "volume": VOLUME[:0], "masked_ids": IDS[:0]},
            "the batch is empty",
        ),
        ({"weight": torch.zeros(2, 2, 4, 4, 4)}, r"weight has shape \(2, 2, 4, 4, 4\)"),
        ({"masked_ids": IDS[:, :0]}, r"masked_ids has shape \(2, 0\)"),
        ({"backend": "cuda"}, "backend is 'cuda'"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments: dict[str, Any] = {
        "prediction": torch.zeros(2, 3, 8), "volume": VOLUME, "masked_ids": IDS,
        "patch_size": (2, 2, 2),
    } | change  # fmt: skip
    with pytest.raises(ValueError, match=message):
        masked_voxel_loss(**arguments)
