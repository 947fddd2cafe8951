"""One sampling run that reads references: its prompts as the U-Net gets them, and what was last seen with each."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import torch
from torch import Tensor

from ...attention.sides import side_named
from ...families.layers import AttentionLayer
from ...text.layout import Layout, parse_words
from ...text.pairs import in_pairs
from .blocks import ImageBlocks
from .prompts import layout_of_conditioning, place_of
from .references import Reference
from .streams import Features

Source = tuple[UUID, str]  # a conditioning's id, which an area's counterparts share, and the name of its list
Places = tuple[tuple[int, ...], ...]  # of each object's word, in the prompt
LayerFeatures = Mapping[AttentionLayer, Features]


@dataclass(frozen=True, eq=False)
class SampledPrompt:
    """A conditioning as the U-Net gets it: context (n, T, C), y (n, A) or None; and each object's word with its
    positions, counted among its tokens, which may stand in pairs."""

    context: Tensor
    y: Tensor | None
    words: tuple[str, ...]
    positions: Places
    pairs: bool

    @property
    def shape(self) -> tuple[int, bool]:
        """What prompts that share a run of the U-Net have in common."""
        return self.context.shape[1], self.pairs


@dataclass(eq=False)
class SamplingRun:
    """State of one sampling run.

    latents: (k, C, h, w) of all references. prompts: the first one is positive.
    blocks: of each GPU, where several share the picture.
    """

    latents: Tensor
    prompts: Mapping[Source, SampledPrompt]
    blocks: Mapping[torch.device, ImageBlocks]
    _seen: dict[torch.device, tuple[float, dict[Source, LayerFeatures]]] = field(default_factory=dict)

    @property
    def main(self) -> Source:
        """The prompt whose maps and masks are recorded."""
        return next(iter(self.prompts))

    def features(self, device: torch.device, moment: float) -> dict[Source, LayerFeatures]:
        """What is seen on a device at this moment with each prompt, to be filled; empty when the moment is new."""
        if device not in self._seen or self._seen[device][0] != moment:
            self._seen[device] = moment, {}
        return self._seen[device][1]


def sampled_prompts(guider, references: Sequence[Reference], trained: Sequence[str], prompt: Layout | None
                    ) -> dict[Source, SampledPrompt]:
    """All prompts of a run that begins, the positive ones first; a negative one looks where its list's first positive
    prompt, or the first of all, has the words.

    trained, prompt: as for `with_references`. Raises ValueError if there is no positive prompt.
    """
    prepared: dict[Source, Mapping[str, Any]] = {}
    for name, listed in guider.conds.items():
        for options in listed:
            if "cross_attn" in options:
                prepared.setdefault((options["uuid"], name), options)
    positive = [source for source in prepared if source in _positive_sources(guider)]
    if not positive:
        raise ValueError("Apply ViCo found no positive prompt in the sampler; connect a conditioning to positive.")
    prompts = {source: _sampled(prepared[source], *_words_and_places(prepared[source], references, trained, prompt))
               for source in positive}
    first = {name: found for (_, name), found in reversed(prompts.items())}
    main = prompts[positive[0]]
    for source, options in prepared.items():
        if source not in prompts:
            alike = first.get(source[1], main)
            prompts[source] = _sampled(options, alike.words, alike.positions)
    return prompts


def _positive_sources(guider) -> set[Source]:
    """Those that the person gave; ComfyUI adds counterparts of one list's areas to the others."""
    return {(options["uuid"], name) for name, listed in guider.original_conds.items()
            if side_named(name) == "positive" for options in listed}


def _words_and_places(options: Mapping[str, Any], references: Sequence[Reference], trained: Sequence[str],
                      prompt: Layout | None) -> tuple[tuple[str, ...], Places]:
    """Each object's word in a positive prompt, and where it is. Of several objects each has its own trained word."""
    layout = layout_of_conditioning(options, prompt)
    words: list[str] = []
    places: list[tuple[int, ...]] = []
    for i, reference in enumerate(references):
        own = trained[i:i + 1] if len(references) > 1 else trained
        others = {name for other in references for name in parse_words(other.words)}
        others.update(word for word in trained if word not in own)
        others.update(words)
        word, positions = place_of(layout, reference.words, own, others)
        words.append(word)
        places.append(positions)
    return tuple(words), tuple(places)


def _sampled(options: Mapping[str, Any], words: tuple[str, ...], positions: Places) -> SampledPrompt:
    """The conditioning with positions that it has; where it is shorter they move to its last token."""
    conds = options["model_conds"]
    context, y = conds["c_crossattn"].cond, conds.get("y")
    pairs = in_pairs(context)
    last = context.shape[1] // (2 if pairs else 1) - 1
    inside = tuple(tuple(min(position, last) for position in group) for group in positions)
    y = None if y is None else y.cond.expand(len(context), *y.cond.shape[1:])
    return SampledPrompt(context, y, words, inside, pairs)
