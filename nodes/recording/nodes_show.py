"""Nodes that draw what was recorded: attention maps and masks."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..attention.maps import normalised, resized
from ..attention.masks import on_grid
from ..inputs import opacity_input
from ..memory import check_fits
from .heat import COLOURS, coloured, labelled_grid, overlaid
from .reading import Reading, check_numbers, read, record_inputs, scaled_down
from .record import Sampling

CATEGORY = "personalize/attention"
MEAN, EACH_STEP, EACH_LAYER = "mean", "each step", "each layer"
EACH_MAP, EACH_WORD, ABSOLUTE = "each map", "each word", "absolute"
LAST_STEP = "last step"
COLUMNS = 10
LARGEST_DRAWING = 16 * 2**30
BYTES_PER_PIXEL = 60  # of a map while it is coloured


@dataclass(frozen=True)
class _Drawn:
    """Maps (n, H, W) of one picture after the other, with what each is."""

    maps: Tensor
    labels: list[str]
    columns: int


class PersonalizeShowAttention(io.ComfyNode):
    """Heat maps of recorded attention."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeShowAttention", display_name="Show Attention", category=CATEGORY, is_output_node=True,
            description="Draws where the model looked for each word: heat maps, alone or over the picture, averaged or "
                        "for each step or layer.",
            search_aliases=["attention map", "heat map", "heatmap", "DAAM", "cross attention", "interpretability",
                            "what the model looks at"],
            inputs=[
                *record_inputs(),
                io.Combo.Input("show", options=[MEAN, EACH_STEP, EACH_LAYER],
                               tooltip="mean: one map per word, over all recorded layers and steps. each step needs "
                                       "a record that keeps every step."),
                io.Combo.Input("scale", options=[EACH_MAP, EACH_WORD, ABSOLUTE],
                               tooltip="What is 0 and 1: the smallest and largest value of each map; of all maps of a "
                                       "word in a picture, so that steps or layers can be compared; or the attention "
                                       "itself, the share of it (0 to 1) that goes to the word."),
                io.Combo.Input("colours", options=list(COLOURS), tooltip="Colours from the lowest to the highest "
                                                                         "value."),
                opacity_input("How much the heat map covers the picture, if image is connected, 0 to 1: 0 only the "
                              "picture, 1 only the map."),
                io.Int.Input("longest_side", default=512, min=0, max=8192, step=8,
                             tooltip="Largest width or height of a heat map in pixels; 0: that of the picture.")],
            outputs=[
                io.Image.Output(display_name="heat_maps", tooltip="One picture per map: picture by picture, word by "
                                                                  "word, in the order of steps or layers."),
                io.Image.Output(display_name="grid", tooltip="All of them on one labelled page."),
                io.Mask.Output(display_name="maps", tooltip="The maps themselves in the same order, 0 to 1 as scale "
                                                            "says.")])

    @classmethod
    def execute(cls, record, show, scale, colours, opacity, longest_side, image=None, latent=None) -> io.NodeOutput:
        """IMAGE batch, IMAGE grid, MASK batch."""
        reading = scaled_down(read(record, image, latent), longest_side)
        reading.run.require_maps(record.made_by)
        if show == EACH_STEP and not reading.run.map_steps:
            raise ValueError(f"The record holds the mean over the steps; set keep to 'every step' on {record.made_by} "
                             "and run again.")
        drawn = _attention(reading, show, scale, record.made_by)
        heat = coloured(drawn.maps, colours)
        if reading.pictures is not None:
            each = len(drawn.maps) // reading.images
            heat = overlaid(heat, reading.pictures[:reading.images].repeat_interleave(each, 0), opacity)
        grid = labelled_grid(heat, drawn.labels, drawn.columns)
        return io.NodeOutput(heat, grid, drawn.maps, ui=ui.PreviewImage(grid, cls=cls))


class PersonalizeShowMasks(io.ComfyNode):
    """Masks that a patch used while sampling."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeShowMasks", display_name="Show Masks", category=CATEGORY, is_output_node=True,
            description="Shows the masks that a node found by itself while the sampler ran, step by step: where "
                        "Self-Attention Swap acted, or what Apply ViCo saw of its reference.",
            search_aliases=["attention mask", "subject mask", "swap mask"],
            inputs=[
                *record_inputs(),
                io.Combo.Input("show", options=[MEAN, EACH_STEP, LAST_STEP], default=EACH_STEP,
                               tooltip="mean: the share of steps in which a pixel was inside. each step: one mask "
                                       "for each. last step: only that of the last step that had one."),
                opacity_input("How dark the outside of the mask gets, if image is connected, 0 to 1: 0 leaves the "
                              "picture, 1 makes it black.")],
            outputs=[
                io.Mask.Output(display_name="masks", tooltip="Picture by picture, in the order of the steps, at the "
                                                             "picture's size."),
                io.Image.Output(display_name="grid", tooltip="All of them on one labelled page.")])

    @classmethod
    def execute(cls, record, show, opacity, image=None, latent=None) -> io.NodeOutput:
        """MASK batch, IMAGE grid."""
        reading = read(record, image, latent)
        if not reading.run.masks:
            raise ValueError(f"The record of {record.made_by} holds no masks: the node used none, or no step lay in "
                             "its range. Connect the record of a node that masks, such as Self-Attention Swap.")
        drawn = _masks(reading, show)
        pictures = torch.ones(*drawn.maps.shape, 3)
        if reading.pictures is not None:
            pictures = reading.pictures[:reading.images].repeat_interleave(len(drawn.maps) // reading.images, 0)
        shade = opacity if reading.pictures is not None else 1.0
        grid = labelled_grid(pictures * (1 - shade * (1 - drawn.maps[..., None])), drawn.labels, drawn.columns)
        return io.NodeOutput(drawn.maps, grid, ui=ui.PreviewImage(grid, cls=cls))


def _attention(reading: Reading, show: str, scale: str, made_by: str) -> _Drawn:
    """Maps of every picture, word and step or layer, at the pictures' size."""
    run = reading.run
    found = {word: _views(run, show, word) for word in run.words}
    _check_drawing(reading, sum(map(len, found.values())), "set longest_side lower, or show to mean")
    maps, labels = [], []
    for image in range(reading.images):
        for word, views in found.items():
            of_word = torch.stack([resized(view[image], reading.size) for view in views.values()])
            check_numbers(of_word, made_by)
            if scale != ABSOLUTE:
                of_word = normalised(of_word, (-2, -1) if scale == EACH_MAP else (0, 1, 2))
            maps.append(of_word)
            labels += [" · ".join(filter(None, (f"picture {image + 1}" if reading.images > 1 else "", word, name)))
                       for name in views]
    return _Drawn(torch.cat(maps).clamp(0, 1), labels, len(found) if show == MEAN else COLUMNS)


def _check_drawing(reading: Reading, views: int, remedy: str) -> None:
    count, (height, width) = reading.images * views, reading.size
    check_fits(count * height * width * BYTES_PER_PIXEL, LARGEST_DRAWING, f"{count} maps of {width}×{height}", remedy)


def _views(run: Sampling, show: str, word: str) -> dict[str, Tensor]:
    """Label → maps (images, h, w) of a word."""
    if show == EACH_LAYER:
        views = {f"layer {layer.order}": run.map(word, layer) for layer in run.layers}
    else:
        views = {"" if step is None else f"step {step + 1}": run.mean_map(word, step)
                 for step in (run.map_steps if show == EACH_STEP else (None,))}
    return {name: maps for name, maps in views.items() if maps is not None}


def _masks(reading: Reading, show: str) -> _Drawn:
    _check_drawing(reading, len(reading.run.masks), "connect fewer pictures, or those of a smaller latent")
    masks = {step: on_grid(mask, reading.size) for step, mask in sorted(reading.run.masks.items())}
    if show == MEAN:
        views = {"mean": torch.stack(list(masks.values())).mean(0)}
    else:
        steps = list(masks) if show == EACH_STEP else list(masks)[-1:]
        views = {f"step {step + 1}": masks[step] for step in steps}
    ordered = [(f"picture {image + 1} · {name}" if reading.images > 1 else name, mask[image])
               for image in range(reading.images) for name, mask in views.items()]
    return _Drawn(torch.stack([mask for _, mask in ordered]), [label for label, _ in ordered], COLUMNS)


NODES: list[type] = [PersonalizeShowAttention, PersonalizeShowMasks]
