"""The pack's own training steps on ComfyUI's objects: the real loop, with latents that are already encoded."""
from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from personalize.nodes.papers.core.terms import ContextAttentionLoss, ContextEmbeddingLoss
from personalize.nodes.text.concept import Concept
from personalize.nodes.text.tokens import Slot
from personalize.nodes.training.assembly import open_training
from personalize.nodes.training.batch import Batch, Subject
from personalize.nodes.training.dataset import Dataset, PictureLatents
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.interfaces import LossTerm
from personalize.nodes.training.loop import MEASURE_GRADIENTS_EVERY, Trainer
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.part import TrainablePart
from personalize.nodes.training.plan import Plan, Settings
from personalize.nodes.training.recipe import TemplateRecipe
from personalize.nodes.training.session import Session
from support.pictures import MadePicture

from .measure import tensor_bytes

PLACEHOLDER = "<my-dog>"
CAPTIONS = ("a photo of a {}", "a close-up photo of the {}", "a rendering of a {}", "a dark photo of one {} at night")
CONTEXTS = ("a {} in the jungle", "an oil painting of a {}")
EMBEDDING_WEIGHT, ATTENTION_WEIGHT = 1.5e-4, 0.05  # CoRe as released
CORE_EMBEDDING = ContextEmbeddingLoss(CONTEXTS, EMBEDDING_WEIGHT, "released")
TERMS: dict[str, tuple[LossTerm, ...]] = {
    "embedding": (DiffusionLoss(),),
    "embedding_loss_only": (DiffusionLoss(), CORE_EMBEDDING),
    "core_exact": (DiffusionLoss(), CORE_EMBEDDING, ContextAttentionLoss(CONTEXTS, ATTENTION_WEIGHT, "released")),
    "core_estimator": (DiffusionLoss(), CORE_EMBEDDING,
                       ContextAttentionLoss(CONTEXTS, ATTENTION_WEIGHT, "released", estimate=True)),
}


def training_step(session: Session, latents: Tensor, terms: tuple[LossTerm, ...], one_prompt: bool,
                  caption: str = CAPTIONS[0], part: TrainablePart = EmbeddingPart()
                  ) -> contextlib.AbstractContextManager[TrainingStep]:
    """Steps with every picture in each.

    one_prompt: every row has the same prompt, CoRe's way; else every picture has a caption of its own.
    caption: that one prompt. part: what learns.
    """
    captions = [(caption if one_prompt else CAPTIONS[i]).replace("{}", PLACEHOLDER) for i in range(len(latents))]
    return open_steps(session, latents, captions, len(latents), terms, part)


@contextlib.contextmanager
def open_steps(session: Session, latents: Tensor, captions: Sequence[str], rows: int, terms: tuple[LossTerm, ...],
               part: TrainablePart) -> Iterator[TrainingStep]:
    """Steps of a training of its own on the session's models, on latents (pictures, 4, h, w), one caption each."""
    pictures = tuple(MadePicture(torch.zeros(1, 8, 8, 3), caption=caption) for caption in captions)
    subjects = (Subject(Concept(PLACEHOLDER, "dog", "dog"), pictures),)
    settings = Settings(steps=10**6, batch_size=rows)
    plan = Plan(session.model, session.clip, None, subjects, (part,), terms, TemplateRecipe(), settings)
    data = Dataset([[PictureLatents(latent[None], None) for latent in latents]])
    with open_training(plan, latents=data, session=session) as trainer:
        yield TrainingStep(trainer)


class TrainingStep:
    """Consecutive steps of a training, those between two measurements of the gradient norms."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.part, = trainer.parts
        self.numbers = (n for n in itertools.count(2) if n % MEASURE_GRADIENTS_EVERY)
        self.measured_numbers = itertools.count(MEASURE_GRADIENTS_EVERY, MEASURE_GRADIENTS_EVERY)

    def __call__(self) -> float:
        """The loss."""
        return self.trainer.optimise(next(self.numbers))["loss"]

    def measured(self) -> float:
        """A step that also measures every term's gradient norm, which few do."""
        return self.trainer.optimise(next(self.measured_numbers))["loss"]

    def lasting_bytes(self) -> int:
        """Bytes of both models and of the optimiser."""
        session = self.trainer.session
        models = [*session.model.model.parameters(), *session.clip.cond_stage_model.parameters()]
        return tensor_bytes([*models, *self.trainer.state().tensors.values()])

    @property
    def vector(self) -> Tensor:
        """(768,)"""
        return self.part.parameters[PLACEHOLDER]["clip_l"].detach()[0]

    def batch(self) -> Batch:
        """Rows and noised latents of a step."""
        return self.trainer.batch(1)

    def gradient(self, batch: Batch) -> tuple[float, Tensor]:
        """Loss and gradient of the vector, (768,), at this batch."""
        losses = self.trainer.objective.backward(batch)
        found = self.part.parameters[PLACEHOLDER]["clip_l"].grad[0].clone()
        self.trainer.optimizer.zero_grad(set_to_none=True)
        return sum(losses.values()), found

    def token_ids(self, placeholder_id: int) -> Tensor:
        """Ids (B, 77) of the rows' prompts in the order of the pictures."""
        tokenize = self.trainer.objective.text.tokenizer
        rows = [tokenize(picture.caption).chunks[0][1][0] for picture in self.trainer.plan.subjects[0].pictures]
        return torch.tensor([[placeholder_id if isinstance(t, Slot) else t for t, _ in row] for row in rows])
