"""Names and shapes of BLIP-Diffusion's weights: LAVIS' names made Hugging Face's, and what must be there."""
from __future__ import annotations

import functools
import re
from pathlib import Path

from torch import Tensor

from ..foreign.text import short
from ..weight_files import check_numbers
from .blip_diffusion import Weights, depth_of

# LAVIS' names → Hugging Face's, in this order.
RENAMES = (
    (r"blip\.", ""), (r"Qformer\.bert\.", ""),
    (r"(encoder\.layer\.\d+\.(?:cross)?attention)\.self\.", r"\1.attention."),
    (r"ln_vision\.", "visual_encoder.post_layernorm."),
    (r"visual_encoder\.class_embedding$", "visual_encoder.embeddings.class_embedding"),
    (r"visual_encoder\.positional_embedding$", "visual_encoder.embeddings.position_embedding"),
    (r"visual_encoder\.conv1\.", "visual_encoder.embeddings.patch_embedding."),
    (r"visual_encoder\.ln_pre\.", "visual_encoder.pre_layernorm."),
    (r"visual_encoder\.transformer\.resblocks\.(\d+)\.ln_([12])\.", r"visual_encoder.encoder.layers.\1.layer_norm\2."),
    (r"visual_encoder\.transformer\.resblocks\.(\d+)\.attn\.in_proj_",
     r"visual_encoder.encoder.layers.\1.self_attn.qkv."),
    (r"visual_encoder\.transformer\.resblocks\.(\d+)\.attn\.out_proj\.",
     r"visual_encoder.encoder.layers.\1.self_attn.projection."),
    (r"visual_encoder\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"visual_encoder.encoder.layers.\1.mlp.fc1."),
    (r"visual_encoder\.transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"visual_encoder.encoder.layers.\1.mlp.fc2."),
)


def from_lavis(weights: Weights) -> dict[str, Tensor]:
    """LAVIS' weights under Hugging Face's names and in their shapes. Raises ValueError if two get the same name."""
    renamed = {}
    for name, tensor in weights.items():
        for pattern, to in RENAMES:
            name = re.sub(f"^{pattern}", to, name)
        if name in renamed:
            raise ValueError(f"The BLIP-Diffusion file holds {short(name)} twice; download the folder again.")
        renamed[name] = tensor
    for name in ("visual_encoder.embeddings.class_embedding", "visual_encoder.embeddings.position_embedding"):
        while name in renamed and renamed[name].ndim < 3:
            renamed[name] = renamed[name][None]
    return renamed


def check_weights(weights: Weights, file: str) -> None:
    """Raises ValueError if a weight is missing, has another shape than the others ask for, or holds other than finite
    numbers."""
    sizes = ("visual_encoder.embeddings.class_embedding", "query_tokens", "embeddings.word_embeddings.weight")
    missing = [name for name in sizes if name not in weights]
    if missing:
        shown = ", ".join(map(short, list(weights)[:3])) or "no tensor"
        raise ValueError(f"{file} holds no BLIP-Diffusion encoder: found {shown}, expected {missing[0]}; "
                         "put the whole folder of Salesforce/blipdiffusion into models/diffusers/blipdiffusion.")
    flat = next((name for name in sizes if not weights[name].ndim), None)
    if flat:
        raise ValueError(f"{file} is damaged: {flat} is a single number; download the folder again.")
    shapes = _expected_shapes(weights)
    for name, shape in shapes.items():
        found = tuple(weights[name].shape) if name in weights else "nothing"
        if found == "nothing" or len(found) != len(shape) or any(s not in (None, f) for s, f in zip(shape, found)):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(f"{file} is damaged or of another model: found {found} for {name}, expected "
                             f"({wanted}); download the folder again.")
    check_numbers(Path(file), ((name, weights[name]) for name in shapes))


def _expected_shapes(weights: Weights) -> dict[str, tuple[int | None, ...]]:
    """Shape of every weight that is used; None where any size will do."""
    width = weights["visual_encoder.embeddings.class_embedding"].shape[-1]
    hidden = weights["query_tokens"].shape[-1]
    shapes: dict[str, tuple[int | None, ...]] = {
        "visual_encoder.embeddings.class_embedding": (1, 1, width),
        "visual_encoder.embeddings.position_embedding": (1, None, width),
        "visual_encoder.embeddings.patch_embedding.weight": (width, 3, None, None),
        "query_tokens": (1, None, hidden), "embeddings.word_embeddings.weight": (None, hidden),
        "embeddings.position_embeddings.weight": (None, hidden)}
    linear = functools.partial(_linear_shapes, shapes)
    for name in ("visual_encoder.pre_layernorm", "visual_encoder.post_layernorm"):
        linear(name, width)
    for name in ("embeddings.LayerNorm", "proj_layer.LayerNorm"):
        linear(name, hidden)
    linear("proj_layer.dense1", None, hidden)
    linear("proj_layer.dense2", hidden, _rows(weights, "proj_layer.dense1"))
    for i in range(max(1, depth_of(weights, "visual_encoder.encoder.layers."))):
        layer = f"visual_encoder.encoder.layers.{i}"
        linear(f"{layer}.layer_norm1", width)
        linear(f"{layer}.layer_norm2", width)
        linear(f"{layer}.self_attn.qkv", 3 * width, width)
        linear(f"{layer}.self_attn.projection", width, width)
        linear(f"{layer}.mlp.fc1", None, width)
        linear(f"{layer}.mlp.fc2", width, _rows(weights, f"{layer}.mlp.fc1"))
    for i in range(max(1, depth_of(weights, "encoder.layer."))):
        layer = f"encoder.layer.{i}"
        crossed = any(name.startswith(f"{layer}.crossattention.") for name in weights)
        for kind, context in [("attention", hidden)] + [("crossattention", width)] * crossed:
            linear(f"{layer}.{kind}.attention.query", hidden, hidden)
            linear(f"{layer}.{kind}.attention.key", hidden, context)
            linear(f"{layer}.{kind}.attention.value", hidden, context)
            linear(f"{layer}.{kind}.output.dense", hidden, hidden)
            linear(f"{layer}.{kind}.output.LayerNorm", hidden)
        for kind in ("", "_query"):
            linear(f"{layer}.intermediate{kind}.dense", None, hidden)
            linear(f"{layer}.output{kind}.dense", hidden, _rows(weights, f"{layer}.intermediate{kind}.dense"))
            linear(f"{layer}.output{kind}.LayerNorm", hidden)
    return shapes


def _linear_shapes(shapes: dict[str, tuple[int | None, ...]], name: str, *sizes: int | None) -> None:
    shapes[f"{name}.weight"] = sizes
    shapes[f"{name}.bias"] = sizes[:1]


def _rows(weights: Weights, name: str) -> int | None:
    weight = weights.get(f"{name}.weight")
    return len(weight) if weight is not None and weight.ndim else None
