"""A subject's mask from the model's own attention."""
from __future__ import annotations

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..attention.maps import resized, size_of
from ..attention.masks import above, otsu
from .reading import check_numbers, read, record_inputs

CATEGORY = "personalize/attention"
OTSU, THRESHOLD = "Otsu", "threshold"
SHADE = 0.7


class SubjectMask(io.ComfyNode):
    """Where the model sees a word, as MASK."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeSubjectMask", display_name="Subject Mask", category=CATEGORY, is_output_node=True,
            description="The mask of a subject from the model's own attention to its word, in a sampled picture or "
                        "in one of yours. Needs no segmentation model.",
            search_aliases=["segment", "SAM", "attention mask", "foreground", "background removal"],
            inputs=[
                *record_inputs(),
                io.String.Input("word", default="",
                                tooltip="The recorded word whose mask is wanted: a placeholder or a class word. Empty: "
                                        "the first one."),
                io.Combo.Input("method", options=[OTSU, THRESHOLD],
                               tooltip="Otsu finds the threshold that parts each picture's map best into foreground "
                                       "and background; threshold takes the number below."),
                io.Float.Input("threshold", default=0.3, min=0.0, max=1.0, step=0.01,
                               tooltip="For the method threshold: foreground is what exceeds it, on a scale from 0, "
                                       "the map's smallest value, to 1, its largest. Prompt-to-prompt's blending "
                                       "uses 0.3."),
                io.Mask.Input("mask", optional=True,
                              tooltip="A rough mask to refine, one or one per picture: the foreground is looked for "
                                      "inside of it only.")],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="1 on the subject, 0 elsewhere, at the picture's size."),
                io.Image.Output(display_name="preview", tooltip="The pictures with everything else darkened.")])

    @classmethod
    def execute(cls, record, word, method, threshold, image=None, latent=None, mask=None) -> io.NodeOutput:
        """MASK, IMAGE."""
        reading = read(record, image, latent)
        word = word.strip() or next(iter(reading.run.words), "")
        reading.run.require_maps(record.made_by, word or None)
        mean = reading.run.mean_map(word)
        assert mean is not None  # require_maps
        maps = resized(mean[:reading.images], reading.size)
        inside = _inside(mask, maps)
        check_numbers(maps, record.made_by)
        found = (otsu(maps, inside) if method == OTSU else above(maps, threshold, inside)).float()
        _check(found, inside, word, method)
        pictures = reading.pictures if reading.pictures is not None else torch.ones(*found.shape, 3)
        preview = pictures * (1 - SHADE * (1 - found[..., None]))
        return io.NodeOutput(found, preview, ui=ui.PreviewImage(preview, cls=cls))


def _inside(mask: Tensor | None, maps: Tensor) -> Tensor:
    """Bool (images, H, W): where foreground is looked for."""
    if mask is None:
        return torch.ones_like(maps, dtype=torch.bool)
    mask = resized(mask.reshape(-1, *mask.shape[-2:]).float().cpu(), size_of(maps)) > 0.5
    if len(mask) not in (1, len(maps)):
        raise ValueError(f"mask holds {len(mask)} masks for {len(maps)} pictures; connect one, or one for each.")
    return mask.expand(maps.shape)


def _check(found: Tensor, inside: Tensor, word: str, method: str) -> None:
    """Raises ValueError naming the first picture without foreground."""
    remedies = ["lower the threshold"] if method == THRESHOLD else []
    for picture, (mask, within) in enumerate(zip(found, inside), 1):
        if not within.any():
            raise ValueError(f"The mask given for picture {picture} is empty; connect one that covers the subject, or "
                             "none.")
        if not mask.any():
            wider = [] if within.all() else ["connect a larger mask"]
            raise ValueError(f"Nothing in picture {picture} stands out by its attention to '{word}'; "
                             f"{', or '.join([*remedies, *wider, 'record other words, layers or steps'])}.")


NODES: list[type] = [SubjectMask]
