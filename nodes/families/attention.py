"""One attention of a denoiser by what it is made of, computed as ComfyUI computes it."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfy.ldm.modules.attention import CrossAttention, optimized_attention
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Attention:
    """A module's projections, called through the module so that LoRAs and other weight patches act.

    Queries, keys and values are (rows, pixels or tokens, heads · d).
    """

    module: CrossAttention

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.module.heads

    @property
    def context_width(self) -> int:
        """Width of the context that keys and values are projected from."""
        return self.module.to_k.weight.shape[1]

    def queries(self, x: Tensor) -> Tensor:
        """Of what attends."""
        return self.module.to_q(x)

    def keys(self, context: Tensor) -> Tensor:
        """Of what is attended to."""
        return self.module.to_k(context)

    def values(self, context: Tensor) -> Tensor:
        """Of what is attended to."""
        return self.module.to_v(context)

    def output(self, attended: Tensor) -> Tensor:
        """The heads' output, projected."""
        return self.module.to_out(attended)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: Mapping[str, Any] | None,
               mask: Tensor | None = None) -> Tensor:
        """softmax(QKᵀ/√d + mask)V, (rows, pixels, heads · d), by the computation that ComfyUI or the user chose.

        options: transformer_options of the run, which may name another computation.
        """
        return optimized_attention(query, key, value, self.module.heads, mask=mask,
                                   attn_precision=self.module.attn_precision, transformer_options=options)
