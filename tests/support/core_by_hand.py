"""CoRe's losses written a second time, naively, from the paper and from what is known of the authors' code.

Prompts are split by `prompts_by_hand`, encoded and denoised by ComfyUI's own calls; everything else is loops.
"""
from __future__ import annotations

import math

import torch

from .attention_by_hand import naive_attention, projections
from .prompts_by_hand import END, chunks_by_hand, words_to_ids

PADS = {"l": END, "h": 0, "g": 0}


class PromptByHand:
    """A prompt `before` + subject + `after`. subject: words, or token key ("l", "g", "h") → (n, d) vectors."""

    def __init__(self, token_keys, before: str, subject, after: str):
        self.token_keys, self.before = token_keys, before
        contents = {key: subject if isinstance(subject, str) else subject[key] for key in token_keys}
        self.chunks = {key: chunks_by_hand([(text, 1.0) for text in (before,) if text] + [(contents[key], 1.0)]
                                           + [(text, 1.0) for text in after.split(" ") if text], PADS[key])
                       for key in token_keys}
        first = contents[token_keys[0]]
        self.count = len(words_to_ids(first)) if isinstance(first, str) else len(first)

    def encode(self, clip):
        """(cond (1, T, C), pooled) by ComfyUI's own call."""
        return clip.encode_from_tokens({key: [list(c) for c in chunks] for key, chunks in self.chunks.items()},
                                       return_pooled=True)

    def kept(self) -> list[tuple[int, int]]:
        """(position, token) of start, words and first end of every chunk, without the subject, without padding."""
        begin = len(words_to_ids(self.before))
        kept, word = [], 0
        for number, chunk in enumerate(self.chunks[self.token_keys[0]]):
            for offset, (token, _) in enumerate(chunk):
                is_end = isinstance(token, int) and token == END
                if 0 < offset and not is_end:
                    word += 1
                    if begin <= word - 1 < begin + self.count:
                        continue
                kept.append((number * len(chunk) + offset, token))
                if is_end:
                    break
        return kept


def embedding_loss(ours, theirs, our_kept, their_kept, released: bool) -> float:
    """Eq. 3 for one row: contexts (T, C), kept positions in the same order."""
    a = [[float(x) for x in ours[i]] for i in our_kept]
    b = [[float(x) for x in theirs[i]] for i in their_kept]
    if released:
        a, b = list(zip(*a)), list(zip(*b))
    return sum(1 - _cosine(x, y) for x, y in zip(a, b, strict=True)) / len(a)


def _cosine(x, y) -> float:
    return sum(p * q for p, q in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))


def attention_loss(ours, theirs, our_kept, their_kept, released: bool) -> float:
    """Eq. 4 over a batch. ours, theirs: per row, per layer, maps (heads, pixels, T); kept: per row."""
    total = 0.0
    for our_maps, their_maps, mine, others in zip(ours, theirs, our_kept, their_kept, strict=True):
        squares = []
        for i, j in zip(mine, others, strict=True):
            layers = [float(m[..., i].double().mean() - n[..., j].double().mean()) for m, n in zip(our_maps, their_maps)]
            if released:
                squares.append(sum(x * x for x in layers) / len(layers))
            else:
                squares.append((sum(layers) / len(layers)) ** 2)
        total += sum(squares) / len(squares)
    return total if released else total / len(ours)


def maps_of_pass(model, noisy, sigma, cond, pooled, keys=None):
    """Per layer (rows, heads, pixels, T) of one whole run of ComfyUI's denoiser.

    keys: what `maps_of_pass` gave for another prompt as its second value: its keys with this run's queries.
    Returns maps and, per layer, the keys.
    """
    base, rows = model.model, len(noisy)
    extra = {}
    if pooled is not None and base.is_adm():
        extra["y"] = base.encode_adm(pooled_output=pooled, width=noisy.shape[3] * 8, height=noisy.shape[2] * 8,
                                     device=noisy.device).expand(rows, -1)
    with torch.no_grad(), projections(base.diffusion_model) as seen:
        base.apply_model(noisy, sigma, c_crossattn=cond.expand(rows, -1, -1), transformer_options={}, **extra)
    used = keys or [key for _, (_, key) in seen]
    return [naive_attention(query, key, heads) for (heads, (query, _)), key in zip(seen, used)], [k for _, (_, k) in seen]
