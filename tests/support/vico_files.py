"""What a training with ViCo on the tiny SD1.5 leaves in ComfyUI's model folders, as the bundled workflows look for
it."""
from __future__ import annotations

from pathlib import Path

EMBEDDING = "example-toy-vico.safetensors"
RUN, STEP = "example-toy-vico", 400
WORD = "<example-toy>"


def provide(base: Path) -> None:
    """Puts an embedding and the image blocks of the same step below the base directory of a server."""
    import torch
    from safetensors.torch import save_file

    from tiny.vico import TINY_SD15, official_tensors

    blocks = base / "models" / "vico" / RUN
    blocks.mkdir(parents=True)
    about = {"format": "vico", "variant": "paper", "words": f'["{WORD}"]', "size": "64", "text_width": "32"}
    save_file(official_tensors(TINY_SD15), blocks / f"image-blocks-{STEP:06d}.safetensors", about)
    embeddings = base / "models" / "embeddings"
    embeddings.mkdir(exist_ok=True)
    vector = torch.randn(1, 32, generator=torch.Generator().manual_seed(0)) * 0.02
    save_file({"clip_l": vector}, embeddings / EMBEDDING, {
        "placeholder": WORD, "class_words": "toy", "run": RUN, "step": str(STEP)})
