"""A small random BLIP-Diffusion, as a folder in the layout of Hugging Face or of LAVIS."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

QUERIES, SIDE = 16, 28
VISION = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 7,
          "intermediate_size": 40, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-6}
QFORMER = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 12,
           "encoder_hidden_size": VISION["hidden_size"], "cross_attention_frequency": 1}
WORDS = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]",
         "dog", "teddy", "bear", "##s", "back", "##pack", "a", "red"]
HUGGING_FACE, LAVIS = "Hugging Face", "LAVIS"
MEAN, STD = [0.5, 0.4, 0.3], [0.2] * 3

# What authoring/blip_diffusion_reference.py has diffusers compute, with weights of seed 0.
REFERENCE = Path(__file__).with_suffix(".safetensors")
REFERENCE_WIDTH = 32
REFERENCE_SUBJECTS = ("dog", "teddy bears")
REFERENCE_PROMPTS = (("dog", "swimming in a pool"), ("teddy bear", "on a chair, " + "very " * 50 + "comfortable"))
TEXT = {"hidden_size": REFERENCE_WIDTH, "intermediate_size": 4 * REFERENCE_WIDTH, "num_hidden_layers": 2,
        "num_attention_heads": 2}


def state_dict(width: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights under Hugging Face's names, float32. width: of the tokens, as CLIP's word embeddings."""
    generator = np.random.default_rng(seed)
    vision, inner, hidden = VISION["hidden_size"], VISION["intermediate_size"], QFORMER["intermediate_size"]
    size = VISION["patch_size"]
    patches = (SIDE // size) ** 2
    shapes = {"query_tokens": (1, QUERIES, width), "embeddings.word_embeddings.weight": (len(WORDS) + 1, width),
              "embeddings.position_embeddings.weight": (QFORMER["max_position_embeddings"], width),
              "visual_encoder.embeddings.class_embedding": (1, 1, vision),
              "visual_encoder.embeddings.position_embedding": (1, 1 + patches, vision),
              "visual_encoder.embeddings.patch_embedding.weight": (vision, 3, size, size)}

    def linear(name: str, *sizes: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = sizes, sizes[:1]

    linear("embeddings.LayerNorm", width)
    linear("visual_encoder.pre_layernorm", vision)
    linear("visual_encoder.post_layernorm", vision)
    for layer in (f"visual_encoder.encoder.layers.{i}" for i in range(VISION["num_hidden_layers"])):
        linear(f"{layer}.layer_norm1", vision)
        linear(f"{layer}.layer_norm2", vision)
        linear(f"{layer}.self_attn.qkv", 3 * vision, vision)
        linear(f"{layer}.self_attn.projection", vision, vision)
        linear(f"{layer}.mlp.fc1", inner, vision)
        linear(f"{layer}.mlp.fc2", vision, inner)
    for layer in (f"encoder.layer.{i}" for i in range(QFORMER["num_hidden_layers"])):
        for kind, context in (("attention", width), ("crossattention", vision)):
            linear(f"{layer}.{kind}.attention.query", width, width)
            linear(f"{layer}.{kind}.attention.key", width, context)
            linear(f"{layer}.{kind}.attention.value", width, context)
            linear(f"{layer}.{kind}.output.dense", width, width)
            linear(f"{layer}.{kind}.output.LayerNorm", width)
        for kind in ("", "_query"):
            linear(f"{layer}.intermediate{kind}.dense", hidden, width)
            linear(f"{layer}.output{kind}.dense", width, hidden)
            linear(f"{layer}.output{kind}.LayerNorm", width)
    linear("proj_layer.dense1", 4 * width, width)
    linear("proj_layer.dense2", width, 4 * width)
    linear("proj_layer.LayerNorm", width)
    return {name: _fill(name, shape, generator) for name, shape in shapes.items()}


def write(folder: Path, width: int, layout: str = HUGGING_FACE, seed: int = 0) -> dict[str, torch.Tensor]:
    """Writes a whole folder and returns the weights under Hugging Face's names."""
    weights = state_dict(width, seed)
    if layout == LAVIS:
        projection = {name: tensor for name, tensor in weights.items() if name.startswith("proj_layer.")}
        blip = {_in_lavis(name): tensor for name, tensor in weights.items() if name not in projection}
        for name in ("visual_encoder.class_embedding", "visual_encoder.positional_embedding"):
            blip[name] = blip[name].squeeze()
        _save(blip, folder / "blip_model" / "blip_weight.pt")
        _save({name.removeprefix("proj_layer."): tensor for name, tensor in projection.items()},
              folder / "proj_layer" / "proj_weight.pt")
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        return weights
    _save(weights, folder / "qformer" / "model.safetensors")
    vocabulary = folder / "qformer" / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n")
    config = {"vision_config": VISION, "qformer_config": qformer_config(width), "num_query_tokens": QUERIES}
    (folder / "qformer" / "config.json").write_text(json.dumps(config))
    index = {"ctx_begin_pos": 2, "mean": MEAN, "std": STD}
    (folder / "model_index.json").write_text(json.dumps(index))
    return weights


def qformer_config(width: int) -> dict[str, int]:
    """The Q-Former's settings, as config.json holds them."""
    return {**QFORMER, "hidden_size": width, "vocab_size": len(WORDS) + 1}


def text_weights(seed: int = 1) -> dict[str, torch.Tensor]:
    """CLIP's text transformer TEXT under Hugging Face's names, float32 values that float16 holds too."""
    generator = np.random.default_rng(seed)
    width, inner = TEXT["hidden_size"], TEXT["intermediate_size"]
    shapes = {"embeddings.token_embedding.weight": (49408, width), "embeddings.position_embedding.weight": (77, width),
              "final_layer_norm.weight": (width,), "final_layer_norm.bias": (width,)}
    for layer in (f"encoder.layers.{i}" for i in range(TEXT["num_hidden_layers"])):
        sizes = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        sizes |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner), "layer_norm1": (width,),
                  "layer_norm2": (width,)}
        for name, shape in sizes.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
    return {f"text_model.{name}": _fill(name, shape, generator).half().float() for name, shape in shapes.items()}


def reference_picture() -> np.ndarray:
    """(60, 40, 3) of 0…255: smooth, so that ways to resize it differ little, and not square."""
    y, x = np.mgrid[0:60, 0:40]
    colours = [127 + 100 * np.sin(x / 9), 127 + 100 * np.cos(y / 13), 40 + 3 * y]
    return np.stack(colours, axis=-1).astype(np.uint8)


def _save(weights: dict[str, torch.Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pt":
        torch.save(weights, path)
    else:
        save_file(weights, path)


def _in_lavis(name: str) -> str:
    """LAVIS' name for one of Hugging Face's."""
    if name == "query_tokens":
        return name
    if not name.startswith("visual_encoder."):
        return "Qformer.bert." + name.replace(".attention.attention.", ".attention.self.").replace(
            ".crossattention.attention.", ".crossattention.self.")
    for ours, theirs in {
            "visual_encoder.post_layernorm": "ln_vision", "embeddings.class_embedding": "class_embedding",
            "embeddings.position_embedding": "positional_embedding", "embeddings.patch_embedding": "conv1",
            "pre_layernorm": "ln_pre", "encoder.layers.": "transformer.resblocks.", "layer_norm": "ln_",
            "self_attn.qkv.": "attn.in_proj_", "self_attn.projection": "attn.out_proj", "mlp.fc1": "mlp.c_fc",
            "mlp.fc2": "mlp.c_proj"}.items():
        name = name.replace(ours, theirs)
    return name


def _fill(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> torch.Tensor:
    noise = torch.from_numpy(generator.standard_normal(shape, np.float32))  # torch's differ with the processor
    if len(shape) == 1:
        return 1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise
    if "embedding" in name and "patch" not in name or name == "query_tokens":
        return 0.5 * noise
    return noise / noise[0].numel() ** 0.5
