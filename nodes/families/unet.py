"""The U-Net of SD1.x, SD2.x and SDXL: blocks that look at the picture by themselves, and at the text across."""
from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from comfy.ldm.modules.attention import BasicTransformerBlock, SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, UNetModel, Upsample
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from .adaptable import adaptable_modules
from .attention import Attention
from .differentiable import in_training
from .family import Attending, PreviewDefaults, Projected, Seen, Watcher, Weights
from .layers import AttentionLayer, Place, place_in

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_TEXT_KEYS_AND_VALUES = ("attn2.to_k", "attn2.to_v")

# Name in files of what holds a block's transformer blocks; groups: side and number of the block.
TRANSFORMER_NAME = r"diffusion_model\.(input|output)_blocks\.(\d{1,3})\.\d{1,3}"


def transformer_name_in_sd1(block: tuple[str, int]) -> str:
    """The same in Stable Diffusion 1.x, for a block with attention."""
    side, number = block
    return f"diffusion_model.{side}_blocks.{number}.1"


class UNet:
    """A Family. SD1.x has 16 layers, SDXL has 70."""

    models = "SD1.x, SD2.x, SDXL"
    preview = PreviewDefaults("euler", "normal", 20, 7.0)

    def __init__(self, denoiser: UNetModel):
        self.denoiser = denoiser

    @staticmethod
    def is_kind_of(denoiser: nn.Module) -> bool:
        """Whether a denoiser is built like this."""
        return isinstance(denoiser, UNetModel)

    # ------------------------------------------------------------------------------------------ of every family
    @cached_property
    def layers(self) -> tuple[AttentionLayer, ...]:
        """Layers with cross-attention in execution order."""
        found = []
        for key, (stride, transformer) in self._transformers.items():
            for depth, block in enumerate(transformer.transformer_blocks):
                if block.attn2 is not None:
                    inner = block.attn2.heads * block.attn2.dim_head  # ty: ignore[missing-union-attribute, unsupported-operator]
                    found.append(AttentionLayer(key, depth, len(found), inner, block.attn2.heads, stride))  # ty: ignore[invalid-argument-type, missing-union-attribute]
        return tuple(found)

    @property
    def text_width(self) -> int:
        """See Family."""
        return self.cross_attention(self.layers[0]).context_width

    @property
    def input_channels(self) -> int:
        """See Family."""
        return self.denoiser.in_channels

    def differentiable(self) -> AbstractContextManager[None]:
        """See Family."""
        return in_training()

    @contextlib.contextmanager
    def watch(self, layers: Sequence[AttentionLayer], seen: Seen) -> Iterator[None]:
        """See Family. Hooks at the projections also see layers whose attention itself another pack replaces."""
        with contextlib.ExitStack() as stack:
            for layer in layers:
                module, watched = self.cross_attention(layer).module, _Watched(layer, seen)
                stack.callback(module.to_q.register_forward_hook(watched.keep_query).remove)
                stack.callback(module.to_k.register_forward_hook(watched.tell).remove)
            yield

    def watch_sampling(self, model, layers: Sequence[AttentionLayer], watcher: Watcher) -> None:
        """See Family. Queries and keys are projected once more, so that attention that another pack replaces is seen
        too; keys are those of the context as the patches before this one left it."""
        watching = _WatchedSampling(RunningAttentions(tuple(layers)), watcher, f"personalize.watching.{uuid4().hex}")
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, watching.key, watching.run)
        model.set_model_attn2_patch(watching.see)

    def recomputable(self, except_for: AttentionLayer | None = None) -> list[nn.Module]:
        """Residual and attention blocks; see Family."""
        left_out = None if except_for is None else self._transformer(except_for)
        return [module for module in self.denoiser.modules()
                if isinstance(module, (ResBlock, SpatialTransformer)) and module is not left_out]

    def adaptable(self, which: Weights) -> dict[str, nn.Module]:
        """Linear and convolution layers; see Family."""
        endings = {"attention": _ATTENTION, "text keys and values": _TEXT_KEYS_AND_VALUES, "all": ("",)}[which]
        return adaptable_modules(self.denoiser, endings)

    # ------------------------------------------------------------------------------------------ of the U-Net alone
    def block(self, layer: AttentionLayer) -> BasicTransformerBlock:
        """The transformer block of a layer."""
        return self._transformer(layer).transformer_blocks[layer.depth]  # ty: ignore[invalid-explicit-return]

    def self_attention(self, layer: AttentionLayer) -> Attention:
        """Of a layer's transformer block: the picture's to itself."""
        return Attention(self.block(layer).attn1)

    def cross_attention(self, layer: AttentionLayer) -> Attention:
        """Of a layer's transformer block: the picture's to the text."""
        return Attention(self.block(layer).attn2)  # ty: ignore[invalid-argument-type]

    def self_attentions(self, layers: Iterable[AttentionLayer]) -> dict[Place, tuple[AttentionLayer, Attention]]:
        """The layers by where they are, with their self-attention. Raises ValueError if the U-Net has them not."""
        return {layer.place: (layer, self.self_attention(layer)) for layer in self._held(layers)}

    def cross_attentions(self, layers: Iterable[AttentionLayer]) -> dict[Place, tuple[AttentionLayer, Attention]]:
        """The same with their cross-attention."""
        return {layer.place: (layer, self.cross_attention(layer)) for layer in self._held(layers)}

    def after(self, layer: AttentionLayer) -> nn.Module:
        """The module that runs next after the layer's block, all its transformer blocks included."""
        modules = [module for _, block in self._blocks() for module in block] + [self.denoiser.out]  # ty: ignore[not-iterable]
        return modules[modules.index(self._transformer(layer)) + 1]

    def transformer_name(self, layer: AttentionLayer) -> str:
        """In the MODEL, of what holds the layer's transformer blocks: "diffusion_model.output_blocks.4.1"."""
        return self._name_of(self._transformer(layer))

    def cross_attention_name(self, layer: AttentionLayer) -> str:
        """In the MODEL, of the layer's cross-attention."""
        return self._name_of(self.block(layer).attn2)  # ty: ignore[invalid-argument-type]

    def _held(self, layers: Iterable[AttentionLayer]) -> tuple[AttentionLayer, ...]:
        layers = tuple(layers)
        if not set(layers) <= set(self.layers):
            raise ValueError("The sampler runs a model whose U-Net is built otherwise than that of the MODEL that was "
                             "patched; sample with models of one kind.")
        return layers

    def _name_of(self, wanted: nn.Module) -> str:
        return next(f"diffusion_model.{name}" for name, module in self.denoiser.named_modules() if module is wanted)

    def _transformer(self, layer: AttentionLayer) -> SpatialTransformer:
        return self._transformers[layer.block][1]

    @cached_property
    def _transformers(self) -> Mapping[tuple[str, int], tuple[int, SpatialTransformer]]:
        """Stride and module by block, in execution order."""
        found, stride = {}, 1
        for key, block in self._blocks():
            for module in block:  # ty: ignore[not-iterable]
                if isinstance(module, SpatialTransformer):
                    found[key] = stride, module
                elif isinstance(module, Downsample):
                    stride *= 2
                elif isinstance(module, Upsample):
                    stride //= 2
        return found

    def _blocks(self) -> Iterator[tuple[tuple[str, int], nn.Module]]:
        unet = self.denoiser
        yield from ((("input", i), block) for i, block in enumerate(unet.input_blocks))
        if unet.middle_block is not None:
            yield ("middle", 0), unet.middle_block
        yield from ((("output", i), block) for i, block in enumerate(unet.output_blocks))


@dataclass
class _Watched:
    """One layer: keys are projected right after queries."""

    layer: AttentionLayer
    seen: Seen
    query: Tensor | None = None

    def keep_query(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        """Hook of the queries' projection."""
        self.query = output

    def tell(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        """Hook of the keys' projection; without queries it runs for the keys of another context."""
        query, self.query = self.query, None
        if query is not None:
            self.seen(self.layer, Projected(query, output, output.shape[1]), module)


@dataclass(frozen=True, eq=False)
class RunningAttentions:
    """Layers with their cross-attention in the U-Net that runs, found once in each: with scheduled LoRAs or several
    GPUs ComfyUI samples with copies of the MODEL's. layers: None for all."""

    layers: tuple[AttentionLayer, ...] | None = None
    _found: WeakKeyDictionary = field(default_factory=WeakKeyDictionary)
    NOT_IN_KEY = ("_found",)

    def of(self, denoiser: UNetModel) -> Mapping[Place, tuple[AttentionLayer, Attention]]:
        """By where they are. Raises ValueError if the U-Net has them not."""
        if denoiser not in self._found:
            unet = UNet(denoiser)
            self._found[denoiser] = unet.cross_attentions(unet.layers if self.layers is None else self.layers)
        return self._found[denoiser]


@dataclass(frozen=True, eq=False)
class _WatchedSampling:
    """Patches of a MODEL; the attentions of the U-Net that runs travel in the call's own options."""

    attentions: RunningAttentions
    watcher: Watcher
    key: str
    NOT_IN_KEY = ("key",)

    def run(self, executor, x, timesteps, context, y, control, transformer_options, *args, **kwargs):
        """DIFFUSION_MODEL wrapper."""
        options = {**transformer_options, self.key: self.attentions.of(executor.class_obj)}
        return executor(x, timesteps, context, y, control, options, *args, **kwargs)

    def see(self, n: Tensor, context: Tensor, value: Tensor, options: Mapping[str, Any]
            ) -> tuple[Tensor, Tensor, Tensor]:
        """attn2_patch that returns what it is given. n: (rows, pixels, channels); context, value: (rows, T, C)."""
        layer, attention = options.get(self.key, {}).get(place_in(options), (None, None))
        if layer is not None and n.shape[1] == math.prod(options["activations_shape"][-2:]):
            grid, size = (tuple(options[name][-2:]) for name in ("activations_shape", "original_shape"))

            def project(rows, read):
                keys = attention.keys(read(context[rows]))
                return Projected(attention.queries(n[rows]), keys, keys.shape[1])

            self.watcher(Attending(layer, options, size, grid, len(n), project))
        return n, context, value


class TransformerBlock(BasicTransformerBlock):
    """A transformer block like those of the U-Net that stands alone."""

    @property
    def self_attention(self) -> Attention:
        """Of what comes in to itself."""
        return Attention(self.attn1)

    @property
    def cross_attention(self) -> Attention:
        """Of what comes in to a context."""
        return Attention(self.attn2)  # ty: ignore[invalid-argument-type]
