"""What the demo is asked to do. Standard library only."""
from __future__ import annotations

import argparse
import os
from pathlib import Path

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CHECKPOINTS = (".safetensors", ".ckpt", ".sft")
PACK = Path(__file__).absolute().parents[3]


def parser() -> argparse.ArgumentParser:
    """The command line of the demo."""
    options = argparse.ArgumentParser(
        prog="demo.py", description="Trains an embedding with CoRe in a real ComfyUI and draws with it by stock nodes.")
    options.add_argument("--comfyui", metavar="PATH", default=os.environ.get("COMFYUI_PATH") or installed_in(),
                         help="use this ComfyUI (also: COMFYUI_PATH); nothing is installed into it. Default: the one "
                              "that this pack lies in, else one is downloaded")
    options.add_argument("--python", metavar="PATH", help="the Python that runs it, where it is not found beside it")
    options.add_argument("--images", metavar="FOLDER", type=_pictures,
                         help="your own pictures of one subject, best 3 to 6")
    options.add_argument("--class-word", metavar="WORD",
                         help="what your pictures show, in one or two words, such as dog")
    options.add_argument("--checkpoint", metavar="FILE", type=_checkpoint,
                         help="your own SD1.x, SD2.x or SDXL checkpoint, in place of the miniature")
    options.add_argument("--steps", metavar="N", type=int,
                         help="training steps (default 200; 300 with your own checkpoint)")
    options.add_argument("--serve", action="store_true",
                         help="leave ComfyUI's page open at the end, with the workflow in it")
    return options


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options; ends with one sentence when they cannot work."""
    own = parser()
    options = own.parse_args(arguments)
    if bool(options.images) != bool(options.class_word):
        own.error("--images and --class-word belong together: CoRe compares your subject with that word")
    if options.steps is not None and options.steps < 2:
        own.error("--steps must be at least 2")
    return options


def installed_in() -> str | None:
    """The ComfyUI in whose custom_nodes this pack lies."""
    comfyui = PACK.parents[1]
    return str(comfyui) if PACK.parent.name == "custom_nodes" and (comfyui / "main.py").is_file() else None


def _pictures(text: str) -> Path:
    folder = Path(text).expanduser().absolute()
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{folder} is no folder")
    if not any(file.suffix.lower() in PICTURES for file in folder.iterdir()):
        raise argparse.ArgumentTypeError(f"{folder} holds no pictures ({', '.join(PICTURES)})")
    return folder


def _checkpoint(text: str) -> Path:
    file = Path(text).expanduser().absolute()
    if not file.is_file() or file.suffix.lower() not in CHECKPOINTS:
        raise argparse.ArgumentTypeError(f"{file} is no checkpoint file ({', '.join(CHECKPOINTS)})")
    return file
