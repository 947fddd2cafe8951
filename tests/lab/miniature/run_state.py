"""A training run that survives: weights, their running mean, optimiser and position in one file, written atomically."""
from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

SAVE_EVERY = 300.0  # seconds


def write_atomically(path: Path, state: object) -> None:
    """torch.save to a neighbour, flush to disk, then rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def cosine(step: int, steps: int, peak: float, warm_up: int, floor: float = 0.02) -> float:
    """Learning rate: linear warm-up, then half a cosine from ``peak`` down to ``floor * peak`` at ``steps``."""
    fraction = min(1.0, step / max(1, steps))
    warm = min(1.0, (step + 1) / max(1, warm_up))
    return peak * warm * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * fraction)))


def descend(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.Tensor], loss: torch.Tensor, rate: float,
            clip: float = 1.0) -> None:
    """One step at learning rate ``rate``, gradients cut to the length ``clip``."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()


def keep_or_teach(module: torch.nn.Module, file: Path, teach: Callable[[], bool]) -> bool:
    """Give ``module`` what ``file`` kept, or teach it and keep that, and freeze it; False when ``teach`` did not come
    to its end."""
    if file.is_file():
        module.load_state_dict(torch.load(file, weights_only=True))
    elif teach():
        write_atomically(file, module.state_dict())
    else:
        return False
    module.requires_grad_(False)
    return True


class Run:
    """AdamW over named modules with a running mean of the weights; ``step`` and ``seen`` (rows) are the position,
    ``adopted`` the rows that the weights which it began with had seen."""

    def __init__(self, file: Path, modules: Mapping[str, torch.nn.Module], *, mean_decay: float = 0.999,
                 betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0):
        self.file, self.modules = file, dict(modules)
        self.parameters = [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, betas=betas, weight_decay=weight_decay,
                                           fused=True)
        self.mean = [p.detach().clone() for p in self.parameters]
        self.mean_decay = mean_decay
        self.step = self.seen = self.adopted = 0
        self._saved = time.monotonic()

    def update(self, loss: torch.Tensor, rate: float, clip: float = 1.0, rows: int = 0) -> None:
        """One optimiser step at learning rate ``rate``; a loss that is not finite raises FloatingPointError."""
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.step}; the last saved state is intact.")
        descend(self.optimizer, self.parameters, loss, rate, clip)
        self.step += 1
        self.seen += rows
        keep = min(self.mean_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.mean, [p.detach() for p in self.parameters], 1 - keep)
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        write_atomically(self.file, {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "mean": self.mean, "optimizer": self.optimizer.state_dict(), "step": self.step, "seen": self.seen,
            "adopted": self.adopted,
        })
        self._saved = time.monotonic()

    def restore(self) -> bool:
        """Continue where the file stands; False when there is none."""
        if not self.file.is_file():
            return False
        state = torch.load(self.file, map_location="cpu", weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for own, saved in zip(self.mean, state["mean"], strict=True):
            own.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seen = state["step"], state.get("seen", 0)
        self.adopted = state.get("adopted", 0)
        return True

    def adopt(self, file: Path) -> bool:
        """After its modules were given the weights of ``file``: take them as the mean, and the position from the file's
        metadata (steps, pictures). The optimiser starts anew."""
        with safe_open(file, "pt") as opened:
            figures = opened.metadata() or {}
        self.step, self.seen = int(figures.get("steps", 0)), int(figures.get("pictures", 0))
        self.adopted = self.seen
        self.take_as_mean()
        return True

    def take_as_mean(self) -> None:
        """Let the running mean begin anew at the weights."""
        with torch.no_grad():
            torch._foreach_copy_(self.mean, self.parameters)

    def take_mean(self) -> None:
        """Go on from the running mean of the weights."""
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.mean)

    def swap_mean(self) -> None:
        """Exchange weights and their running mean (call twice around an evaluation)."""
        with torch.no_grad():
            for parameter, mean in zip(self.parameters, self.mean):
                kept = parameter.detach().clone()
                parameter.copy_(mean)
                mean.copy_(kept)
