"""What every method is given: the same subject, pictures, prompts, seed and noise."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from miniature.data import draw_all, masks_tensor, pictures_tensor
from miniature.factors import Identity, Scene
from miniature.prompts import evaluation_prompts, hard_prompts, regularization_prompts
from miniature.subjects import Subject

from .world import Sampling, World


@dataclass(frozen=True)
class Task:
    """One subject with its reference pictures, to be drawn in every prompt.

    subject: its name. scenes: what the references show. pictures: (R, 3, 128, 128) and masks: (R, 1, 128, 128) in 0..1.
    templates: prompts with one {} each. kinds: what each of them asks for above all, such as "place". seed: of training
    and of the noise. regularization: templates that CoRe's terms draw from.
    """

    subject: str
    identity: Identity
    scenes: tuple[Scene, ...]
    pictures: Tensor
    masks: Tensor
    templates: tuple[str, ...]
    kinds: tuple[str, ...]
    seed: int
    sampling: Sampling
    regularization: tuple[str, ...]

    def prompts(self, words: str) -> list[str]:
        """All templates with `words` for the subject."""
        return [template.replace("{}", words) for template in self.templates]

    def noise(self, world: World, purpose: str = "first") -> Tensor:
        """(N, C, h, w): a row a template, the same for every method that names the same purpose."""
        from personalize.nodes.training.seeds import generator

        size = (world.latent_channels, self.pictures.shape[2] // 8, self.pictures.shape[3] // 8)
        return torch.stack([torch.randn(size, generator=generator(self.seed, "claims", self.subject, template, purpose))
                            for template in self.templates])

    def draw(self, world: World, words: str, clip: Any = None, model: Any = None) -> Tensor:
        """A picture (3, 128, 128) a template, with `words` for the subject; clip, model: in place of the
        checkpoint's."""
        encoded = [world.encode(prompt, clip) for prompt in self.prompts(words)]
        return world.draw_each(encoded, self.noise(world), self.sampling, model)

    def shared(self, factor: str) -> str | None:
        """The value of a scene's factor ("pose", "background") if all references have the same."""
        values = {getattr(scene, factor) for scene in self.scenes}
        return values.pop() if len(values) == 1 else None


Prompts = Callable[[Identity, int], Mapping[str, Sequence[str]]]  # subject, seed -> kind -> templates with one {}


def usual_prompts(identity: Identity, seed: int) -> Mapping[str, Sequence[str]]:
    """place, costume, object, style, attribute."""
    return evaluation_prompts(identity.kind)


def many_factors(identity: Identity, seed: int) -> Mapping[str, Sequence[str]]:
    """three, four, five, six: how many factors a prompt asks for."""
    return hard_prompts(identity.kind)


def task_for(subject: Subject, which: str, count: int, seed: int, sampling: Sampling,
             prompts: Prompts = usual_prompts) -> Task:
    """The task of a subject with its reference set `which`, on `count` prompts of all kinds."""
    drawings = draw_all(subject.sets[which])
    known = [(template, kind) for kind, templates in prompts(subject.identity, seed).items() for template in templates]
    templates, kinds = zip(*(known[i * len(known) // count] for i in range(min(count, len(known)))))
    regularization = tuple(t for kind in regularization_prompts(subject.identity.kind).values() for t in kind)
    return Task(subject.name, subject.identity, subject.sets[which], pictures_tensor(drawings), masks_tensor(drawings),
                templates, kinds, seed, sampling, regularization)
