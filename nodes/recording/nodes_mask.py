"""A subject's mask from the model's own attention."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..attention.maps import resized, size_of
from ..attention.mask_inputs import mask_method_inputs
from ..attention.masks import THRESHOLD, MaskMethod, foreground
from ..inputs import words_input
from ..text.layout import parse_words
from .reading import check_numbers, read, record_inputs
from .record import Sampling

CATEGORY = "personalize/attention"
SHADE = 0.7


class PersonalizeSubjectMask(io.ComfyNode):
    """Where the model sees a word, as MASK."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeSubjectMask", display_name="Subject Mask", category=CATEGORY, is_output_node=True,
            description="The mask of a subject from the model's own attention to its word, in a sampled picture or "
                        "in one of yours. Needs no segmentation model.",
            search_aliases=["mask from words", "auto mask", "segment", "SAM", "attention mask", "foreground",
                            "background removal", "face mask"],
            inputs=[
                *record_inputs(),
                words_input("The recorded words whose mask is wanted: a placeholder or a class word. Empty: the first "
                            "one."),
                *mask_method_inputs("Prompt-to-prompt's blending uses 0.3."),
                io.Mask.Input("mask", optional=True,
                              tooltip="A rough mask to refine, one or one per picture: the foreground is looked for "
                                      "inside of it only.")],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="1 on the subject, 0 elsewhere, at the picture's size."),
                io.Image.Output(display_name="preview", tooltip="The pictures with everything else darkened.")])

    @classmethod
    def execute(cls, record, words: str, mask_method: MaskMethod, threshold: float, image=None, latent=None,
                mask=None) -> io.NodeOutput:
        """MASK, IMAGE."""
        reading = read(record, image, latent)
        wanted = parse_words(words) or reading.run.words[:1]
        maps = resized(_together(reading.run, wanted, record.made_by)[:reading.images], reading.size)
        inside = _inside(mask, maps)
        check_numbers(maps, record.made_by)
        found = foreground(maps, mask_method, threshold, inside).float()
        _check(found, inside, ", ".join(wanted), mask_method)
        pictures = reading.pictures if reading.pictures is not None else torch.ones(*found.shape, 3)
        preview = pictures * (1 - SHADE * (1 - found[..., None]))
        return io.NodeOutput(found, preview, ui=ui.PreviewImage(preview, cls=cls))


def _together(run: Sampling, words: Sequence[str], made_by: str) -> Tensor:
    """(images, h, w): the attention that all these words get. Raises ValueError if one of them was not recorded."""
    for word in words or (None,):
        run.require_maps(made_by, word)
    maps = [mean for word in words if (mean := run.mean_map(word)) is not None]
    return torch.stack(maps).sum(0)


def _inside(mask: Tensor | None, maps: Tensor) -> Tensor:
    """Bool (images, H, W): where foreground is looked for."""
    if mask is None:
        return torch.ones_like(maps, dtype=torch.bool)
    mask = resized(mask.reshape(-1, *mask.shape[-2:]).float().cpu(), size_of(maps)) > 0.5
    if len(mask) not in (1, len(maps)):
        raise ValueError(f"mask holds {len(mask)} masks for {len(maps)} pictures; connect one, or one for each.")
    return mask.expand(maps.shape)


def _check(found: Tensor, inside: Tensor, words: str, method: MaskMethod) -> None:
    """Raises ValueError naming the first picture without foreground."""
    remedies = ["lower the threshold"] if method == THRESHOLD else []
    for picture, (mask, within) in enumerate(zip(found, inside), 1):
        if not within.any():
            raise ValueError(f"The mask given for picture {picture} is empty; connect one that covers the subject, or "
                             "none.")
        if not mask.any():
            wider = [] if within.all() else ["connect a larger mask"]
            raise ValueError(f"Nothing in picture {picture} stands out by its attention to '{words}'; "
                             f"{', or '.join([*remedies, *wider, 'record other words, layers or steps'])}.")


NODES: list[type] = [PersonalizeSubjectMask]
