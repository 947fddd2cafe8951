"""Where words sit in the conditionings of a sampling run."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from torch import Tensor

from ..inputs import check_prompt_again
from ..text.layout import Layout, layout_in, layout_of
from ..text.pairs import in_pairs, token_count
from ..text.tokens import prompt_tokens
from .calls import Options
from .sides import list_at, side_named
from .token_groups import TokenGroups


@dataclass(frozen=True)
class Words:
    """Words that are looked for in the conditionings of a run.

    names: words, placeholders or names of spans; empty for every name that a conditioning knows.
    prompt: layout of the prompt, for conditionings that carry none.
    """

    names: tuple[str, ...] = ()
    prompt: Layout | None = None

    def of(self, options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Name → positions in a conditioning with these options; what it does not hold is left out."""
        layout = layout_of(options, self.prompt)
        if layout is None:
            return {}
        found = {name: layout.find(name) for name in self.names or layout.names}
        return {name: positions for name, positions in found.items() if positions}

    def unread(self, options: Mapping[str, Any]) -> str:
        """Why positions do not hold for a conditioning with these options; "" if they do or it has none."""
        tokens, expected = token_count(options["cross_attn"]), layout_in(options) or self.prompt
        if not tokens:
            return "it was zeroed out"
        if expected is not None and layout_of(options, self.prompt) is None:
            return (f"it has {tokens} tokens where its prompt has {expected.length}, so another text was encoded, or "
                    "another node has changed it")
        return ""


@dataclass(frozen=True)
class Watched:
    """One conditioning of a run that holds wanted words.

    listed: name of the guider's list that holds it.
    names: the words, in the order of groups.positions.
    area: (h, w, y, x) in latent pixels, or None for the whole latent.
    mask: (1 or images, H, W) share of each latent pixel that it conditions, times the mask's strength; None for all.
    strength: its weight beside other conditionings.
    """

    listed: str
    names: tuple[str, ...]
    groups: TokenGroups
    area: tuple[int, int, int, int] | None
    mask: Tensor | None
    strength: float


def words_of(names: Sequence[str], clip=None, prompt: str | None = None) -> Words:
    """Words to look for; with `clip` and `prompt` also their places in the prompt.

    Without names, the placeholders that the CLIP knows. Raises ValueError naming a word that the prompt does not hold,
    or if only one of the two is given.
    """
    check_prompt_again(clip, prompt)
    if not prompt:
        return Words(tuple(names))
    layout = prompt_tokens(clip, prompt).layout
    missing = [name for name in names if not layout.find(name)]
    if missing:
        raise ValueError(f"The word '{missing[0]}' of words is not in the prompt '{prompt}'; write it as it stands "
                         "there.")
    if not names and not layout.spans:
        raise ValueError(f"words is empty and the prompt '{prompt}' holds no placeholder; write the words to look "
                         "at.")
    return Words(tuple(names), layout)


def groups_in(cond: Tensor, positions: Iterable[tuple[int, ...]]) -> TokenGroups:
    """Groups of a conditioning's (R, T, C) tokens."""
    return TokenGroups(tuple(positions), token_count(cond), in_pairs(cond))


def watched_conditionings(guider, words: Words) -> dict[UUID, Watched]:
    """Positive conditionings of a guider that is about to sample and hold any of the words, by id.

    Raises nothing if there are none. Call it from inside sampling (SAMPLER_SAMPLE), when areas are resolved.
    """
    found = {}
    for name, options in _positive_conditionings(guider):
        positions = words.of(options)
        if positions:
            groups = groups_in(options["cross_attn"], positions.values())
            mask = options["mask"] * options.get("mask_strength", 1.0) if "mask" in options else None
            found[options["uuid"]] = Watched(name, tuple(positions), groups, options.get("area"), mask,
                                             options.get("strength", 1.0))
    return found


def unread_conditionings(guider, words: Words) -> tuple[str, ...]:
    """Why words cannot be found in some of the positive conditionings that `watched_conditionings` looks at."""
    reasons = (words.unread(options) for _, options in _positive_conditionings(guider))
    return tuple(dict.fromkeys(filter(None, reasons)))


def _positive_conditionings(guider) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(name of the list, options) of each that holds text."""
    for name, originals in guider.original_conds.items():
        if side_named(name) == "negative":
            continue
        resolved = {options["uuid"]: options for options in reversed(guider.conds[name])}
        for uuid in (options["uuid"] for options in originals):
            if "cross_attn" in resolved.get(uuid, {}):
                yield name, resolved[uuid]


def watched_chunks(options: Options, conditionings: Mapping[UUID, Watched]) -> dict[int, Watched]:
    """Those of the conditionings that run in this call of the denoiser, by their place in options["uuids"].

    Copies that ComfyUI adds to the other lists go by the same id. Call it of a model after `tell_sides`.
    """
    lists = options.get("cond_or_uncond", ())
    return {row: conditionings[uuid] for row, (uuid, index) in enumerate(zip(options.get("uuids", ()), lists))
            if uuid in conditionings and list_at(options, index) == conditionings[uuid].listed}
