"""Each patch of the pack on a tiny SD1.5, with conditionings that it acts on, for tests over all of them."""
from __future__ import annotations

from typing import NamedTuple

import torch

from personalize.nodes.attention.words import Words
from personalize.nodes.families.find import unet_of
from personalize.nodes.papers.vico.references import Use
from personalize.nodes.recording.record import Record
from personalize.nodes.recording.sampling_recorder import recording_model
from personalize.nodes.visual_prompts.elite_attention import EliteTokens, with_elite
from personalize.nodes.visual_prompts.elite_files import read_elite
from personalize.nodes.visual_prompts.ip_adapter_files import read_ip_adapter
from personalize.nodes.visual_prompts.nodes_ip_adapter import PersonalizeApplyIPAdapter
from personalize.nodes.visual_prompts.prompts import encode_with_picture
from personalize.nodes.visual_prompts.tokens import VisualTokens
from tiny import elite as tiny_elite
from tiny import vision
from tiny.models import WIDTH_L

from .ip_adapter_files import TABLES, official, saved
from .sampling import encoded
from .swap_world import World
from .vico_scene import Scene, dog

PATCHES = ("Apply IP-Adapter", "Apply ELITE", "Apply ViCo", "Self-Attention Swap", "Record Attention")


class Patched(NamedTuple):
    """A patch, and what is sampled with it.

    apply: MODEL → MODEL. calls: attentions that it adds to a step with both sides of guidance, at least. record: what
    it fills, or None.
    """

    apply: object
    positive: object
    negative: object
    calls: int
    record: Record | None = None


@torch.inference_mode()
def patch_on(name: str, checkpoint, folder) -> Patched:
    """The patch of this name. folder: for its files."""
    model, clip, _ = checkpoint
    layers = unet_of(model).layers
    positive, negative = encoded(clip, "a photo of a dog"), encoded(clip, "")
    if name == "Apply IP-Adapter":
        adapter = read_ip_adapter(saved(official(model, TABLES["sd15"], "plus"), folder / "plus.safetensors"))
        width = adapter.token_width
        tokens = VisualTokens(torch.randn(1, 5, width), "IP-Adapter", torch.zeros(1, 5, width))
        return Patched(lambda given: PersonalizeApplyIPAdapter.execute(given, adapter, tokens, 1.0, 0.0, 1.0).args[0],
                       positive, negative, 2 * len(layers))
    if name == "Apply ELITE":
        channels = {layer.block: layer.channels for layer in layers}
        files = [folder / f"{part}_mapper.pt" for part in ("global", "local")]
        for seed, file in enumerate(files):
            torch.save(tiny_elite.state_dict(channels, vision.WIDTH, WIDTH_L, seed), file)
        elite = read_elite(*files)
        tokens = EliteTokens(torch.randn(1, 1, WIDTH_L), "ELITE", local=torch.randn(1, 4, WIDTH_L))
        return Patched(lambda given: with_elite(given, elite, tokens, 0.5, 1.0),
                       encode_with_picture(clip, tokens, "a photo of a {}"), negative, len(layers))
    if name == "Apply ViCo":
        scene, record = Scene(checkpoint), Record("Apply ViCo")
        return Patched(lambda given: scene.patched((dog(),), Use("released"), given, record),
                       scene.positive, scene.negative, 2 * len(scene.blocks.layers), record)
    if name == "Self-Attention Swap":
        world = World(checkpoint)
        return Patched(lambda given: world.swap(given, where="everywhere", start_percent=0.0)[0],
                       world.positive, world.negative, len(layers))
    words = World(checkpoint)
    record = Record("Record Attention")
    return Patched(lambda given: recording_model(given, record, layers, Words(("dog",))),
                   words.positive, words.negative, 0, record)
