"""What the templates give that no table of the laboratory has, drawn on the miniature world for their thumbnails."""
from __future__ import annotations

import comfy.sd
import torch
from PIL import Image

from claims.bounds import SUBJECT
from claims.task import Task, task_for
from claims.techniques.core import RELEASED, STAGE_1, TEST_TIME, Learning, concept_of
from claims.training import subject_of, train
from claims.world import Sampling, World
from demonstration.setting import MINIATURE
from miniature.subjects import public_subjects
from personalize.nodes.papers.core.test_time import Refinement, Scene, refine
from personalize.nodes.recording.nodes_mask import PersonalizeSubjectMask
from personalize.nodes.recording.nodes_record import EVERY_STEP, PersonalizeRecordAttention
from personalize.nodes.recording.nodes_show import PersonalizeShowAttention
from personalize.nodes.text.apply import apply_concepts
from personalize.nodes.text.concept import Concept
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import AdapterPart

from .thumbnails import Column

BEFORE, AFTER = 4, 5  # numbers of the prompts that are shown
SEEN = "a photo of a red dog next to a ball on the beach"


def drawn_here() -> dict[str, list[Column]]:
    """Template -> its pictures."""
    world = World(MINIATURE)
    task = task_for(public_subjects()[0], "varied", 8, 0, Sampling(steps=25))
    word = train(world, subject_of(task, concept_of(task)), [EmbeddingPart(STAGE_1.rate)], (DiffusionLoss(),),
                 STAGE_1.settings(0)).concept
    return {"train_lora": with_a_lora(world, task), "core_test_time": refined(world, task, word),
            "look_inside": looked_at(world, task)}


def with_a_lora(world: World, task: Task) -> list[Column]:
    """Word and LoRA trained together."""
    trained = train(world, subject_of(task, concept_of(task)), [EmbeddingPart(1e-3), AdapterPart(lr=1e-3)],
                    (DiffusionLoss(),), Learning(200, 4, 1e-3).settings(0))
    model, _ = comfy.sd.load_lora_for_models(world.networks.model, None, dict(trained.weights), 1.0, 0.0)
    return [("the subject", pictured(task.pictures[2])),
            ("before", drawn(world, task, concept_of(task), BEFORE)),
            ("word and LoRA", drawn(world, task, trained.concept, BEFORE, model))]


def refined(world: World, task: Task, word: Concept) -> list[Column]:
    """A word before and after it was refined for one prompt."""
    model, clip, vae = world.networks
    how = Refinement(task.prompts(SUBJECT)[AFTER], RELEASED, TEST_TIME.steps, TEST_TIME.rate, TEST_TIME.batch, 0)
    scene = Scene(latents=task.noise(world)[:1], subjects=(subject_of(task, word),), vae=vae)
    better = refine(model, clip, (word,), how, scene, lambda record: None)[0]
    return [("the subject", pictured(task.pictures[2])), ("the word", drawn(world, task, word, AFTER)),
            ("refined for this prompt", drawn(world, task, better, AFTER))]


def looked_at(world: World, task: Task) -> list[Column]:
    """Heat map and mask of a word."""
    model, clip, _ = world.networks
    recording, record = PersonalizeRecordAttention.execute(
        model, "dog", "all", "", EVERY_STEP, 0.0, 1.0, clip, SEEN).args
    picture = world.draw(world.encode(SEEN), task.noise(world)[:1], task.sampling, recording).movedim(1, -1)
    heat = PersonalizeShowAttention.execute(record, "mean", "each map", "jet", 0.6, 0, picture).args[0]
    masked = PersonalizeSubjectMask.execute(record, "dog", "Otsu", 0.3, picture).args[1]
    columns = ("the picture", picture), ("“dog”", heat), ("its mask", masked)
    return [(heading, pictured(pictures[0].movedim(-1, 0))) for heading, pictures in columns]


def drawn(world: World, task: Task, concept: Concept, number: int, model=None) -> Image.Image:
    """The picture of one of the task's prompts."""
    positive = world.encode(task.prompts(SUBJECT)[number], apply_concepts(world.networks.clip, (concept,)))
    return pictured(world.draw(positive, task.noise(world)[number:number + 1], task.sampling, model)[0])


def pictured(picture: torch.Tensor) -> Image.Image:
    """Of (3, H, W) in 0..1."""
    return Image.fromarray((255 * picture.movedim(0, -1)).round().byte().contiguous().numpy())
