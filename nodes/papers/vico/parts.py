"""Image blocks as something that Train optimises, and the recipe that gives every picture a reference."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...attention.masks import grid_with, on_grid
from ...attention.schedule import NoiseRange
from ...families.find import unet_of
from ...recording.record import Record
from ...text.layout import END
from ...text.tokens import PromptTokens
from ...training.batch import Batch, Recipe, Row, Stream, Subject
from ...training.parts.part import (
    RUNNING,
    Artifact,
    AttachedPart,
    ParamGroup,
    RunningPass,
    Side,
    TrainablePart,
    TrainingRun,
)
from ...training.restoring import matching
from ...training.seeds import generator
from .apply import KEY, Applied
from .blocks import ImageBlocks, Placement, layers_at
from .files import FILE, FOLDER, metadata_of
from .maths import Variant, given_mask, object_mask
from .references import Reference, Use
from .streams import CALL, Features, Reading, image_attention, look_at_references

REFERENCE: Stream = "reference"


def subject_positions(tokens: PromptTokens, placeholder: str) -> tuple[int, ...]:
    """Where a row's prompt has the subject's word; without it, as released, its first end-of-text token."""
    return tokens.layout.span(placeholder) or tokens.layout.of_kind(END)[:1]


def end_position(tokens: PromptTokens, position: int) -> int:
    """The first end-of-text token after `position`."""
    return next(end for end in tokens.layout.of_kind(END) if end >= position)


@dataclass(frozen=True)
class WithReferences:
    """Another recipe's rows, each with a reference: another picture of the same subject, drawn evenly; the picture
    itself if the subject has only one (Appendix A and C)."""

    recipe: Recipe

    @property
    def captions(self) -> bool:
        """Whether pictures' own captions take the place of prompts."""
        return getattr(self.recipe, "captions", True)

    def rows(self, subjects: Sequence[Subject], step: int, size: int, seed: int) -> Mapping[Stream, tuple[Row, ...]]:
        """The streams of the other recipe and the stream "reference"."""
        streams = self.recipe.rows(subjects, step, size, seed)
        return {**streams, REFERENCE: tuple(_other_picture(subjects, row, generator(seed, REFERENCE, step, i))
                                            for i, row in enumerate(streams["subject"]))}


def _other_picture(subjects: Sequence[Subject], row: Row, draw: torch.Generator) -> Row:
    pictures = subjects[row.subject].pictures
    others = [i for i in range(len(pictures)) if i != row.picture] or [row.picture]
    picture = others[int(torch.randint(len(others), (), generator=draw))]
    variant = int(torch.randint(pictures[picture].count, (), generator=draw))
    return Row(row.subject, picture, variant, row.prompt)


@dataclass(frozen=True)
class ImageAttentionPart(TrainablePart):
    """Optimises one set of image blocks for all subjects of the run.

    lr: learning rate (ViCo 1e-5). placement: where the blocks stand. variant: how the object mask is made and acts.
    given_masks: take the masks of the subjects' pictures in place of automatic ones.
    """

    lr: float = 1e-5
    placement: Placement = "decoder"
    variant: Variant = "paper"
    given_masks: bool = False
    weight_decay: float | None = None
    keeps: ClassVar = ((FOLDER, FILE),)

    @property
    def label(self) -> str:
        """For the name of a run."""
        return "vico"

    rows_beside: ClassVar = 1  # a reference for every row

    @property
    def uses_masks(self) -> bool:
        """Whether the pictures' masks change it."""
        return self.given_masks

    def attach(self, run: TrainingRun) -> AttachedImageAttention:
        """Float32 blocks with random weights, as the authors start. Raises ValueError if the model has some already."""
        if run.model.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY):
            raise ValueError("The MODEL for Train already reads a reference; connect the model from before Apply ViCo.")
        layers = layers_at(unet_of(run.model).layers, self.placement)
        blocks = ImageBlocks(run.model, layers, torch.float32, run.device)
        blocks.draw(generator(run.seed, "image blocks"))
        attached = AttachedImageAttention(self, run, blocks)
        run.model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, attached.sample_preview)
        run.model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, attached.diffusion_model)
        return attached


class AttachedImageAttention(AttachedPart):
    """The image blocks of one run."""

    touches: frozenset[Side] = frozenset({"unet"})

    def __init__(self, settings: ImageAttentionPart, run: TrainingRun, blocks: ImageBlocks):
        self.settings, self.run, self.blocks = settings, run, blocks
        self.groups: Sequence[ParamGroup] = [
            ParamGroup("image attention", list(blocks.parameters()), settings.lr, settings.weight_decay)]
        self._on = True
        self._shown: tuple[int, Tensor] | None = None
        self._preview: Applied | None = None

    def installed(self) -> AbstractContextManager:
        """The U-Net's layers go through transformer_options[CALL]."""
        return image_attention(self.run.model, self.blocks.layers)

    @contextlib.contextmanager
    def bypassed(self) -> Iterator[None]:
        """The U-Net alone."""
        self._on = False
        try:
            yield
        finally:
            self._on = True

    def state_dict(self) -> dict[str, Tensor]:
        """The blocks' tensors under their names in a file, float32."""
        return {name: p.detach() for name, p in self.blocks.named_tensors()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` returned."""
        for name, p in self.blocks.named_tensors():
            p.copy_(matching(state, name, p.shape))

    def files(self) -> Sequence[Artifact]:
        """The blocks for Load ViCo."""
        words = tuple(subject.concept.placeholder for subject in self.run.subjects)
        size = self.run.subjects[0].pictures[0].size[0]
        about = metadata_of(self.settings.variant, words, size, self.run.model)
        return [Artifact(FOLDER, FILE, self.state_dict(), about)]

    # ------------------------------------------------------------------------------------------ training
    def diffusion_model(self, executor, x, timesteps, context, y=None, control=None, options={}, **kwargs):
        """DIFFUSION_MODEL wrapper: each row of the subjects' pictures reads its reference."""
        running: RunningPass | None = options.get(RUNNING)
        if running is None and self._preview is not None:
            return self._preview.diffusion_model(executor, x, timesteps, context, y, control, options, **kwargs)
        if running is None or running.stream != "subject" or not self._on:
            return executor(x, timesteps, context, y, control, options, **kwargs)
        latents = self._references(running.batch).to(x)
        groups = [[subject_positions(tokens, running.batch.concept(row).placeholder)]
                  for tokens, row in zip(running.tokens, running.batch.rows["subject"], strict=True)]
        seen = look_at_references(executor.original, executor.class_obj, self.blocks.layers, latents, timesteps,
                                  context, y, groups, options)
        features = {layer: Features(each.tokens, self._mask(each.maps[..., 0], running.batch))
                    for layer, each in seen.items()}
        options = {**options, CALL: Reading(self.blocks, features, self.settings.variant)}
        return executor(x, timesteps, context, y, control, options, **kwargs)

    def _references(self, batch: Batch) -> Tensor:
        if REFERENCE not in batch.latents:
            raise ValueError("Train ViCo needs a reference picture beside every picture; connect Training References "
                             "to recipe on Train.")
        latents = batch.latents[REFERENCE].clean
        for row, latent in zip(batch.rows[REFERENCE], latents, strict=True):
            if row.subject == 0 and (self._shown is None or row.picture < self._shown[0]):
                self._shown = row.picture, latent.detach()
        return latents

    def _mask(self, maps: Tensor, batch: Batch) -> Tensor | None:
        """(B, P) from maps (B, P)."""
        if not self.settings.given_masks:
            return object_mask(maps, self.settings.variant)
        return given_mask(reference_masks(batch, maps.shape[-1]).to(maps), self.settings.variant)

    # ------------------------------------------------------------------------------------------ previews
    def sample_preview(self, executor, guider, *args, **kwargs):
        """SAMPLER_SAMPLE wrapper: a picture that is drawn during the training reads a picture of the first subject."""
        if self._shown is None:
            return executor(guider, *args, **kwargs)
        reference = Reference(self._shown[1][None], self.run.subjects[0].concept.placeholder)
        self._preview = Applied(self.blocks, (), (reference,), Use(self.settings.variant),
                                NoiseRange(float("inf"), 0.0),
                                Record("Train ViCo"), hooked=True)
        try:
            return self._preview.sample(executor, guider, *args, **kwargs)
        finally:
            self._preview = None


def reference_masks(batch: Batch, patches: int) -> Tensor:
    """The share of each patch that the reference pictures' own masks cover, (B, P), for a layer with P patches; 1 where
    a picture has none.

    Raises ValueError if no picture of any subject has a mask.
    """
    latents = batch.latents[REFERENCE]
    if latents.masks is None:
        if not any(picture.masked for subject in batch.subjects for picture in subject.pictures):
            raise ValueError("Masks of the pictures are asked for, but no picture of the subjects has one; connect "
                             "masks to Subject, or choose the automatic mask.")
        return latents.clean.new_ones(len(latents.clean), patches)
    return on_grid(latents.masks[:, 0], grid_with(latents.clean.shape[-2:], patches)).flatten(1)
