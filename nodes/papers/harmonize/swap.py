"""Self-attention swap while sampling: the visual-only branch's keys and values inside the subject's mask."""
from __future__ import annotations

from torch import Tensor

from ...attention.branch import Branch, with_branch
from ...attention.calls import put_first
from ...families.find import unet_of
from ...recording.record import Record
from ...recording.sampling_recorder import recording_model
from .swap_run import SwapRun
from .swap_settings import SWAP_LAYERS, AttentionMask, SwapSettings


def with_swap(model, branch: Branch, settings: SwapSettings, record: Record):
    """A clone of `model` that samples the branch beside the picture and swaps as `settings` say, filling `record`.

    The same model, with nothing added, if the settings swap nothing. Raises ValueError if it carries a branch already
    or has no cross-attention.
    """
    layers = unet_of(model).layers
    swapped = [layer for layer in layers if SWAP_LAYERS[settings.layers](layer, layers)]
    if not swapped or not settings.strength:
        return model

    def start(guider, sigmas: Tensor, noise: Tensor) -> SwapRun | None:
        return SwapRun.begun(settings, swapped, record, guider, sigmas, noise)

    patched = with_branch(model, branch, start)
    if isinstance(settings.mask, AttentionMask):
        mask = settings.mask
        patched = recording_model(patched, record, layers, mask.words, chosen=lambda size: mask.layers(layers, size))
        put_first(patched, "attn2_patch")
    return patched
