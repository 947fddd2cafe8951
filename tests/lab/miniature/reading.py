"""What a U-Net reads of a prompt: its words, or the end and padding tokens behind them.

Text encoders are causal: what the tokens after the last word hold is the whole prompt. A U-Net that reads these alone
draws well and yet cannot show what a learned word does to the words beside it.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .diffusion import Condition, condition_of, is_end, sample_condition, with_ends
from .grammar import said
from .oracle import Judgement, Oracle

Decode = Callable[[torch.Tensor], torch.Tensor]

EXCHANGED = {  # factor: pairs of clauses that differ in it alone
    "background": (("on the beach", "on the moon"), ("in the snow", "in the desert"), ("in the kitchen", "on a volcano")),
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


def words_followed(networks: torch.nn.ModuleDict, oracle: Oracle, decode: Decode) -> dict[str, float]:
    """Factor → share of pictures that show what the words say where end and padding outputs are another prompt's."""
    asked = pairs()
    mixed = with_ends_of(networks, [pair.words for pair in asked], [pair.ends for pair in asked])
    verdicts = defaultdict(list)
    for pair, judged in zip(asked, _judged(networks, oracle, decode, mixed), strict=True):
        verdicts[pair.factor].append(judged.agrees(said(pair.words))[pair.factor])
    return {factor: sum(rights) / len(rights) for factor, rights in verdicts.items()}


def words_alone(networks: torch.nn.ModuleDict, oracle: Oracle, decode: Decode,
                prompts: Sequence[str] = HARD) -> tuple[float, float]:
    """Text score of hard prompts with the empty prompt's end and padding outputs, and untouched."""
    alone = with_ends_of(networks, prompts, [""] * len(prompts))
    untouched = condition_of(networks, networks["text"].tokens(prompts), None)
    return tuple(_text_score(prompts, _judged(networks, oracle, decode, condition)) for condition in (alone, untouched))


def with_ends_of(networks: torch.nn.ModuleDict, words: Sequence[str], ends: Sequence[str]) -> Condition:
    """What the U-Net receives of the prompts ``words``, the outputs from the first end token on from the prompts
    ``ends``, and the latter's pooled vector."""
    text = networks["text"]
    tokens = text.tokens(words)
    with torch.no_grad():
        (own, _), (other, vector) = text.condition(tokens), text.condition(text.tokens(ends))
    return with_ends(own, other, is_end(text, tokens)), vector


def context_kept(networks: torch.nn.ModuleDict, prompts: Sequence[str] = HARD) -> float:
    """Mean cosine of the words after the class word, as encoded, with what they are where a random vector of the class
    word's length stands in its place."""
    text = getattr(networks["text"], "l", networks["text"])
    draw = torch.Generator().manual_seed(0)
    kept = []
    for prompt in prompts:
        tokens = text.tokens([prompt])
        place = prompt.split().index(said(prompt).kind) + 1  # words of the grammar are one token each
        end = int(is_end(text, tokens)[0].int().argmax())
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
        return text(tokens)
    row = tokens[0, place]
    before = text.rows[row].clone()
    text.rows[row] = vector.to(before) * before.norm() / vector.norm()
    try:
        return text(tokens)
    finally:
        text.rows[row] = before


def _judged(networks: torch.nn.ModuleDict, oracle: Oracle, decode: Decode, condition: Condition) -> list[Judgement]:
    rows, judged = 12, []
    for start in range(0, len(condition[0]), rows):
        part = tuple(None if whole is None else whole[start:start + rows] for whole in condition)
        judged += oracle.judge(decode(sample_condition(networks, part, seed=start)))
    return judged


def _text_score(prompts: Sequence[str], judged: Sequence[Judgement]) -> float:
    shares = []
    for prompt, picture in zip(prompts, judged, strict=True):
        rights = picture.agrees(said(prompt)).values()
        shares.append(sum(rights) / len(rights))
    return sum(shares) / len(shares)
