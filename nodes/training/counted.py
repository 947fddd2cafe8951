"""What one row costs, counted: the denoiser is built without weights from its file's header and run on no data."""
from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_detection
import comfy.model_management as mm
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from ..families.differentiable import OVERRIDE
from ..families.find import family_of
from ..families.latents import LatentSpace
from ..foreign.safetensors_file import DTYPES, read_header
from .session import PRECISIONS

META = torch.device("meta")
TEXT_TOKENS = 77
TEXT_MODELS = ("cond_stage_model", "conditioner")  # of a checkpoint's file
TABLES = ("token_embedding", "position_embedding", "logit_scale", "text_projection")
KEPT_OF_TEXT = 6  # bytes that the backward pass keeps of a number which a text encoder's layer gives
FLOAT32 = 4


@dataclass(frozen=True)
class Counted:
    """One row of the denoiser, of one text, and the weights.

    forward, backward: FLOPs. kept: bytes that the backward pass keeps. recomputed: the same with gradient
    checkpointing. text_forward, text_kept: of these the text's, FLOPs there, as many back, and bytes. layers: that read
    the text. weights: bytes of both models. numbers: of the denoiser's weights. of_text: those of the text encoders'
    layers. dtype: in which it computes.
    """

    forward: int
    backward: int
    kept: int
    recomputed: int
    text_forward: int
    text_kept: int
    layers: int
    weights: int
    numbers: int
    of_text: int
    dtype: torch.dtype


@functools.lru_cache(maxsize=8)
def counted(path: Path, version: str, size: int, precision: str, whole: bool) -> Counted:
    """A checkpoint or diffusion model trained at pictures of `size` pixels.

    version: of the file, so that another one is counted anew. precision: one of PRECISIONS. whole: all weights are
    trained. Raises ValueError if the file is no model that can be counted.
    """
    tensors = _header(path)
    prefix = comfy.model_detection.unet_prefix_from_state_dict(tensors)
    found = comfy.model_detection.model_config_from_unet(tensors, prefix)
    if found is None:
        raise ValueError(f"{path.name} holds no model that ComfyUI knows.")
    of_denoiser = {name: each for name, each in tensors.items() if name.startswith(prefix)}
    numbers = sum(each.numel() for each in of_denoiser.values())
    stored, dtype = _dtypes(found, numbers, precision)
    found.set_inference_dtype(dtype, None)
    model = found.get_model(tensors, prefix, device=META)
    text = {name: each for name, each in tensors.items() if name.startswith(TEXT_MODELS)}
    weights = _size_of(stored) * numbers + FLOAT32 * sum(each.numel() for each in text.values())
    return _run(model, size, dtype, whole, numbers, weights, _matrices(text))


def _run(model: Any, size: int, dtype: torch.dtype, whole: bool, numbers: int, weights: int,
         text: Sequence[Tensor]) -> Counted:
    family, space = family_of(model.diffusion_model), LatentSpace(model.latent_format)
    side = size // space.factor
    denoiser = family.denoiser.requires_grad_(whole)
    latents = torch.empty(1, family.input_channels, side, side, device=META, dtype=dtype)
    context = torch.empty(1, TEXT_TOKENS, family.text_width, device=META, dtype=dtype, requires_grad=True)
    keeping = _Keeping(denoiser, family.recomputable())
    with torch.inference_mode(False), torch.enable_grad(), keeping, FlopCounterMode(display=False) as flops:
        given = denoiser(latents, torch.ones(1, device=META, dtype=dtype), context=context,
                         transformer_options={OVERRIDE: _attention}, **_more(model, dtype))
        forward = flops.get_total_flops()
        given.sum().backward()
    backward = flops.get_total_flops() - forward
    products = 2 * TEXT_TOKENS * sum(each.numel() for each in text)
    of_text = round(KEPT_OF_TEXT * TEXT_TOKENS * sum(len(each) for each in text))
    return Counted(forward + products, backward + products, keeping.all + of_text, keeping.recomputed + of_text,
                   products, of_text, len(family.layers), weights, numbers, sum(each.numel() for each in text), dtype)


class _Keeping:
    """Counts what autograd keeps while the context is open, each memory once and no weights."""

    def __init__(self, denoiser: nn.Module, blocks: Sequence[nn.Module]):
        self._denoiser, self._blocks, self._stack = denoiser, blocks, ExitStack()
        self._weights = {each.untyped_storage()._cdata for each in denoiser.parameters()}
        self._seen: set[int] = set()
        self._alive: list[Tensor] = []  # else a later tensor may lie at the same place
        self._within = 0
        self.outside, self.inside, self.inputs = 0, [0], 0

    def __enter__(self) -> None:
        for block in self._blocks:
            self._stack.callback(block.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
            self._stack.callback(block.register_forward_hook(self._leave).remove)
        self._stack.enter_context(saved_tensors_hooks(self._pack, lambda tensor: tensor))

    def __exit__(self, *error) -> None:
        self._stack.close()

    @property
    def all(self) -> int:
        """Bytes without gradient checkpointing."""
        return self.outside + sum(self.inside)

    @property
    def recomputed(self) -> int:
        """Bytes with it: what goes into the blocks, and one block at a time."""
        return self.outside + self.inputs + max(self.inside)

    def _enter(self, block, args, kwargs) -> None:
        if not self._within:
            self.inside.append(0)
            self.inputs += sum(each.nbytes for each in (*args, *kwargs.values()) if isinstance(each, Tensor))
        self._within += 1

    def _leave(self, *_) -> None:
        self._within -= 1

    def _pack(self, tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory._cdata not in self._weights and memory._cdata not in self._seen:
            self._seen.add(memory._cdata)
            self._alive.append(tensor)
            if self._within:
                self.inside[-1] += memory.nbytes()
            else:
                self.outside += memory.nbytes()
        return tensor


def _attention(_, query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None,
               attn_precision: torch.dtype | None = None, skip_reshape: bool = False, skip_output_reshape: bool = False,
               **more: Any) -> Tensor:
    """An OVERRIDE that keeps what fused attention does, on no data; PyTorch would take the one that keeps all scores
    there."""
    if not skip_reshape:
        query, key, value = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (query, key, value))
    given = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
    return given if skip_output_reshape else given.transpose(1, 2).flatten(2)


def _dtypes(found: Any, numbers: int, precision: str) -> tuple[torch.dtype, torch.dtype]:
    """In which the weights lie and in which they compute, as `compute_dtype` says of a loaded model."""
    device, supported = mm.get_torch_device(), found.supported_inference_dtypes
    stored = mm.unet_dtype(model_params=numbers, supported_dtypes=supported)
    computed = mm.unet_manual_cast(stored, device, supported) or stored
    wanted = PRECISIONS[precision]
    if wanted is not None:
        return stored, wanted
    if computed == torch.float16:
        computed = torch.bfloat16 if mm.should_use_bf16(device) else torch.float32
    return stored, computed


def _header(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        raise ValueError(f"{path.name} is no safetensors file, whose header says what it holds.")
    with open(path, "rb") as file:
        entries, _ = read_header(file, path.stat().st_size)
    return {name: torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]], device=META)
            for name, entry in entries.items()}


def _more(model: Any, dtype: torch.dtype) -> dict[str, Any]:
    """What else the denoiser takes, as `extra_conds` of its model gives it."""
    if getattr(model, "adm_channels", 0):
        return {"y": torch.empty(1, model.adm_channels, device=META, dtype=dtype)}
    takes_counts = "num_tokens" in type(model.diffusion_model)._forward.__code__.co_varnames
    return {"num_tokens": TEXT_TOKENS} if takes_counts else {}


def _matrices(text: Mapping[str, Tensor]) -> list[Tensor]:
    """What a text encoder multiplies with, without its tables."""
    return [each for name, each in text.items() if each.ndim == 2 and not any(part in name for part in TABLES)]


def _size_of(dtype: torch.dtype) -> int:
    return torch.empty((), dtype=dtype).element_size()
