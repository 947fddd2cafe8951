"""Whole sets of numbers of the papers, by name."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

from .plan import Settings

CUSTOM = "custom"

# CoRe: the authors' training scripts (github.com/pangy9/CoRe, train.sh), since the paper gives no numbers; Textual
# Inversion: Gal et al. 2022, section 4; ViCo: its section 3.4. Both codes set no weight decay: AdamW's own is 0.01.
# XTI: github.com/mkshing/prompt-plus-pytorch, as the authors released none. DreamBooth: of the U-Net alone as
# github.com/XavierXiao/Dreambooth-Stable-Diffusion, with the text encoder as diffusers' script. Custom Diffusion: the
# authors' github.com/adobe-research/custom-diffusion, 4 pictures on each of 2 GPUs. DETEX: Cai et al. 2024, section
# 4.1, which names no other of AdamW's numbers than the rate; its code could not be had.
# What the codes do otherwise is told on the help page of Train.
PRESETS: dict[str, dict[str, Any]] = {
    "CoRe stage 1: embedding": dict(steps=300, batch_size=6, optimizer="AdamW", weight_decay=0.01, schedule="constant",
                                    warmup_steps=0, clip_gradients=0.0),
    "CoRe stage 2: U-Net": dict(steps=1000, batch_size=4, optimizer="AdamW", weight_decay=0.01, schedule="constant",
                                warmup_steps=0, clip_gradients=0.0),
    "Textual Inversion": dict(steps=5000, batch_size=4, optimizer="AdamW", weight_decay=0.01, schedule="constant",
                              warmup_steps=0, clip_gradients=0.0),
    "ViCo": dict(steps=400, batch_size=4, optimizer="AdamW", weight_decay=0.01, schedule="constant", warmup_steps=0,
                 clip_gradients=0.0),
    "XTI": dict(steps=500, batch_size=8, optimizer="AdamW", weight_decay=0.01, schedule="constant", warmup_steps=0,
                clip_gradients=0.0),
    "DreamBooth: U-Net": dict(steps=800, batch_size=1, optimizer="AdamW", weight_decay=0.01, schedule="constant",
                              warmup_steps=0, clip_gradients=0.0),
    "DreamBooth: U-Net and text encoder": dict(steps=800, batch_size=1, optimizer="AdamW", weight_decay=0.01,
                                               schedule="constant", warmup_steps=0, clip_gradients=1.0),
    "Custom Diffusion": dict(steps=300, batch_size=8, optimizer="AdamW", weight_decay=0.01, schedule="constant",
                             warmup_steps=0, clip_gradients=0.0),
    "DETEX": dict(steps=600, batch_size=4, optimizer="AdamW", weight_decay=0.01, schedule="constant", warmup_steps=0,
                  clip_gradients=0.0),
}


def numbers_of(preset: str) -> dict[str, Any]:
    """Numbers that take the place of what is set, by the names of Train's widgets; none for "custom"."""
    return PRESETS.get(preset, {})


def with_preset(settings: Settings, preset: str) -> Settings:
    """The settings with the preset's numbers in their place."""
    return replace(settings, **numbers_of(preset))
