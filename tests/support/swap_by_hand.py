"""Self-attention swap the slow way: the branch is sampled first, alone; its K', V' are kept and used in plain loops."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import interpolate

from .attention_by_hand import naive_attention

KeysValues = list[list[tuple[torch.Tensor, torch.Tensor]]]  # evaluation → transformer block → K', V' of all rows


def transformer_blocks(unet) -> list:
    """The U-Net's transformer blocks in the order in which they run."""
    from comfy.ldm.modules.attention import BasicTransformerBlock

    parts = [*unet.input_blocks, unet.middle_block, *unet.output_blocks]
    return [module for part in parts for module in part.modules() if isinstance(module, BasicTransformerBlock)]


def kept_keys_and_values(unet, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, KeysValues]:
    """What `run` gives, and K' and V' of every self-attention in every evaluation of the U-Net."""
    kept: KeysValues = []
    blocks = transformer_blocks(unet)
    hooks = [unet.register_forward_pre_hook(lambda *_: kept.append([]))]
    for block in blocks:
        keys = []
        hooks.append(block.attn1.to_k.register_forward_hook(lambda m, a, out, keys=keys: keys.append(out.clone())))
        hooks.append(block.attn1.to_v.register_forward_hook(
            lambda m, a, out, keys=keys: kept[-1].append((keys.pop(), out.clone()))))
    try:
        return run(), kept
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class MaskByHand:
    """Mean over steps so far, layers, heads and tokens of the conditional rows' attention, above a threshold.

    layers: places of transformer blocks in running order. tokens: positions of the subject.
    """

    layers: Sequence[int]
    tokens: Sequence[int]
    threshold: float

    def __post_init__(self):
        self.maps: list[torch.Tensor] = []

    def add(self, probabilities: torch.Tensor, conditional: slice) -> None:
        """probabilities: (rows, heads, pixels, tokens) of one layer."""
        self.maps.append(probabilities[conditional][..., list(self.tokens)].sum(-1).mean(1))

    def mask(self) -> torch.Tensor | None:
        """(images, 1, side, side) of 0 and 1; None before the first evaluation."""
        if not self.maps:
            return None
        mean = sum(self.maps) / len(self.maps)
        low, high = mean.amin(1, keepdim=True), mean.amax(1, keepdim=True)
        side = int(mean.shape[1] ** 0.5)
        return ((mean - low) / (high - low) > self.threshold).float().reshape(-1, 1, side, side)


@contextlib.contextmanager
def swapping(unet, kept: KeysValues, first: int, layers: Sequence[int], images: int,
             mask: MaskByHand | torch.Tensor | None = None, negative: float = 1.0):
    """While open, from evaluation `first` on, the self-attentions of `layers` follow Eq. 5 with the kept K', V'.

    mask: by attention, given (images, 1, side, side), or None for Eq. 4, everywhere. negative: times the mask of the
    negative side. Yields the masks used. Rows are the negative's, if there is one, then the positive's.
    """
    by_attention = isinstance(mask, MaskByHand)
    blocks, used, state = transformer_blocks(unet), [], {"evaluation": -1, "mask": None}

    def count(*_):
        state["evaluation"] += 1
        state["mask"] = mask.mask() if by_attention else torch.ones(images, 1, 1, 1) if mask is None else mask
        used.append(state["mask"])

    def self_attention(place, attention):
        def forward(x, context=None, value=None, **_):
            query, key, value = (project(part) for project, part in (
                (attention.to_q, x), (attention.to_k, x if context is None else context),
                (attention.to_v, x if value is None else value)))
            out = attend(query, key, value, attention.heads)
            evaluation, m = state["evaluation"], state["mask"]
            if evaluation >= first and place in layers and m is not None:
                other = attend(query, *kept[evaluation][place], attention.heads)
                side = int(x.shape[1] ** 0.5)
                inside = interpolate(m, (side, side), mode="nearest" if side >= m.shape[-1] else "area")
                inside = inside.expand(images, 1, side, side).flatten(1)[..., None]
                inside = torch.cat([negative * inside, inside])[-len(x):]
                out = other * inside + out * (1 - inside)
            return attention.to_out(out)
        return forward

    def cross_attention(place, attention):
        def hook(module, args, kwargs, output):
            if by_attention and place in mask.layers:
                x, context = args[0], kwargs["context"]
                mask.add(naive_attention(attention.to_q(x), attention.to_k(context), attention.heads),
                         slice(len(x) - images, None))
        return hook

    hooks = [unet.register_forward_pre_hook(count)]
    for place, block in enumerate(blocks):
        block.attn1.forward = self_attention(place, block.attn1)
        hooks.append(block.attn2.register_forward_hook(cross_attention(place, block.attn2), with_kwargs=True))
    try:
        yield used
    finally:
        for block in blocks:
            del block.attn1.forward
        for hook in hooks:
            hook.remove()


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    """softmax(QKᵀ/√d)V, (rows, pixels, width), row after row and head after head."""
    result, dim = torch.zeros_like(query), query.shape[-1] // heads
    for row in range(len(query)):
        for head in range(heads):
            part = slice(head * dim, (head + 1) * dim)
            scores = torch.exp(query[row, :, part] @ key[row, :, part].T / dim ** 0.5)
            result[row, :, part] = scores / scores.sum(1, keepdim=True) @ value[row, :, part]
    return result
