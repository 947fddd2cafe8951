"""Lumina 2 and Z-Image: one sequence of text and picture, in which the picture's rows attend to the text's."""
from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from uuid import uuid4

from comfy.ldm.lumina.model import JointTransformerBlock, NextDiT
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from .adaptable import adaptable_modules
from .differentiable import OVERRIDE, in_training, watched_attention
from .family import Attending, PreviewDefaults, Projected, Seen, Watcher, Weights
from .layers import AttentionLayer

_ATTENTION = ("attention.qkv", "attention.out")


class Lumina:
    """A Family."""

    models = "Lumina 2, Z-Image"
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
        """See Family. Keys are those of the whole sequence."""
        calls: list[_Call] = []

        def keep_call(module: nn.Module, args: tuple, kwargs: dict) -> None:
            calls[:] = [_Call.of(self.denoiser, *args, **kwargs)]

        def tell(query: Tensor, key: Tensor, options: Mapping[str, Any]) -> None:
            layer = _layer_in(options, layers)
            if layer is not None:
                seen(layer, calls[0].projected(layer, query, key), _no_other_keys)

        hook = self.denoiser.register_forward_pre_hook(keep_call, with_kwargs=True)
        try:
            with watched_attention(tell):
                yield
        finally:
            hook.remove()

    def watch_sampling(self, model, layers: Sequence[AttentionLayer], watcher: Watcher) -> None:
        """See Family."""
        watching = _WatchedSampling(tuple(layers), watcher)
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, f"personalize.watching.{uuid4().hex}", watching.run)

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


@dataclass(frozen=True)
class _Call:
    """Where text and picture stand in the joint sequence of a call of the denoiser: texts, each filled up, the last of
    them the prompt's, and pictures, the last of them the one that is drawn. Others are there for reference.

    size: height and width of the latent. tokens: of the prompt. before: rows before them. multiple: what the rows of
    each text and picture are filled up to.
    """

    size: tuple[int, int]
    tokens: int
    before: int
    multiple: int

    @classmethod
    def of(cls, denoiser: NextDiT, x: Tensor, timesteps: Tensor, context: Tensor, *_,
           ref_latents: Sequence[Tensor] = (), ref_contexts: Sequence[Tensor] = (), **__) -> _Call:
        """Of what the denoiser is called with."""
        multiple = denoiser.pad_tokens_multiple or 1
        texts = [ref_contexts[i].shape[1] if i < len(ref_contexts) else 1 for i in range(len(ref_latents))]
        height, width = x.shape[-2:]
        return cls((height, width), context.shape[1], sum(_filled(text, multiple) for text in texts), multiple)

    def rows(self, layer: AttentionLayer) -> int:
        """Of the sequence, at least."""
        pixels = math.prod(layer.grid(self.size))
        return self.before + _filled(self.tokens, self.multiple) + _filled(pixels, self.multiple)

    def projected(self, layer: AttentionLayer, query: Tensor, key: Tensor) -> Projected:
        """From queries and keys (rows, heads, n, d) of the whole sequence."""
        pixels = math.prod(layer.grid(self.size))
        first = query.shape[2] - _filled(pixels, self.multiple)
        if self.before:
            key = key.roll(-self.before, 2)
        return Projected(_together(query[:, :, first:first + pixels]), _together(key), self.tokens)


@dataclass(frozen=True, eq=False)
class _WatchedSampling:
    """Patch of a MODEL."""

    layers: tuple[AttentionLayer, ...]
    watcher: Watcher

    def run(self, executor, *args, transformer_options: dict, **kwargs):
        """DIFFUSION_MODEL wrapper. Attention is computed by whatever another node has chosen for it."""
        call = _Call.of(executor.class_obj, *args, **kwargs)
        computed = transformer_options.get(OVERRIDE, _as_chosen)
        options = {**transformer_options, OVERRIDE: functools.partial(self.attention, call, computed)}
        return executor(*args, transformer_options=options, **kwargs)

    def attention(self, call: _Call, computed, function, query: Tensor, key: Tensor, *args, **kwargs) -> Tensor:
        """ComfyUI's override of the attention `function`; query, key: (rows, heads, n, d)."""
        options = kwargs.get("transformer_options") or {}
        layer = _layer_in(options, self.layers)
        if layer is not None and query.shape[2] == key.shape[2] >= call.rows(layer):
            def project(rows, read):
                return call.projected(layer, query[rows], key[rows])

            self.watcher(Attending(layer, options, call.size, layer.grid(call.size), len(query), project))
        return computed(function, query, key, *args, **kwargs)


def _layer_in(options: Mapping[str, Any], layers: Sequence[AttentionLayer]) -> AttentionLayer | None:
    """Which of the layers computes attention with these transformer_options."""
    block = options.get("block_type"), options.get("block_index")
    return next((layer for layer in layers if layer.block == block), None)


def _filled(rows: int, multiple: int) -> int:
    return -(-rows // multiple) * multiple


def _as_chosen(function, *args, **kwargs) -> Tensor:
    return function(*args, **kwargs)


def _together(by_head: Tensor) -> Tensor:
    """(rows, n, heads · d) from (rows, heads, n, d)."""
    return by_head.transpose(1, 2).flatten(2)


def _no_other_keys(context: Tensor) -> Tensor:
    raise ValueError("In this model the keys of a prompt come about together with the picture's, so those of another "
                     "prompt cannot be put in their place; set attention to exact.")
