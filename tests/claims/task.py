"""What every method is given: the same subject, pictures, prompts, seed and noise."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from miniature.data import draw_all, masks_tensor, pictures_tensor
from miniature.factors import Identity, Scene
from miniature.prompts import evaluation_prompts, evaluation_prompts_by_kind
from miniature.subjects import Subject

from .world import Sampling, World


@dataclass(frozen=True)
class Task:
    """One subject with its reference pictures, to be drawn in every prompt.

    subject: its name. scenes: what the references show. pictures: (R, 3, 128, 128) and masks: (R, 1, 128, 128) in 0..1.
    templates: prompts with one {} each. seed: of training and of the noise.
    """

    subject: str
    identity: Identity
    scenes: tuple[Scene, ...]
    pictures: Tensor
    masks: Tensor
    templates: tuple[str, ...]
    seed: int
    sampling: Sampling

    def prompts(self, words: str) -> list[str]:
        """All templates with `words` for the subject."""
        return [template.replace("{}", words) for template in self.templates]

    @property
    def kinds(self) -> dict[int, str]:
        """Number of a template -> what it asks for above all: "place", "costume", "object", "style" or
        "attribute"."""
        known = {template: kind for kind, templates in evaluation_prompts_by_kind(self.identity.kind).items()
                 for template in templates}
        return {number: known[template] for number, template in enumerate(self.templates) if template in known}

    def noise(self, world: World, purpose: str = "first") -> Tensor:
        """(N, C, h, w): a row a template, the same for every method that names the same purpose."""
        from personalize.nodes.training.seeds import generator

        size = (world.latent_channels, self.pictures.shape[2] // 8, self.pictures.shape[3] // 8)
        return torch.stack([torch.randn(size, generator=generator(self.seed, "claims", self.subject, template, purpose))
                            for template in self.templates])

    def shared(self, factor: str) -> str | None:
        """The value of a scene's factor ("pose", "background") if all references have the same."""
        values = {getattr(scene, factor) for scene in self.scenes}
        return values.pop() if len(values) == 1 else None


def task_for(subject: Subject, which: str, prompts: int, seed: int, sampling: Sampling) -> Task:
    """The task of a subject with its reference set `which`, on `prompts` evaluation prompts of all kinds."""
    drawings, templates = draw_all(subject.sets[which]), evaluation_prompts(subject.identity.kind)
    spread = [templates[i * len(templates) // prompts] for i in range(min(prompts, len(templates)))]
    return Task(subject.name, subject.identity, subject.sets[which], pictures_tensor(drawings), masks_tensor(drawings),
                tuple(spread), seed, sampling)
