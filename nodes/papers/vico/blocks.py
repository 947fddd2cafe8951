"""The image blocks: one transformer block for each chosen layer, reading a reference where the layer's own reads text.

Their tensors go by the names of the authors' files: `diffusion_model.output_blocks.4.1.image_cross_attention.…`.
"""
from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...families.attention import Attention
from ...families.find import unet_of
from ...families.layers import AttentionLayer
from ...families.unet import TransformerBlock
from .maths import Variant, attention

Placement = Literal["decoder", "encoder", "both"]

MODULE = "image_cross_attention"
_EVERY_OTHER = 2


def layers_at(layers: Sequence[AttentionLayer], placement: Placement) -> tuple[AttentionLayer, ...]:
    """The layers after which image blocks stand: every other block with cross-attention, counted from the first of
    the encoder (Table 5), in the decoder, the encoder or both (Fig. 8).

    SD1.x: execution order 8, 10, 12 and 14 of 0 … 15 in the decoder. Where a block has several layers, as in SDXL, it
    is the last of them.
    """
    last_of_block = {layer.block: layer for layer in layers}
    sides = {"decoder": ("output",), "encoder": ("input",), "both": ("input", "output")}[placement]
    return tuple(layer for i, layer in enumerate(last_of_block.values())
                 if layer.block[0] in sides and i % _EVERY_OTHER == 0)


class _Operations(comfy.ops.manual_cast):
    """ComfyUI's layers. With dynamic VRAM its own Linear has no weights until a state dict is loaded (on Windows in any
    subclass too); this one has them from the start, as blocks are drawn and filled in place."""

    class Linear(comfy.ops.manual_cast.Linear):
        def __init__(self, *args, **kwargs):
            nn.Linear.__init__(self, *args, **kwargs)

        _load_from_state_dict = nn.Linear._load_from_state_dict


class ImageBlock(TransformerBlock):
    """Self-attention, attention to the reference, feed-forward, each after a norm and added to what came in."""

    def __init__(self, width: int, heads: int, dtype: torch.dtype | None = None, device=None):
        super().__init__(width, heads, width // heads, context_dim=width, dtype=dtype, device=device,
                         operations=_Operations)

    def forward(self, x: Tensor, reference: Tensor, mask: Tensor | None, variant: Variant,
                rows: Tensor | None = None, options: Mapping[str, Any] | None = None) -> Tensor:
        """(R, Q, width) from x (R, Q, width) and the reference's tokens (m, K, width) with mask (m, K) or None.

        rows: (R,) int64, on the CPU or with x, which of the m each row of x looks at; None if m is R or 1.
        options: transformer_options, which may choose another computation of attention.
        """
        normed, itself, across = self.norm1(x), self.self_attention, self.cross_attention
        x = x + _attended(itself, normed, itself.keys(normed), itself.values(normed), options)
        key, value = across.keys(reference), across.values(reference)
        if rows is not None:
            key, value, mask = key[rows], value[rows], None if mask is None else mask[rows]
        x = x + _attended(across, self.norm2(x), key, value, options, mask, variant)
        return x + self.ff(self.norm3(x))


def _attended(module: Attention, normed: Tensor, key: Tensor, value: Tensor, options: Mapping[str, Any] | None,
              mask: Tensor | None = None, variant: Variant = "paper") -> Tensor:
    def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None) -> Tensor:
        return module.attend(query, key, value, options, mask)

    return module.output(attention(module.queries(normed), key, value, module.heads, mask, variant, attend))


class ImageBlocks(nn.Module):
    """Image blocks of one model by layer."""

    def __init__(self, model, layers: Sequence[AttentionLayer], dtype: torch.dtype | None = None, device=None):
        super().__init__()
        unet = unet_of(model)
        self.layers = tuple(layers)
        self.list = nn.ModuleList(ImageBlock(layer.channels, layer.heads, dtype, device) for layer in layers)
        self._prefixes = tuple(f"{unet.transformer_name(layer)}.{MODULE}." for layer in layers)

    def __getitem__(self, layer: AttentionLayer) -> ImageBlock:
        return cast(ImageBlock, self.list[self.layers.index(layer)])

    def named_tensors(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name in a file, parameter), in the order of the layers."""
        for prefix, block in zip(self._prefixes, self.list, strict=True):
            for name, parameter in block.named_parameters():
                yield f"{prefix}{name}", parameter

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Fills all blocks as PyTorch fills new layers, which is how the authors' training starts."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = 1 / math.sqrt(module.in_features)
                for parameter in module.parameters():
                    drawn = torch.rand(parameter.shape, generator=generator)
                    parameter.copy_((2 * drawn - 1) * bound)
            elif isinstance(module, nn.LayerNorm):
                module.weight.fill_(1)
                module.bias.fill_(0)

    @torch.no_grad()
    def fill(self, tensors: Mapping[tuple[str, int], Mapping[str, Tensor]]) -> None:
        """Copies tensors, given as U-Net block → name within its image block → tensor, into the blocks."""
        for layer, block in zip(self.layers, self.list, strict=True):
            for name, parameter in block.named_parameters():
                parameter.copy_(tensors[layer.block][name])


def patcher_of(blocks: ImageBlocks, load_device: torch.device, offload_device: torch.device) -> ModelPatcher:
    """What ComfyUI loads the blocks by; where core's MultiGPU nodes copy a MODEL they get a copy of the blocks."""
    patcher = ModelPatcher(blocks, load_device, offload_device)
    patcher.cached_patcher_init = _patcher_of_copy, (blocks, load_device, offload_device)
    return patcher


def _patcher_of_copy(blocks: ImageBlocks, *devices: torch.device) -> ModelPatcher:
    return patcher_of(copy.deepcopy(blocks), *devices)


def parameter_shapes(width: int) -> dict[str, torch.Size]:
    """Name within an image block of this width → shape."""
    return {name: p.shape for name, p in ImageBlock(width, 1, device="meta").named_parameters()}
