"""AdamW, LAMB or SGD over parameter shards: clipping, loss scaling, bad steps; without a host sync.

The optimiser sees each rank's local piece of every parameter as a plain tensor. The gradient's
norm is reduced over the shard group; the clip factor and the loss scale then go to the fused
kernel as `grad_scale`, and a non-finite norm as `found_inf`, so a bad gradient on one rank
updates no rank, and nothing waits for the device.
"""

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from mim3d.engine.arithmetic.flat import views_of
from mim3d.engine.arithmetic.masters import Masters
from mim3d.engine.errors import ConfigError
from mim3d.engine.training.config import OptimConfig
from mim3d.engine.training.lamb import ShardedLamb

ADAMS = ("exp_avg", "exp_avg_sq")
MOMENTS = {"adamw": ADAMS, "lamb": ADAMS, "sgd": ("momentum_buffer",)}
"""What each kind of optimiser keeps of every parameter, as large as it is."""
POSITIONS = ("pos_embed", "relative_position_bias_table", "register_positions", "register_tokens")
"""Ends of the names of what a model learns about positions, and of tokens of no patch."""
SCALE_START, SCALE_GROWTH, SCALE_INTERVAL = 2.0**15, 2.0, 1000
"""Dynamic loss scale of fp16: halved on overflow, doubled after that many good steps."""


def placed_like(parameter: nn.Parameter, piece: Tensor) -> Tensor:
    """A local piece as what it is part of: a DTensor where the parameter is one."""
    if not isinstance(parameter, DTensor):
        return piece
    return DTensor.from_local(
        piece,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def decayed(name: str, parameter: Tensor) -> bool:
    """Matrices decay; norms, biases, mask tokens and what tells positions do not.

    Positions as in SimMIM's and Swin's own code (no_weight_decay, no_weight_decay_keywords).
    """
    return parameter.dim() >= 2 and not name.endswith(POSITIONS)


def parameter_groups(
    named: Mapping[str, nn.Parameter],
    local: Mapping[str, Tensor],
    config: OptimConfig,
    lr_scale: Callable[[str], float],
    held: Callable[[str], bool] = lambda name: False,
) -> list[dict[str, Any]]:
    """Pieces by what they share: whether they decay, the scale of their rate, who may be held.

    `names` are theirs, in the same order.
    """
    groups: dict[tuple[bool, float, bool], list[str]] = {}
    for on in (True, False):
        for name, parameter in named.items():
            if (decayed(name, parameter) or config.decays == "all") == on:
                groups.setdefault((on, lr_scale(name), held(name)), []).append(name)
    decay = {True: config.weight_decay, False: 0.0}
    return [
        {
            "params": [local[name] for name in names],
            "names": names,
            "weight_decay": decay[on],
            "lr_scale": scale,
            "held": waits,
        }
        for (on, scale, waits), names in groups.items()
    ]


class ShardedOptimiser:
    """AdamW (torch's or apex's fused), LAMB (ours or apex's) or SGD on a rank's pieces of weights.

    Pieces are the local shards of FSDP parameters; a parameter that one rank holds whole is its
    own piece. Of `masters`, whose weights the parameters then are, kernels that take each value by
    itself get a flat piece for a group. `lr_scale` gives a parameter's share of the rate, by its
    name; those that `held` names stay as they are while `holding`.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        config: OptimConfig,
        group: dist.ProcessGroup,
        *,
        scaled: bool = False,
        lr_scale: Callable[[str], float] = lambda name: 1.0,
        held: Callable[[str], bool] = lambda name: False,
        masters: Masters | None = None,
    ) -> None:
        self.config, self.group, self.scaled, self.masters = config, group, scaled, masters
        self.holding = False
        self.named = {name: p for name, p in parameters if p.requires_grad}
        self.local = {name: self._piece(p) for name, p in self.named.items()}
        self.device = next(iter(self.local.values())).device
        groups = parameter_groups(self.named, self.local, config, lr_scale, held)
        names = [group["names"] for group in groups]
        flats = masters.flatten(names) if masters is not None else []
        if flats and config.impl == "torch" and config.kind != "lamb":
            for shared, flat in zip(groups, flats, strict=True):
                shared["params"] = [flat]
        self.inner = self._make_inner(groups)
        self.steps_done = torch.zeros((), device=self.device)
        self.moments: dict[str, dict[str, Tensor]] = {}
        """Of each parameter, by its name, in its shape."""
        for shared in self.inner.param_groups:
            self._make_state(shared["params"], shared["names"])
        start = SCALE_START if scaled else 1.0
        self.loss_scale = torch.full((), start, device=self.device)
        self.growth = torch.zeros((), dtype=torch.int32, device=self.device)
        self.bad_total = torch.zeros((), device=self.device)
        self.bad_in_row = torch.zeros((), device=self.device)

    def _make_state(self, pieces: list[Tensor], names: list[str]) -> None:
        """Count and moments of a group's pieces, each a parameter's or all of them in one."""
        config = self.config
        for piece in pieces:
            # The count stands in every state because torch's fused kernel advances it per tensor.
            counts = config.impl != "apex" and config.kind != "sgd"
            count = {"step": torch.zeros((), device=self.device)} if counts else {}
            moments = {moment: torch.zeros_like(piece) for moment in MOMENTS[config.kind]}
            self.inner.state[piece] = {**count, **moments}
        parts = [self.local[name] for name in names]
        for moment in MOMENTS[config.kind]:
            kept = [self.inner.state[piece][moment] for piece in pieces]
            own = kept if pieces[0] is parts[0] else views_of(kept[0], parts)
            for name, tensor in zip(names, own, strict=True):
                self.moments.setdefault(name, {})[moment] = tensor

    def _piece(self, parameter: nn.Parameter) -> Tensor:
        if isinstance(parameter, DTensor):
            return parameter.to_local().detach()
        if dist.get_world_size(self.group) > 1:
            raise ConfigError(
                "over several ranks the optimiser takes parameters that fully_shard has wrapped"
            )
        return parameter

    def _make_inner(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        config = self.config
        common = {"lr": 0.0, "betas": (config.beta1, config.beta2), "eps": config.eps}
        if config.impl == "torch":
            if config.kind == "sgd":
                return torch.optim.SGD(
                    groups, lr=0.0, momentum=config.momentum, nesterov=True, fused=True
                )
            if config.kind == "lamb":
                return ShardedLamb(groups, self.group, **common)
            return torch.optim.AdamW(groups, fused=True, **common)
        if config.kind == "adamw":
            return load_apex(config.kind)(groups, **common)
        if dist.get_world_size(self.group) > 1:
            raise ConfigError(
                "apex's LAMB needs whole parameters for its trust ratio, but they are sharded over "
                f"{dist.get_world_size(self.group)} ranks: set --optim.impl torch, whose LAMB adds "
                "the norms up, or --parallel.replicate to the number of ranks"
            )
        # Gradients are clipped before; apex would clip them again, at 1 unless told otherwise.
        return load_apex(config.kind)(groups, max_grad_norm=float("inf"), **common)

    def step(self, lr: float, counted: Tensor | None = None) -> Tensor:
        """Update at rate `lr`; see `update`."""
        self.set_rate(lr)
        return self.update(counted)

    def set_rate(self, lr: float) -> None:
        """The rate of coming updates, each group's own share of it."""
        for group in self.inner.param_groups:
            rate = 0.0 if self.holding and group["held"] else lr * group["lr_scale"]
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def make_capturable(self) -> None:
        """Have rates lie on the device, in float32, so that a captured update reads them there."""
        for group in self.inner.param_groups:
            group["lr"] = torch.zeros((), device=self.device)
            group["capturable"] = True

    def update(self, counted: Tensor | None = None) -> Tensor:
        """Update from the gradients and drop them; returns their global norm (0-d, on device).

        Gradients are first divided by `counted`, a 0-d tensor, the same on every rank.
        """
        with torch.no_grad():
            self._take_gradients()
            scale = self.loss_scale.clone()
            if counted is not None:
                scale *= divisor(counted)
            norm = self.global_norm() / scale
            bad = (~norm.isfinite()).float()
            if self.config.clip_norm > 0.0:
                scale *= (norm / self.config.clip_norm).clamp(min=1.0)
            self._update(scale, bad)
            self._count(bad)
        if self.masters is None:
            self.forget()
        else:
            self.masters.publish()
        return norm

    def collect(self) -> None:
        """Keep a micro-batch's gradients, where they would be summed in a half type."""
        if self.masters is not None:
            self.masters.collect()

    def forget(self) -> None:
        """Drop gradients: those of an update, or of a step that broke off."""
        if self.masters is not None:
            self.masters.forget()
            return
        for name, parameter in self.named.items():
            parameter.grad = self.local[name].grad = None

    def _take_gradients(self) -> None:
        if self.masters is not None:
            self.masters.collect()
            self.masters.exchange()
            return
        for name, parameter in self.named.items():
            grad = parameter.grad
            assert grad is not None, f"{name} has no gradient"
            if isinstance(grad, DTensor):
                self.local[name].grad = grad.to_local()

    def global_norm(self) -> Tensor:
        """Euclidean norm of the whole gradient, from each rank's pieces."""
        pieces = [piece.grad for piece in self.local.values() if piece.grad is not None]
        norm = get_total_norm(pieces)
        if dist.get_world_size(self.group) == 1:
            return norm
        square = norm.square()
        dist.all_reduce(square, group=self.group)
        return square.sqrt()

    def _update(self, scale: Tensor, bad: Tensor) -> None:
        if self.config.impl == "torch":
            self.inner.grad_scale, self.inner.found_inf = scale, bad  # pyright: ignore[reportAttributeAccessIssue]
            self.inner.step()
        elif not bool(bad):
            # apex takes neither: this path waits for the device once a step.
            grads = [p.grad for p in self.local.values() if p.grad is not None]
            torch._foreach_div_(grads, scale)
            self.inner.step()

    def _count(self, bad: Tensor) -> None:
        self.bad_total += bad
        self.bad_in_row.add_(1.0).mul_(bad)
        self.steps_done += 1.0 - bad
        if self.scaled:
            torch._amp_update_scale_(
                self.loss_scale, self.growth, bad, SCALE_GROWTH, 0.5, SCALE_INTERVAL
            )

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint needs, by name; loading writes into these very tensors."""
        state: dict[str, Tensor] = {
            "optim.steps_done": self.steps_done,
            "optim.loss_scale": self.loss_scale,
            "optim.growth": self.growth,
            "optim.bad_total": self.bad_total,
            "optim.bad_in_row": self.bad_in_row,
        }
        with torch.no_grad():
            for name, parameter in self.named.items():
                for moment, piece in self.moments[name].items():
                    state[f"optim.{moment}.{name}"] = placed_like(parameter, piece)
        return state

    def after_load(self) -> None:
        """Hand the loaded step count to the optimiser's own counters, and weights to their copy.

        A checkpoint of another precision brings that one's loss scale, which must not stay: without
        scaling every gradient would be divided by it, with scaling 1 would let small ones vanish.
        """
        if self.masters is not None:
            self.masters.publish_all()
        if not self.scaled:
            self.loss_scale.fill_(1.0)
            self.growth.zero_()
        elif bool((self.loss_scale == 1.0) & (self.growth == 0)):
            self.loss_scale.fill_(SCALE_START)
        if self.config.impl == "apex":
            for group in self.inner.param_groups:
                group["step"] = int(self.steps_done)
            return
        for state in self.inner.state.values():
            if "step" in state:
                state["step"].copy_(self.steps_done)


def divisor(counted: Tensor) -> Tensor:
    """What a sum over what counts is divided by: 1 where nothing does, and the sum is 0."""
    return torch.where(counted > 0, counted, 1.0)


BUILD = (
    "git clone https://github.com/NVIDIA/apex && cd apex && APEX_CPP_EXT=1 APEX_CUDA_EXT=1 "
    "pip install -v --no-build-isolation ."
)
CLASSES = {"adamw": "FusedAdam", "lamb": "FusedLAMB"}


def apex_problem() -> str | None:
    """Why apex's fused optimisers cannot be used, with the remedy; None where they can."""
    found = importlib.util.find_spec("apex")
    if found is None:
        return f"NVIDIA apex is not installed. Build it: {BUILD}"
    folders = [Path(place) for place in found.submodule_search_locations or ()]
    if not any((folder / "multi_tensor_apply").is_dir() for folder in folders):
        return (
            f"the package apex at {', '.join(map(str, folders)) or found.origin} is not NVIDIA's "
            "(PyPI's apex is an unrelated authentication toolkit). Remove it (pip uninstall apex) "
            f"and build NVIDIA's: {BUILD}"
        )
    if importlib.util.find_spec("amp_C") is None:
        return f"NVIDIA apex was built without its CUDA extensions (no amp_C). Build it: {BUILD}"
    if not torch.cuda.is_available():
        return "NVIDIA apex's fused optimisers need a CUDA device, and none is visible"
    return None


def load_apex(kind: str) -> Any:
    """The optimiser class for `kind` adamw or lamb; a ConfigError says how to get apex."""
    problem = apex_problem()
    if problem is not None:
        raise ConfigError(
            f"optim.impl apex: {problem}. Or use --optim.impl torch, which is fused too"
        )
    return getattr(importlib.import_module("apex.optimizers"), CLASSES[kind])
