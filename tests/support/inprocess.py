"""ComfyUI inside the test process, on the CPU, with a base directory of its own."""
from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from . import pack
from .paths import CACHE, comfyui

BASE_FOLDERS = ("models/checkpoints", "models/loras", "models/embeddings", "custom_nodes", "input", "output", "temp",
                "user")


class Checkpoint(NamedTuple):
    """What `Load Checkpoint` gives."""

    model: object
    clip: object
    vae: object


def start(base: Path) -> None:
    """Make ComfyUI's modules importable, set up as its main.py would with --cpu --base-directory BASE."""
    for folder in BASE_FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(comfyui()))
    from comfy.cli_args import args

    args.cpu = True
    args.base_directory = str(base)
    args.disable_api_nodes = True
    args.database_url = "sqlite:///:memory:"
    torch.set_num_threads(1)
    import utils.extra_config  # noqa: F401  later imports of ComfyUI put a folder with another `utils` first
    # isort: split
    import folder_paths

    for kind in ("checkpoints", "loras"):
        folder_paths.add_model_folder_path(kind, str(base / "output" / kind))
    import tiny  # noqa: F401  registers the tiny model classes


@contextlib.contextmanager
def started() -> Iterator[Path]:
    """ComfyUI and the pack in this process of a script; its base directory is gone in the end."""
    with tempfile.TemporaryDirectory() as base:
        start(Path(base))
        pack.make_importable()
        yield Path(base)


def provide_checkpoint(kind: str, base: Path) -> str:
    """Put the random checkpoint of this kind into `base`/models/checkpoints; its name for `Load Checkpoint`."""
    from tiny import checkpoints

    link = base / "models" / "checkpoints" / f"{kind}.safetensors"
    if not link.exists():
        link.symlink_to(checkpoints.cached(kind, CACHE / "checkpoints"))
    return link.name


@torch.inference_mode()
def load_checkpoint(name: str) -> Checkpoint:
    """Load as the executor does: by ComfyUI's own node, under inference mode."""
    import nodes

    return Checkpoint(*nodes.CheckpointLoaderSimple().load_checkpoint(name)[:3])


@torch.inference_mode()
def load_computing_in(dtype: torch.dtype, name: str):
    """MODEL whose U-Net computes in this type and does not only store its weights so: float16 and bfloat16 as on GPUs,
    float64 where two ways of computing one thing are compared."""
    import comfy.sd
    import folder_paths

    model = comfy.sd.load_checkpoint_guess_config(folder_paths.get_full_path("checkpoints", name), output_clip=False,
                                                  output_vae=False, model_options={"dtype": dtype})[0]
    model.model.manual_cast_dtype = None
    return model


@contextlib.contextmanager
def dynamic_vram():
    """ComfyUI's layers as it builds them with dynamic VRAM, its default on NVIDIA; older releases: on Windows only."""
    import comfy.memory_management
    import comfy.model_management

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.memory_management, "aimdo_enabled", True)
        patch.setattr(comfy.model_management, "WINDOWS", True)
        yield


class PristineCheckpoint:
    """A loaded checkpoint that many tests share, and the proof that each left it as it was.

    dtype: what the U-Net computes in; None for what ComfyUI chooses.
    """

    def __init__(self, name: str, dtype: torch.dtype | None = None):
        self.name, self.dtype = name, dtype
        self._load()

    def _load(self) -> None:
        self.loaded = load_checkpoint(self.name)
        if self.dtype is not None:
            self.loaded = self.loaded._replace(model=load_computing_in(self.dtype, self.name))
        self.originals = {key: weight.clone() for key, weight in self._weights()}

    def _modules(self):
        model, clip, vae = self.loaded
        return (("model", model.model), ("clip", clip.cond_stage_model), ("vae", vae.first_stage_model))

    def _weights(self):
        for part, module in self._modules():
            for name, weight in module.state_dict(keep_vars=True).items():
                yield f"{part}.{name}", weight.detach()

    @torch.inference_mode()
    def _make_inference_tensors(self) -> None:
        """As the executor loads them; a training has made ordinary ones of them."""
        for _, module in self._modules():
            for child in module.modules():
                for name, weight in child._parameters.items():
                    if weight is not None and not weight.is_inference():
                        child._parameters[name] = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)
                for name, value in child._buffers.items():
                    if value is not None and not value.is_inference():
                        child._buffers[name] = value.detach().clone()

    def check(self) -> None:
        """Raise AssertionError if a weight differs in any bit, or a hook or a gradient was left behind."""
        import comfy.model_management

        comfy.model_management.unload_all_models()
        weights = dict(self._weights())
        changed = [key for key, original in self.originals.items()
                   if key not in weights or not torch.equal(weights[key], original)]
        hooked = [f"{part}.{name}" for part, module in self._modules() for name, child in module.named_modules()
                  if child._forward_hooks or child._forward_pre_hooks or child._backward_hooks]
        added = sorted(set(weights) - set(self.originals))
        graded = [f"{part}.{name}" for part, module in self._modules() for name, weight in module.named_parameters()
                  if weight.grad is not None]
        if changed or hooked or added or graded:
            self._load()
        else:
            self._make_inference_tensors()
        assert not changed, f"the test changed weights of the loaded {self.name}: {changed[:5]}"
        assert not added, f"the test left weights in the loaded {self.name}: {added[:5]}"
        assert not hooked, f"the test left hooks on the loaded {self.name}: {hooked[:5]}"
        assert not graded, f"the test left gradients on the loaded {self.name}: {graded[:5]}"
