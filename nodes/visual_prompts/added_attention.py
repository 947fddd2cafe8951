"""Further attention added to the text attention of a U-Net's layers, beside whatever other patches do there."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..attention.calls import put_first, rows_told
from ..attention.schedule import WHOLE_SCHEDULE, NoiseRange
from ..attention.sides import say_once, tell_sides
from ..families.attention import Attention
from ..families.layers import AttentionLayer, place_in
from ..families.unet import RunningAttentions

OTHER_ROWS = ("Apply IP-Adapter or Apply ELITE did not act in a part of this run: another node changes the number of "
              "pictures inside the model's call, as tiled samplers do, so that they cannot be told apart; take that "
              "node out.")
Options = Mapping[str, Any]


class Addition(Protocol):
    """What is added. Holds no state of a run."""

    def __call__(self, layer: AttentionLayer, attention: Attention, n: Tensor, context: Tensor,
                 options: Options) -> Tensor | None:
        """(rows, pixels, heads · d) to be added to the heads' output, before the layer's output projection; or None.

        n: (rows, pixels, channels), input of the queries. context: (rows, T, C), input of the keys.
        """


def with_added_attention(model, addition: Addition, window: tuple[float, float] = WHOLE_SCHEDULE):
    """A clone of `model` whose cross-attention gives to_out(heads' output + addition).

    window: start and end of what is changed as shares of the schedule, 0 the noisiest. Outside it the layers compute
    what they did before, bit for bit. Clones can be patched again: additions add up. The addition can ask `side_at`.
    """
    patches = _Patches(addition, NoiseRange.of(model, window), f"personalize.added.{uuid4().hex}")
    patched = model.clone()
    tell_sides(patched)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, patches.key, patches.run)
    patched.set_model_attn2_patch(patches.before)
    put_first(patched, "attn2_patch")
    patched.set_model_attn2_output_patch(patches.after)
    return patched


@dataclass(frozen=True, eq=False)
class _Patches:
    """The three places that make one addition; what passes between them travels in the call's own options."""

    addition: Addition
    noise: NoiseRange
    key: str
    attentions: RunningAttentions = field(default_factory=RunningAttentions)
    NOT_IN_KEY = ("key", "attentions")

    def run(self, executor, x, timesteps, context, y, control, transformer_options, *args, **kwargs):
        """DIFFUSION_MODEL wrapper: inside the window gives the patches the U-Net that runs."""
        if self.noise.holds(float(transformer_options["sigmas"][0])):
            if rows_told(len(x), transformer_options):
                transformer_options = {**transformer_options, self.key: self.attentions.of(executor.class_obj)}
            else:
                say_once(transformer_options, OTHER_ROWS)
        return executor(x, timesteps, context, y, control, transformer_options, *args, **kwargs)

    def before(self, n: Tensor, context: Tensor, value: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
        """attn2_patch: computes the addition and leaves it in the block's options."""
        layers = options.get(self.key)
        if layers is not None:
            layer, attention = layers[place_in(options)]
            options[self._result] = attention, self.addition(layer, attention, n, context, options)
        return n, context, value

    def after(self, n: Tensor, options: dict) -> Tensor:
        """attn2_output_patch: adds it, projected."""
        attention, added = options.get(self._result, (None, None))
        if added is None:
            return n
        if added.shape[:2] != n.shape[:2]:
            raise ValueError("A node after this pack's has changed the number of rows or pixels inside the model's "
                             "attention, as regional prompting does; put that node before Apply IP-Adapter or Apply "
                             "ELITE.")
        return n + _projected(attention, added.to(n.dtype))

    @property
    def _result(self) -> str:
        return f"{self.key}.result"


def _projected(attention: Attention, added: Tensor) -> Tensor:
    """The output projection without its bias, which the layer itself has added; through the module, because ComfyUI
    applies LoRAs there."""
    return attention.output(added) - attention.output(torch.zeros_like(added[:1, :1]))
