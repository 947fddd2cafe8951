"""Presets and defaults are one source's numbers, and where paper and released code differ both are named.

The numbers: CoRe: bash_script/train.sh and test_time_optimization.sh (the paper gives none); ViCo: section 3.4 and
Appendix, its code's main.py and v1-finetune.yaml; Textual Inversion: section 4 and its configs; Harmonizing: section 4;
ELITE: inference_local.sh; DETEX: its section 4.1.
"""
from __future__ import annotations

import pytest

from personalize.nodes import node_classes
from personalize.nodes.training.presets import PRESETS
from support.paths import PACK

COMMON = {"optimizer": "AdamW", "weight_decay": 0.01, "schedule": "constant", "warmup_steps": 0, "clip_gradients": 0.0}
DEFAULTS = {
    "TrainEmbedding": {"learning_rate": 5e-3, "rescale_first_step": 121, "rescale_last_step": 180},
            "TrainUNet": {"learning_rate": 2e-6},
    "CoReTestTime": {"steps": 10, "learning_rate": 5e-4, "batch_size": 6},
    "TrainViCo": {"learning_rate": 1e-5, "embedding_learning_rate": 5e-3},
    "EndOfTextRegularisation": {"weight": 5e-4, "first_step": 1, "last_step": 0},
    "ApplyViCo": {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "reuse_steps": 1},
    "SelfAttentionSwap": {"start_percent": 0.2, "end_percent": 1.0, "strength": 1.0},
            "ApplyElite": {"local_strength": 0.8, "text_strength": 1.0},
    "TrainDetex": {"learning_rate": 1e-5, "filtered": 0.5, "mapper": True, "subject_only": False},
    "AttributeAttentionLoss": {"weight": 0.01, "first_step": 1, "last_step": 0},
    "ApplyIPAdapter": {"strength": 1.0}, "CoReLoss": {"embedding_weight": 1.0, "attention_weight": 1.0}}
FIRST_CHOICES = {
    ("TrainViCo", "placement"): "decoder", ("TrainViCo", "object_mask"): "Eq. 5", ("ApplyViCo", "halves"): "both",
    ("ApplyViCo", "fit"): "squash", ("EndOfTextRegularisation", "target"): "end of text",
                 ("CoReLoss", "formulas"): "as released",
    ("EncodePictureBlipDiffusion", "fit"): "crop", ("EncodePictureIPAdapter", "fit"): "crop",
    ("EncodePictureBlipDiffusion", "combine"): "average"}
DIFFERENCES = {  # node: what its help page and, for the first, its tooltip say of the other source
    ("TrainViCo", "embedding_learning_rate"): ("0.02", "0.02"), ("TrainEmbedding", "learning_rate"): ("0.04", "0.04"),
    ("EncodePictureBlipDiffusion", "fit"): ("diffusers", "diffusers"), ("ApplyElite", "local_strength"): ("0.6", "0.6")}


@pytest.fixture(scope="module")
def schemas(execute):
    found = (cls.GET_SCHEMA() for cls in node_classes())
    return {schema.node_id.removeprefix("Personalize"): schema for schema in found}


def test_presets_are_whole():
    steps = {"CoRe stage 1: embedding": (300, 6), "CoRe stage 2: U-Net": (1000, 4), "Textual Inversion": (5000, 4),
             "ViCo": (400, 4), "XTI": (500, 8), "DreamBooth: U-Net": (800, 1),
             "DreamBooth: U-Net and text encoder": (800, 1), "Custom Diffusion": (300, 8), "DETEX": (600, 4)}
    clipped = {"DreamBooth: U-Net and text encoder": {"clip_gradients": 1.0}}
    assert PRESETS == {name: {"steps": count, "batch_size": batch, **COMMON, **clipped.get(name, {})}
                       for name, (count, batch) in steps.items()}
    page = (PACK / "js" / "docs" / "PersonalizeTrain.md").read_text("utf-8")
    assert all(f"| {name} |" in page and f" | {count}, {batch} |" in page for name, (count, batch) in steps.items())


@pytest.mark.smoke
def test_defaults_are_the_sources_numbers(schemas):
    for node, values in DEFAULTS.items():
        defaults = {each.id: each.default for each in schemas[node].inputs if each.id in values}
        assert defaults == values, node
    for (node, name), first in FIRST_CHOICES.items():
        choice, = (each for each in schemas[node].inputs if each.id == name)
        assert (choice.default or choice.options[0]) == first, (node, name)


@pytest.mark.parametrize("node, name", DIFFERENCES)
def test_what_the_other_source_does_is_named(schemas, node, name):
    on_page, in_tooltip = DIFFERENCES[node, name]
    shown, = (each.tooltip for each in schemas[node].inputs if each.id == name)
    assert in_tooltip in shown and on_page in (PACK / "js" / "docs" / f"Personalize{node}.md").read_text("utf-8")
