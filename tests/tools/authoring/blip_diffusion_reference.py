#!/usr/bin/env python3
"""Writes what diffusers' BLIP-Diffusion gives for the small random weights of tests/tiny:
tiny/blip_diffusion.safetensors.

diffusers' own pipeline needs a transformers that is older than ComfyUI's, so it runs beside the test environment:

    pip install --target DIR diffusers==0.32.2 transformers==4.47.1 tokenizers==0.21.0 huggingface_hub==0.27.1
    PYTHONPATH=DIR python tests/tools/authoring/blip_diffusion_reference.py PATH_OF_COMFYUI
"""
from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before diffusers

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.path[0] = str(Path(__file__).resolve().parents[2] / "tiny")  # the module alone: its package needs ComfyUI

import blip_diffusion as tiny


def main() -> None:
    """Pixel values, visual tokens and conditionings, as the pipeline's own methods compute them one after the other."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        tiny.write(Path(folder), tiny.REFERENCE_WIDTH)
        pipeline = released_pipeline(Path(folder), Path(sys.argv[1]))
        pixels = pipeline.image_processor.preprocess(
            tiny.reference_picture(), image_mean=pipeline.config.mean, image_std=pipeline.config.std,
            return_tensors="pt")["pixel_values"]
        found = {"pixels": pixels}
        for subject in tiny.REFERENCE_SUBJECTS:
            found[f"tokens {subject}"] = pipeline.get_query_embeddings(pixels, [subject])
        for target, prompt in tiny.REFERENCE_PROMPTS:
            text = pipeline._build_prompt([prompt], [target])
            visual = found[f"tokens {tiny.REFERENCE_SUBJECTS[0]}"]
            found[f"text {target} {prompt}"] = pipeline.encode_prompt(visual, text)
        empty = pipeline.tokenizer([""], padding="max_length", max_length=77, return_tensors="pt").input_ids
        found["text of nothing"] = pipeline.text_encoder(input_ids=empty, ctx_embeddings=None)[0]
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, tiny.REFERENCE)


def released_pipeline(folder: Path, comfyui: Path):
    """diffusers' BlipDiffusionPipeline with the weights of `folder`; without U-Net, which has no part in this."""
    from diffusers.pipelines.blip_diffusion.blip_image_processing import BlipImageProcessor
    from diffusers.pipelines.blip_diffusion.modeling_blip2 import Blip2QFormerModel
    from diffusers.pipelines.blip_diffusion.modeling_ctx_clip import ContextCLIPTextModel
    from diffusers.pipelines.blip_diffusion.pipeline_blip_diffusion import BlipDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTokenizer
    from transformers.models.blip_2.configuration_blip_2 import Blip2Config

    width = tiny.REFERENCE_WIDTH
    config = Blip2Config(vision_config=tiny.VISION, qformer_config=tiny.qformer_config(width),
                         num_query_tokens=tiny.QUERIES, tokenizer=str(folder / "qformer"))
    qformer = Blip2QFormerModel(config).eval()
    load(qformer, load_file(folder / "qformer" / "model.safetensors"))
    text = ContextCLIPTextModel(CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, **tiny.TEXT,
                                               hidden_act="quick_gelu")).eval()
    load(text, tiny.text_weights())
    processor = BlipImageProcessor(size={"height": tiny.SIDE, "width": tiny.SIDE})
    tokenizer = CLIPTokenizer.from_pretrained(comfyui / "comfy" / "sd1_tokenizer")
    return BlipDiffusionPipeline(tokenizer, text, None, None, None, qformer, processor, 2, tiny.MEAN, tiny.STD)


def load(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """All weights, and no others but counters."""
    missing, unexpected = module.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.endswith("position_ids") for name in missing), (missing, unexpected)


if __name__ == "__main__":
    main()
