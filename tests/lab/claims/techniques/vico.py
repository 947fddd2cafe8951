"""ViCo (Hao et al. 2023): image cross-attention to a reference picture, its mask and regularisation, with ablations.

Table 4 adds one thing after the other: TI, TI+image-attention, TI+image-attention+mask; with the regularisation it is
ViCo. Batch, λ and the embedding's rate are the paper's. A step takes 0.3 s of one core (TI: 0.13 s; the reference goes
through the U-Net and back too), so steps are half the paper's: 200 and 150 in place of 400 and 300. A cell of twelve
pictures then costs 62 s.

The rate of the image blocks is the miniature's own. Over the last 50 of 200 steps the diffusion loss of TI is 0.0593,
and with blocks at the paper's 1e-5 the same, at 1e-4 0.0574, at 1e-3 0.0457.
"""
from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from miniature.data import draw_all, masks_tensor, pictures_tensor
from miniature.factors import BACKGROUNDS, POSES, Identity, Scene
from miniature.subjects import Subject as NovelSubject
from miniature.subjects import fresh_subjects
from personalize.nodes.files import write_safetensors
from personalize.nodes.papers.vico.files import FILE, metadata_of, read_vico
from personalize.nodes.papers.vico.files import ViCo as ViCoFile
from personalize.nodes.papers.vico.nodes_apply import AS_TRAINED, MASKS, PersonalizeApplyViCo
from personalize.nodes.papers.vico.nodes_train import (
    PersonalizeEndOfTextRegularisation,
    PersonalizeTrainingReferences,
    PersonalizeTrainViCo,
)
from personalize.nodes.text.concept import Concept
from personalize.nodes.text.nodes_prompts import PersonalizeEncodeWithSpans
from personalize.nodes.training.batch import Subject
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.plan import Settings

from ..bounds import SUBJECT, ClassWord, Truth
from ..store import Cell, Drawn
from ..task import Task, task_for
from ..technique import Method, Technique
from ..training import Trained, subject_of, train
from ..world import World
from .core import concept_of, drawn_with
from .harmonize import alike, joined

EQUATION_5, RELEASED, NO_MASK = MASKS
END = "end of text"
GENERAL_WORD = "object"
BLOCKS = "blocks."
OTHER = "<other>"


@dataclass(frozen=True)
class Learning:
    """Numbers of a training. rate: of the image blocks; embedding_rate: of the word."""

    steps: int = 200
    batch: int = 4
    rate: float = 1e-3
    embedding_rate: float = 5e-3

    def settings(self, seed: int) -> Settings:
        """For the pack's loop."""
        return Settings(self.steps, self.batch, seed=seed)


@dataclass(frozen=True)
class Look:
    """How Apply ViCo is used.

    pictures: the first so many references of the task; 0 for one picture that no training saw. The rest: its inputs.
    """

    pictures: int = 1
    object_mask: str = AS_TRAINED
    halves: str = "both"
    reuse_steps: int = 1


@dataclass(frozen=True)
class Embedding:
    """Textual Inversion with ViCo's numbers. word: what the vector starts from, "" for the class word."""

    name: str
    learning: Learning
    word: str = ""
    continues: None = None
    revision: int = 1

    def draw(self, world: World, task: Task, earlier: Cell | None) -> Drawn:
        """See Method."""
        started = time.monotonic()
        subject, part = subject_of(task, starting_at(task, self.word)), EmbeddingPart(self.learning.embedding_rate)
        trained = train(world, subject, [part], (DiffusionLoss(),), self.learning.settings(task.seed))
        figures = {"learning_seconds": time.monotonic() - started}
        return Drawn(dict(enumerate(drawn_with(world, task, trained.concept))), trained.concept.vectors, figures)


@dataclass(frozen=True)
class ViCo:
    """Image blocks and embedding, trained together and drawn with one reference.

    object_mask, placement: of Train ViCo. regularisation: λ of Eq. 6. word: as for Embedding. pictures: the training
    sees the first so many. companion: a second subject takes turns with the task's (Appendix J).
    """

    name: str
    learning: Learning
    object_mask: str = EQUATION_5
    regularisation: float = 5e-4
    placement: str = "decoder"
    word: str = ""
    pictures: int = 5
    companion: bool = False
    continues: None = None
    revision: int = 1

    def draw(self, world: World, task: Task, earlier: Cell | None) -> Drawn:
        """See Method."""
        started = time.monotonic()
        trained = train_blocks(world, replace(task, pictures=task.pictures[:self.pictures]), self.learning, self.word,
                               self.placement, self.object_mask, self.regularisation, self.companion)
        learned = {**trained.concept.vectors, **kept_blocks(trained)}
        seconds = time.monotonic() - started
        pictures, figures = drawn_looking(world, task, learned, MASKS[self.object_mask], Look())
        return Drawn(pictures, learned, {"learning_seconds": seconds, **trained.figures(), **figures})


@dataclass(frozen=True)
class Looking:
    """What `continues` has learned, drawn with the references used in another way."""

    name: str
    continues: ViCo
    look: Look
    revision: int = 1

    def draw(self, world: World, task: Task, earlier: Cell | None) -> Drawn:
        """See Method."""
        variant = MASKS[self.continues.object_mask]
        pictures, figures = drawn_looking(world, task, earlier.drawn.learned, variant, self.look)
        return Drawn(pictures, figures=figures)


def train_blocks(world: World, task: Task, learning: Learning, word: str = "", placement: str = "decoder",
                 object_mask: str = EQUATION_5, regularisation: float = 5e-4, companion: bool = False) -> Trained:
    """The task's word and image blocks, trained together; inputs as the fields of ViCo."""
    terms = DiffusionLoss(),
    parts, = PersonalizeTrainViCo.execute(learning.rate, learning.embedding_rate, placement, object_mask).args
    if regularisation:
        terms, = PersonalizeEndOfTextRegularisation.execute(regularisation, END, placement, 1, 0, terms).args
    return train(world, subject_of(task, starting_at(task, word)), parts, terms, learning.settings(task.seed),
                 PersonalizeTrainingReferences.execute().args[0], others=[subject_beside(task)] if companion else [])


def kept_blocks(trained: Trained) -> dict[str, Tensor]:
    """Image blocks by names for a cell; none where none were trained."""
    return {BLOCKS + name: tensor for file in trained.files for name, tensor in file.tensors.items()}


def part(learned: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What stands under a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in learned.items() if name.startswith(prefix)}


def starting_at(task: Task, word: str) -> Concept:
    """The subject before anything is learned: the class word, or another."""
    return replace(concept_of(task), init_words=word or task.identity.kind)


def companion_of(task: Task) -> Task:
    """Another subject, of another class, with pictures of its own."""
    return task_for(companion(task.identity, task.seed), "varied", 1, task.seed, task.sampling)


def companion(identity: Identity, seed: int) -> NovelSubject:
    """The same for all subjects of a seed, except those of its class."""
    return next(novel for novel in fresh_subjects(8, seed) if novel.identity.kind != identity.kind)


def subject_beside(task: Task) -> Subject:
    """The companion as it is before anything is learned, under a word of its own."""
    other = companion_of(task)
    return subject_of(other, replace(concept_of(other), placeholder=OTHER))


def unseen_scene(task: Task) -> Scene:
    """The subject in a place that no reference shows."""
    rng = random.Random(f"unseen {task.seed} {task.subject}")
    places = [place for place in BACKGROUNDS if place not in {scene.background for scene in task.scenes}]
    return Scene(task.identity, rng.choice(POSES), "none", rng.choice(places), "photo", None, rng.randrange(2**31))


def references(task: Task, count: int) -> tuple[Tensor, Tensor]:
    """Pictures (k, 3, 128, 128) and masks (k, 1, 128, 128); `count` as in Look."""
    if count:
        return task.pictures[:count], task.masks[:count]
    drawing = draw_all([unseen_scene(task)])
    return pictures_tensor(drawing), masks_tensor(drawing)


def vico_of(world: World, tensors: Mapping[str, Tensor], variant: str, size: int) -> ViCoFile:
    """Trained image blocks, through a file as Train saves it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{FILE}.safetensors"
        return read_vico(write_safetensors(path, tensors, metadata_of(variant, (SUBJECT,), size, world.networks.model)))


@torch.inference_mode()
def drawn_looking(world: World, task: Task, learned: Mapping[str, Tensor], variant: str, look: Look
                  ) -> tuple[dict[int, Tensor], dict[str, float]]:
    """Pictures by number, and how well the object mask fits. variant: that of the training."""
    concept = concept_of(task).with_vectors({name: t for name, t in learned.items() if not name.startswith(BLOCKS)})
    shown, truth = references(task, look.pictures)
    patched, record = looking(world, vico_of(world, part(learned, BLOCKS), variant, shown.shape[-1]), shown, look)
    pictures = drawn_by(world, task, task.prompts(SUBJECT), (concept,), patched)
    return pictures, mask_figures(record.current.masks, truth)


def looking(world: World, vico: ViCoFile, shown: Tensor, look: Look, **second):
    """MODEL that looks at pictures (k, 3, 128, 128), and its record. second: further inputs of Apply ViCo."""
    return PersonalizeApplyViCo.execute(
        world.networks.model, vico, world.networks.vae, shown.movedim(1, -1), SUBJECT, 1.0, 0.0, 1.0, look.object_mask,
        look.halves, look.reuse_steps, 0, "squash", **second).args


def drawn_by(world: World, task: Task, prompts: Sequence[str], concepts: tuple[Concept, ...], model
             ) -> dict[int, Tensor]:
    """Number of the prompt -> picture, from the task's noise."""
    encoded = [PersonalizeEncodeWithSpans.execute(world.networks.clip, prompt, "", concepts).args[0]
               for prompt in prompts]
    noise, pictures = task.noise(world), {}
    for rows in alike(encoded):
        drawn = world.draw(joined([encoded[row] for row in rows]), noise[rows], task.sampling, model)
        pictures |= dict(zip(rows, drawn, strict=True))
    return dict(sorted(pictures.items()))


def mask_figures(masks: Mapping[int, Tensor], truth: Tensor) -> dict[str, float]:
    """Intersection over union of the object masks of all steps (step -> (k, h, w)) with the truth (k, 1, H, W)."""
    if not masks:
        return {}
    found = torch.stack(list(masks.values())) >= 0.5
    shown = F.adaptive_avg_pool2d(truth, found.shape[-2:])[:, 0] >= 0.5
    shared, either = ((found & shown).sum((-2, -1)), (found | shown).sum((-2, -1)))
    return {"mask_iou": float((shared / either).mean())}


def technique(quick: bool) -> Technique:
    """Table 4, then one thing changed at a time: Figs. 5, 6, 8, 11 to 13, 25, and what saves time."""
    learning = Learning()
    if quick:
        learning = replace(learning, steps=4, batch=2)
    fewer = replace(learning, steps=learning.steps * 3 // 4)
    vico = ViCo("ViCo", learning)
    changed: tuple[Method, ...] = (
        replace(vico, name="ViCo-released-mask", object_mask=RELEASED),
        replace(vico, name="ViCo-three-quarters-of-the-steps", learning=fewer),
        replace(vico, name="ViCo-general-word", word=GENERAL_WORD),
        *(replace(vico, name=f"ViCo-pictures-{count}", pictures=count) for count in (1, 2, 3, 4)),
        replace(vico, name="ViCo-encoder", placement="encoder"),
        replace(vico, name="ViCo-both", placement="both"),
        replace(vico, name="ViCo-beside-a-second-subject", companion=True),
        Looking("ViCo-unseen-reference", vico, Look(pictures=0)),
        Looking("ViCo-two-references", vico, Look(pictures=2)),
        Looking("ViCo-shared", vico, Look(halves="shared")),
        Looking("ViCo-shared-reuse-4", vico, Look(halves="shared", reuse_steps=4)),
    )
    without_mask = replace(vico, name="TI+image-attention", object_mask=NO_MASK, regularisation=0.0)
    masked = replace(vico, name="TI+image-attention+mask", regularisation=0.0)
    methods = (Truth(), ClassWord(), Embedding("TI", learning), Embedding("TI-general-word", learning, GENERAL_WORD),
               without_mask, masked, vico, *changed)
    against = {method.name: "TI" for method in methods if method.name != "TI"}
    against |= {method.name: "ViCo" for method in changed}
    return Technique(methods, against | {masked.name: without_mask.name, "ViCo": masked.name,
                                         "ViCo-general-word": "TI-general-word"})
