"""Two streams through one frozen U-Net: first the reference, whose features are kept, then the picture, which reads
them in its image blocks. Sampling and training share this file.

The reference's latent goes in as it is, without noise, at the picture's timestep and with its prompt (Eq. 2).
"""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...families.find import unet_of
from ...families.layers import AttentionLayer
from ...families.unet import UNet
from ...recording.pass_recorder import AttentionRecorder, Wanted, beside
from ...text.pairs import taken_apart
from .blocks import ImageBlocks
from .maths import Variant

CALL = "personalize_vico_call"
OF_OTHERS = ("patches", "patches_replace", "wrappers", "callbacks")

Groups = Sequence[Sequence[Sequence[int]]]


@dataclass(frozen=True, eq=False)
class Seen:
    """What a layer gives of the references in one run of the U-Net.

    tokens: (m, P, width), after the layer's own transformer block.
    maps: (m, P, n) float32, attention to each of n groups of the prompt's tokens, mean over heads.
    """

    tokens: Tensor
    maps: Tensor


@dataclass(frozen=True, eq=False)
class Features:
    """What the image block of one layer reads: tokens (m, K, width), and which of them count, (m, K) or None."""

    tokens: Tensor
    mask: Tensor | None


@dataclass(frozen=True, eq=False)
class Reading:
    """Makes the picture's rows read the reference in one run of the U-Net; put into transformer_options[CALL].

    features: layer → what its image block reads.
    rows: (R,) int64 on the CPU, which of the m features each row reads, −1 for none; None if m is R or 1 and all rows
        read.
    strength: 1 for the image block's output, less for a mean of it and what came in.
    """

    blocks: ImageBlocks
    features: Mapping[AttentionLayer, Features]
    variant: Variant
    rows: Tensor | None = None
    strength: float = 1.0

    def __call__(self, layer: AttentionLayer, x: Tensor, options: Mapping[str, Any]) -> Tensor:
        """(R, P, width) in place of a layer's output of this shape. options: transformer_options of the run."""
        if self.rows is None:
            return self._read(layer, x, None, options)
        reading = self.rows >= 0
        if reading.all():
            return self._read(layer, x, self.rows, options)
        result = x.clone()
        result[reading] = self._read(layer, x[reading], self.rows[reading], options)
        return result

    def _read(self, layer: AttentionLayer, x: Tensor, rows: Tensor | None, options: Mapping[str, Any]) -> Tensor:
        found = self.features[layer]
        rows = rows if len(found.tokens) > 1 else None
        output = self.blocks[layer](x, found.tokens, found.mask, self.variant, rows, options)
        return output if self.strength == 1 else torch.lerp(x, output, self.strength)


@contextlib.contextmanager
def image_attention(model, layers: Sequence[AttentionLayer]) -> Iterator[None]:
    """While the context is open the layers' outputs go through transformer_options[CALL], where that is given; other
    runs of the U-Net stay as they are.

    model: a MODEL or its U-Net.
    """
    unet = unet_of(model)
    with contextlib.ExitStack() as stack:
        for layer in layers:
            hook = unet.block(layer).register_forward_hook(partial(_through_call, layer), with_kwargs=True)
            stack.callback(hook.remove)
        yield


def _through_call(layer: AttentionLayer, module, args, kwargs: Mapping[str, Any], output: Tensor) -> Tensor | None:
    options = kwargs.get("transformer_options", {})
    call = options.get(CALL)
    return None if call is None else call(layer, output, options)


def look_at_references(run: Callable, unet: nn.Module, layers: Sequence[AttentionLayer], latents: Tensor,
                       timesteps: Tensor, context: Tensor, y: Tensor | None, groups: Groups, options: Mapping[str, Any],
                       pairs: bool = False) -> dict[AttentionLayer, Seen]:
    """One run of the U-Net on references, up to the last of the layers; call it inside `image_attention`.

    run: the U-Net's own forward, without wrappers. latents: (m, C, h, w). timesteps: (m,). context: (m, T, C).
    y: (m, A) or None. groups: per row n groups of token positions, each with at least one.
    options: transformer_options of the picture's run; patches of others are left out, as they are made for its rows.
    pairs: whether the context's tokens stand in pairs, see text.pairs.
    """
    taken = _Taking()
    options = {**{key: value for key, value in options.items() if key not in OF_OTHERS},
               "cond_or_uncond": [0], "uuids": [None], CALL: taken,
               "patches": {"attn2_patch": [taken_apart]} if pairs else {}}
    positions, belongs = _columns(groups)
    found = unet_of(unet)
    with beside(), AttentionRecorder(found, [Wanted(tuple(layers), "pixels", positions)]) as recorder, \
            _stopped_after(found, layers[-1]), contextlib.suppress(_Stopped):
        run(latents, timesteps, context, y, None, options)
    return {layer: Seen(taken.tokens[layer], maps @ belongs.to(maps)) for layer, maps in zip(layers, recorder.maps[0])}


@dataclass(eq=False)
class _Taking:
    """Keeps what the layers give; a layer that runs again, for gradient checkpointing, gives the same."""

    tokens: dict[AttentionLayer, Tensor] = field(default_factory=dict)

    def __call__(self, layer: AttentionLayer, x: Tensor, options: Mapping[str, Any]) -> Tensor:
        self.tokens.setdefault(layer, x)
        return x


class _Stopped(Exception):
    """Raised out of the U-Net when the last wanted layer is done."""


@contextlib.contextmanager
def _stopped_after(unet: UNet, layer: AttentionLayer) -> Iterator[None]:
    """Ends runs of the U-Net before the module that follows the layer's block.

    Inside the block itself a run cannot end: gradient checkpointing could not compute it again.
    """
    def stop(*_) -> None:
        raise _Stopped

    hook = unet.after(layer).register_forward_pre_hook(stop)
    try:
        yield
    finally:
        hook.remove()


def _columns(groups: Groups) -> tuple[tuple[tuple[int, ...], ...], Tensor]:
    """Token positions per row, all of one length, and (rows, length, n): 1 where a position belongs to a group."""
    flat = [[(position, i) for i, group in enumerate(row) for position in group] for row in groups]
    length = max(map(len, flat))
    belongs = torch.zeros(len(flat), length, len(groups[0]))
    for row, entries in enumerate(flat):
        for column, (_, group) in enumerate(entries):
            belongs[row, column, group] = 1
    positions = tuple(tuple(position for position, _ in entries) + (0,) * (length - len(entries)) for entries in flat)
    return positions, belongs
