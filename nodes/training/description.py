"""What can be told apart of a MODEL, a CLIP, a VAE and of other packs' patches on them."""
from __future__ import annotations

import functools
import logging
import re
import types
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..text.apply import known_placeholders
from .fingerprint import Digests, counting

# what ComfyUI's hooks keep of the sampling run that they are in
_STATE_OF_HOOKS = re.compile(r"_curr.*|_hook_dict|start_t|need_weight_init|weights|weights_clip|hook_ref")
_NAMED_ONLY = (torch.Generator, torch.device, uuid.UUID, logging.Logger)
_OF_THE_LOADER = re.compile(r"training|model_.*|lowvram_.*")
_HELD = ("patches", "weight_wrapper_patches", "model_options", "injections", "additional_models", "attachments",
         "hook_patches", "forced_hooks")
_RANDOM = re.compile(r"[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}")  # a UUID
_PROBE = "a photo of a (dog:1.5), [cat]"


def model_fingerprint(patcher) -> str:
    """Digest of a ModelPatcher: of every weight as it is without weight patches, of its noise levels, and of all
    patches.

    Loading it, sampling with it, and where it lies do not change the digest. About half a second for SD1.5.
    """
    return _lenient(patcher)


def clip_fingerprint(clip) -> str:
    """Digest of a CLIP: of its weights and patches, its options, the words it was taught, and how it splits a
    prompt."""
    texts = [_PROBE, *known_placeholders(clip)]
    encoders = [clip.cond_stage_model, *clip.cond_stage_model.children()]
    return _lenient([clip.patcher, {name: value for name, value in vars(clip).items()
                                    if name not in ("patcher", "cond_stage_model", "tokenizer")},
                     [_replaced_methods(each) for each in (*encoders, clip.tokenizer)],
                     {text: clip.tokenize(text) for text in texts}])


def encoder_fingerprint(clip) -> str:
    """Digest of a CLIP's weights as numbers, and of weight patches, whatever words it was taught; the same while it is
    trained on, when half-precision weights are held in float32."""
    weights, _ = _without_patches(clip.patcher)
    numbers = {name: _lenient(weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight)
               for name, weight in weights.items()}
    return _lenient([numbers, clip.patcher.patches])


def vae_fingerprint(vae) -> str:
    """Digest of a VAE: of its weights and of the type in which it computes."""
    return _lenient([_origin(type(vae)), vae.patcher, getattr(vae, "vae_dtype", None)])


def _lenient(value: Any) -> str:
    return Digests(_Description()).of(value).hex()


class _Description:
    """Values that stand for an object of any kind: of a function its code and what it encloses, of a module its
    weights, of others their attributes, but for those that their class names in NOT_IN_KEY: what they gather while in
    use."""

    def __init__(self):
        self._described: set[int] = set()  # modules whose content a ModelPatcher has told

    def __call__(self, value: Any) -> Any:
        if isinstance(value, ModelPatcher):
            return self._patcher(value)
        if isinstance(value, torch.nn.Module):
            return self._module(value)
        if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)):
            return _origin(value)
        if isinstance(value, _NAMED_ONLY):
            return _origin(type(value))
        if isinstance(value, np.ndarray):
            return str(value.dtype), value.shape, value.tolist() if value.dtype == object else value.tobytes()
        if isinstance(value, functools.partial):
            return "partial", value.func, value.args, value.keywords
        if isinstance(value, types.MethodType):
            return self._method(value)
        if isinstance(value, types.FunctionType):
            return (_origin(value), value.__code__, [_content(cell) for cell in value.__closure__ or ()],
                    value.__defaults__, value.__kwdefaults__, dict(vars(value)))
        if isinstance(value, types.CodeType):
            return value.co_code, value.co_names, value.co_consts
        return _origin(type(value)), _attributes(value)

    def _patcher(self, patcher: ModelPatcher) -> Any:
        weights, objects = _without_patches(patcher)
        apart = {id(module) for each in objects.values() if isinstance(each, torch.nn.Module)
                 for module in each.modules()}
        self._described |= {id(module) for module in patcher.model.modules()} - apart
        held = {name: getattr(patcher, name, None) for name in _HELD}
        functions = [_in_order(each) for each in (patcher.wrappers, patcher.callbacks)]
        return _origin(type(patcher.model)), _config(patcher.model), weights, objects, held, functions

    def _method(self, value: types.MethodType) -> Any:
        # while a model is loaded, an injection keeps the method that it stands in for
        if id(value.__self__) in self._described:
            return None
        return "method", value.__self__, value.__func__

    def _module(self, value: torch.nn.Module) -> Any:
        kinds = [kind.__qualname__ for kind in type(value).__mro__]
        if id(value) in self._described:
            return kinds
        settings = {name: each for name, each in vars(value).items() if not _OF_THE_LOADER.fullmatch(name)
                    and isinstance(each, (int, float, str, Tensor)) and not isinstance(each, bool)}
        return kinds, settings, dict(value.state_dict())


def _without_patches(patcher: ModelPatcher) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and objects by name, as they are without what the present or another clone has loaded into the model."""
    replaced = {*patcher.object_patches, *patcher.object_patches_backup}
    kept = [name for name in ("model_sampling", "latent_format") if hasattr(patcher.model, name)]
    apart = tuple(f"{name}." for name in {*replaced, *kept})
    weights = {key: original_weight(patcher, key, weight) for key, weight in patcher.model.state_dict().items()
               if not key.startswith(apart)}
    for name in patcher.object_patches_backup:
        original = patcher.object_patches_backup[name]
        if name not in (*patcher.object_patches, *kept) and isinstance(original, torch.nn.Module):
            weights.update({f"{name}.{key}": weight for key, weight in original.state_dict().items()})
    return weights, {name: patcher.get_model_object(name) for name in {*patcher.object_patches, *kept}}


def original_weight(patcher: ModelPatcher, key: str, weight: Tensor) -> Tensor:
    """What a weight of the patcher's model is without any patches that are loaded into it now. weight: as it is now."""
    if key in patcher.backup:
        return patcher.backup[key].weight
    return patcher.hook_backup[key][0] if key in patcher.hook_backup else weight


def _config(model: torch.nn.Module) -> Any:
    """What of a U-Net's build its weights do not show, such as the number of heads."""
    return getattr(getattr(model, "model_config", None), "unet_config", None)


def _in_order(by_kind: Mapping[str, Mapping[str, Any]]) -> dict[str, list]:
    """Wrappers by kind in their order, as the first is outermost, under their keys without random parts."""
    return {kind: [(_RANDOM.sub("", str(key)), each) for key, each in by_key.items()]
            for kind, by_key in by_kind.items()}


def _replaced_methods(value: Any) -> dict[str, Any]:
    """Functions that other packs have put in the place of an object's own."""
    return {name: each for name, each in vars(value).items() if isinstance(each,
                                                                           (types.FunctionType, types.MethodType))}


def _origin(value: Any) -> str:
    """Module and name, without the folders that ComfyUI puts into the module names of custom nodes."""
    module = re.split(r"[\\/]", getattr(value, "__module__", None) or "")[-1]
    return f"{module} {getattr(value, '__qualname__', None) or getattr(value, '__name__', '')}"


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "empty cell"


def _attributes(value: Any) -> Mapping[str, Any]:
    kind = type(value)
    slots = [name for each in kind.__mro__ for name in _slot_names(each) if hasattr(value, name)]
    found = {**{name: getattr(value, name) for name in slots}, **getattr(value, "__dict__", {})}
    if kind.__module__ == "comfy.hooks":
        found = {name: each for name, each in found.items() if not _STATE_OF_HOOKS.fullmatch(name)}
    return counting(value, found)


def _slot_names(kind: type) -> list[str]:
    slots = vars(kind).get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if name not in ("__dict__", "__weakref__")]
