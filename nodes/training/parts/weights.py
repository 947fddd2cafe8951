"""Training the U-Net: all its weights, or low-rank and orthogonal adapters of them."""
from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from comfy.weight_adapter import adapter_maps

from ...families.find import family_of
from ..restoring import matching
from ..seeds import generator
from .part import WEIGHTS, AttachedPart, ParamGroup, Side, TrainablePart, TrainingRun


class Delta(nn.Module):
    """weight ↦ weight + Δ with a float32 Δ that starts at zero."""

    def __init__(self, weight: Tensor, device: torch.device):
        super().__init__()
        self.diff = nn.Parameter(torch.zeros(weight.shape, dtype=torch.float32, device=device))

    def __call__(self, weight: Tensor) -> Tensor:
        """Same shape and dtype as `weight`."""
        return (weight + self.diff).to(weight.dtype)


class Switch:
    """A weight wrapper that can be taken out of the way while a reference runs."""

    def __init__(self, wrapper: Callable[[Tensor], Tensor]):
        self.wrapper, self.on = wrapper, True

    def __call__(self, weight: Tensor) -> Tensor:
        """The wrapped weight, or `weight` itself while switched off."""
        return self.wrapper(weight) if self.on else weight


@dataclass(frozen=True)
class UNetPart(TrainablePart):
    """Optimises every weight and bias of the U-Net (CoRe's second stage: lr 2e-6, 1000 steps).

    The loaded weights stay as they are; float32 differences to them are optimised, about 16 bytes a parameter with
    AdamW, and saved as `.diff` tensors that the stock LoRA loader adds.
    """

    lr: float = 2e-6
    weight_decay: float | None = None
    keeps: ClassVar = (WEIGHTS,)

    def attach(self, run: TrainingRun) -> AttachedWeights:
        """Differences of zero for every weight and bias."""
        wrappers = {}
        for name, module in _modules(run.model):
            for kind, key in (("weight", "diff"), ("bias", "diff_b")):
                value = getattr(module, kind, None)
                if value is not None:
                    wrappers[f"{name}.{kind}"] = (f"{name}.{key}", Delta(value, run.device))
        return AttachedWeights("U-Net", self.lr, self.weight_decay, run, wrappers)


@dataclass(frozen=True)
class AdapterPart(TrainablePart):
    """Optimises an adapter of the U-Net's weights.

    algorithm: name in ComfyUI's weight adapters, "LoRA", "LoKr" or "OFT". rank: of the adapter, from 1 (OFT: block
    size's bound). alpha: scale of a LoRA is alpha / rank. attention_only: only queries, keys, values and outputs of
    attention; else every linear and convolution layer.
    """

    algorithm: str = "LoRA"
    rank: int = 8
    alpha: float = 8.0
    attention_only: bool = True
    lr: float = 1e-4
    weight_decay: float | None = None
    keeps: ClassVar = (WEIGHTS,)

    def attach(self, run: TrainingRun) -> AttachedWeights:
        """Adapters that start as the identity. Raises ValueError if this ComfyUI has no such algorithm."""
        if self.algorithm not in adapter_maps:
            raise ValueError(f"Adapter algorithm '{self.algorithm}' is not in this ComfyUI, which has "
                             f"{', '.join(adapter_maps)}; choose one of them.")
        wrappers = {}
        for name, module in family_of(run.model).adaptable("attention" if self.attention_only else "all").items():
            wrappers[f"{name}.weight"] = (name, self._adapter(module.weight, name, run))
        return AttachedWeights(self.algorithm, self.lr, self.weight_decay, run, wrappers)

    def _adapter(self, weight: Tensor, name: str, run: TrainingRun) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(run.seed, "adapter", name).initial_seed())
            made = adapter_maps[self.algorithm].create_train(torch.empty_like(weight, device="cpu", dtype=torch.float32),
                                                             rank=self.rank, alpha=self.alpha)
        return made.to(run.device, torch.float32).train().requires_grad_(True)


class AttachedWeights(AttachedPart):
    """Weight wrappers on the U-Net of one run.

    wrappers: key of the wrapped weight → (prefix in a LoRA file, module that maps the weight).
    """

    touches: frozenset[Side] = frozenset({"unet"})

    def __init__(self, name: str, lr: float, weight_decay: float | None, run: TrainingRun,
                 wrappers: Mapping[str, tuple[str, nn.Module]]):
        self.wrappers = wrappers
        self.switches = {key: Switch(module) for key, (_, module) in wrappers.items()}
        for key, switch in self.switches.items():
            run.model.add_weight_wrapper(key, switch)
        # alpha is a parameter of ComfyUI's adapters that is never trained
        for _, p in self._named():
            p.requires_grad_(p.ndim > 0)
        self.groups: Sequence[ParamGroup] = [
            ParamGroup(name, [p for _, p in self._named() if p.requires_grad], lr, weight_decay)]

    @contextlib.contextmanager
    def bypassed(self) -> Iterator[None]:
        """The original weights."""
        for switch in self.switches.values():
            switch.on = False
        try:
            yield
        finally:
            for switch in self.switches.values():
                switch.on = True

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters under their names in a LoRA file."""
        return self.weights()

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` returned."""
        for name, p in self._named():
            p.copy_(matching(state, name, p.shape))

    def weights(self) -> dict[str, Tensor]:
        """A LoRA file's tensors, float32."""
        return {name: p.detach().clone() for name, p in self._named()}

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for prefix, module in self.wrappers.values():
            if isinstance(module, Delta):
                yield prefix, module.diff
            else:
                for name, p in module.named_parameters():
                    yield f"{prefix}.{name}", p


def _modules(model) -> Iterator[tuple[str, nn.Module]]:
    """Modules of the U-Net whose weights ComfyUI can wrap, with their names in the MODEL."""
    for name, module in model.model.named_modules():
        if name.startswith("diffusion_model.") and hasattr(module, "weight_function") and module.weight is not None:
            yield name, module
