"""Lets the cross-attention layers of a sampled U-Net read a text each, where a CONDITIONING carries one for each.

What the layers read travels beside the context as one more entry of each conditioning of a call, (rows, T, L·C), so
that ComfyUI batches, repeats and parts it by the rules of the context: positive and negative run in one call or in two
exactly as without it, and a conditioning without layers has its own context in all of them. The patch comes before all
other attention patches of a call, so that these see each layer's text as if the U-Net had been given it. Contexts one
after the other along the tokens would do neither: they are too long to share a call with a plain negative prompt, and a
ControlNet or another patch would attend to all layers' words at once. Hooks would make ComfyUI load the model anew.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.conds import CONDCrossAttn
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..families.layers import place_in
from ..families.unet import RunningAttentions
from ..text.layered import LAYERS, text_of_layer
from .calls import Options
from .sides import say_once, tell_sides

KEY = "personalize.layers"
CHANGED = ("A prompt was drawn with the mean of its words for each layer, as another node has changed its conditioning "
           "since it was encoded; put that node before CLIP Text Encode, or leave it out.")
OTHER_ROWS = ("Apply Per-Layer Concept did not act in a part of this run: another node changes the number of pictures "
              "inside the model's call, so that they cannot be told apart; take that node out.")


def read_by_layer(model) -> None:
    """Lets the caller's own clone of a MODEL read such conditionings, and in a call of `apply_model` the input LAYERS
    beside the context. Without one it computes what it did before, bit for bit."""
    if not model.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY):
        tell_sides(model)
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, _calc_cond_batch)
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, _Reader().run)


def _calc_cond_batch(executor, model, conds, x, timestep, model_options):
    layers = max((_layers_of(cond) for listed in conds for cond in listed or ()), default=0)
    if layers:
        options = model_options["transformer_options"]
        conds = [listed and [_with_layers(cond, layers, options) for cond in listed] for listed in conds]
    return executor(model, conds, x, timestep, model_options)


def _layers_of(cond: Mapping[str, Any]) -> int:
    """How many texts a conditioning carries."""
    carried = cond.get(LAYERS)
    return carried["each"].shape[2] // carried["mean"].shape[2] if carried else 0


def _with_layers(cond: Mapping[str, Any], layers: int, options: Options) -> Mapping[str, Any]:
    """The conditioning with what each layer reads, (1, T, L·C)."""
    text = cond["model_conds"].get("c_crossattn")
    if text is None:
        return cond
    each = _each(cond, options)
    each = text.cond.repeat(1, 1, layers) if each is None else each.to(text.cond)
    return {**cond, "model_conds": {**cond["model_conds"], LAYERS: CONDCrossAttn(each)}}


def _each(cond: Mapping[str, Any], options: Options) -> Tensor | None:
    """What a conditioning carries, and after it in every layer what other nodes have joined to its context; None if it
    carries nothing, or its context is another one by now, which is said."""
    if LAYERS not in cond:
        return None
    context, mean, each = cond["cross_attn"], *(cond[LAYERS][name] for name in ("mean", "each"))
    tokens = mean.shape[1]
    if context is not mean and not torch.equal(context[:, :tokens], mean.to(context)):
        say_once(options, CHANGED)
        return None
    return torch.cat([each.to(context), context[:, tokens:].repeat(1, 1, each.shape[2] // mean.shape[2])], 1)


@dataclass(frozen=True, eq=False)
class _Reader:
    """Patches of a MODEL; what layers read travels in the call's own options."""

    attentions: RunningAttentions = field(default_factory=RunningAttentions)
    NOT_IN_KEY = ("attentions",)

    def run(self, executor, x, timesteps, context, y, control, transformer_options, *args, **kwargs):
        """DIFFUSION_MODEL wrapper."""
        each = kwargs.pop(LAYERS, None)
        if each is not None:
            layers, found = self.attentions.of(executor.class_obj), each.shape[2] // context.shape[2]
            if found != len(layers):
                raise ValueError(f"A conditioning has words for {found} layers, but the model that is sampled has "
                                 f"{len(layers)}; encode the prompt with the CLIP that Apply Per-Layer Concept gave "
                                 "for this model.")
            patches = transformer_options.get("patches", {})
            transformer_options = {**transformer_options, KEY: (layers, each), "patches": {
                **patches, "attn2_patch": [self.read, *patches.get("attn2_patch", ())]}}
        return executor(x, timesteps, context, y, control, transformer_options, *args, **kwargs)

    def read(self, n: Tensor, context: Tensor, value: Tensor, options: Options) -> Sequence[Tensor]:
        """attn2_patch. n: (rows, pixels, channels). context, value: (rows, T, C)."""
        layers, each = options[KEY]
        layer, _ = layers[place_in(options)]
        own = text_of_layer(each, len(layers), layer.order)
        if own.shape != context.shape:
            say_once(options, OTHER_ROWS)
            return n, context, value
        return n, own, own
