"""The dtype that a step computes in."""

import torch

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.bfloat16,  # around the products of `arithmetic.float8`
}


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """Dtype of the forward and backward arithmetic."""
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
