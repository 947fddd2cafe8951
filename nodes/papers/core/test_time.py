"""CoRe at test time: a concept refined for one prompt, without the diffusion loss."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...families.latents import latent_space
from ...families.noise import NoiseLevels
from ...text.apply import apply_concepts, words_in
from ...text.concept import Concept, initial_vectors, plain_vectors
from ...text.placeholders import Found
from ...text.vectors import Vectors
from ...training.assembly import open_training
from ...training.batch import Noised, Picture, Row, Stream, Subject
from ...training.failures import NodeInputs
from ...training.noise import add_noise
from ...training.parts.embedding import EmbeddingPart
from ...training.plan import Plan, Settings
from ...training.recipe import TemplateRecipe
from ...training.seeds import generator
from ...training.session import Session, training_session
from .presets import Weighting, core_terms

INPUTS = NodeInputs(fewer_rows=False, precision=False, smaller="set batch_size or size lower, or connect smaller "
                                                               "pictures")


@dataclass(frozen=True)
class Refinement:
    """How a concept is refined for a prompt.

    steps, learning_rate, batch_size: of AdamW (CoRe: 10, 5e-4, 6). seed: of noise and timesteps.
    """

    prompt: str
    weighting: Weighting
    steps: int = 10
    learning_rate: float = 5e-4
    batch_size: int = 6
    seed: int = 0


@dataclass(frozen=True)
class Scene:
    """What the denoiser looks at meanwhile: the subjects' pictures, or other latents.

    subjects: links of the chain of subjects, or none; then vae encodes their pictures, as released.
    latents: (N, C, h, w) in the model's space, used if there are no subjects. Empty ones (zeros) only give the size:
        the denoiser then sees them at the later half of its timesteps alone, where a picture would hardly show either.
    """

    latents: Tensor
    subjects: tuple[Subject, ...] = ()
    vae: Any = None


def refine(model, clip, concepts: Sequence[Concept], how: Refinement, scene: Scene,
           each_step: Callable[[dict], None]) -> tuple[Concept, ...]:
    """The concepts with those refined, one after the other, that the prompt holds.

    each_step: gets the training loop's record after each step. MODEL and CLIP stay as they are.
    Raises ValueError if the prompt holds no placeholder, or one more than once.
    """
    for concept in concepts:
        plain_vectors(concept, clip, "are not refined for a prompt; connect a concept of Train Embedding")
    places = words_in(apply_concepts(clip, concepts), how.prompt)
    held = [concept for concept in concepts if any(found.word == concept.placeholder for found in places)]
    if not held:
        raise ValueError(f"The prompt '{how.prompt}' holds none of the placeholders "
                         f"{', '.join(c.placeholder for c in concepts)}; write one where the subject goes.")
    current = {concept.placeholder: concept for concept in concepts}
    with training_session(model, clip) as session:
        for concept in held:
            others = {name: initial_vectors(c, clip) for name, c in current.items() if name != concept.placeholder}
            template = template_of(how.prompt, concept.placeholder, places)
            current[concept.placeholder] = _refined(session, concept, others, template, how, scene, each_step)
    return tuple(current.values())


def template_of(prompt: str, placeholder: str, places: Sequence[Found]) -> str:
    """`prompt` with {} in the one place of `placeholder`, out of those of all words. Raises ValueError if there
    are more."""
    own = [found for found in places if found.word == placeholder]
    if len(own) != 1:
        raise ValueError(f"The prompt '{prompt}' holds {placeholder} {len(own)} times, but CoRe compares prompts "
                         "with the subject in one place; write it once.")
    return f"{prompt[:own[0].start]}{{}}{prompt[own[0].end:]}"


def _refined(session: Session, concept: Concept, others: Vectors, template: str, how: Refinement,
             scene: Scene, each_step: Callable[[dict], None]) -> Concept:
    pictures = _pictures_of(concept, scene.subjects)
    plan = Plan(session.model, session.clip, scene.vae, (Subject(concept, pictures),),
                (EmbeddingPart(how.learning_rate),),
                core_terms((template,), how.weighting), TemplateRecipe(captions=False) if pictures else _NoPictures(),
                Settings(how.steps, how.batch_size, seed=how.seed))

    def after_step(_, record: dict) -> bool:
        each_step(record)
        return True

    latents = None if pictures else NoisedScene(scene.latents)
    with open_training(plan, latents=latents, words=others, session=session, inputs=INPUTS) as trainer:
        trainer.rehearse()
        trainer.run(after_step)
        vectors = trainer.vectors()[concept.placeholder]
    return concept.with_vectors(vectors, {**concept.settings, "refined_for": how.prompt})


def latents_of(model, latent: dict | None, size: int) -> Tensor:
    """(N, C, h, w) in the model's space: of a LATENT, or an empty one of `size` pixels a side.

    Raises ValueError if the model takes no such latents.
    """
    space = latent_space(model)
    if latent is None:
        return space.empty((size, size))
    samples = latent["samples"]
    if samples.ndim != 4 or samples.shape[1] != space.channels:
        raise ValueError(f"latent has the shape {tuple(samples.shape)} but the model takes latents of "
                         f"{space.channels} channels; encode a picture with this checkpoint's VAE.")
    if not samples.isfinite().all():
        raise ValueError(
            "latent holds values that are not numbers; look at the sampler or VAE that made it, or disconnect it."
        )
    return space.from_vae(samples.float().cpu())


def _pictures_of(concept: Concept, subjects: Sequence[Subject]) -> tuple[Picture, ...]:
    if not subjects:
        return ()
    for subject in subjects:
        if subject.concept.placeholder == concept.placeholder:
            return subject.pictures
    shown = ", ".join(subject.concept.placeholder for subject in subjects)
    raise ValueError(f"subject holds pictures of {shown} but the prompt is about {concept.placeholder}; connect its "
                     "Subject, or none.")


@dataclass(frozen=True)
class NoisedScene:
    """Latents (N, C, h, w) without pictures: each row takes one of them, with noise of its own."""

    latents: Tensor

    def noised(self, rows: Sequence[Row], levels: NoiseLevels, seed: int, step: int, stream: Stream, device) -> Noised:
        """See Scene."""
        draw = generator(seed, "scene", stream, step)
        clean = self.latents[torch.randint(len(self.latents), (len(rows),), generator=draw)]
        numbers = levels.draw(len(rows), draw, first=0 if self.latents.any() else levels.count // 2)
        noise = torch.randn(clean.shape, generator=draw)
        return add_noise(levels, clean.to(device), noise.to(device), numbers)


class _NoPictures:
    """A recipe whose rows show nothing."""

    def rows(self, subjects: Sequence[Subject], step: int, size: int, seed: int) -> Mapping[Stream, tuple[Row, ...]]:
        """`size` rows of the one subject."""
        return {"subject": (Row(0, 0, 0, subjects[0].concept.placeholder),) * size}
