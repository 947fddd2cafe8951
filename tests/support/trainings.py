"""Small trainings as the tests run them, on a subject of random pictures: of the loop alone, and of a whole job."""
from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import comfy.model_management
import comfy.sample
import torch

from personalize.nodes.families.latents import latent_space
from personalize.nodes.papers.core.terms import ContextAttentionLoss, ContextEmbeddingLoss
from personalize.nodes.text.concept import Concept
from personalize.nodes.training.assembly import open_training
from personalize.nodes.training.batch import Subject
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.job import Job, run_job
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.plan import Plan, Settings
from personalize.nodes.training.recipe import TemplateRecipe
from support.pictures import MadePicture


def subject(pictures: int = 3, size: int = 64, placeholder: str = "<my-dog>", count: int = 1) -> Subject:
    draw = torch.Generator().manual_seed(5)
    return Subject(Concept(placeholder, "dog", "cat", count),
                   tuple(MadePicture(torch.rand(1, size, size, 3, generator=draw), name=f"picture {i + 1}")
                         for i in range(pictures)))


def train(checkpoint, settings, *, subjects=None, parts=(EmbeddingPart(),), terms=(DiffusionLoss(),), recipe=None,
          each_step=lambda trainer, record: True, resume=None):
    """Runs the loop as the Train node does; returns the trainer, the learned vectors and the state."""
    plan = Plan(*checkpoint, subjects or (subject(),), parts, terms, recipe or TemplateRecipe(), settings)
    with torch.inference_mode(), open_training(plan, resume) as trainer:
        trainer.run(each_step)
        state = replace(trainer.state(), tensors={name: t.clone() for name, t in trainer.state().tensors.items()})
        learned = {name: v for part in trainer.parts for name, v in part.learned_vectors().items()}
    return trainer, learned, state


def make_job(checkpoint, name, steps=4, parts=(EmbeddingPart(),), **changes) -> Job:
    return replace(Job(*checkpoint, (subject(),), parts, (DiffusionLoss(),), TemplateRecipe(),
                       Settings(steps=steps, batch_size=2), name=name), **changes)


def run(job: Job):
    with torch.inference_mode():
        return run_job(job)


def learned(outcome) -> torch.Tensor:
    return outcome.concepts[0].vectors["clip_l"]


def sample(model, clip) -> torch.Tensor:
    with torch.inference_mode():
        cond = clip.encode_from_tokens_scheduled(clip.tokenize("a photo of a dog"))
        latent = latent_space(model).empty((64, 64))
        return comfy.sample.sample(model, comfy.sample.prepare_noise(latent, 0), 2, 3.0, "euler", "normal", cond, cond,
                                   latent, disable_pbar=True, seed=0)


FAILED: list[int] = []
ERRORS = {"broken": RuntimeError("a broken node"),
          "interrupt": comfy.model_management.InterruptProcessingException(),
          "memory": torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")}


@dataclass(frozen=True)
class Failing(DiffusionLoss):
    """Raises ERRORS[error] when step `step` has computed its loss, each time or only the first."""

    error: str = ""
    step: int = 2
    times: int = 10**9

    def __call__(self, got, batch, model):
        loss = super().__call__(got, batch, model)
        if batch.step == self.step and len(FAILED) < self.times:
            FAILED.append(len(batch.rows["subject"]))
            raise ERRORS[self.error]
        return loss


TEMPLATES = ("a {} in the jungle", "a painting of a {} next to a red house", "{} at night")
CORE = (ContextEmbeddingLoss(TEMPLATES, 50.0, "paper"), ContextAttentionLoss(TEMPLATES, 5e4, "paper"))


@contextlib.contextmanager
def in_place_of_a_step(action):
    """Inside, the loop calls `action(trainer, batch)` where it would optimise."""
    from personalize.nodes.training import loop

    def step_(trainer, step):
        action(trainer, trainer.batch(step))
        trainer.optimizer.zero_grad()
        trainer.step = step
        return {"step": step, "total": 1, "loss": 0.0, "parts": {}, "norms": {}, "lr": {}}

    original, loop.Trainer.optimise = loop.Trainer.optimise, step_
    try:
        yield
    finally:
        loop.Trainer.optimise = original


def parameters(trainer):
    return [p for part in trainer.parts for group in part.groups for p in group.params]


def flat_gradient(trainer):
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters(trainer)])


@torch.no_grad()
def move(trainer, direction):
    for p, d in zip(parameters(trainer), direction.split([p.numel() for p in parameters(trainer)]), strict=True):
        p.add_(d.view_as(p))


def gradients(checkpoint, method, **settings):
    found = []

    def collect(trainer, batch):
        trainer._micro_batches(batch, measured=False)
        found.append(flat_gradient(trainer))

    with in_place_of_a_step(collect):
        train(checkpoint, Settings(**{"steps": 1, "batch_size": 2, **settings}), **method)
    return found[0]
