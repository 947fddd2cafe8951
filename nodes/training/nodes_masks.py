"""Masks from the graph, kept beside the pictures of a folder."""
from __future__ import annotations

from collections.abc import Sequence

import comfy.utils
import numpy as np
from comfy_api.latest import io
from torch import Tensor

from ..foreign.text import shown_name
from .picture_files import folder_choices, folder_contents, folder_fingerprint, name_in, picture_folder
from .picture_reading import SAME_SHAPE, read_small
from .picture_writing import write_mask

HEADER = 8  # pixels; only the size is looked at


class PersonalizeSaveMasks(io.ComfyNode):
    """MASK into files beside pictures, where Subject finds them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeSaveMasks", display_name="Save Masks", category="personalize/training",
            is_input_list=True, is_output_node=True,
            description="Keeps masks beside the pictures of a folder, as dog-masklabel.png for dog.jpg, where Subject "
                        "and other trainers find them.",
            search_aliases=["save mask", "masked training", "masklabel", "write masks"],
            inputs=[
                io.Mask.Input("masks", tooltip="One mask for each picture, in the order of the folder's names, of its "
                                               "shape; 1 on the subject. From Subject Mask, for example."),
                io.Combo.Input("folder", options=folder_choices(), default="",
                               tooltip="Folder inside ComfyUI's input folder with the pictures that the masks belong "
                                       "to."),
                io.String.Input("picture_files", optional=True, default="", multiline=True,
                                tooltip="File names in the folder, one a line, to use only these; empty for all.")],
            outputs=[])

    @classmethod
    def validate_inputs(cls, folder) -> bool:
        """Takes the check of `folder` from ComfyUI, whose list of folders may be older than the newest upload."""
        return True

    @classmethod
    def fingerprint_inputs(cls, folder, picture_files=("",), **_) -> str | float:
        """Changes when a picture or its mask does, and always where a mask is missing, as when it was taken away."""
        try:
            contents = folder_contents(folder[0] or "", picture_files[0] or "")
            if len(contents.masks) < len(contents.pictures):
                return float("nan")
            return folder_fingerprint(folder[0] or "", picture_files[0] or "")
        except ValueError as error:
            return str(error)

    @classmethod
    def execute(cls, masks, folder, picture_files=("",)) -> io.NodeOutput:
        """Writes nothing if one of the masks does not fit."""
        contents = folder_contents(folder[0] or "", picture_files[0] or "")
        root = picture_folder(folder[0] or "")
        names = [name_in(root, path) for path in contents.pictures]
        shapes = [mask for batch in masks for mask in batch.reshape(-1, *batch.shape[-2:])]
        _check(names, [read_small(path, HEADER)[1] for path in contents.pictures], shapes)
        bar = comfy.utils.ProgressBar(len(names))
        for name, mask in zip(names, shapes):
            write_mask(folder[0], name, mask.detach().float().cpu().numpy())
            bar.update(1)
        return io.NodeOutput(ui={"personalize_masks": names})


def _check(names: Sequence[str], sizes: Sequence[tuple[int, int]], masks: Sequence[Tensor]) -> None:
    if len(masks) != len(names):
        raise ValueError(f"There are {len(masks)} masks for {len(names)} pictures; connect one mask for each, in the "
                         "order of their names, or name the pictures at picture_files.")
    for name, (width, height), mask in zip(names, sizes, masks):
        rows, columns = mask.shape
        if abs(columns * height - rows * width) > SAME_SHAPE * rows * width:
            raise ValueError(f"The mask for {shown_name(name)} is {columns}×{rows} but the picture {width}×{height}, "
                             "another shape; make the mask of this picture, uncropped.")
        if not np.isfinite(mask.float().sum().item()) or not mask.any():
            raise ValueError(f"The mask for {shown_name(name)} is empty; look at the node that made it.")


NODES: list[type] = [PersonalizeSaveMasks]
