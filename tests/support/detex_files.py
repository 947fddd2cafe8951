"""What a training with DETEX on the tiny SD1.5 leaves in ComfyUI's model folders, as bundled workflows look for it."""
from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from .paths import PACK

RUN, STEP = "example-toy-detex", 600
FILE = f"{RUN}/attributes-{STEP:06d}.safetensors"
LORA = f"{RUN}/{RUN}-{STEP:06d}.safetensors"
WORD, KIND = "<example-toy>", "toy"
TOYS = [PACK / "workflows" / "assets" / "example-toy" / f"toy-{number}.jpg" for number in range(1, 6)]
LONGEST_SIDE = 96  # pixels of a thumbnail


def provide(base: Path) -> None:
    """Puts the file, its words' embeddings and a LoRA below the base directory of a server."""
    from safetensors.torch import save_file

    models = base / "models"
    write(models / "detex" / FILE, [toy.read_bytes() for toy in TOYS])
    for folder, name in (("embeddings", f"{RUN}/example-toy"), *(
            ("embeddings", f"{RUN}/example-toy-{attribute}-{number}") for attribute in ("pose", "background")
            for number in range(1, len(TOYS) + 1))):
        path = models / folder / f"{name}-{STEP:06d}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"clip_l": _noise(len(name))}, path)
    lora = models / "loras" / LORA
    lora.parent.mkdir(parents=True, exist_ok=True)
    save_file({}, lora)


def write(path: Path, pictures: Sequence[bytes], pose_is: str = "view", word: str = WORD) -> None:
    """A file of DETEX with these pictures, made small, and mappers as they begin."""
    import torch
    from safetensors.torch import save_file

    from personalize.nodes.papers.detex.files import metadata_of
    from personalize.nodes.papers.detex.mapper import AttributeMapper
    from personalize.nodes.papers.detex.seeing import vision_fingerprint
    from tiny import vision
    from tiny.models import WIDTH_L

    draw = torch.Generator().manual_seed(0)
    tensors = {f"thumbnail.{number}": torch.frombuffer(bytearray(_small(each)), dtype=torch.uint8)
               for number, each in enumerate(pictures, 1)}
    for attribute in ("pose", "background"):
        mapper = AttributeMapper(vision.PROJECTED, WIDTH_L).start_at(_noise(len(attribute))[0], draw)
        tensors |= {f"{attribute}.clip_l.{name}": tensor for name, tensor in mapper.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    about = metadata_of([(word, KIND, len(pictures))], vision_fingerprint(vision.load()), pose_is)
    save_file(tensors, path, {**about, "run": RUN, "step": str(STEP)})


def _small(picture: bytes) -> bytes:
    from PIL import Image

    image, data = Image.open(io.BytesIO(picture)).convert("RGB"), io.BytesIO()
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    image.save(data, "JPEG")
    return data.getvalue()


def _noise(seed: int):
    import torch

    from tiny.models import WIDTH_L

    return 0.02 * torch.randn(1, WIDTH_L, generator=torch.Generator().manual_seed(seed))
