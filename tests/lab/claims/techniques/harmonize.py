"""Harmonizing (Song et al. 2024): orthogonal visual embedding and self-attention swap on the miniature's own picture
encoder, from one reference picture, without training."""
from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from miniature.data import grouped
from miniature.grammar import caption
from miniature.network import REFERENCE_SIZE
from personalize.nodes.papers.harmonize.basis import WORDS
from personalize.nodes.papers.harmonize.nodes_orthogonal import PersonalizeOrthogonalize
from personalize.nodes.papers.harmonize.nodes_swap import PersonalizeSelfAttentionSwap
from personalize.nodes.text.layout import LAYOUT, VISUAL, layout_in
from personalize.nodes.text.nodes_prompts import PersonalizeEncodeWithSpans
from personalize.nodes.visual_prompts.tokens import VisualTokens

from ..bounds import ClassWord
from ..store import Cell, Drawn
from ..task import Task
from ..technique import AsksOracle, Method, Technique
from ..world import Conditioning, World, batched

TEXT_ONLY = "text-only"
LEVELS_SEEN = 4


@dataclass(frozen=True)
class Swap:
    """Inputs of Self-Attention Swap. words: "visual tokens" or "class word"."""

    words: str = VISUAL
    start_percent: float = 0.2
    end_percent: float = 1.0
    strength: float = 1.0
    swap_layers: str = "all"
    where: str = "subject"
    mask_method: str = "Otsu"
    threshold: float = 0.3
    mask_layers: str = "coarse layers"
    mask_steps: str = "all steps so far"
    halves: str = "both"
    noise: str = "shared"
    guidance: str = "guided"


@dataclass(frozen=True)
class VisualOnly:
    """[v; ∅]: the visual tokens with the empty prompt. Keeps the pictures of text alone for those that continue it."""

    continues: Method
    name: str = "visual-only"
    revision: int = 1

    def draw(self, world: World, task: Task, earlier: Cell | None) -> Drawn:
        """See Method."""
        conditioning = joined([with_visual(encode(world, ""), reference(world, task))] * len(task.templates))
        pictures = world.draw(conditioning, task.noise(world), task.sampling)
        return Drawn(dict(enumerate(pictures)), {TEXT_ONLY: torch.stack(list(earlier.drawn.pictures.values()))})


@dataclass(frozen=True)
class Prompted(AsksOracle):
    """[t; v], or with the steps of the paper's method.

    strength: of the orthogonalization, 0 for none. basis: which tokens span the text. caption: orthogonal to what the
    reference picture shows in place of the prompt (Fig. 7a). swap: None for none.
    """

    name: str
    continues: Method
    strength: float = 0.0
    basis: str = WORDS
    caption: bool = False
    swap: Swap | None = None
    revision: int = 1

    def draw(self, world: World, task: Task, earlier: Cell | None) -> Drawn:
        """See Method."""
        visual, noise = reference(world, task), task.noise(world)
        conditionings = [self._conditioning(world, task, prompt, visual) for prompt in task.prompts(task.identity.kind)]
        model = None if self.swap is None else self._swapped(world, task, visual)
        pictures = torch.zeros(len(conditionings), *task.pictures.shape[1:])
        for rows in alike(conditionings):
            chosen = joined([conditionings[row] for row in rows])
            pictures[rows] = world.draw(chosen, noise[rows], task.sampling, model)
        return Drawn(dict(enumerate(pictures)), figures=self._distances(world, pictures, earlier))

    def _conditioning(self, world: World, task: Task, prompt: str, visual: VisualTokens) -> Conditioning:
        """[t; v⊥]; the class word never belongs to the basis."""
        kind, rng = task.identity.kind, random.Random(f"caption {task.seed}")
        shown = encode(world, caption(task.scenes[0], rng, noun=kind)) if self.caption else None
        return with_visual(encode(world, prompt, kind), visual, self.strength, self.basis, kind, shown)

    def _swapped(self, world: World, task: Task, visual: VisualTokens):
        empty, inputs = encode(world, ""), vars(self.swap)
        if self.swap.words != VISUAL:
            inputs = {**inputs, "words": task.identity.kind}
        return PersonalizeSelfAttentionSwap.execute(world.networks.model, with_visual(empty, visual), negative=empty,
                                                    **inputs).args[0]

    def _distances(self, world: World, pictures: Tensor, earlier: Cell) -> dict[str, float]:
        """§5.5: how far the pictures are from those of the visual tokens alone and from those of the text alone."""
        ends = {"visual": torch.stack(list(earlier.drawn.pictures.values())), "text": earlier.drawn.learned[TEXT_ONLY]}
        return {f"distance_to_{name}_only": perceptual_distance(world, pictures, end) for name, end in ends.items()}


def reference(world: World, task: Task) -> VisualTokens:
    """Visual tokens of the subject's first picture."""
    small = F.avg_pool2d(task.pictures[:1].float(), task.pictures.shape[-1] // REFERENCE_SIZE)
    return VisualTokens(world.picture_encoder(small), "the miniature's picture encoder")


@torch.inference_mode()
def encode(world: World, prompt: str, words: str = "") -> Conditioning:
    """A prompt that knows where `words` are."""
    return PersonalizeEncodeWithSpans.execute(world.networks.clip, prompt, words).args[0]


def with_visual(text: Conditioning, visual: VisualTokens, strength: float = 0.0, basis: str = WORDS, subject: str = "",
                caption: Conditioning | None = None) -> Conditioning:
    """[t; v⊥] by the node; with strength 0 [t; v]."""
    return PersonalizeOrthogonalize.execute(text, words=subject, strength=strength, basis=basis, last_tokens=0,
                                            visual_tokens=visual, basis_conditioning=caption).args[0]


def alike(conditionings: Sequence[Conditioning]) -> Iterator[list[int]]:
    """Numbers of those whose words are in the same places, so that they can share a batch."""
    yield from grouped(repr(sorted(layout_in(options).spans)) for [(_, options)] in conditionings)


def joined(conditionings: Sequence[Conditioning]) -> Conditioning:
    """One CONDITIONING with a row each, which knows the places that all of them share."""
    (_, known), = conditionings[0]
    return [[tensor, {**options, LAYOUT: known[LAYOUT]}] for tensor, options in batched(conditionings)]


@torch.no_grad()
def perceptual_distance(world: World, pictures: Tensor, others: Tensor) -> float:
    """Mean over pictures of the squared distance between the oracle's features, each pixel's of length 1, summed over
    its levels, as LPIPS without learned weights."""
    scene, total = world.oracle.scene, 0.0
    levels = [torch.cat([pictures, others]) * 2 - 1]
    for stage in (scene.stem, *scene.down):
        levels.append(stage(levels[-1]))
    for level in levels[1:]:
        one, other = F.normalize(level, dim=1).chunk(2)
        total += float((one - other).square().sum(1).mean())
    return total


def technique(quick: bool) -> Technique:
    """Table 1's rows, the ends that they lie between, Fig. 7a, and the choices that the paper leaves open."""
    text = ClassWord(TEXT_ONLY)
    ends = VisualOnly(text)
    baseline = Prompted("baseline", ends)
    orchestration, swap = replace(baseline, name="orchestration", strength=1.0), replace(baseline, name="swap",
                                                                                         swap=Swap())
    both = replace(orchestration, name="both", swap=Swap())
    methods: tuple[Method, ...] = (
        text, ends, baseline, orchestration, swap, both,
        replace(orchestration, name="orchestration-to-caption", caption=True),
        replace(orchestration, name="orchestration-words-and-end", basis="words and end"),
        replace(orchestration, name="orchestration-all", basis="all"),
    )
    against = {method.name: "baseline" for method in methods if method.name != "baseline"}
    return Technique(methods, against | {"both": "orchestration", "orchestration-to-caption": "orchestration"})
