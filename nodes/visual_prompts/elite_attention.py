"""ELITE in a MODEL: its keys and values for the text, and its attention to the picture's patches."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..attention.branch import branch_conditionings, in_branch
from ..attention.calls import with_entries
from ..attention.schedule import WHOLE_SCHEDULE
from ..attention.token_groups import TokenGroups
from ..attention.words import Words, groups_in, watched_chunks, watched_conditionings
from ..families.attention import Attention
from ..families.layers import AttentionLayer
from ..text.layout import VISUAL
from .added_attention import Options, with_added_attention
from .elite import word_attention
from .elite_files import Elite, Layer
from .keys_values import KeysValues, keys_values
from .tokens import VisualTokens

KEY = "personalize.elite"
PICTURE = Words((VISUAL,))


@dataclass(frozen=True)
class EliteTokens(VisualTokens):
    """What ELITE sees: vectors (B, 1, d) are words; local: (B or 1, P, d) patches of the subject."""

    local: Tensor | None = None


def with_elite(model, elite: Elite, tokens: VisualTokens, text_strength: float, local_strength: float,
               window: tuple[float, float] = WHOLE_SCHEDULE):
    """A clone of `model` with ELITE's cross-attention; `model` itself if both strengths are 0.

    text_strength: share of ELITE's keys and values for the text, 0…1; local_strength: λ; window: where λ acts, shares
    of the schedule. Raises ValueError if files, tokens and model do not belong together or it carries ELITE already.
    """
    layers = elite.layers_of(model)
    if not isinstance(tokens, EliteTokens) or tokens.local is None:
        raise ValueError(f"These visual tokens come from {tokens.source}; connect Encode Picture (ELITE).")
    if model.get_wrappers(WrappersMP.SAMPLER_SAMPLE, KEY):
        raise ValueError("This MODEL already carries ELITE; apply it only once.")
    if not text_strength and not local_strength:
        return model
    patched = _with_text_weights(model, layers, text_strength) if text_strength else model.clone()
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, _find_words)
    if not local_strength:
        return patched
    local = keys_values({each.layer: each.local for each in layers}, tokens.local)
    return with_added_attention(patched, LocalAttention(local, local_strength), window)


def _with_text_weights(model, layers: Sequence[Layer], strength: float):
    """A clone whose to_k and to_v are (1 - strength) · its own + strength · ELITE's, before any LoRA is added.

    ComfyUI applies weight patches in their order, a LoRA's being added; so this one is put first.
    """
    patched = model.clone()
    weights = {f"{each.prefix}.{part}.weight": ("diff", (value,))
               for each in layers for part, value in zip(("to_k", "to_v"), each.text, strict=True)}
    patched.add_patches(weights, strength, 1 - strength)
    for key in weights:
        *others, newest = patched.patches[key]
        patched.patches[key] = [newest, *others]
    return patched


def _find_words(executor, guider, sigmas, extra_args, *args, **kwargs):
    """SAMPLER_SAMPLE wrapper: tells the patches of this run which conditionings hold the picture's word, and where."""
    held = watched_conditionings(guider, PICTURE)
    if not held:
        raise ValueError("The sampler's positive conditioning does not hold the picture; encode the prompt with Encode "
                         "Prompt with Picture, with {} where the picture's word shall stand.")
    options = with_entries(extra_args["model_options"], {KEY: held})
    return executor(guider, sigmas, {**extra_args, "model_options": options}, *args, **kwargs)


@dataclass(frozen=True, eq=False)
class LocalAttention:
    """λ · m ⊙ attention to the local patches, in rows whose conditioning holds the word: an Addition."""

    patches: KeysValues
    strength: float

    def __call__(self, layer: AttentionLayer, attention: Attention, n: Tensor, context: Tensor,
                 options: Options) -> Tensor | None:
        """(rows, pixels, heads · d)."""
        places = self._words(options)
        if not places:
            return None
        count = len(options["cond_or_uncond"])
        query = attention.queries(n)
        parts = []
        for index, (rows, text) in enumerate(zip(query.chunk(count), context.chunk(count), strict=True)):
            if index not in places:
                parts.append(torch.zeros_like(rows))
                continue
            keys = attention.keys(places[index].keys(text))
            column = word_attention(rows, keys, layer.heads, places[index].in_copies(keys.shape[1])[0])
            seen = attention.attend(rows, *self.patches.rows(layer, rows, options), options)
            parts.append((seen.unflatten(-1, (layer.heads, -1)) * column).flatten(2))
        return torch.cat(parts) * self.strength

    @staticmethod
    def _words(options: Options) -> dict[int, TokenGroups]:
        """Index in options["cond_or_uncond"] → the word's places in its conditioning."""
        if in_branch(options):
            held = {each["uuid"]: _place(each) for each in branch_conditionings(options)}
            found = {index: held.get(uuid) for index, uuid in enumerate(options["uuids"])}
            return {index: groups for index, groups in found.items() if groups}
        chunks = watched_chunks(options, options.get(KEY, {}))
        return {index: each.groups for index, each in chunks.items()}


def _place(conditioning: Mapping[str, Any]) -> TokenGroups | None:
    positions = PICTURE.of(conditioning).get(VISUAL)
    return groups_in(conditioning["cross_attn"], [positions]) if positions else None
