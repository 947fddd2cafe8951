"""What a denoiser reads of a prompt: its words, or the end and padding tokens behind them.

Text encoders are causal: what the tokens after the last word hold is the whole prompt. A denoiser that reads these
alone draws well and yet cannot show what a learned word does to the words beside it.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .diffusion import Condition, condition_of, sample_conditions, with_ends
from .grammar import said
from .oracle import Judgement, Oracle

Decode = Callable[[torch.Tensor], torch.Tensor]

EXCHANGED = {  # factor: pairs of clauses that differ in it alone
    "background": (("on the beach", "on the moon"), ("in the snow", "in the desert"),
                   ("in the kitchen", "on a volcano")),
    "pose": (("jumping", "lying"), ("upside down", "standing"), ("lying", "upside down")),
    "accessory": (("wearing a hat", "wearing a crown"), ("wearing a scarf", "wearing sunglasses"),
                  ("wearing a crown", "wearing a scarf")),
    "second_kind": (("next to a ball", "next to a cake"), ("next to a drum", "next to a box"),
                    ("next to a cake", "next to a drum")),
    "colors": (("red", "blue"), ("green", "orange"), ("yellow", "cyan")),
    "kind": (("dog", "car"), ("bird", "teapot"), ("fish", "robot")),
}
WEARERS = ("dog", "bird", "fish")
HARD = (
    "a drawing of a dog jumping wearing a crown on the moon", "a photo of a bird lying wearing a hat in the snow",
    "a photo of a fish wearing sunglasses next to a cake in the city", "a drawing of a dog next to a ball at night",
    "a photo of a bird jumping next to a drum in a meadow", "a photo of a fish wearing a crown in the jungle",
)
RANDOM_VECTORS = 8


@dataclass(frozen=True)
class Pair:
    """Two prompts that differ in one factor."""

    factor: str
    words: str
    ends: str


def pairs() -> list[Pair]:
    """Every pair of clauses on three subjects, both ways."""
    found = []
    for factor, clauses in EXCHANGED.items():
        for one, other in clauses:
            for kind in WEARERS:
                prompts = [_prompt(factor, clause, kind) for clause in (one, other)]
                found += [Pair(factor, *prompts), Pair(factor, *prompts[::-1])]
    return list(dict.fromkeys(found))


def _prompt(factor: str, clause: str, kind: str) -> str:
    if factor == "kind":
        return f"a photo of a {clause} on the beach"
    return f"a photo of a {clause} {kind}" if factor == "colors" else f"a photo of a {kind} {clause}"


def figures_of_reading(networks: torch.nn.ModuleDict, oracle: Oracle, decode: Decode) -> dict[str, float]:
    """All of it, by the names of the gates."""
    alone, untouched = words_alone(networks, oracle, decode)
    followed = words_followed(networks, oracle, decode, pairs())
    return {"words_alone": alone / untouched, "context_kept": context_kept(networks),
            **{f"followed_{factor}": share for factor, share in followed.items()}}


def words_followed(networks: torch.nn.ModuleDict, oracle: Oracle, decode: Decode, asked: Sequence[Pair], steps: int = 25
                   ) -> dict[str, float]:
    """Factor → share of pictures that show what the words say where end and padding outputs are another prompt's."""
    mixed = with_ends_of(networks, [pair.words for pair in asked], [pair.ends for pair in asked])
    verdicts = defaultdict(list)
    for pair, judged in zip(asked, _judged(networks, oracle, decode, mixed, steps), strict=True):
        verdicts[pair.factor].append(judged.agrees(said(pair.words))[pair.factor])
    return {factor: sum(rights) / len(rights) for factor, rights in verdicts.items()}


def words_alone(networks: torch.nn.ModuleDict, oracle: Oracle, decode: Decode,
                prompts: Sequence[str] = HARD, steps: int = 25) -> tuple[float, float]:
    """Text score of hard prompts with the empty prompt's end and padding outputs, and untouched."""
    alone = with_ends_of(networks, prompts, [""] * len(prompts))
    untouched = [condition_of(networks, networks["text"].tokens([prompt]), None) for prompt in prompts]
    return tuple(_text_score(prompts, _judged(networks, oracle, decode, conditions, steps))
                 for conditions in (alone, untouched))


@torch.no_grad()
def with_ends_of(networks: torch.nn.ModuleDict, words: Sequence[str], ends: Sequence[str]) -> list[Condition]:
    """What the denoiser receives of each of the prompts ``words``, the outputs from the first end token on from one of
    the prompts ``ends``, and the latter's pooled vector."""
    text, mixed = networks["text"], []
    for prompt, other in zip(words, ends, strict=True):
        tokens, others = text.tokens([prompt]), text.tokens([other])
        (own, _), (outputs, vector) = text.condition(tokens), text.condition(others)
        mixed.append((with_ends(text, own, tokens, outputs, others), vector))
    return mixed


def context_kept(networks: torch.nn.ModuleDict, prompts: Sequence[str] = HARD) -> float:
    """Mean cosine of the words after the class word, as encoded, with what they are where a random vector of the class
    word's length stands in its place."""
    text = getattr(networks["text"], "l", networks["text"])
    draw = torch.Generator().manual_seed(0)
    kept = []
    for prompt in prompts:
        tokens = text.tokens([prompt])
        before = prompt.split()[:prompt.split().index(said(prompt).kind)]
        place = int(text.ends(text.tokens([" ".join(before)]))[0].int().argmax())
        end = int(text.ends(tokens)[0].int().argmax())
        for _ in range(RANDOM_VECTORS):
            encoded = [_encoded(text, tokens, place, vector) for vector in (None, torch.randn(text.rows.shape[1],
                                                                                             generator=draw))]
            one, other = (rows[0, place + 1:end] for rows in encoded)
            kept.append(F.cosine_similarity(one, other, dim=1))
    return torch.cat(kept).mean().item()


@torch.no_grad()
def _encoded(text: torch.nn.Module, tokens: torch.Tensor, place: int, vector: torch.Tensor | None) -> torch.Tensor:
    """With ``vector``, made as long as the word's own, at ``place``."""
    if vector is None:
        return text.condition(tokens)[0]
    row = tokens[0, place]
    before = text.rows[row].clone()
    text.rows[row] = vector.to(before) * before.norm() / vector.norm()
    try:
        return text.condition(tokens)[0]
    finally:
        text.rows[row] = before


def _judged(networks: torch.nn.ModuleDict, oracle: Oracle, decode: Decode, conditions: Sequence[Condition], steps: int
            ) -> list[Judgement]:
    rows, judged = 12, []
    for start in range(0, len(conditions), rows):
        part = conditions[start:start + rows]
        judged += oracle.judge(decode(sample_conditions(networks, part, seed=start, steps=steps)))
    return judged


def _text_score(prompts: Sequence[str], judged: Sequence[Judgement]) -> float:
    shares = []
    for prompt, picture in zip(prompts, judged, strict=True):
        rights = picture.agrees(said(prompt)).values()
        shares.append(sum(rights) / len(rights))
    return sum(shares) / len(shares)
