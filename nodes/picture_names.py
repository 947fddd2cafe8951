"""Which files are pictures, and which hold their captions and masks, told by their names."""
from __future__ import annotations

import os

# HEIC is listed although Pillow cannot open it: a phone's photo that is refused by name is better than one left out.
SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff",
            ".avif",
            ".heic", ".heif", ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".ico", ".jp2", ".mpo", ".pcx", ".qoi",
            ".psd",
            ".sgi", ".dds")
CAPTION_SUFFIXES = (".txt", ".caption")
MASK_ENDING = "-masklabel.png"  # as OneTrainer names them


def is_picture(name: str) -> bool:
    """Whether a file of that name is read as a picture."""
    return name.lower().endswith(SUFFIXES)


def is_caption(name: str) -> bool:
    """Whether a file of that name can hold a caption."""
    return name.lower().endswith(CAPTION_SUFFIXES)


def is_mask(name: str) -> bool:
    """Whether a file of that name holds the mask of a picture beside it."""
    return name.lower().endswith(MASK_ENDING)


def mask_name(picture: str) -> str:
    """Name of the file that holds a picture's mask."""
    return os.path.splitext(picture)[0] + MASK_ENDING


def caption_names(picture: str) -> list[str]:
    """Names in lower case of the files that may hold a picture's caption, the one that counts first."""
    stem = os.path.splitext(picture)[0]
    return [f"{name}{suffix}".lower() for name in (stem, picture) for suffix in CAPTION_SUFFIXES]
