"""Prompts that hold a picture's tokens in the place of a word."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..text.apply import known_placeholders
from ..text.encoder_kinds import ClipEncoder, TextEncoder
from ..text.encoders import text_encoders
from ..text.layout import END, LEARNED, VISUAL, WORD, Layout, Piece
from ..text.placeholders import Placeholders
from ..text.tokens import PromptTokenizer, PromptTokens, comfy_tokens
from .tokens import BLIP_DIFFUSION, WORD_LIKE, VisualTokens

PLACE = "{}"
PICTURE = "<personalize-picture>"
AS_RELEASED = 0
REPEATS = {BLIP_DIFFUSION: 20}  # elsewhere a prompt is said once


def encode_with_picture(clip, tokens: VisualTokens, prompt: str, repeats: int = AS_RELEASED) -> list[list[Any]]:
    """CONDITIONING of `prompt` with the tokens of the picture where it says {}.

    They enter the text encoder in the place of word embeddings. Several pictures give a batch, one row each.
    repeats: how often the prompt is said, as far as there is room; AS_RELEASED for what the encoder's authors do.
    Raises ValueError if the CLIP, the tokens and the prompt do not fit each other.
    """
    encoder = _checked_encoder(clip, tokens)
    if prompt.count(PLACE) != 1:
        raise ValueError(f"The prompt '{prompt}' has {prompt.count(PLACE)} places for the picture but needs exactly "
                         "one {}, as in: a {} dog swimming in a pool.")
    known = known_placeholders(clip)
    counts = {**known, PICTURE: tokens.vectors.shape[1]}
    split = repeated(PromptTokenizer(clip, counts), prompt, repeats or REPEATS.get(tokens.source, 1))
    options = _with_picture(split.layout).options()
    learned = {name: {encoder.key: encoder.tokenizer.placeholder_rows[name]} for name in known}  # ty: ignore[missing-attribute]
    pictures = [clip.encode_from_tokens_scheduled(
        comfy_tokens(split, (encoder,), {**learned, PICTURE: {encoder.key: vectors}}), add_dict=options)
        for vectors in tokens.vectors]
    return [_batch(entries) for entries in zip(*pictures, strict=True)]


def repeated(tokenizer: PromptTokenizer, prompt: str, repeats: int) -> PromptTokens:
    """Tokens of `prompt` with PICTURE's where it says {}, followed by the words alone until it is said `repeats` times.

    Repetitions take only the place of padding: the last one is cut off at the end of the chunk.
    """
    filled = prompt.replace(PLACE, PICTURE)
    words = Placeholders([PICTURE]).replace(filled, lambda _: " ")
    tokens, again = tokenizer(filled), tokenizer(", " + " ".join(words.split()))
    chunks = []
    for (key, split), (_, more) in zip(tokens.chunks, again.chunks, strict=True):
        *whole, last = split
        room, end = len(last) - 2, tokens.layout.of_kind(END)[-1] % len(last)
        said_again = [entry for chunk in more for entry in chunk]
        copies = [said_again[position] for position in again.layout.of_kind(WORD, LEARNED)] * (repeats - 1)
        content = (last[1:end] + tuple(copies))[:room]
        closing = last[end:][:room + 1 - len(content)]
        chunks.append((key, (*whole, (last[0], *content, *closing))))
    return tokenizer.placed(prompt, tuple(chunks))


def _checked_encoder(clip, tokens: VisualTokens) -> TextEncoder:
    encoders = text_encoders(clip)
    width = tokens.vectors.shape[-1]
    if tokens.source not in WORD_LIKE:
        raise ValueError(f"These visual tokens come from {tokens.source} and cannot stand in a prompt; connect Encode "
                         "Picture (BLIP-Diffusion) or Encode Picture (ELITE).")
    if len(encoders) > 1 or not isinstance(encoders[0], ClipEncoder) or encoders[0].width != width:
        found = " and ".join(f"{encoder.key} of width {encoder.width}" for encoder in encoders)
        raise ValueError(f"This CLIP has {found} but {tokens.source}'s tokens are for one text encoder of width "
                         f"{width}; use a checkpoint of SD1.x.")
    return encoders[0]


def _with_picture(layout: Layout) -> Layout:
    """The layout with the picture's tokens in the place of a learned word's."""
    picture = layout.span(PICTURE)
    pieces = tuple(Piece(VISUAL) if position in picture else piece for position, piece in enumerate(layout.pieces))
    return Layout(pieces, tuple((VISUAL if name == PICTURE else name, positions) for name, positions in layout.spans))


def _batch(entries) -> list[Any]:
    """One entry of a CONDITIONING for all pictures."""
    tensors, options = zip(*entries)
    joined = {key: torch.cat([each[key] for each in options]) if isinstance(value, Tensor) else value
              for key, value in options[0].items()}
    return [torch.cat(tensors), joined]
