"""The blocks of a model: what is sharded, compiled and recomputed piece by piece."""

from torch import nn


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """Entries of the model's innermost ModuleLists, in order of the forward pass."""
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    return [block for part in lists for block in part if not holds_list(block)]


def holds_list(module: nn.Module) -> bool:
    """Whether blocks are nested in this one."""
    return any(isinstance(part, nn.ModuleList) for part in module.modules())


def parameter_count(module: nn.Module) -> int:
    """Parameters of a module, all of them, also once sharded."""
    return sum(parameter.numel() for parameter in module.parameters())


def own_collectives(model: nn.Module, least: int) -> list[nn.Module]:
    """Blocks of at least so many parameters, which are gathered apart from the rest."""
    return [block for block in transformer_blocks(model) if parameter_count(block) >= least]


def make_contiguous(model: nn.Module) -> None:
    """Lay out every parameter as FSDP2 asks for (convolutions may hold theirs channels last)."""
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
