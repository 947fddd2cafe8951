"""Picture files as tensors: what ComfyUI's Load Image reads, to the same colours, unless it loses the picture."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import folder_paths
import nodes
import numpy as np
import torch
import torch.nn.functional as F
from node_helpers import pillow
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..foreign.text import shown_name
from .picture_bounds import LARGEST, check_sides

MODES_WITH_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
ORIENTATION, BITS_PER_SAMPLE, SAMPLE_FORMAT, UNSIGNED = 274, 258, 339, 1
MIRRORED = (2, 4, 5, 7)
LAST_LYING = 4  # orientations above it exchange width and height
SAME_SHAPE = 0.02
FULL_LEVELS = (1, 255, 65535, 2**31 - 1, 2**32 - 1)


@dataclass(frozen=True)
class Pixels:
    """channels: (3 or 4, H, W) float32 in 0…1, the fourth is opacity. remark: what of the file is not used, or ""."""

    channels: Tensor
    remark: str = ""


def read_picture(path: Path, enough: int) -> Pixels:
    """The picture of a file, turned upright as its EXIF data says; the first one of a file with several.

    enough: pixels on the shorter side; a picture of twice as many or more is read smaller, to save memory.
    Raises ValueError naming the file if it is no picture, is cut off, or is too small, too large or too long.
    """
    name = shown_name(path.name)
    with _one_sentence(name, path):
        image = pillow(Image.open, path)
    with image:
        check_sides(name, *image.size)
        with _one_sentence(name, path):
            _load(image)
            return Pixels(_channels(image, path, enough), _remark(image, name))


def read_mask(path: Path, height: int, width: int) -> Tensor:
    """(1, height, width) in 0…1 of a file, white or grey on the subject; its transparent parts are outside.

    Raises ValueError naming the file if it is no picture or of another shape than the picture that it belongs to.
    """
    channels = read_picture(path, min(height, width)).channels
    grey = channels[:3].mean(0, keepdim=True) * (channels[3:] if len(channels) > 3 else 1)
    own_height, own_width = grey.shape[1:]
    if abs(own_width * height - own_height * width) > SAME_SHAPE * own_height * width:
        raise ValueError(f"The mask {shown_name(path.name)} is {own_width}×{own_height} but its picture is "
                         f"{width}×{height}: another shape; make it anew, or remove it.")
    return F.interpolate(grey[None], (height, width), mode="bilinear", antialias=True)[0].clamp(0, 1)


def read_small(path: Path, enough: int) -> tuple[Image.Image, tuple[int, int]]:
    """The picture of a file as RGB or RGBA, upright, for looking at: with at least `enough` pixels on the shorter side
    where the file has them; and (width, height) of the file. Raises ValueError as `read_picture`.
    """
    name = shown_name(path.name)
    with _one_sentence(name, path):
        image = pillow(Image.open, path)
    with image:
        check_sides(name, *image.size)
        turned = image.size[::-1] if _orientation(image) > LAST_LYING else image.size
        with _one_sentence(name, path):
            if image.mode.startswith("I") or image.mode == "F":
                return as_image(_channels(image, path, enough)), turned
            image.draft("RGB", (enough, enough))
            _load(image)
            small = _coloured(_upright(image))
            return small.reduce(max(1, min(small.size) // enough)), turned


def mask_of(image: Image.Image, mask_file: Path | None) -> np.ndarray | None:
    """(H, W) in 0…1: of the file, else what is opaque of the picture, or None where all of it is."""
    if mask_file is not None:
        return read_mask(mask_file, image.height, image.width)[0].numpy()
    if image.mode != "RGBA":
        return None
    alpha = np.asarray(image.getchannel("A"), np.float32) / 255
    return alpha if alpha.min() < 1 else None


def as_image(channels: Tensor) -> Image.Image:
    """(3 or 4, H, W) in 0…1 as RGB or RGBA."""
    return Image.fromarray((channels.movedim(0, -1).numpy() * 255).round().astype(np.uint8))


def _channels(image: Image.Image, path: Path, enough: int) -> Tensor:
    factor = max(1, min(image.size) // enough)
    if image.mode.startswith("I") or image.mode == "F":
        grey = _grey(_upright(image), image)
        return F.avg_pool2d(grey[None], factor, ceil_mode=True)[0].expand(3, -1, -1)
    decoded = _as_load_image(image, path) if factor == 1 else None
    if decoded is not None:
        return decoded
    coloured = _coloured(_upright(image)).reduce(factor)
    return torch.from_numpy(np.array(coloured)).movedim(-1, 0).float() / 255


def _coloured(upright: Image.Image) -> Image.Image:
    """RGBA where something may be transparent, else RGB."""
    alpha = upright.mode in MODES_WITH_ALPHA or "transparency" in upright.info
    if upright.mode in ("La", "RGBa"):
        upright = upright.convert({"La": "LA", "RGBa": "RGBA"}[upright.mode])
    return upright.convert("RGBA" if alpha else "RGB")


def _as_load_image(image: Image.Image, path: Path) -> Tensor | None:
    """A JPEG as Load Image decodes it, as decoders differ in how they spread its colours; None where it cannot.

    Load Image of ComfyUI 0.30 leaves a mirrored photo mirrored; all other formats have one right answer.
    """
    if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L") or _orientation(image) in MIRRORED:
        return None
    if not path.is_relative_to(folder_paths.get_input_directory()) or path.name.endswith("]"):
        return None  # Load Image reads the input folder only, and takes a name such as "a [output]" for another folder
    try:
        pixels = nodes.LoadImage().load_image(str(path))[0][0].cpu().float()
    except Exception:  # its decoders raise many kinds
        return None
    width, height = image.size
    return pixels.movedim(-1, 0) if sorted(pixels.shape[:2]) == sorted((width, height)) else None


def _grey(upright: Image.Image, image: Image.Image) -> Tensor:
    """(1, H, W) of a picture with more than 8 bits: the smallest usual range that holds its values becomes 0…1.

    Load Image shows all values above 255 of such TIFF files white, and all of 0…1 black.
    """
    values = np.asarray(upright)
    if _is_unsigned(image):
        values = values.view(np.uint32)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not numbers")
    lowest, highest = values.min().item(), values.max().item()
    values = torch.from_numpy(values.astype(np.float32))[None]
    if image.mode == "I" and -lowest > highest:
        half = next(half for half in (2**7, 2**15, 2**31) if -lowest <= half)
        return (values + half) / (2 * half - 1)
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        full = 65535
    else:
        full = next((level for level in FULL_LEVELS if highest <= level and (level > 1 or image.mode == "F")), highest)
    return (values / full).clamp(0, 1)


def _is_unsigned(image: Image.Image) -> bool:
    """Whether Pillow has read 32 bits without a sign as if they had one."""
    tags = getattr(image, "tag_v2", {})
    return image.mode == "I" and tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == UNSIGNED and 32 in tags.get(BITS_PER_SAMPLE,
                                                                                                        ())


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except ValueError:  # a text larger than Pillow reads lies behind the pixels
        pillow(lambda _: image.load(), None)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data raises many kinds, and the picture is whole without it
        return image


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # as above
        return 1


def _remark(image: Image.Image, name: str) -> str:
    if image.format in ("GIF", "PNG", "WEBP", "AVIF", "TIFF") and getattr(image, "is_animated", False):
        return f"of {name}, which holds several pictures, only the first is used"
    return ""


@contextlib.contextmanager
def _one_sentence(name: str, path: Path) -> Iterator[None]:
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} declares more than the {LARGEST // 10**6} million pixels that are read; make it smaller, "
            "2048 on its shorter side is plenty."
        ) from error
    except Exception as error:  # Pillow raises many kinds on a broken file
        raise ValueError(
            f"{name} cannot be read as a picture ({_cause(error, path)}); save it again as JPEG or PNG, or "
            "remove it, then run again."
        ) from error


def _cause(error: Exception, path: Path) -> str:
    if isinstance(error, UnidentifiedImageError):
        if path.suffix.lower() in (".heic", ".heif"):
            return "phones' HEIC photos consist of tiles, which neither Pillow nor Load Image puts together"
        return "it is in no format that Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "truncated" in str(error):
        return "it was cut off while it was copied, and training would learn the grey or black rest"
    return " ".join(str(error).split()) or type(error).__name__
