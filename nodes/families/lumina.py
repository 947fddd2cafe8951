"""Lumina 2 and Z-Image: one sequence of text and picture, in which the picture's rows attend to the text's."""
from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

from comfy.ldm.lumina.model import JointTransformerBlock, NextDiT
from torch import Tensor, nn

from .adaptable import adaptable_modules
from .differentiable import in_training, watched_attention
from .family import PreviewDefaults, Seen, Weights
from .layers import AttentionLayer

_ATTENTION = ("attention.qkv", "attention.out")


class Lumina:
    """A Family."""

    preview = PreviewDefaults("euler", "simple", 20, 4.0)

    def __init__(self, denoiser: NextDiT):
        self.denoiser = denoiser

    @staticmethod
    def is_kind_of(denoiser: nn.Module) -> bool:
        """Whether a denoiser is built like this."""
        return isinstance(denoiser, NextDiT)

    @cached_property
    def layers(self) -> tuple[AttentionLayer, ...]:
        """The layers of the joint sequence; those that refine text and picture apart are none."""
        found = [block.attention for block in self.denoiser.layers]
        return tuple(AttentionLayer(("double", i), 0, i, attention.n_local_heads * attention.head_dim,  # ty: ignore[missing-union-attribute, unsupported-operator]
                                    attention.n_local_heads, self.denoiser.patch_size)  # ty: ignore[invalid-argument-type, missing-union-attribute]
                     for i, attention in enumerate(found))

    @property
    def text_width(self) -> int:
        """See Family."""
        return self.denoiser.cap_embedder[1].weight.shape[1]  # ty: ignore[invalid-explicit-return, not-subscriptable]

    @property
    def input_channels(self) -> int:
        """See Family."""
        return self.denoiser.in_channels

    def differentiable(self) -> AbstractContextManager[None]:
        """See Family. ComfyUI's own rotation of queries and keys has no backward pass."""
        return in_training()

    @contextlib.contextmanager
    def watch(self, layers: Sequence[AttentionLayer], seen: Seen) -> Iterator[None]:
        """See Family. Keys are those of the whole sequence, the text's first."""
        by_number: dict[Any, AttentionLayer] = {layer.block[1]: layer for layer in layers}
        sizes: dict[str, Any] = {}

        def keep_sizes(module: nn.Module, args: tuple, kwargs: dict) -> None:
            given = dict(zip(("x", "timesteps", "context"), args)) | kwargs
            sizes.update(text=given["context"].shape[1], picture=given["x"].shape[-2:])

        def tell(query: Tensor, key: Tensor, options: Mapping[str, Any]) -> None:
            layer = by_number.get(options.get("block_index")) if options.get("block_type") == "double" else None
            if layer is not None:
                first, pixels = self._padded(sizes["text"]), math.prod(layer.grid(sizes["picture"]))
                query = query[:, :, first:first + pixels]
                seen(layer, _together(query), _together(key), sizes["text"], _no_other_keys)

        hook = self.denoiser.register_forward_pre_hook(keep_sizes, with_kwargs=True)
        try:
            with watched_attention(tell):
                yield
        finally:
            hook.remove()

    def recomputable(self, except_for: AttentionLayer | None = None) -> list[nn.Module]:
        """See Family."""
        left_out = None if except_for is None else self.denoiser.layers[except_for.block[1]]
        return [block for block in self.denoiser.modules()
                if isinstance(block, JointTransformerBlock) and block is not left_out]

    def adaptable(self, which: Weights) -> dict[str, nn.Module]:
        """Linear layers; see Family. Text and picture share one projection. Raises ValueError for the text's alone."""
        if which == "text keys and values":
            raise ValueError("The model projects keys and values of text and picture by the same weights; choose "
                             "another part to train.")
        endings = _ATTENTION if which == "attention" else ("",)
        return adaptable_modules(self.denoiser, endings)

    def _padded(self, tokens: int) -> int:
        """Rows of the text in the joint sequence."""
        multiple = self.denoiser.pad_tokens_multiple or 1
        return -(-tokens // multiple) * multiple


def _together(by_head: Tensor) -> Tensor:
    """(rows, n, heads · d) from (rows, heads, n, d)."""
    return by_head.transpose(1, 2).flatten(2)


def _no_other_keys(context: Tensor) -> Tensor:
    raise ValueError("In this model the keys of a prompt come about together with the picture's, so those of another "
                     "prompt cannot be put in their place; set attention to exact.")
