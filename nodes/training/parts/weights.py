"""Training the U-Net: all its weights, or low-rank and orthogonal adapters of them."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from comfy.weight_adapter import adapter_maps
from torch import Tensor, nn

from ...families.find import family_of
from ...families.quantised import is_quantised
from ..restoring import matching
from ..seeds import generator
from .beside import Beside, put_beside, stands_beside
from .part import WEIGHTS, AttachedPart, ParamGroup, Side, TrainablePart, TrainingRun

Changes = dict[str, tuple[str, nn.Module]]
"""Key of a changed weight → (prefix in a LoRA file, module that maps the weight)."""


class Delta(nn.Module):
    """weight ↦ weight + Δ with a float32 Δ that starts at zero."""

    def __init__(self, weight: Tensor, device: torch.device):
        super().__init__()
        self.diff = nn.Parameter(torch.zeros(weight.shape, dtype=torch.float32, device=device))

    def __call__(self, weight: Tensor) -> Tensor:
        """Same shape and dtype as `weight`."""
        return (weight + self.diff).to(weight.dtype)


@dataclass(frozen=True)
class UNetPart(TrainablePart):
    """Optimises every weight and bias of the U-Net (CoRe's second stage: lr 2e-6, 1000 steps).

    The loaded weights stay as they are; float32 differences to them are optimised, about 16 bytes a parameter with
    AdamW, and saved as `.diff` tensors that the stock LoRA loader adds.
    """

    lr: float = 2e-6
    weight_decay: float | None = None
    keeps: ClassVar = (WEIGHTS,)
    name: ClassVar = "U-Net"

    @property
    def label(self) -> str:
        """For the name of a run."""
        return "unet"

    def attach(self, run: TrainingRun) -> AttachedWeights:
        """Differences of zero for every weight and bias. Raises ValueError if the weights are quantised."""
        changes = differences(self.name, self._modules(run.model), run.device)
        return AttachedWeights(self.name, self.lr, self.weight_decay, run.model, changes)

    def _modules(self, model) -> Iterable[tuple[str, nn.Module]]:
        return _modules(model)


@dataclass(frozen=True)
class KeyValuePart(UNetPart):
    """Optimises what makes keys and values of the text (Custom Diffusion: lr 1e-5 times the batch size, beside the
    word); for SD1.5 19 million of the U-Net's 860 million parameters. Kept as those of `UNetPart`.

    As in its authors' code nothing is learned from the start token, at which all prompts are alike."""

    lr: float = 1e-5
    name: ClassVar = "Key/Value"

    @property
    def label(self) -> str:
        """For the name of a run."""
        return "key-value"

    def attach(self, run: TrainingRun) -> AttachedWeights:
        """See UNetPart."""
        attached = super().attach(run)
        attached.without_start = [module for _, module in self._modules(run.model)]
        return attached

    def _modules(self, model) -> Iterable[tuple[str, nn.Module]]:
        return family_of(model).adaptable("text keys and values").items()


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

    @property
    def label(self) -> str:
        """For the name of a run."""
        return self.algorithm.lower()

    def attach(self, run: TrainingRun) -> AttachedWeights:
        """Adapters that start as the identity. Raises ValueError if this ComfyUI has no such algorithm, or the model
        no layers."""
        if self.algorithm not in adapter_maps:
            raise ValueError(f"Adapter algorithm '{self.algorithm}' is not in this ComfyUI, which has "
                             f"{', '.join(adapter_maps)}; choose one of them.")
        changes = {}
        for name, module in family_of(run.model).adaptable("attention" if self.attention_only else "all").items():
            changes[f"{name}.weight"] = (name, adapter(self.algorithm, self.rank, self.alpha, module, name, run))
        if not changes:
            raise ValueError("No layer was found that an adapter may change: this ComfyUI calls the model's layers by "
                             "other names; update this pack, or switch attention_only off.")
        return AttachedWeights(self.algorithm, self.lr, self.weight_decay, run.model, changes)


def differences(part: str, modules: Iterable[tuple[str, nn.Module]], device: torch.device, prefix: str = "") -> Changes:
    """Differences of zero for every weight and bias of (name, module). prefix: of the names in a LoRA file.

    Raises ValueError, naming `Train {part}`, if a weight is quantised.
    """
    changes: Changes = {}
    for name, module in modules:
        if is_quantised(cast(Tensor, module.weight)):
            raise ValueError(f"Train {part} changes the weights themselves, by less than lies between two of "
                             f"the values that this model's quantised ones can have ({name}); load an fp16, bf16 "
                             "or fp32 checkpoint, or train the embedding or an adapter, for which the weights "
                             "stay.")
        for kind, key in (("weight", "diff"), ("bias", "diff_b")):
            value = getattr(module, kind, None)
            if value is not None:
                changes[f"{name}.{kind}"] = (f"{prefix}{name}.{key}", Delta(value, device))
    return changes


def adapter(algorithm: str, rank: int, alpha: float, module: nn.Module, name: str, run: TrainingRun) -> nn.Module:
    """An adapter of a module's weight that starts as the identity, float32; its draws follow from seed and name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(run.seed, "adapter", name).initial_seed())
        empty = torch.empty(cast(Tensor, module.weight).shape, device="cpu", dtype=torch.float32)
        made = adapter_maps[algorithm].create_train(empty, rank, alpha)
    return made.to(run.device, torch.float32).train().requires_grad_(True)


class AttachedWeights(AttachedPart):
    """Changes of the weights of one model in one run.

    patcher: ModelPatcher of the weights. changes: see Changes. An adapter acts beside the weight where it can, see
    `stands_beside`; else a new weight is made in every pass. side: of the models that the weights are on.
    """

    without_start: Sequence[nn.Module] = ()  # those that learn nothing from the first token

    def __init__(self, name: str, lr: float, weight_decay: float | None, patcher, changes: Changes,
                 side: Side = "unet"):
        self.changes, self._on, self.touches = changes, True, frozenset({side})
        # alpha is a parameter of ComfyUI's adapters that is never trained
        for _, p in self._named():
            p.requires_grad_(p.ndim > 0)
        self.groups: Sequence[ParamGroup] = [
            ParamGroup(name, [p for _, p in self._named() if p.requires_grad], lr, weight_decay)]
        self._add_to(patcher)

    def _add_to(self, model) -> None:
        beside = []
        for key, (_, change) in self.changes.items():
            layer = model.model.get_submodule(key.rpartition(".")[0])
            if stands_beside(model, layer, change):
                beside.append((layer, Beside(change, lambda: self._on)))
            else:
                model.add_weight_wrapper(key, self._switched(change))
        if beside:
            put_beside(model, beside)

    def _switched(self, change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda weight: change(weight) if self._on else weight

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """See AttachedPart."""
        with contextlib.ExitStack() as stack:
            for module in self.without_start:
                stack.callback(module.register_forward_hook(_constant_start).remove)
            yield

    @contextlib.contextmanager
    def bypassed(self) -> Iterator[None]:
        """The original weights."""
        self._on = False
        try:
            yield
        finally:
            self._on = True

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters under their names in a LoRA file."""
        return self.weights()

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` returned."""
        for name, p in self._named():
            p.copy_(matching(state, name, p.shape))

    def weight_names(self) -> Collection[str]:
        """See AttachedPart."""
        return [name for name, _ in self._named()]

    def weights(self) -> dict[str, Tensor]:
        """A LoRA file's tensors, float32."""
        return {name: p.detach().clone() for name, p in self._named()}

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for prefix, module in self.changes.values():
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


def _constant_start(module: nn.Module, inputs: tuple, outputs: Tensor) -> Tensor:
    """Hook: the same keys or values (rows, T, C), without a gradient for the first token."""
    return torch.cat([outputs[:, :1].detach(), outputs[:, 1:]], 1)
