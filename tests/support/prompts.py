"""Prompts in API format that several tests run."""
from __future__ import annotations


def node(kind: str, /, **inputs) -> dict:
    """One node of a prompt."""
    return {"class_type": kind, "inputs": inputs}


def loader(checkpoint: str) -> dict:
    """Load Checkpoint."""
    return node("CheckpointLoaderSimple", ckpt_name=checkpoint)


def picture_prompt(checkpoint: str, steps: int = 2, text: str = "a photo of a dog") -> dict:
    """Stock nodes only: text to a 64 x 64 picture. Node 4 is the sampler, 5 the decoded picture, 6 the saved one."""
    return {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
            "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": text}},
            "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
            "4": {"class_type": "KSampler", "inputs": {
                "model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0], "seed": 1,
                "steps": steps, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}},
            "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
            "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "harness"}}}
