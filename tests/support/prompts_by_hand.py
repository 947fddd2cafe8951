"""A second, naive way to split prompts into CLIP's chunks, written from its rules and not from ComfyUI's code."""
from __future__ import annotations

import functools
from pathlib import Path

import torch

START, END, SIZE = 49406, 49407, 77


@functools.cache
def words_to_ids(words: str) -> list[int]:
    """Byte-pair ids of ordinary words by the tokenizer's own library."""
    return _tokenizer()(words)["input_ids"][1:-1]


@functools.cache
def _tokenizer():
    import comfy.sd1_clip
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer")


def chunks_by_hand(pieces: list, pad: int) -> list[list[tuple[object, float]]]:
    """Chunks of 77 (token, weight).

    pieces: in prompt order, (words or (n, d) tensor, weight). A piece of fewer than 8 tokens is never cut: it moves to
    the next chunk; a longer one fills the chunk up.
    """
    chunks, room = [[]], SIZE - 2
    for content, weight in pieces:
        tokens = list(content) if isinstance(content, torch.Tensor) else words_to_ids(content)
        if len(tokens) < 8 and len(chunks[-1]) + len(tokens) > room:
            chunks.append([])
        for token in tokens:
            if len(chunks[-1]) == room:
                chunks.append([])
            chunks[-1].append((token, weight))
    return [[(START, 1.0), *chunk, (END, 1.0), *[(pad, 1.0)] * (room - len(chunk))] for chunk in chunks]


def same_tokens(a, b) -> bool:
    """Whether two lists of chunks hold the same ids, vectors and weights."""
    def same(x, y):
        if isinstance(x, torch.Tensor) or isinstance(y, torch.Tensor):
            return isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) and torch.equal(x, y)
        return x == y

    return [len(c) for c in a] == [len(c) for c in b] and all(
        same(t, u) and abs(w - v) < 1e-9 for c, d in zip(a, b) for (t, w), (u, v) in zip(c, d))


def positions_by_hand(clip, prompt: str, words: str) -> tuple[int, ...]:
    """Every place of the ids of `words` in ComfyUI's own split of a prompt without vectors, unless a longer word goes
    on into them or out of them."""
    ids, flat, places = words_to_ids(words), [], []
    tokenizer = next(
        each for name, each in vars(clip.tokenizer).items() if name.startswith("clip_") and name != "clip_name"
    )
    for i, chunk in enumerate(next(iter(clip.tokenize(prompt).values()))):
        row = [token for token, _ in chunk]
        end = row.index(END)
        flat += row[1:end]
        places += range(SIZE * i + 1, SIZE * i + end)
    goes_on = [not tokenizer.inv_vocab[token].endswith("</w>") for token in flat]
    starts = [i for i in range(len(flat)) if ids and flat[i:i + len(ids)] == ids and not (i and goes_on[i - 1])]
    return tuple(sorted({places[i + j] for i in starts for j in range(len(ids))}))
