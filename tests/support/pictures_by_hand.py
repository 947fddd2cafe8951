"""Reference pictures made ready step by step with Pillow, as the authors' libraries do it."""
from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image


def squashed(picture: torch.Tensor, size: int) -> torch.Tensor:
    """(size, size, 3) in 0…1 of a picture (H, W, 3): ELITE's and diffusers' way."""
    return as_tensor(as_file(picture).resize((size, size), Image.BICUBIC))


def cropped(picture: torch.Tensor, size: int, torchvision: bool) -> torch.Tensor:
    """The shorter side is made `size`, then the middle is cut out: torchvision's way (LAVIS), or that of the library
    transformers (IP-Adapter)."""
    file = as_file(picture)
    width, height = file.size
    if width < height:
        file = file.resize((size, int(size * height / width)), Image.BICUBIC)
    else:
        file = file.resize((int(size * width / height), size), Image.BICUBIC)
    spare = file.size[0] - size, file.size[1] - size
    left, top = [round(each / 2.0) if torchvision else math.floor(each / 2) for each in spare]
    return as_tensor(file.crop((left, top, left + size, top + size)))


def normalised(picture: torch.Tensor, mean, std) -> torch.Tensor:
    """(1, 3, size, size)."""
    return torch.stack([(picture[..., i] - mean[i]) / std[i] for i in range(3)])[None]


def as_file(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray((picture * 255).round().byte().numpy())


def as_tensor(file: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(file)).float() / 255
