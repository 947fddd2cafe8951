"""IP-Adapter's attention in a MODEL: each row of a sampling run looks at the tokens that are meant for it."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention.branch import in_branch
from ..attention.sides import side_at
from ..families.attention import Attention
from ..families.layers import AttentionLayer
from .added_attention import Options
from .ip_adapter_files import IPAdapter
from .keys_values import KeysValues, keys_values
from .tokens import IP_ADAPTER, VisualTokens


@dataclass(frozen=True, eq=False)
class TokenAttention:
    """Attention to visual tokens: an Addition for `with_added_attention`.

    strength: factor of what is added. positive, negative: for the picture's rows on either side of guidance; branch:
    for the positive rows of a second branch. None: nothing is added there.
    """

    strength: float
    positive: KeysValues
    negative: KeysValues | None
    branch: KeysValues

    def __call__(self, layer: AttentionLayer, attention: Attention, n: Tensor, context: Tensor,
                 options: Options) -> Tensor:
        """(rows, pixels, heads · d)."""
        parts = attention.queries(n).chunk(len(options["cond_or_uncond"]))
        seen = [self._seen(layer, attention, part, self._tokens_for(index, options), options)
                for part, index in zip(parts, options["cond_or_uncond"], strict=True)]
        return torch.cat(seen) * self.strength

    def _tokens_for(self, index: int, options: Options) -> KeysValues | None:
        if side_at(options, index) == "negative":
            return self.negative
        return self.branch if in_branch(options) else self.positive

    @staticmethod
    def _seen(layer: AttentionLayer, attention: Attention, query: Tensor, tokens: KeysValues | None, options: Options
              ) -> Tensor:
        if tokens is None:
            return torch.zeros_like(query)
        return attention.attend(query, *tokens.rows(layer, query, options), options)


def token_attention(model, adapter: IPAdapter, tokens: VisualTokens, strength: float,
                    branch: VisualTokens | None = None) -> TokenAttention:
    """What IP-Adapter adds to `model`.

    branch: tokens for a second branch (Self-Attention Swap) in place of `tokens`.
    Raises ValueError if adapter, tokens and model do not belong together.
    """
    layers = adapter.layers_of(model)
    for each in filter(None, (tokens, branch)):
        _check(adapter, each)
    positive = keys_values(layers, tokens.vectors)
    negative = None if tokens.negative is None else keys_values(layers, tokens.negative)
    in_the_branch = positive if branch is None else keys_values(layers, branch.vectors)
    return TokenAttention(strength, positive, negative, in_the_branch)


def _check(adapter: IPAdapter, tokens: VisualTokens) -> None:
    if (tokens.source, tokens.vectors.shape[-1]) != (IP_ADAPTER, adapter.token_width):
        raise ValueError(f"These visual tokens come from {tokens.source} and have width {tokens.vectors.shape[-1]}, "
                         f"but {adapter.name} takes those of IP-Adapter of width {adapter.token_width}; connect Encode "
                         "Picture (IP-Adapter) with the same file.")
