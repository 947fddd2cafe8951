"""Stage 1: ComfyUI's TAESD classes with 16 latent channels, trained on drawn pictures (gate: 30 dB, held out)."""
from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from .comfyui import fast_half
from .data import Pool, draw_all, masks_tensor, pictures_tensor, scenes
from .deadline import Deadline
from .renderer import Drawing
from .run_state import Run, cosine

LATENT_CHANNELS = 16
GATE_DB = 30.0
STEPS = 5000
BATCH, CROP = 16, 64
PEAK_RATE = 8e-4
POOL, HELD_OUT = 1500, 48        # pictures drawn for training and for the gate
WEIGHTS = Path(__file__).parent / "weights" / "autoencoder.safetensors"


def new_autoencoder() -> torch.nn.ModuleDict:
    """Encoder (pictures 0..1 -> latents) and decoder (latents -> pictures), weights not yet set."""
    from comfy.taesd.taesd import Decoder, Encoder

    return torch.nn.ModuleDict({"encoder": Encoder(LATENT_CHANNELS), "decoder": Decoder(LATENT_CHANNELS)})


def initialise(model: torch.nn.Module) -> None:
    """ComfyUI's layers are uninitialised memory: give every weight a start (scaled He initialisation, zero bias)."""
    for layer in model.modules():
        if isinstance(getattr(layer, "weight", None), torch.Tensor):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            layer.weight.data.mul_(0.7)
            if layer.bias is not None:
                torch.nn.init.zeros_(layer.bias)


def load_autoencoder(file: Path = WEIGHTS) -> torch.nn.ModuleDict:
    """The autoencoder of ``file`` (keys taesd_encoder.* and taesd_decoder.*), in float32, not training."""
    return _fill(new_autoencoder(), file).eval().requires_grad_(False)


def _fill(model: torch.nn.ModuleDict, file: Path) -> torch.nn.ModuleDict:
    tensors = load_file(file)
    for name in ("encoder", "decoder"):
        prefix = f"taesd_{name}."
        model[name].load_state_dict({k[len(prefix):]: v.float() for k, v in tensors.items() if k.startswith(prefix)})
    return model


def save_autoencoder(model: torch.nn.ModuleDict, file: Path, figures: dict[str, str]) -> None:
    """fp16 weights under ComfyUI's TAESD names; ``figures`` go into the metadata."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"taesd_{name}.{key}": value.detach().half().cpu().contiguous()
               for name in ("encoder", "decoder") for key, value in model[name].state_dict().items()}
    partial = file.with_suffix(".partial")
    save_file(tensors, partial, metadata=figures)
    partial.replace(file)


def _crop(drawing: Drawing, rng: random.Random) -> tuple[slice, slice]:
    """A 64 × 64 window on the latent grid, seven times out of ten around a point of the subject."""
    limit = drawing.picture.shape[0] - CROP
    rows, columns = (drawing.subject > 0.5).nonzero()
    if rows.size and rng.random() < 0.7:
        i = rng.randrange(rows.size)
        top, left = (min(max(int(v[i]) - CROP // 2, 0), limit) for v in (rows, columns))
    else:
        top, left = rng.randrange(limit + 1), rng.randrange(limit + 1)
    top, left = top - top % 8, left - left % 8
    return slice(top, top + CROP), slice(left, left + CROP)


def _crops(drawings: list[Drawing], rng: random.Random) -> torch.Tensor:
    windows = [drawing.picture[_crop(drawing, rng)] for drawing in drawings]
    return torch.stack([torch.from_numpy(w.copy()) for w in windows]).permute(0, 3, 1, 2).float().div_(255)


def reconstruction_loss(model: torch.nn.ModuleDict, pictures: torch.Tensor) -> torch.Tensor:
    """L1 + 15 L2 (equal parts at 28 dB) of the reconstruction from slightly noisy latents; a hinge keeps latents in
    3."""
    latents = model["encoder"](pictures)
    rebuilt = model["decoder"](latents + 0.02 * torch.randn_like(latents)).float()
    error = rebuilt - pictures
    return error.abs().mean() + 15 * error.square().mean() + 1e-3 * F.relu(latents.float().abs() - 3).mean()


@torch.no_grad()
def reconstruct(model: torch.nn.ModuleDict, pictures: torch.Tensor) -> torch.Tensor:
    """Pictures (B, 3, H, W) in 0..1 through encoder and decoder, clamped to 0..1, eight at a time."""
    return torch.cat([model["decoder"](model["encoder"](part)).clamp(0, 1) for part in pictures.split(8)])


def decibels(pictures: torch.Tensor, rebuilt: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB over all pixels, or over a mask (B, 1, H, W)."""
    error = (pictures - rebuilt).square().mean(1, keepdim=True)
    mean = error.mean() if mask is None else (error * mask).sum() / mask.sum()
    return float(-10 * mean.log10())


def train_autoencoder(folder: Path, deadline: Deadline, on: torch.device, start: Path | None = None,
                      steps: int = STEPS, decoder_only: bool = False) -> bool:
    """Train until the deadline (False) or until ``steps`` are done (True when the gate is passed).

    decoder_only: leave the encoder as it is, so that latents made with it, and a U-Net trained on them, stay good.
    """
    model = new_autoencoder()
    initialise(model)
    model = model.to(on, memory_format=torch.channels_last)
    run = Run(folder / "autoencoder.pt", {"autoencoder": model})
    if not run.restore() and start is not None and start.is_file():
        _fill(model, start)
        run.adopt(start)
    if decoder_only:
        run.take_mean()
        model["encoder"].requires_grad_(False)
    deadline.log(f"autoencoder: at step {run.step} of {steps}")
    held_out = draw_all(scenes(HELD_OUT, "held_out", 1))
    pictures, masks = pictures_tensor(held_out).to(on), masks_tensor(held_out).to(on)
    pool, rng = Pool(POOL, run.step + 1), random.Random(run.step)
    pool.refresh(POOL // 8)
    while run.step < steps and not deadline.over:
        pool.refresh(6 if len(pool.drawings) < pool.size else 2)
        batch = _crops(pool.take(BATCH), rng).to(on, memory_format=torch.channels_last)
        with torch.autocast(on.type, torch.bfloat16, enabled=fast_half(on)):
            loss = reconstruction_loss(model, batch)
        run.update(loss, cosine(run.step, steps, PEAK_RATE, 200))
        if run.step % 250 == 0:
            _evaluate(run, model, pictures, masks, folder, deadline.log, loss.item())
    run.save()
    return run.step >= steps and _evaluate(run, model, pictures, masks, folder, deadline.log, float("nan"))


def _evaluate(run: Run, model: torch.nn.ModuleDict, pictures: torch.Tensor, masks: torch.Tensor, folder: Path,
              log: Callable[[str], None], loss: float) -> bool:
    run.swap_mean()
    rebuilt = reconstruct(model, pictures)
    whole, subject = decibels(pictures, rebuilt), decibels(pictures, rebuilt, masks)
    log(f"autoencoder step {run.step} loss {loss:.4f} held-out {whole:.2f} dB, subject {subject:.2f} dB")
    figures = {"steps": str(run.step), "held_out_db": f"{whole:.2f}", "held_out_subject_db": f"{subject:.2f}"}
    save_autoencoder(model, folder / "autoencoder.safetensors", figures)
    run.swap_mean()
    return whole >= GATE_DB
