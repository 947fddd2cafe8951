"""Trained networks as one safetensors file under ComfyUI's key names, and back."""
from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from .contrastive import LatentEncoder
from .flow_network import LanguageModel, is_flow
from .models import ROWS
from .network import PictureEncoder, TextEncoder, predicts_velocity

Tensors = dict[str, torch.Tensor]
_UNET, _TEXT, _PICTURE = "model.diffusion_model.", "cond_stage_model.", "picture_encoder."
_MATCHING = "matching."  # of texts and latents; not in files of before it was trained


def _modules(networks: torch.nn.ModuleDict) -> dict[str, torch.nn.Module]:
    """Key prefix in the file -> the module stored under it (token rows apart)."""
    modules = {_UNET: networks["unet"]}
    layers = "model" if is_flow(networks) else "text_model"
    modules |= {f"{name}transformer.{layers}.": encoder.model for name, encoder in _encoders(networks).items()}
    if predicts_velocity(networks):
        modules[f"{_TEXT}clip_g.transformer.text_projection."] = networks["text"].projection
    if "picture" in networks:
        modules[_PICTURE] = networks["picture"]
    if "matching" in networks:
        modules[_MATCHING] = networks["matching"]
    return modules


def _encoders(networks: torch.nn.ModuleDict) -> dict[str, TextEncoder | LanguageModel]:
    text = networks["text"]
    if is_flow(networks):
        return {f"{_TEXT}qwen3_4b.": text}
    if predicts_velocity(networks):
        return {f"{_TEXT}clip_l.": text.l, f"{_TEXT}clip_g.": text.g}
    return {f"{_TEXT}clip_l.": text}


def checkpoint_tensors(networks: torch.nn.ModuleDict, autoencoder: torch.nn.ModuleDict,
                       latent_spread: float) -> Tensors:
    """Everything in fp16. ``latent_spread``: standard deviation of the autoencoder's raw latents."""
    tensors = {prefix + k: v for prefix, module in _modules(networks).items() for k, v in module.state_dict().items()}
    tensors |= {f"first_stage_model.taesd_{k}": v for k, v in autoencoder.state_dict().items()}
    tensors |= {"first_stage_model.vae_scale": torch.tensor(latent_spread),
                "first_stage_model.vae_shift": torch.tensor(0.0)}
    tensors |= {f"{name}{ROWS}weight": encoder.rows for name, encoder in _encoders(networks).items()}
    if predicts_velocity(networks):
        tensors["v_pred"] = torch.zeros(1)
    halves = {key: value.detach().half().cpu().contiguous() for key, value in tensors.items()}
    ids = {f"{name}{ROWS}ids": encoder.ids.int().cpu() for name, encoder in _encoders(networks).items()}
    return halves | ids


def save_checkpoint(networks: torch.nn.ModuleDict, autoencoder: torch.nn.ModuleDict, latent_spread: float, file: Path,
                    figures: dict[str, str]) -> None:
    """One safetensors file that the stock *Load Checkpoint* reads; ``figures`` go into the metadata."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    save_file(checkpoint_tensors(networks, autoencoder, latent_spread), partial, metadata=figures)
    partial.replace(file)


def encoders_of(networks: torch.nn.ModuleDict) -> list[TextEncoder | LanguageModel]:
    """The text encoders."""
    return list(_encoders(networks).values())


def load_networks(networks: torch.nn.ModuleDict, tensors: Tensors) -> None:
    """Give the networks the weights of a checkpoint's tensors (the inverse of ``checkpoint_tensors``)."""
    for prefix, module in _modules(networks).items():
        own = _under(prefix, tensors)
        if own or prefix != _MATCHING:
            module.load_state_dict(own)
    for name, encoder in _encoders(networks).items():
        saved = dict(zip(tensors[f"{name}{ROWS}ids"].tolist(), tensors[f"{name}{ROWS}weight"]))
        with torch.no_grad():
            for place, id in enumerate(encoder.ids.tolist()):
                if id in saved:
                    encoder.rows[place] = saved[id].float()


def load_picture_encoder(tensors: Tensors) -> PictureEncoder:
    """The picture encoder out of a checkpoint's tensors, in float32, not training."""
    encoder = PictureEncoder()
    encoder.load_state_dict(_under(_PICTURE, tensors))
    return encoder.eval().requires_grad_(False)


def load_latent_encoder(tensors: Tensors) -> LatentEncoder:
    """What sees in latents what captions say, out of a checkpoint's tensors, in float32, not training."""
    encoder = LatentEncoder()
    encoder.load_state_dict(_under(f"{_MATCHING}pictures.", tensors))
    return encoder.eval().requires_grad_(False)


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {key.removeprefix(prefix): value.float() for key, value in tensors.items() if key.startswith(prefix)}
