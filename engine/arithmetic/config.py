"""What a user can choose of a step's arithmetic; imports no torch."""

from typing import Literal

Precision = Literal["auto", "fp32", "bf16", "fp16", "fp8"]
Recompute = Literal["none", "selective", "full"]
Attention = Literal["auto", "flash", "efficient", "cudnn", "math"]
