"""Checkpoints whose linear layers are quantised, in the layouts that ComfyUI reads."""
from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch

LAYOUTS = {"float8_e4m3fn": "TensorCoreFP8E4M3Layout", "int8_tensorwise": "TensorWiseINT8Layout"}
OLDER = "scaled_fp8"


def quantise(checkpoint: str, quantised: Path, written_out: Path, kind: str, part: str = "model.diffusion_model."
             ) -> None:
    """Writes the checkpoint with the layers of `part` quantised, and again with the very values that they stand for.

    kind: one of LAYOUTS, or OLDER for fp8 as it was marked before ComfyUI said so of each layer.
    """
    from comfy.quant_ops import QuantizedTensor

    format_ = "float8_e4m3fn" if kind == OLDER else kind
    weights = safetensors.torch.load_file(checkpoint)
    plain = dict(weights)
    for name in [name for name, weight in weights.items()
                 if name.startswith(part) and ".layers." in name and name.endswith(".weight") and weight.ndim == 2]:
        scale = {"scale": "recalculate"} if format_ == "float8_e4m3fn" else {}
        made = QuantizedTensor.from_float(weights[name].float(), LAYOUTS[format_], **scale)
        layer = name.removesuffix(".weight")
        weights[name], plain[name] = made._qdata, made.dequantize().contiguous()
        weights[f"{layer}.{'scale_weight' if kind == OLDER else 'weight_scale'}"] = made._params.scale.reshape(())
        if kind != OLDER:
            weights[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps({"format": format_}).encode()),
                                                           dtype=torch.uint8)
    if kind == OLDER:
        weights[f"{part}scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    safetensors.torch.save_file(weights, quantised)
    safetensors.torch.save_file(plain, written_out)
