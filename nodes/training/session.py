"""ComfyUI's models made ready for autograd, and put back as they were.

ComfyUI executes nodes under `torch.inference_mode()` and loads weights as inference tensors, which autograd refuses.
A session works on clones, replaces inference tensors by equal ordinary ones, and undoes everything else when it ends.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.patcher_extension
import torch
from torch import nn

from ..attention.devices import MULTIGPU
from ..families.block_patches import differentiable_patches
from ..families.differentiable import OVERRIDE, differentiable_attention
from ..families.family import Family
from ..families.find import family_of
from ..families.latents import latent_space
from ..families.noise import NoiseLevels, noise_levels
from ..families.quantised import has_scales, is_written_out_for_gradients, lets_gradients_through
from ..text.encode import differentiable_text_model

PRECISIONS = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16}


class TextWeights:
    """The text encoders' weights of a CLIP while gradients go through them."""

    def __init__(self, clip):
        self.clip = clip
        self._stored: dict[str, torch.dtype] = {}  # outside of the session, by name

    def make_ready(self) -> None:
        """Call after the CLIP has been loaded.

        ComfyUI computes text in float32 and casts stored half-precision weights in every call; autograd would keep all
        these copies, for each prompt anew. Tables are looked up as they are, and what no layer of ComfyUI's holds stays
        as it is, too: Gemma's norms add 1 to their weights before these are cast."""
        model = self.clip.cond_stage_model
        _make_ordinary(model)
        model.requires_grad_(False)
        for module_name, module in model.named_modules():
            for name, weight in module.named_parameters(module_name, recurse=False):
                is_half = weight.dtype in (torch.float16, torch.bfloat16) and not has_scales(weight)
                if is_half and hasattr(module, "comfy_cast_weights") and not isinstance(module, nn.Embedding):
                    self._stored[name] = weight.dtype
                    weight.data = weight.data.float()

    def restore(self) -> None:
        """Puts the weights back into the types that they are stored in; no value changes."""
        for name, weight in self.clip.cond_stage_model.named_parameters():
            if name in self._stored:
                weight.data = weight.data.to(self._stored[name])
        self._stored.clear()


@dataclass
class Session:
    """Clones of MODEL and CLIP for one training.

    family: the view of the MODEL's denoiser. noise: its noise levels. text: the CLIP's weights.
    """

    model: Any
    clip: Any
    family: Family
    noise: NoiseLevels
    text: TextWeights

    @property
    def device(self) -> torch.device:
        """Where the denoiser computes."""
        return self.model.load_device

    def load(self) -> None:
        """Loads both models whole and makes their weights ordinary tensors; call again after anything else loaded."""
        mm.load_models_gpu([self.model, self.clip.patcher], force_full_load=True)
        _make_ordinary(self.model.model)
        self.model.model.requires_grad_(False)
        self.text.make_ready()

    def transformer_options(self, sigma: torch.Tensor) -> dict:
        """Options for one call of the denoiser with positive rows only, other packs' patches included."""
        options = comfy.model_patcher.create_model_options_clone(self.model.model_options)["transformer_options"]
        for kind in ("wrappers", "callbacks"):
            comfy.patcher_extension.merge_nested_dicts(options.setdefault(kind, {}), getattr(self.model, kind),
                                                       copy_dict1=False)
        options["patches"] = differentiable_patches(options.get("patches", {}))
        options.update(cond_or_uncond=[0], uuids=[None], sigmas=sigma, sample_sigmas=sigma)
        options[OVERRIDE] = differentiable_attention
        return options


@contextlib.contextmanager
def training_session(model, clip, precision: str = "auto") -> Iterator[Session]:
    """Clones `model` and `clip` for training and opens autograd; on leaving, everything is as it was before.

    The caller may add weight wrappers to both patchers, then calls `session.load()`.
    precision: "auto", "fp32" or "bf16". Raises ValueError with one sentence for models that cannot be trained on.
    """
    check_trainable(model)
    with torch.inference_mode(False), torch.enable_grad():
        trained, text = _static_clone(model), _clip_clone(clip)
        session = Session(trained, text, family_of(trained), noise_levels(trained), TextWeights(text))
        session.model.remove_additional_models(MULTIGPU)  # previews too are drawn on the GPU that trains
        if _must_be_told(model, precision):
            session.model.set_model_compute_dtype(compute_dtype(model, precision))
        try:
            with session.family.differentiable(), differentiable_text_model(session.clip):
                yield session
        finally:
            session.text.restore()
            unload(session.model)
            if text.patcher.weight_wrapper_patches or text.patcher.injections:
                unload(text.patcher)


@contextlib.contextmanager
def text_session(clip) -> Iterator[Any]:
    """A loaded clone of `clip` for what is learned from its outputs alone, and autograd; on leaving, everything is as
    it was before."""
    with torch.inference_mode(False), torch.enable_grad():
        clone = _clip_clone(clip)
        weights = TextWeights(clone)
        mm.load_models_gpu([clone.patcher], force_full_load=True)
        try:
            weights.make_ready()
            with differentiable_text_model(clone):
                yield clone
        finally:
            weights.restore()


def unload(patcher) -> None:
    """Takes `patcher` and its clones out of ComfyUI's loaded models; patched weights go back to the originals."""
    for loaded in list(mm.current_loaded_models):
        if loaded.model is not None and loaded.model.is_clone(patcher):
            mm.current_loaded_models.remove(loaded)
            loaded.model_unload()
    for module in patcher.model.modules():
        for functions in ("weight_function", "bias_function"):
            if getattr(module, functions, None):
                setattr(module, functions, [])
    mm.soft_empty_cache()


def check_trainable(model) -> None:
    """Raises ValueError naming the model and the reason if gradients cannot reach its text side."""
    name = type(model.model).__name__
    family, channels = family_of(model), latent_space(model).channels
    if family.input_channels != channels:
        raise ValueError(
            f"The model {name} takes {family.input_channels} input channels, {channels} of them latents: it "
            "is made for inpainting or editing; use the base checkpoint of the family."
        )
    noise_levels(model)
    for key, weight in family.denoiser.named_parameters():
        if not lets_gradients_through(weight):
            raise ValueError(f"The model {name} holds weights that only their own loader understands, as those of GGUF "
                             f"files ({type(weight).__name__} at {key}), and no gradient is known to flow through "
                             "them; load an fp16, bf16, fp32 or fp8 checkpoint.")


def _static_clone(patcher):
    if getattr(patcher, "is_dynamic", bool)():
        return patcher.clone(disable_dynamic=True)
    return patcher.clone()


def _clip_clone(clip):
    clone = clip.clone()
    clone.patcher = _static_clone(clip.patcher)
    clone.cond_stage_model = clone.patcher.model
    # A CLIP loads itself before it encodes, which would push out the U-Net where memory is short: both stay for the
    # session.
    clone.load_model = lambda tokens=None: clone.patcher
    return clone


def compute_dtype(model, precision: str) -> torch.dtype:
    """What the U-Net computes in while it is trained."""
    wanted = PRECISIONS[precision]
    if wanted is not None:
        return wanted
    inference = model.model.get_dtype_inference()
    # fp16 gradients of a few text vectors underflow; bf16 keeps fp32's range
    if inference == torch.float16:
        return torch.bfloat16 if mm.should_use_bf16(model.load_device) else torch.float32
    return inference


def _must_be_told(model, precision: str) -> bool:
    """Whether the U-Net would compute in another type by itself."""
    inference = model.model.get_dtype_inference()
    # with dynamic VRAM weights keep their file's type, and a static clone casts them only when told to; layers of
    # quantised weights cast by themselves, and when told to keep every weight in full for the backward pass
    return (precision != "auto" or inference == torch.float16
            or any(weight.dtype != inference and not has_scales(weight) or is_written_out_for_gradients(weight)
                   for weight in family_of(model).denoiser.parameters()))


def _make_ordinary(module: nn.Module) -> None:
    for child in module.modules():
        for name, value in list(child._parameters.items()):
            if value is not None and value.is_inference():
                child._parameters[name] = nn.Parameter(value.detach().clone(), requires_grad=False)
        for name, value in list(child._buffers.items()):
            if value is not None and value.is_inference():
                child._buffers[name] = value.detach().clone()

