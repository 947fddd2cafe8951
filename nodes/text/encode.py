"""Encoding prompts with autograd: placeholders are replaced by tensors, gradients flow back to them."""
from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .encoder_kinds import ClipEncoder, TextEncoder
from .encoders import text_encoders
from .tokens import PromptTokens, comfy_tokens

_NORMS = ("layer_norm1", "layer_norm2", ".layer_norm")  # before the two halves of a layer of CLIP, and of T5

CLIP_CHUNK = 77
RowVectors = Mapping[str, Mapping[str, Tensor]]  # placeholder → encoder key → (n, d)


@dataclass(frozen=True)
class Encoded:
    """What the denoiser receives for some prompts: ComfyUI's conditioning.

    tokens: one prompt per row.
    cond: (rows, T, C) context; SDXL: both encoders side by side.
    pooled: (rows, P) pooled output, or None where the encoder gives none.
    options: what else each row's conditioning holds, such as an attention mask; () where no encoder says more.
    """

    tokens: tuple[PromptTokens, ...]
    cond: Tensor
    pooled: Tensor | None
    options: tuple[Mapping[str, Any], ...] = ()

    def expand(self, rows: int) -> Encoded:
        """The same encodings for `rows` rows; a single prompt is shared by all of them."""
        if len(self.tokens) == rows:
            return self
        pooled = None if self.pooled is None else self.pooled.expand(rows, -1)
        return Encoded(self.tokens * rows, self.cond.expand(rows, -1, -1), pooled, self.options * rows)

    def conditioning(self) -> list[list[Any]]:
        """As ComfyUI's nodes hand it on, [[cond, options], …]: one entry for all rows, or one for each where the
        encoders say more of each."""
        if not self.options:
            return [[self.cond, {"pooled_output": self.pooled}]]
        pooled = [None] * len(self.options) if self.pooled is None else self.pooled.split(1)
        return [[cond, {"pooled_output": of_row, **options}]
                for cond, of_row, options in zip(self.cond.split(1), pooled, self.options, strict=True)]


def encode(clip, prompts: Sequence[PromptTokens], vectors: Sequence[RowVectors]) -> Encoded:
    """Encodes one prompt per row; rows with the same prompt and the same vectors are encoded once.

    vectors: per row: placeholder → encoder key → (n, d). Prompts of fewer chunks are repeated up to the longest one's
    length only if all rows hold a common multiple, as ComfyUI does when it batches conditionings.
    """
    return encode_together(clip, [(prompts, vectors)])[0]


def encode_together(clip, requests: Sequence[tuple[Sequence[PromptTokens], Sequence[RowVectors]]]) -> list[Encoded]:
    """Encodes what several calls of `encode` would, given (prompts, vectors) of each, in one run of the encoders."""
    encoders = text_encoders(clip)
    distinct: dict[tuple, dict[str, list]] = {}
    keys: list[list[tuple]] = []
    for prompts, vectors in requests:
        keys.append([])
        for tokens, row_vectors in zip(prompts, vectors, strict=True):
            used = {name: row_vectors[name] for name in tokens.placeholders}
            key = (tokens, tuple(sorted((name, id(value)) for name, value in used.items())))
            if key not in distinct:
                distinct[key] = comfy_tokens(tokens, encoders, used)
            keys[-1].append(key)
    made = dict(zip(distinct, _run_encoders(clip, encoders, list(distinct.values())), strict=True))
    encoded = {(tokens, vectors): Encoded((tokens,), *made[tokens, vectors]) for tokens, vectors in distinct}
    return [joined([encoded[key] for key in rows]) for rows in keys]


def joined(encodings: Sequence[Encoded]) -> Encoded:
    """The rows of several encodings as one, repeated up to the longest as in `encode`."""
    if len(encodings) == 1:
        return encodings[0]
    prompts = tuple(tokens for encoded in encodings for tokens in encoded.tokens)
    length = max(encoded.cond.shape[1] for encoded in encodings)
    cond = torch.cat([_repeated(encoded.cond, length) for encoded in encodings])
    pooled = [encoded.pooled for encoded in encodings if encoded.pooled is not None]
    options = tuple(of_row for encoded in encodings for of_row in encoded.options)
    return Encoded(prompts, cond, torch.cat(pooled) if pooled else None, options)


def _run_encoders(clip, encoders: Sequence[TextEncoder], prompts: Sequence[dict[str, list]]
                  ) -> list[tuple[Tensor, Tensor | None, tuple[Mapping[str, Any], ...]]]:
    """cond, pooled and options of each prompt, as in Encoded.

    Of CLIP's encoders ComfyUI encodes the chunks of one long prompt as a batch and returns the pooled output of the
    first chunk; here the chunks are those of all prompts, and each prompt's pooled output is taken from the encoder
    that gave the first. In others prompts differ in length and are one chunk each.
    """
    if not prompts:
        return []
    if not all(isinstance(encoder, ClipEncoder) for encoder in encoders):
        return [_encoded_alone(clip, tokens) for tokens in prompts]
    together = {key: [chunk for tokens in prompts for chunk in tokens[key]] for key in prompts[0]}
    with _pooled_outputs(clip, encoders) as given:
        cond, first = clip.encode_from_tokens(together, return_pooled=True)
    chunks = [len(tokens[encoders[0].token_key]) for tokens in prompts]
    parts = cond.split([n * (cond.shape[1] // sum(chunks)) for n in chunks], dim=1)
    conds = [part.clone() for part in parts]  # one can be forgotten without the others
    if first is None:
        return [(part, None, ()) for part in conds]
    pooled = next(p for p in (p.to(first) for p in given) if p.shape[1:] == first.shape[1:]
                  and torch.allclose(p[:1], first, rtol=0, atol=0, equal_nan=True))
    return [(part, pooled[i:i + 1].clone(), ()) for part, i in zip(conds, itertools.accumulate(chunks, initial=0))]


def _encoded_alone(clip, tokens: dict[str, list]) -> tuple[Tensor, Tensor | None, tuple[Mapping[str, Any], ...]]:
    options = clip.encode_from_tokens(tokens, return_pooled=True, return_dict=True)
    return options.pop("cond"), options.pop("pooled_output"), (options,)


@contextlib.contextmanager
def _pooled_outputs(clip, encoders: Sequence[TextEncoder]) -> Iterator[list[Tensor]]:
    """Collects the pooled outputs (chunks, P) of every encoder that runs while the context is open."""
    given: list[Tensor] = []

    def keep(module, inputs, outputs) -> None:
        if outputs[1] is not None:
            given.append(outputs[1])

    hooks = [getattr(clip.cond_stage_model, encoder.attribute).register_forward_hook(keep) for encoder in encoders]
    try:
        yield given
    finally:
        for hook in hooks:
            hook.remove()


def _repeated(cond: Tensor, length: int) -> Tensor:
    if cond.shape[1] == length:
        return cond
    if not repeatable({cond.shape[1], length}):
        raise ValueError(f"Prompts of {cond.shape[1]} and {length} tokens cannot share a batch; set the batch size to "
                         "1, or make them equally long.")
    return cond.repeat(1, length // cond.shape[1], 1)


def repeatable(lengths: Collection[int]) -> bool:
    """Whether prompts of these numbers of tokens can be encoded for one batch: the longest must be a multiple of every
    other, and all of them whole chunks of CLIP, as no other encoding says the same twice."""
    longest = max(lengths)
    return all(each == longest or longest % each == 0 and each % CLIP_CHUNK == 0 for each in lengths)


@contextlib.contextmanager
def differentiable_text_model(clip) -> Iterator[None]:
    """Makes `clip`'s text model safe for autograd while the context is open.

    The layers of CLIP and T5 add to their input in place, which overwrites what the norm saved for its backward pass;
    the norms therefore get a copy of their input. The outputs are unchanged.
    """
    hooks = [module.register_forward_pre_hook(_clone_input)
             for name, module in clip.cond_stage_model.named_modules() if name.endswith(_NORMS)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _clone_input(_, inputs: tuple) -> tuple:
    return (inputs[0].clone(), *inputs[1:])
