"""IP-Adapter files as their authors publish them, .bin or .safetensors."""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..families.find import unet_of
from ..families.layers import AttentionLayer
from ..foreign.text import short, shown_name
from ..weight_files import check_numbers, damaged, read_state_dict, shapes_of
from .ip_adapter import projected_embeds, projected_patches, resampled

KIND = "IP-Adapter file"
BASE, PLUS, FULL = "base", "plus", "full face"
PROJECTIONS: Mapping[str, Callable[[Mapping[str, Tensor], Tensor], Tensor]] = {
    BASE: projected_embeds, PLUS: resampled, FULL: projected_patches}
FAMILIES = {768: "SD1.x", 1024: "SD2.x", 2048: "SDXL"}  # by width of the text tokens
VISIONS = {(BASE, 768): "ViT-L/14", (BASE, 1024): "ViT-H/14", (BASE, 1280): "ViT-bigG/14",
           (PLUS, 1024): "ViT-L/14", (PLUS, 1280): "ViT-H/14", (PLUS, 1664): "ViT-bigG/14"}
MOST_TOKENS = 4_096  # of a picture; published files give 4, 16 and 257
# The files number all attention processors of diffusers' U-Net: down, up, middle; odd ones are cross-attention.
BLOCK_ORDER = ("input", "output", "middle")


@dataclass(frozen=True)
class IPAdapter:
    """One file.

    name: of the file, for messages. kind: "base", "plus" or "full face".
    projection: weights that turn what CLIP Vision sees into tokens, on the CPU; they are used in the tokens' dtype.
    keys_values: (to_k, to_v), each (channels, d), per cross-attention layer in the file's order.
    """

    name: str
    kind: str
    projection: Mapping[str, Tensor]
    keys_values: tuple[tuple[Tensor, Tensor], ...]

    @property
    def token_width(self) -> int:
        """Width d of the tokens: that of the text tokens of the models it is for."""
        return self.keys_values[0][0].shape[1]

    @property
    def vision_width(self) -> int:
        """Width of what CLIP Vision must give: of the projected class token for base, of the states for the others."""
        first = {BASE: "proj.weight", PLUS: "proj_in.weight", FULL: "proj.0.weight"}[self.kind]
        return self.projection[first].shape[1]

    @property
    def vision_name(self) -> str:
        """The CLIP Vision that it was trained with."""
        return VISIONS.get((BASE if self.kind == BASE else PLUS, self.vision_width), "its own")

    def tokens(self, features: Tensor) -> Tensor:
        """(B, M, d) from the projected class token (B, p) or the states of the last layer but one (B, T, w)."""
        return PROJECTIONS[self.kind](self.projection, features)

    def layers_of(self, model) -> dict[AttentionLayer, tuple[Tensor, Tensor]]:
        """(to_k, to_v) of each cross-attention layer of a MODEL. Raises ValueError if it is for other models."""
        unet = unet_of(model)
        layers, width = unet.layers, unet.text_width
        ordered = sorted(layers, key=lambda layer: (BLOCK_ORDER.index(layer.block[0]), layer.order))
        if (len(layers), width) != (len(self.keys_values), self.token_width) or any(
                layer.channels != key.shape[0] for layer, (key, _) in zip(ordered, self.keys_values)):
            raise ValueError(f"{self.name} is made for {_described(len(self.keys_values), self.token_width)} but this "
                             f"model is {_described(len(layers), width)}; choose the IP-Adapter file for this model.")
        return dict(zip(ordered, self.keys_values, strict=True))


def read_ip_adapter(path: Path) -> IPAdapter:
    """The IP-Adapter in a file. Raises ValueError with one sentence if it holds none, or one that is not known here."""
    tensors = read_state_dict(path, KIND)
    projection = _part(tensors, "image_proj.")
    attention = _part(tensors, "ip_adapter.")
    if not projection or not attention:
        shown = ", ".join(map(short, sorted({name.split(".")[0] for name in tensors})[:3])) or "no tensor"
        raise ValueError(f"{shown_name(path.name)} holds no IP-Adapter: found {shown}, expected image_proj and "
                         "ip_adapter; choose a file such as ip-adapter_sd15.safetensors or "
                         "ip-adapter-plus_sdxl_vit-h.safetensors.")
    kind = _kind(projection, attention, path)
    adapter = IPAdapter(shown_name(path.name), kind, projection, _keys_values(attention, path))
    _check(adapter, path)
    return adapter


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _kind(projection: Mapping[str, Tensor], attention: Mapping[str, Tensor], path: Path) -> str:
    for kind, tensor in ((BASE, "proj.weight"), (PLUS, "latents"), (FULL, "proj.3.weight")):
        if tensor in projection and not any("lora" in name for name in attention):
            return kind
    shown = ", ".join(map(short, list(projection)[:3]))
    raise ValueError(f"{shown_name(path.name)} is an IP-Adapter of another kind (found {shown}); FaceID files need a "
                     "face recogniser that this node does not have: use a base, plus or full-face file.")


def _keys_values(attention: Mapping[str, Tensor], path: Path) -> tuple[tuple[Tensor, Tensor], ...]:
    found = (re.fullmatch(r"(\d{1,4})\.to_k_ip\.weight", name) for name in attention)
    numbers = sorted(int(match[1]) for match in found if match)
    try:
        pairs = tuple((attention[f"{n}.to_k_ip.weight"], attention[f"{n}.to_v_ip.weight"]) for n in numbers)
    except KeyError as error:
        raise damaged(path, KIND) from error
    if not numbers or numbers != list(range(1, 2 * len(numbers), 2)):
        raise ValueError(f"{shown_name(path.name)} is incomplete: its layers are numbered {numbers[:4]}…, expected 1, "
                         "3, 5, …; download it again.")
    return pairs


def _check(adapter: IPAdapter, path: Path) -> None:
    """Tries the projection on shapes alone, so that a file with missing or misshapen weights is refused here."""
    check_numbers(path, adapter.projection.items())
    try:
        shape = (1, adapter.vision_width) if adapter.kind == BASE else (1, 2, adapter.vision_width)
        tokens = PROJECTIONS[adapter.kind](shapes_of(adapter.projection), torch.zeros(shape, device="meta"))
        _, count, width = tokens.shape
    except (LookupError, RuntimeError, ValueError) as error:
        raise damaged(path, KIND) from error
    if count > MOST_TOKENS or any(part.shape != key.shape or part.shape[1:] != (width,)
           for key, value in adapter.keys_values for part in (key, value)):
        raise damaged(path, KIND)
    check_numbers(path, (("to_k_ip or to_v_ip", part) for pair in adapter.keys_values for part in pair))


def _described(layers: int, width: int) -> str:
    return f"{FAMILIES.get(width, 'another family')} ({layers} layers, text width {width})"
