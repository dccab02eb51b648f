"""How a model is spread over ranks, as a user tells it; imports no torch."""

from dataclasses import dataclass
from typing import Literal

from mim3d.dataio.finite import MOST_SECONDS, refuse_not_finite, refuse_outside
from mim3d.engine.arithmetic.config import Attention, Precision, Recompute
from mim3d.engine.errors import ConfigError

DeviceKind = Literal["auto", "cpu", "cuda"]
"""A GPU where there is one, or what is named."""


@dataclass(frozen=True)
class ParallelConfig:
    """How the model is spread over ranks and how a step is computed."""

    replicate: int = 1
    """Groups of ranks that each hold the whole model (HSDP); 1 shards over all ranks (FSDP)."""
    grad_accum: int = 1
    """Micro-batches of a step."""
    precision: Precision = "auto"
    """auto is bf16 where the GPU has it, fp16 with a loss scaler where not, fp32 on a CPU; fp8 is
    bf16 with the products of blocks in float8 (extra fp8; Ada, Hopper or later)."""
    recompute: Recompute = "none"
    """Activations of blocks that backward computes again: none; selective, what lies between matrix
    products and attention (a third less memory); full, all but a block's input (a fifth to a third
    more arithmetic)."""
    attention: Attention = "auto"
    """Kernels of attention, where torch's own choice (auto, told in every row) is not the best."""
    compile: bool = False
    """torch.compile every block."""
    cuda_graph: bool = True
    """Where one GPU steps on batches of one shape, repeat the step as one CUDA graph: no time of
    the host. Rates are then rounded to float32."""
    reshard_after_forward: bool = True
    """Free a block's gathered parameters after its forward pass."""
    min_block_parameters: int = 1_000_000
    """Smaller blocks are gathered with the root: a collective of their own would cost more."""
    one_rank: Literal["whole", "sharded"] = "whole"
    """Ranks that each hold all weights (one, or as many as parallel.replicate): the model as it is,
    beside float32 weights where it computes in a half type; or sharded by FSDP all the same, which
    copies it each step, to the same numbers."""
    deterministic: bool = False
    """Deterministic kernels on a GPU, slower: there, bitwise repeats and resumes need it."""
    timeout_s: float = 600.0
    """A rank that waits this long for another ends the run."""

    def __post_init__(self) -> None:
        """Counts are at least one; configurations of before say True where full is meant."""
        if isinstance(self.recompute, bool):
            object.__setattr__(self, "recompute", "full" if self.recompute else "none")
        refuse_not_finite(self, "parallel", ConfigError)
        refuse_outside(self, "min_block_parameters", 0, part="parallel", kind=ConfigError)
        if min(self.replicate, self.grad_accum) < 1:
            raise ConfigError(
                f"parallel.replicate {self.replicate} and parallel.grad_accum {self.grad_accum} "
                "must be at least 1"
            )
        refuse_outside(
            self, "timeout_s", above=0, most=MOST_SECONDS, part="parallel", kind=ConfigError
        )

    def micro_batch(self, global_batch: int, world: int) -> int:
        """Crops of one rank's micro-batch."""
        parts = world * self.grad_accum
        if global_batch % parts:
            raise ConfigError(
                f"global_batch {global_batch} must be a multiple of {world} ranks x grad_accum "
                f"{self.grad_accum} = {parts}"
            )
        return global_batch // parts
