"""BLIP-Diffusion folders, in the Hugging Face layout and in that of LAVIS."""
from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

import folder_paths
import torch
from torch import Tensor

from ..foreign.text import shown_name, shown_path
from ..model_files import folder_of
from ..weight_files import damaged, read_state_dict, shapes_of
from .blip_diffusion import picture_states, projected, query_states
from .blip_diffusion_layout import check_weights, from_lavis
from .blip_diffusion_settings import read_settings
from .folders import BLIP_DIFFUSION_FOLDER
from .pictures import Fit, pixel_values, rounded_to_even
from .word_list import WordList, read_word_list

KIND = "BLIP-Diffusion file"
HUGGING_FACE, LAVIS = "qformer", "blip_model"  # the folder inside that tells the layout
FILES = {HUGGING_FACE: ("qformer/model.safetensors", "qformer/pytorch_model.bin"),
         LAVIS: ("blip_model/blip_weight.pt",)}
LAVIS_PROJECTION = "proj_layer/proj_weight.pt"
WORDS_IN = {HUGGING_FACE: ("qformer", "bert-base-uncased", "."), LAVIS: ("blip_model", "bert-base-uncased", ".")}
LARGEST_SIDE, MOST_TOKENS = 1_024, 1_024  # of a picture in pixels, and of what the encoder makes of it; 224 and 16


@dataclass(frozen=True, eq=False)
class BlipDiffusion:
    """The picture encoder of one folder.

    weights: under Hugging Face's names, on the CPU. words: splits the subject's name.
    picture_heads, query_heads: attention heads of the vision transformer and of the Q-Former.
    eps, activation: of the vision transformer. mean, std: pixel values are normalised with.
    """

    name: str
    weights: Mapping[str, Tensor]
    words: WordList
    picture_heads: int
    query_heads: int
    eps: float
    activation: str
    mean: list[float]
    std: list[float]

    @property
    def side(self) -> int:
        """Pixels on each side of what it sees."""
        patches = self.weights["visual_encoder.embeddings.position_embedding"].shape[1] - 1
        return round(patches ** 0.5) * self.weights["visual_encoder.embeddings.patch_embedding.weight"].shape[-1]

    def tokens(self, image: Tensor, subject: str, fit: Fit, device: torch.device) -> Tensor:
        """Visual tokens (B, M, h), float32 on the CPU, of pictures (B, H, W, 3) of a subject, picture by picture."""
        pixels = pixel_values(image, self.side, self.mean, self.std, fit, rounded_to_even)
        return torch.cat([self.see(picture[None].to(device), subject).cpu() for picture in pixels])

    def see(self, pixels: Tensor, subject: str) -> Tensor:
        """Visual tokens (B, M, h) of pixel values (B, 3, side, side)."""
        states = picture_states(self.weights, pixels, self.picture_heads, self.eps, self.activation)
        return projected(self.weights, query_states(self.weights, states, self.words.ids(subject), self.query_heads))


def folder_names() -> list[str]:
    """Names of BLIP-Diffusion folders in models/blip_diffusion and models/diffusers, relative to these."""
    return sorted({path.relative_to(root).as_posix() for root in _roots() for path in _folders_below(root)})


def find_folder(name: str) -> Path:
    """The folder that a list entry or a typed name stands for. Raises ValueError if there is none."""
    wanted = PureWindowsPath(name.strip())  # splits at both kinds of slashes, and knows drives
    if name.strip() and not wanted.anchor and ".." not in wanted.parts:
        for root in _roots():
            if _layout(root / wanted.as_posix()) is not None:
                return root / wanted.as_posix()
    raise ValueError(f"There is no BLIP-Diffusion '{shown_name(name)}' in {folder_of(BLIP_DIFFUSION_FOLDER)} or in "
                     "models/diffusers; put the whole downloaded folder there, with its folder qformer (or "
                     "blip_model), and refresh the page (key R).")


def files_of(name: str) -> list[Path]:
    """Every file that may be read of the folder that a list entry stands for; none if there is no such folder."""
    try:
        folder = find_folder(name)
    except ValueError:
        return []
    return sorted(path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file())


def weight_file(folder: Path) -> Path:
    """The file with the Q-Former's weights. Raises ValueError if it is not there."""
    layout = _known_layout(folder)
    for name in FILES[layout]:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{shown_path(folder)} is incomplete: it lacks {' or '.join(FILES[layout])}; download the folder "
                     "again.")


def read_blip_diffusion(folder: Path) -> BlipDiffusion:
    """The encoder in a folder. Raises ValueError with one sentence if weights or word list are missing or foreign."""
    layout, path = _known_layout(folder), weight_file(folder)
    weights = read_state_dict(path, KIND)
    if layout == LAVIS:
        weights = from_lavis(weights) | {f"proj_layer.{name}": tensor for name, tensor in
                                       read_state_dict(_projection_file(folder), KIND).items()}
    check_weights(weights, shown_name(path.name))
    words = read_word_list([folder / place for place in WORDS_IN[layout]],
                           *(len(weights[f"embeddings.{table}_embeddings.weight"]) for table in ("word", "position")))
    width, hidden = (weights[name].shape[-1] for name in ("visual_encoder.embeddings.class_embedding", "query_tokens"))
    settings = read_settings(folder, width, hidden, 1e-6 if layout == HUGGING_FACE else 1e-5)
    encoder = BlipDiffusion(folder.name, weights, words, **settings)
    _try_out(encoder, path)
    return encoder


def _roots() -> list[Path]:
    kinds = (BLIP_DIFFUSION_FOLDER, "diffusers")
    return [Path(folder) for kind in kinds for folder in folder_paths.get_folder_paths(kind)]


def _folders_below(root: Path) -> Iterator[Path]:
    for folder, below, _ in os.walk(root, followlinks=True):
        if _layout(Path(folder)) is not None:
            below.clear()
            yield Path(folder)


def _layout(folder: Path) -> str | None:
    return next((layout for layout in FILES if (folder / layout).is_dir()), None)


def _known_layout(folder: Path) -> str:
    layout = _layout(folder)
    if layout is None:
        raise ValueError(
            f"{shown_path(folder)} is no BLIP-Diffusion: it has none of the folders {', '.join(FILES)}; download it "
            "again."
        )
    return layout


def _projection_file(folder: Path) -> Path:
    if not (folder / LAVIS_PROJECTION).is_file():
        raise ValueError(f"{shown_path(folder)} is incomplete: it lacks {LAVIS_PROJECTION}; download the folder again.")
    return folder / LAVIS_PROJECTION


def _try_out(encoder: BlipDiffusion, path: Path) -> None:
    """Runs the encoder on shapes alone, so that weights that do not fit each other raise ValueError."""
    trial = replace(encoder, weights=shapes_of(encoder.weights))
    try:
        if not 0 < encoder.side <= LARGEST_SIDE or encoder.weights["query_tokens"].shape[1] > MOST_TOKENS:
            raise RuntimeError(f"pictures of {encoder.side} pixels")
        trial.see(torch.zeros(1, 3, encoder.side, encoder.side, device="meta"), "a")
    except (LookupError, RuntimeError) as error:
        raise damaged(path, KIND) from error
