"""Optimisers of torch.optim, learning-rate schedules, and their state as plain tensors."""
from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .parts.part import ParamGroup
from .restoring import mismatch

# Of torch.optim all that need nothing but a gradient of any shape.
OPTIMIZERS = tuple(name for name in ("AdamW", "Adam", "NAdam", "RAdam", "Adamax", "Adafactor", "Adagrad", "Adadelta",
                                     "RMSprop", "SGD", "ASGD", "Rprop") if hasattr(torch.optim, name))
_KEPT = {"Adafactor": 0, "SGD": 0, "Adagrad": 1, "RMSprop": 1, "ASGD": 1}  # tensors a parameter, of the others 2
SCHEDULES = ("constant", "linear", "cosine")


def build_optimizer(name: str, groups: Sequence[ParamGroup], weight_decay: float) -> torch.optim.Optimizer:
    """One torch.optim optimiser over all groups, torch's defaults for what is not given. Rprop takes no decay."""
    kind = getattr(torch.optim, name)
    decays = "weight_decay" in kind.__init__.__code__.co_varnames
    return kind([{"params": list(g.params), "lr": g.lr, "name": g.name,
                  **({"weight_decay": weight_decay if g.weight_decay is None else g.weight_decay} if decays else {})}
                 for g in groups])


def schedule_factor(schedule: str, step: int, total: int, warmup: int) -> float:
    """Factor of the learning rate in step `step` of `total` (both from 1): linear warm-up over `warmup` steps, then
    constant, or falling to zero at the end in a line or half a cosine."""
    if step <= warmup:
        return step / warmup
    done = (step - 1 - warmup) / max(1, total - warmup)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[schedule]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as "index of the parameter.name" → tensor; numbers become float64 scalars."""
    return {f"{i}.{name}": value.detach() if isinstance(value, Tensor) else torch.tensor(float(value),
                                                                                         dtype=torch.float64)
            for i, p in enumerate(_parameters(optimizer)) for name, value in optimizer.state.get(p, {}).items()
            if value is not None}


def kept_tensors(name: str) -> int:
    """Tensors that an optimiser keeps of every parameter."""
    return _KEPT.get(name, 2)


def state_size(name: str, groups: Sequence[ParamGroup]) -> tuple[int, int]:
    """Bytes and number of the tensors that `optimizer_tensors` will return after the first step."""
    kept, parameters = kept_tensors(name), [p for group in groups for p in group.params]
    return kept * sum(p.nbytes for p in parameters), (kept + 1) * len(parameters)


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `optimizer_tensors` returned, on the parameters' devices. Step counters stay on the CPU.

    Raises ValueError if a tensor is of no parameter, or has more numbers than its parameter."""
    parameters = _parameters(optimizer)
    for key, value in tensors.items():
        match = re.fullmatch(r"([0-9]{1,6})\.(\w+)", key)
        if not match or int(match[1]) >= len(parameters) or value.numel() > max(1, parameters[int(match[1])].numel()):
            raise mismatch(key)
        p, name = parameters[int(match[1])], match[2]
        number = value.dtype == torch.float64 and value.ndim == 0
        kept = value.item() if number else value.clone() if name == "step" else value.to(p.device, copy=True)
        optimizer.state[p][name] = kept


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]
