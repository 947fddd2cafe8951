"""How near CoRe's estimator comes to the exact attention loss: both gradients at points of a real training.

Started by tests/lab/bench/core_gradients.py.
"""
from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from miniature.comfyui import use_comfyui

from .options import parse_gradients

TERMS = ("diffusion", "embedding", "exact", "estimate")


def main(arguments: list[str] | None = None) -> int:
    """Prints a line a subject as they end, then the figures."""
    options = parse_gradients(arguments)
    use_comfyui(options.comfyui)
    from support import pack

    pack.make_importable()
    from miniature.subjects import public_subjects

    from .task import task_for
    from .world import Sampling, World

    world, found = World(options.checkpoint), []
    for subject in public_subjects()[:options.subjects]:
        task = task_for(subject, options.set, 1, seed=0, sampling=Sampling())
        found.append(gradients_of(world, task, options))
        print(f"{subject.name}: {len(found[-1])} points", flush=True)
    print("\n".join(figures(found)))
    return 0


def gradients_of(world, task, options: argparse.Namespace) -> dict[int, list[dict[str, Tensor]]]:
    """Step -> per batch: term -> its weighted gradient in the vector, while TI+CoRe learns the task's subject."""
    from personalize.nodes.training.diffusion import DiffusionLoss
    from personalize.nodes.training.parts.embedding import EmbeddingPart

    from .techniques.core import STAGE_1, Embedding, Learning, concept_of
    from .training import subject_of, train

    learning = Learning(options.steps, STAGE_1.batch, STAGE_1.rate)
    exact, estimate = (Embedding("", learning, estimate=estimate).terms(task) for estimate in (False, True))
    terms = dict(zip(TERMS, (DiffusionLoss(), *exact, estimate[1]), strict=True))
    steps = [round((i + 0.5) * options.steps / options.points) for i in range(options.points)]
    found: dict[int, list[dict[str, Tensor]]] = {}

    def each_step(trainer) -> None:
        if trainer.step in steps:
            found[trainer.step] = [{name: gradient(trainer, term, batch) for name, term in terms.items()}
                                   for batch in batches(trainer, options.batches)]

    window = (options.steps * 2 // 5 + 1, options.steps * 3 // 5)
    train(world, subject_of(task, concept_of(task)), [EmbeddingPart(learning.rate, window)],
          (DiffusionLoss(), *exact), learning.settings(task.seed), each_step=each_step)
    return found


def batches(trainer, count: int) -> Iterator:
    """Rows and noised latents that the training itself never sees."""
    from personalize.nodes.training.batch import Batch

    plan, session = trainer.plan, trainer.session
    size, seed = plan.settings.batch_size, plan.settings.seed + 1
    for step in range(trainer.step * count, (trainer.step + 1) * count):
        rows = plan.recipe.rows(plan.subjects, step, size, seed)
        yield Batch(step, plan.subjects, rows, {
            stream: trainer.latents.noised(shown, session.noise, seed, step, stream, session.device)
            for stream, shown in rows.items()})


def gradient(trainer, term, batch) -> Tensor:
    """The gradient of one weighted term in everything that is trained, as one vector."""
    from personalize.nodes.training.passes import Objective

    objective = Objective(trainer.session, trainer.parts, (term,), trainer.objective.text, trainer.frozen,
                          trainer.plan.settings.seed, checkpointing=False)
    objective.backward(batch)
    parameters = [p for part in trainer.parts for group in part.groups for p in group.params]
    found = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
    for p in parameters:
        p.grad = None
    return found


def figures(found: Sequence[dict[int, list[dict[str, Tensor]]]]) -> Iterator[str]:
    """Cosine and norm ratio of the estimate to the exact gradient, of the attention loss and of both losses together,
    and how hard the exact losses pull beside the diffusion loss; a line a point, then all points."""
    measures = {
        "attention_cosine": lambda g: _cosine(g["estimate"], g["exact"]),
        "attention_norm_ratio": lambda g: _ratio(g["estimate"], g["exact"]),
        "core_cosine": lambda g: _cosine(g["embedding"] + g["estimate"], g["embedding"] + g["exact"]),
        "core_norm_ratio": lambda g: _ratio(g["embedding"] + g["estimate"], g["embedding"] + g["exact"]),
        "embedding_beside_diffusion": lambda g: _ratio(g["embedding"], g["diffusion"]),
        "attention_beside_diffusion": lambda g: _ratio(g["exact"], g["diffusion"]),
    }
    for name, measure in measures.items():
        by_point = {step: [statistics.fmean(map(measure, points[step])) for points in found] for step in found[0]}
        for step, values in by_point.items():
            yield _line(f"{name} step_{step}", values)
        yield _line(f"{name} all", [statistics.fmean(of) for of in zip(*by_point.values(), strict=True)])


def _line(name: str, by_subject: Sequence[float]) -> str:
    return (f"figure core_gradients {name} {statistics.fmean(by_subject):.3g} "
            f"({min(by_subject):.3g} to {max(by_subject):.3g} over {len(by_subject)} subjects)")


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def _ratio(one: Tensor, other: Tensor) -> float:
    return float(one.norm() / other.norm().clamp_min(1e-30))


if __name__ == "__main__":
    sys.exit(main())
