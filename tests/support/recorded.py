"""What tests of recorded attention share: a recorder, and the maps of an unpatched run by hand."""
from __future__ import annotations

import torch

from personalize.nodes.attention.words import Words
from personalize.nodes.families.find import family_of, unet_of
from personalize.nodes.recording.record import Record
from personalize.nodes.recording.sampling_recorder import recording_model

from .attention_by_hand import naive_attention, projections
from .sampling import sample

PROMPT = "a photo of a dog in a red hat"
DOG, HAT = (5,), (8, 9)
LONG = ", ".join(["a very long prompt"] * 22) + ", a dog"  # two chunks


def recording(model, words=Words(), layers=None, window=(0.0, 1.0), every_step=True):
    """(MODEL, Record)."""
    record = Record("the test", every_step)
    return recording_model(model, record, layers or family_of(model).layers, words, window), record


def plain_run(model, *args, **kwargs):
    """(result, seen): the unpatched model's result, and what each layer projected in each call of the U-Net."""
    with projections(unet_of(model).denoiser) as seen:
        result = sample(model, *args, **kwargs)
    return result, seen


def by_hand(seen, layer, call=0):
    """(rows, pixels, T), mean over heads."""
    heads, kept = seen[layer.order]
    return naive_attention(kept[2 * call].float(), kept[2 * call + 1].float(), heads).mean(1)


def close(found, expected):
    """float16 keeps three digits."""
    return torch.allclose(found.flatten(1), expected, rtol=2e-3, atol=1e-6)
