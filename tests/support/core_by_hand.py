"""CoRe's losses written a second time, naively, from the paper and from what is known of the authors' code.

Prompts are split by `prompts_by_hand`, encoded and denoised by ComfyUI's own calls; everything else is loops.
"""
from __future__ import annotations

import math

import torch

from .attention_by_hand import naive_attention, projections
from .prompts_by_hand import END, START, chunks_by_hand, words_to_ids

PADS = {"l": END, "h": 0, "g": 0}


class PromptByHand:
    """A prompt `before` + subject + `after`. subject: words, or token key ("l", "g", "h") → (n, d) vectors."""

    def __init__(self, token_keys, before: str, subject, after: str):
        self.token_keys, self.before = token_keys, before
        contents = {key: subject if isinstance(subject, str) else subject[key] for key in token_keys}
        self.chunks = {key: chunks_by_hand([(piece, 1.0) for piece in (before, contents[key], after) if len(piece)],
                                           PADS[key]) for key in token_keys}
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


def kept_pairs(ours: PromptByHand, theirs: PromptByHand) -> tuple[list[int], list[int]]:
    """Kept positions of both prompts in an order that pairs them: starts, ends, words."""
    kinds = [[[p for p, token in prompt.kept() if wanted(token)] for prompt in (ours, theirs)]
             for wanted in (lambda t: t == START, lambda t: t == END, lambda t: t < START)]
    pairs = [pair for kind in kinds for pair in zip(*kind)]
    return [i for i, _ in pairs], [j for _, j in pairs]


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
            layers = [float(m[..., i].double().mean() - n[..., j].double().mean())
                      for m, n in zip(our_maps, their_maps)]
            if released:
                squares.append(sum(x * x for x in layers) / len(layers))
            else:
                squares.append((sum(layers) / len(layers)) ** 2)
        total += sum(squares) / len(squares)
    return total if released else total / len(ours)


def queries_and_keys(model, noisy, sigma, cond, pooled):
    """Per layer (heads, query, key) of one whole run of ComfyUI's denoiser."""
    base, rows = model.model, len(noisy)
    extra = {}
    if base.diffusion_model.num_classes is not None:
        extra["y"] = base.encode_adm(pooled_output=pooled, width=noisy.shape[3] * 8, height=noisy.shape[2] * 8,
                                     device=noisy.device).expand(rows, -1)
    with torch.no_grad(), projections(base.diffusion_model) as seen:
        base.apply_model(noisy, sigma, c_crossattn=cond.expand(rows, -1, -1), transformer_options={}, **extra)
    return [(heads, query, key) for heads, (query, key) in seen]


def maps(queries, keys):
    """Per layer (rows, heads, pixels, T): queries of one run, keys of the same or another one."""
    return [naive_attention(query, key, heads) for (heads, query, _), (_, _, key) in zip(queries, keys, strict=True)]
