"""The bundled workflows that draw from one reference picture: each encoder's baseline beside its harmonized version."""
from __future__ import annotations

from support.encoder_files import BLIP_DIFFUSION, IP_ADAPTER, VIT_H, VIT_L

from .graph import Graph, Group, Node, Note
from .graphs import CONCEPT, GREEN, LATENT, LOADER, PICTURES, RED, SAMPLER

ORTHOGONAL = {"strength": 1.0, "basis": "words", "last_tokens": 0, "prompt": ""}
SWAP = {"start_percent": 0.2, "end_percent": 1.0, "strength": 1.0, "swap_layers": "all", "where": "subject",
        "mask_method": "Otsu", "threshold": 0.3, "mask_layers": "coarse layers", "mask_steps": "all steps so far",
        "halves": "both", "noise": "shared", "guidance": "guided", "prompt": ""}
WHOLE_RUN = {"start_percent": 0.0, "end_percent": 1.0}
SHOWN = (460, 350)
ONE_PICTURE = {**PICTURES, "picture_files": "toy-1.jpg", "augmentation": "none", "variants": 1}

HARMONIZED = """\
**Two pictures of one seed.** With the encoder alone the reference's pose argues with the prompt. Harmonized, \
*Orthogonalize Visual Embedding* takes out of the picture what the prompt says itself, and *Self-Attention Swap* \
brings the subject's looks back from *Visual only*, a picture that knows no prompt. *Show Masks* shows where it acts.
"""
WORDS = """
**For your subject**: drop a picture on *Reference picture*, and say at *Concept* what it shows: the other nodes take \
it from there. Write the same into the prompt.
"""


def reference(first: int, fit: str) -> tuple[Node, ...]:
    """Concept and Subject with ids from `first` on: the toy's first picture."""
    concept, subject = str(first), str(first + 1)
    return (Node(concept, "PersonalizeConcept", CONCEPT, size=(400, 180)),
            Node(subject, "PersonalizeSubject", {"concept": (concept, 0), **ONE_PICTURE, "fit": fit},
                 "Reference picture", (400, 640)))


def drawing(first: int, name: str, wires: dict[str, tuple[str, int]], sampler: dict) -> tuple[Node, ...]:
    """Sampler, VAE Decode and Save Image with ids from `first` on. wires: model, positive, negative, latent, vae."""
    run, decode, save = (str(first + number) for number in range(3))
    return (
        Node(run, "KSampler", {
            "model": wires["model"], "positive": wires["positive"], "negative": wires["negative"],
            "latent_image": wires["latent"], **sampler}, size=(400, 290)),
        Node(decode, "VAEDecode", {"samples": (run, 0), "vae": wires["vae"]}, size=(400, 70)),
        Node(save, "SaveImage", {"images": (decode, 0), "filename_prefix": f"personalize/{name}"},
             title=name, size=SHOWN))


def what_the_swap_saw(first: int, swap: str, sampler: str, vae: tuple[str, int]) -> tuple[Node, ...]:
    """The branch's picture and the masks, with ids from `first` on, beside `drawing`."""
    branch, decode, show, masks = (str(first + number) for number in range(4))
    image = (str(int(sampler) + 1), 0)
    return (Node(branch, "PersonalizeBranchLatent", {"record": (swap, 1), "latent": (sampler, 0)},
                 size=(400, 80)),
            Node(decode, "VAEDecode", {"samples": (branch, 0), "vae": vae}, size=(400, 70)),
            Node(show, "PreviewImage", {"images": (decode, 0)}, title="Visual only", size=SHOWN),
            Node(masks, "PersonalizeShowMasks", {
                "record": (swap, 1), "image": image, "latent": (sampler, 0), "show": "last step", "opacity": 0.6},
                 size=SHOWN))


IP_ADAPTER_NOTE = HARMONIZED + WORDS + """
**Files**: `ip-adapter-plus_sd15` in models/ipadapter, its CLIP Vision (ViT-H) in models/clip_vision. For SDXL choose \
an SDXL checkpoint and file, and 1024 × 1024.
"""

HARMONIZE_IP_ADAPTER = Graph("harmonize_ip_adapter", "Draw a subject from one picture, IP-Adapter", nodes=(
    Node("1", "CheckpointLoaderSimple", LOADER, size=(400, 120)),
    Node("2", "PersonalizeLoadIPAdapter", {"file": IP_ADAPTER}, size=(400, 80)),
    Node("3", "CLIPVisionLoader", {"clip_name": VIT_H}, size=(400, 80)),
    *reference(24, fit="crop"),
    Node("5", "PersonalizeEncodePictureIPAdapter", {
        "ip_adapter": ("2", 0), "clip_vision": ("3", 0), "image": ("25", 1), "fit": "crop", "combine": "average"},
         size=(400, 170)),
    Node("6", "PersonalizeEncodeWithSpans", {
        "clip": ("1", 1), "prompt": "a photo of a toy swimming in a river", "words": ""}, "Prompt", (400, 260),
         GREEN),
    Node("7", "CLIPTextEncode", {"clip": ("1", 1), "text": ""}, title="Negative prompt", size=(400, 110),
         color=RED),
    Node("8", "EmptyLatentImage", LATENT, size=(400, 130)),
    Node("9", "PersonalizeApplyIPAdapter", {
        "model": ("1", 0), "ip_adapter": ("2", 0), "visual_tokens": ("5", 0), "strength": 1.0, **WHOLE_RUN},
         size=(400, 220)),
    *drawing(10, "IP-Adapter", {
        "model": ("9", 0), "positive": ("6", 0), "negative": ("7", 0), "latent": ("8", 0), "vae": ("1", 2)}, SAMPLER),
    Node("13", "PersonalizeOrthogonalize", {
        "conditioning": ("6", 0), "visual_tokens": ("5", 0), "words": ("24", 2), **ORTHOGONAL}, size=(400, 420)),
    Node("14", "PersonalizeApplyIPAdapter", {
        "model": ("1", 0), "ip_adapter": ("2", 0), "visual_tokens": ("13", 1), "branch_tokens": ("5", 0),
        "strength": 1.0, **WHOLE_RUN}, size=(400, 220)),
    Node("15", "PersonalizeSelfAttentionSwap", {
        "model": ("14", 0), "positive": ("23", 0), "negative": ("7", 0), "words": ("24", 2), **SWAP}, size=(400, 480)),
    *drawing(16, "IP-Adapter harmonized", {
        "model": ("15", 0), "positive": ("6", 0), "negative": ("7", 0), "latent": ("8", 0), "vae": ("1", 2)}, SAMPLER),
    *what_the_swap_saw(19, swap="15", sampler="16", vae=("1", 2)),
    Node("23", "CLIPTextEncode", {"clip": ("1", 1), "text": ""}, title="No text, for Visual only",
         size=(400, 110)),
), groups=(
    Group("1 · Model and picture", ("24", "25", "1", "2", "3", "5")),
    Group("2 · Prompt", ("6", "7", "23")),
    Group("3 · Draw, alone and harmonized", ("13", "9", "14", "15", "8", "10", "16")),
    Group("4 · Compare", ("11", "17", "12", "18", "19", "20", "21", "22")),
), note=Note(IP_ADAPTER_NOTE, (400, 500)))

BLIP_DIFFUSION_NOTE = HARMONIZED + WORDS + """
**Files**: all of `Salesforce/blipdiffusion` in models/diffusers/blipdiffusion, and `vocab.txt` of \
`bert-base-uncased` in its folder *qformer*. Its U-Net, text encoder and VAE are its own: *DiffusersLoader* gives them.

**The prompt**: {} stands for the picture and the word after it for what to draw.
"""

HARMONIZE_BLIP_DIFFUSION = Graph("harmonize_blip_diffusion", "Draw a subject from one picture, BLIP-Diffusion", nodes=(
    Node("1", "DiffusersLoader", {"model_path": BLIP_DIFFUSION}, title="BLIP-Diffusion's own model",
         size=(400, 120)),
    Node("2", "PersonalizeLoadBlipDiffusion", {"folder": BLIP_DIFFUSION}, size=(400, 80)),
    *reference(20, fit="crop"),
    Node("4", "PersonalizeEncodePictureBlipDiffusion", {
        "blip_diffusion": ("2", 0), "image": ("21", 1), "class_words": ("20", 2), "fit": "crop", "combine": "average"},
         size=(400, 190)),
    Node("5", "PersonalizeEncodePromptWithPicture", {
        "clip": ("1", 1), "visual_tokens": ("4", 0), "prompt": "a {} toy swimming in a river", "repeats": 0,
        "visual_prompt": "a {}"}, title="Prompt", size=(400, 260), color=GREEN),
    Node("6", "CLIPTextEncode", {"clip": ("1", 1), "text": ""}, title="Negative prompt", size=(400, 110),
         color=RED),
    Node("7", "EmptyLatentImage", LATENT, size=(400, 130)),
    *drawing(8, "BLIP-Diffusion", {
        "model": ("1", 0), "positive": ("5", 0), "negative": ("6", 0), "latent": ("7", 0), "vae": ("1", 2)}, SAMPLER),
    Node("11", "PersonalizeOrthogonalize", {"conditioning": ("5", 0), "words": ("20", 2), **ORTHOGONAL},
         size=(400, 420)),
    Node("12", "PersonalizeSelfAttentionSwap", {
        "model": ("1", 0), "positive": ("5", 1), "negative": ("6", 0), "words": ("20", 2), **SWAP}, size=(400, 480)),
    *drawing(13, "BLIP-Diffusion harmonized", {
        "model": ("12", 0), "positive": ("11", 0), "negative": ("6", 0), "latent": ("7", 0), "vae": ("1", 2)}, SAMPLER),
    *what_the_swap_saw(16, swap="12", sampler="13", vae=("1", 2)),
), groups=(
    Group("1 · Model and picture", ("20", "21", "1", "2", "4")),
    Group("2 · Prompt", ("5", "6")),
    Group("3 · Draw, alone and harmonized", ("11", "12", "7", "8", "13")),
    Group("4 · Compare", ("16", "9", "14", "10", "15", "17", "18", "19")),
), note=Note(BLIP_DIFFUSION_NOTE, (400, 560)))

ELITE_NOTE = HARMONIZED + """
**Files**: `global_mapper.pt` and `local_mapper.pt` in models/elite, CLIP Vision ViT-L/14 in models/clip_vision.

**For your subject**: drop a picture on *Reference picture*; *Concept* only names its folder. {} in the prompt is the \
picture's word: leave it there, and *words* of both nodes as it is.

**The subject alone**: connect *masks* of *Reference picture* to *mask* of *Encode Picture (ELITE)* if your picture \
is cut out (transparent around it). Else take *Load Image* in its place, paint the subject in its *MaskEditor*, and \
connect picture and mask. Without a mask the background's details come along.

As released: 100 steps.
"""
ELITE_SAMPLER = {**SAMPLER, "steps": 50, "cfg": 5.0, "sampler_name": "lms", "scheduler": "normal"}

HARMONIZE_ELITE = Graph("harmonize_elite", "Draw a subject from one picture, ELITE", nodes=(
    Node("1", "CheckpointLoaderSimple", LOADER, size=(400, 120)),
    Node("2", "PersonalizeLoadElite", {
        "global_mapper": "global_mapper.pt", "local_mapper": "local_mapper.pt"}, size=(400, 110)),
    Node("3", "CLIPVisionLoader", {"clip_name": VIT_L}, size=(400, 80)),
    *reference(22, fit="squash"),
    Node("5", "PersonalizeEncodePictureElite", {
        "elite": ("2", 0), "clip_vision": ("3", 0), "image": ("23", 1), "combine": "average"}, size=(400, 150)),
    Node("6", "PersonalizeEncodePromptWithPicture", {
        "clip": ("1", 1), "visual_tokens": ("5", 0), "prompt": "a photo of a {} swimming in a river", "repeats": 0,
        "visual_prompt": "a photo of a {}"}, title="Prompt", size=(400, 260), color=GREEN),
    Node("7", "CLIPTextEncode", {"clip": ("1", 1), "text": ""}, title="Negative prompt", size=(400, 110),
         color=RED),
    Node("8", "EmptyLatentImage", LATENT, size=(400, 130)),
    Node("9", "PersonalizeApplyElite", {
        "model": ("1", 0), "elite": ("2", 0), "visual_tokens": ("5", 0), "local_strength": 0.8, "text_strength": 1.0,
        **WHOLE_RUN}, size=(400, 220)),
    *drawing(10, "ELITE", {
        "model": ("9", 0), "positive": ("6", 0), "negative": ("7", 0), "latent": ("8", 0), "vae": ("1", 2)},
             ELITE_SAMPLER),
    Node("13", "PersonalizeOrthogonalize", {"conditioning": ("6", 0), "words": "", **ORTHOGONAL},
         size=(400, 420)),
    Node("14", "PersonalizeSelfAttentionSwap", {
        "model": ("9", 0), "positive": ("6", 1), "negative": ("7", 0), "words": "visual tokens", **SWAP},
         size=(400, 480)),
    *drawing(15, "ELITE harmonized", {
        "model": ("14", 0), "positive": ("13", 0), "negative": ("7", 0), "latent": ("8", 0), "vae": ("1", 2)},
             ELITE_SAMPLER),
    *what_the_swap_saw(18, swap="14", sampler="15", vae=("1", 2)),
), groups=(
    Group("1 · Model and picture", ("22", "23", "1", "2", "3", "5")),
    Group("2 · Prompt", ("6", "7")),
    Group("3 · Draw, alone and harmonized", ("9", "13", "14", "8", "10", "15")),
    Group("4 · Compare", ("18", "11", "16", "12", "17", "19", "20", "21")),
), note=Note(ELITE_NOTE, (400, 680)))

VISUAL_GRAPHS = (HARMONIZE_IP_ADAPTER, HARMONIZE_BLIP_DIFFUSION, HARMONIZE_ELITE)
