"""A graph with every node that has a say in what Train learns, and another value for every one of their inputs."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import save_file

from tiny import vision

FOLDER, OTHER_FOLDER, PROMPTS = "key-dogs", "key-cats", "key-prompts.txt"
PICTURES, MASKS = ("key-picture-1.png", "key-picture-2.png"), ("key-mask-1.png", "key-mask-2.png")
VISIONS = ("key-vision-1.safetensors", "key-vision-2.safetensors")


@dataclass(frozen=True)
class Same:
    """Another value of an input that leaves the run the same one, and why."""

    value: object
    why: str


def write_inputs(base: Path) -> None:
    """The pictures, prompts and image encoders that the graph reads."""
    draw = np.random.default_rng(0)
    for name in (f"{FOLDER}/1.png", f"{FOLDER}/2.png", f"{OTHER_FOLDER}/1.png", f"{OTHER_FOLDER}/2.png", *PICTURES,
                 *MASKS):
        path = base / "input" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(1, 255, (72, 96, 3), dtype=np.uint8)).save(path)
    (base / "input" / PROMPTS).write_text("a {} by the sea\n", encoding="utf-8")
    encoders = base / "models" / "clip_vision"
    encoders.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(VISIONS):
        if not (encoders / name).exists():
            save_file(vision.state_dict(seed), encoders / name)


def node(kind: str, /, **inputs) -> dict:
    return {"class_type": f"Personalize{kind}" if kind[0].isupper() else kind[1:], "inputs": inputs}


def subject(concept: str, folder: str = FOLDER, **inputs) -> dict:
    return node("Subject", **{"concept": [concept, 0], "folder": folder, "size": 64, "fit": "crop",
                              "augmentation": "as released", "variants": 2, "seed": 0, "picture_files": "",
                              "captions": "{} one\n{} two\n{} three",
                              "images": ["picture", 0], "masks": ["mask", 0], **inputs})


def graph() -> dict[str, dict]:
    """Node name → class and inputs; those named "other" are there to be linked to."""
    concept = dict(placeholder="<my-dog>", class_words="dog", initial_words="puppy", vector_count=1, embedding="none")
    prompt_set = dict(kind="animate", background=True, action=True, outfit=True, style=True, colour=True,
                      file="none",
                      own_prompts="a {} in the rain")
    rich = dict.fromkeys(("accessory", "viewpoint", "relation", "companions"), True)
    learning = dict(clip=["checkpoint", 1], prompt_set=["rich prompts", 0], name="keys", nouns="dog, cat", steps=1,
                    batch_size=2, learning_rate=1e-3, share=0.15, width=32, depth=1, heads=2)
    return {
        "checkpoint": node("_CheckpointLoaderSimple", ckpt_name="sd15.safetensors"),
        "other checkpoint": node("_CheckpointLoaderSimple", ckpt_name="sdxl.safetensors"),
        "vision": node("_CLIPVisionLoader", clip_name=VISIONS[0]),
        "other vision": node("_CLIPVisionLoader", clip_name=VISIONS[1]),
        "picture": node("_LoadImage", image=PICTURES[0]),
        "other picture": node("_LoadImage", image=PICTURES[1]),
        "mask": node("_LoadImageMask", image=MASKS[0], channel="red"),
        "other mask": node("_LoadImageMask", image=MASKS[1], channel="red"),
        "concept": node("Concept", **concept),
        "other concept": node("Concept", **{**concept, "placeholder": "<my-cat>", "class_words": "cat"}),
        "subject": subject("concept"),
        "other subject": subject("other concept"),
        "prior": node("PriorPictures", subject=["subject", 0], images=["picture", 0], captions="a photo of a {}",
                      per_step=1, weight=1.0),
        "prompt set": node("PromptSet", **prompt_set),
        "other prompt set": node("PromptSet", **{**prompt_set, "kind": "none"}),
        "rich prompts": node("PromptSet", **{**prompt_set, **rich, "kind": "rich animate", "count": 300}),
        "other contextualizer": node("TrainContextualizer", **learning, seed=0),
        "other contextualizer's draw": node("TrainContextualizer", **learning, seed=1),
        "diffusion": node("DiffusionLoss", weight=1.0, background_weight=0.5, first_step=1, last_step=0,
                          noise_levels="constant"),
        "other loss": node("DiffusionLoss", weight=3.0, background_weight=1.0, first_step=1, last_step=0),
        "core": node("CoReLoss", prompt_set=["prompt set", 0], formulas="as released", embedding_weight=1.0,
                     attention_weight=1.0, attention="exact", first_step=1, last_step=0, previous=["diffusion", 0]),
        "masked words": node("MaskedWordsLoss", contextualizer=["other contextualizer", 0],
                             prompt_set=["rich prompts", 0], weight=1e-4, share=0.15, first_step=1, last_step=0,
                             previous=["core", 0]),
        "attribute attention": node("AttributeAttentionLoss", weight=0.01, map_values="largest value 1", squared=False,
                                    first_step=1, last_step=0, previous=["masked words", 0]),
        "regularisation": node("EndOfTextRegularisation", weight=1.0, target="end of text", placement="decoder",
                               first_step=1, last_step=0, previous=["attribute attention", 0]),
        "prompts": node("TrainingPrompts", prompts="a photo of a {}", use_captions=True, prompt_set=["prompt set", 0]),
        "references": node("TrainingReferences", recipe=["prompts", 0]),
        "adapter": node("TrainAdapter", algorithm="LoRA", rank=4, alpha=4.0, learning_rate=1e-4, attention_only=True),
        "u-net": node("TrainUNet", learning_rate=1e-5, previous=["adapter", 0]),
        "key and value": node("TrainKeyValue", learning_rate=1e-5, previous=["u-net", 0]),
        "per layer": node("TrainPerLayer", learning_rate=1e-3, previous=["key and value", 0]),
        "other part": node("TrainUNet", learning_rate=1.0),
        "text encoder": node("TrainTextEncoder", form="LoRA", rank=4, learning_rate=1e-5,
                             previous=["per layer", 0]),
        "vico": node("TrainViCo", learning_rate=1e-5, embedding_learning_rate=1e-3, placement="decoder",
                     object_mask="Eq. 5", previous=["text encoder", 0]),
        "detex": node("TrainDetex", clip_vision=["vision", 0], subject_is="animate", learning_rate=1e-5, filtered=0.5,
                      attribute_word="", blank="grey", mapper=True, subject_only=False, previous=["adapter", 0]),
        "embedding": node("TrainEmbedding", learning_rate=1e-3, rescale_first_step=2, rescale_last_step=3,
                          previous=["vico", 0]),
        "other validation": node("Validation", prompts="{} asleep", noises=1, share_of_time=1.0, seed=0, size=0,
                                 sampler="as suits the model", scheduler="as suits the model", sampling_steps=0,
                                 cfg=0.0),
        "train": node("Train", model=["checkpoint", 0], clip=["checkpoint", 1], vae=["checkpoint", 2],
                      subject=["prior", 0], trainable=["embedding", 0], loss=["regularisation", 0],
                      recipe=["references", 0], name="keys", preset="custom", steps=4, batch_size=2, micro_batch=0,
                      optimizer="AdamW", weight_decay=0.01, schedule="constant", warmup_steps=0, clip_gradients=0.0,
                      seed=0, precision="auto", gradient_checkpointing=False, save_every=0, preview_every=0,
                      preview_prompt="a photo of {}", resume="continue", use_step=0)}


def with_detex(prompt: dict[str, dict]) -> dict[str, dict]:
    """The graph where Train DETEX takes the place of what it does itself: parts and prompts."""
    prompt["train"]["inputs"].update(trainable=["detex", 0], recipe=["detex", 1])
    return prompt


def whole_graph(changed: str = "") -> dict[str, dict]:
    """The graph with a second subject, whose class the model draws, so that the node `changed` has a say in it."""
    found = {**graph(),
        "other model": node("_ModelSamplingDiscrete", model=["checkpoint", 0], sampling="v_prediction", zsnr=False),
        "other clip": node("_CLIPSetLastLayer", clip=["checkpoint", 1], stop_at_clip_layer=-2),
        "other subject of a drawn class": subject("other concept", OTHER_FOLDER, previous=["prior", 0]),
        "drawn prior": node("PriorPictures", subject=["other subject of a drawn class", 0], captions="a photo of a {}",
                            per_step=1, weight=1.0, model=["checkpoint", 0], clip=["checkpoint", 1],
                            vae=["checkpoint", 2], picture_count=1, seed=0, sampling_steps=1, cfg=1.0)}
    found["train"]["inputs"]["subject"] = ["drawn prior", 0]
    return with_detex(found) if changed == "detex" else found


SHOWN = "what is shown and saved on the way changes nothing that is learned"
DRAWN = "pictures that are connected are not drawn"
COMPUTED = "equal to rounding, and a run that did not fit goes on with another value"
OF_RICH = "the bundled prompts have no such kind and are never counted"
WINDOW = {"first_step": 2, "last_step": 3}

# node → input → another value. Every input of every node that leads to Train has one: a new input fails the test.
CHANGES: dict[str, dict[str, object]] = {
    "concept": {"placeholder": "<rex>", "class_words": "cat", "initial_words": "kitten", "vector_count": 2,
                "embedding": "key-embedding.safetensors"},
    "subject": {"concept": ["other concept", 0], "folder": OTHER_FOLDER, "size": 72, "fit": "pad",
                "augmentation": "flip",
                "variants": 3, "seed": 1, "images": ["other picture", 0], "masks": ["other mask", 0],
                "picture_files": "2.png\n1.png",
                "captions": "{} one\n{} two\n{} four", "previous": ["other subject", 0]},
    "prior": {"subject": ["other subject", 0], "images": ["other picture", 0], "captions": "two {}s", "per_step": 2,
              "weight": 2.0, "model": Same(["checkpoint", 0], DRAWN), "clip": Same(["checkpoint", 1], DRAWN),
              "vae": Same(["checkpoint", 2], DRAWN), "picture_count": Same(2, DRAWN), "seed": Same(1, DRAWN),
              "sampling_steps": Same(2, DRAWN), "cfg": Same(2.0, DRAWN)},
    "drawn prior": {"subject": ["other subject", 0], "images": ["picture", 0], "captions": "two {}", "per_step": 2,
                    "weight": 2.0, "model": ["other model", 0], "clip": ["other clip", 0],
                    "vae": ["other checkpoint", 2], "picture_count": 2, "seed": 1, "sampling_steps": 2, "cfg": 2.0},
    "prompt set": {"kind": "inanimate", "background": False, "action": False, "outfit": False, "style": False,
                   "colour": False, "file": PROMPTS, "own_prompts": "a {} in snow",
                   **dict.fromkeys(("accessory", "viewpoint", "relation", "companions"), Same(False, OF_RICH)),
                   "count": Same(50, OF_RICH), "previous": ["other prompt set", 0]},
    "rich prompts": {"kind": "rich inanimate", "background": False, "action": False, "outfit": False, "style": False,
                     "colour": False, "accessory": False, "viewpoint": False, "relation": False, "companions": False,
                     "count": 200, "file": PROMPTS, "own_prompts": "a {} in snow", "previous": ["other prompt set", 0]},
    "diffusion": {"weight": 2.0, "background_weight": 1.0, **WINDOW, "noise_levels": "min-SNR",
                  "previous": ["other loss", 0]},
    "core": {"prompt_set": ["other prompt set", 0], "formulas": "Eqs. 3–4", "embedding_weight": 2.0,
             "attention_weight": 2.0, "attention": "estimate", **WINDOW, "previous": ["other loss", 0]},
    "masked words": {"contextualizer": ["other contextualizer's draw", 0], "prompt_set": ["prompt set", 0],
                     "weight": 1e-3, "share": 0.5, **WINDOW, "previous": ["other loss", 0]},
    "attribute attention": {"weight": 2.0, "map_values": "raw", "squared": True, **WINDOW,
                            "previous": ["other loss", 0]},
    "regularisation": {"weight": 2.0, "target": "object mask", "placement": "encoder", **WINDOW,
                       "previous": ["other loss", 0]},
    "prompts": {"prompts": "a picture of a {}", "use_captions": False, "prompt_set": ["other prompt set", 0]},
    "references": {"recipe": None},
    "detex": {"clip_vision": ["other vision", 0], "subject_is": "inanimate", "learning_rate": 1e-4, "filtered": 0.3,
              "attribute_word": "expression", "blank": "black", "mapper": False, "subject_only": True,
              "previous": ["other part", 0]},
    "adapter": {"algorithm": "LoKr", "rank": 2, "alpha": 2.0, "learning_rate": 1e-3, "attention_only": False,
                "previous": ["other part", 0]},
    "u-net": {"learning_rate": 1e-4, "previous": ["other part", 0]},
    "key and value": {"learning_rate": 1e-4, "previous": ["other part", 0]},
    "text encoder": {"form": "all weights", "rank": 2, "learning_rate": 1e-4, "previous": ["other part", 0]},
    "per layer": {"learning_rate": 1e-2, "previous": ["other part", 0]},
    "vico": {"learning_rate": 1e-4, "embedding_learning_rate": 1e-2, "placement": "both", "object_mask": "none",
             "previous": ["other part", 0]},
    "embedding": {"learning_rate": 1e-2, "rescale_first_step": 1, "rescale_last_step": 4,
                  "previous": ["other part", 0]},
    "train": {"model": ["other checkpoint", 0], "clip": ["other checkpoint", 1], "vae": ["other checkpoint", 2],
              "subject": ["other subject", 0], "trainable": ["other part", 0], "loss": ["other loss", 0],
              "recipe": None,
              "name": Same("dogs", "the run's folder begins with it, beside the key"), "preset": "Textual Inversion",
              "steps": Same(8, "a run goes on from where a shorter one ended; with a falling rate it is another run"),
              "batch_size": 3, "micro_batch": Same(1, COMPUTED), "optimizer": "SGD", "weight_decay": 0.1,
              "schedule": "cosine", "warmup_steps": 2, "clip_gradients": 1.0, "seed": 1, "precision": "bf16",
              "gradient_checkpointing": Same(True, COMPUTED), "save_every": Same(2, SHOWN),
              "preview_every": Same(2, SHOWN), "preview_prompt": Same("{} asleep", SHOWN),
              "resume": Same("start over", "the same run is made again"),
              "use_step": Same(2, "another state of the same run is returned"),
              "use_step_of": Same("keys-12345678", "which run use_step is of"),
              "validation": Same(["other validation", 0], SHOWN)},
}
