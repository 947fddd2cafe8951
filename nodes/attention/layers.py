"""The cross-attention layers of a U-Net, found and put in execution order: the only file that knows the U-Net."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterable, Iterator, Mapping

from comfy.ldm.modules.attention import BasicTransformerBlock, SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel, Upsample

Place = tuple[tuple[str, int], int]


@dataclass(frozen=True)
class AttentionLayer:
    """One transformer block of the U-Net that has cross-attention.

    block: ComfyUI's block key: ("input" | "middle" | "output", index).
    depth: index of the transformer block inside its SpatialTransformer.
    order: place in execution order, 0 for the first that runs.
    channels: width of queries and keys, all heads together.
    heads: number of heads.
    stride: latent pixels per attention pixel along one side (1, 2, 4 or 8).
    """

    block: tuple[str, int]
    depth: int
    order: int
    channels: int
    heads: int
    stride: int

    @property
    def place(self) -> Place:
        """Where the layer is; see `place_in`."""
        return self.block, self.depth


def attention_layers(model) -> tuple[AttentionLayer, ...]:
    """Cross-attention layers of a ComfyUI MODEL (or of its U-Net) in execution order.

    SD1.x has 16, SDXL has 70. Raises ValueError naming the model if it is no U-Net with cross-attention.
    """
    found = []
    for block, stride, transformer in _spatial_transformers(unet_of(model)):
        for depth, layer in enumerate(transformer.transformer_blocks):
            if layer.attn2 is not None:
                inner = layer.attn2.heads * layer.attn2.dim_head
                found.append(AttentionLayer(block, depth, len(found), inner, layer.attn2.heads, stride))
    if not found:
        raise ValueError(f"The model {_name(model)} has no text cross-attention; use SD1.x, SD2.x or SDXL.")
    return tuple(found)


def transformer_block(model, layer: AttentionLayer) -> BasicTransformerBlock:
    """The module behind `layer`."""
    return spatial_transformer(model, layer).transformer_blocks[layer.depth]


def place_in(options: Mapping[str, Any]) -> Place:
    """Place of the transformer block that an attention patch runs in, given the patch's options."""
    return tuple(options["block"]), options["block_index"]


def blocks_by_place(model, layers: Iterable[AttentionLayer]
                    ) -> dict[Place, tuple[AttentionLayer, BasicTransformerBlock]]:
    """The modules behind `layers`. Raises ValueError if the U-Net does not have them."""
    if not set(layers) <= set(attention_layers(model)):
        raise ValueError("The sampler runs a model whose U-Net is built otherwise than that of the MODEL that was "
                         "patched; sample with models of one kind.")
    transformers = {block: transformer for block, _, transformer in _spatial_transformers(unet_of(model))}
    return {layer.place: (layer, transformers[layer.block].transformer_blocks[layer.depth]) for layer in layers}


def spatial_transformer(model, layer: AttentionLayer) -> SpatialTransformer:
    """The SpatialTransformer that holds `layer`."""
    return next(transformer for block, _, transformer in _spatial_transformers(unet_of(model)) if block == layer.block)


def unet_of(model) -> UNetModel:
    """The U-Net of a ComfyUI MODEL. Raises ValueError naming the model if it is not built as one."""
    unet = model if isinstance(model, UNetModel) else model.get_model_object("diffusion_model")
    if not isinstance(unet, UNetModel):
        raise ValueError(f"The model {_name(model)} is no U-Net with text cross-attention; use SD1.x, SD2.x or SDXL.")
    return unet


def _spatial_transformers(unet: UNetModel) -> Iterator[tuple[tuple[str, int], int, SpatialTransformer]]:
    blocks = ([(("input", i), block) for i, block in enumerate(unet.input_blocks)]
              + ([(("middle", 0), unet.middle_block)] if unet.middle_block is not None else [])
              + [(("output", i), block) for i, block in enumerate(unet.output_blocks)])
    stride = 1
    for key, block in blocks:
        for module in block:
            if isinstance(module, SpatialTransformer):
                yield key, stride, module
            elif isinstance(module, Downsample):
                stride *= 2
            elif isinstance(module, Upsample):
                stride //= 2


def _name(model) -> str:
    return type(getattr(model, "model", model)).__name__
