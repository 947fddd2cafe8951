"""The bundled workflows of Diverse context and of the methods that it stands on: XTI, Custom Diffusion, DreamBooth."""
from __future__ import annotations

from support.encoder_files import PICTURE

from .graph import Graph, Group, Node, Note
from .graphs import (
    CHECKPOINT_WIRES,
    CONCEPT,
    DIFFUSION,
    EMBEDDING_PART,
    LOADER,
    PICTURES,
    PROMPTS,
    SUBJECT,
    TRAIN,
    draw_and_keep,
)

GIRL = "<example-girl>"
CLASSED = f"a photo of a {SUBJECT} toy on a pebble beach at sunset"
RICH = {**PROMPTS, "kind": "rich inanimate"}
CONTEXTUALIZER = {"name": "contextualizer", "nouns": "toy, doll, ball, cup, vase, bag, shoe, chair, teapot, clock",
                  "steps": 2000, "batch_size": 32, "learning_rate": 0.001, "share": 0.15, "width": 256, "depth": 2,
                  "heads": 4, "seed": 0}
MASKED_WORDS = {"weight": 0.0001, "share": 0.15, "first_step": 1, "last_step": 0}
CLASS_AFTER = {"prompts": "a photo of a {} toy", "use_captions": False}
WORD = {**EMBEDDING_PART, "rescale_first_step": 0, "rescale_last_step": 0}
SHOWN = {**TRAIN, "preview_prompt": "a photo of a {} toy"}
PRIOR = {"captions": "a photo of a {}", "per_step": 1, "weight": 1.0, "picture_count": 200, "seed": 0,
         "sampling_steps": 0, "cfg": 0.0}
AS_TAKEN = {**PICTURES, "augmentation": "none", "variants": 1}

DIVERSE_NOTE = """\
**Press Run.** First *Train Contextualizer* learns, once for this checkpoint, to tell hidden words of a prompt from \
the others. Then *Train* learns the toy's word, and *Masked Words Loss* keeps it from disturbing the words beside it.

**Use it** when your word draws the subject well but places, clothes and other things of the prompt get lost.

**Your own subject**: name it in *Concept*, drop 4 or 5 pictures on *Subject*. Write what it is after the word, here \
toy, into *Training Prompts* and *Prompt*, as the paper does. *Prompt Set*: rich animate for people and animals, and \
*nouns* of that kind.

**The next subject**: take *Load Contextualizer* in the place of *Train Contextualizer*, or leave it: with the same \
inputs it learns nothing anew.

**More or less of it**: *weight*, from 0.00001 to 0.0005 in the paper.
"""

DIVERSE = Graph("diverse_context", "Learn your subject as a word, Diverse Context", nodes=(
    Node("2", "PersonalizeConcept", CONCEPT, size=(400, 180)),
    Node("3", "PersonalizeSubject", {"concept": ("2", 0), **PICTURES}, size=(400, 460)),
    Node("6", "PersonalizePromptSet", RICH, "Rich prompts", (400, 220)),
    Node("18", "PersonalizeTrainContextualizer", {"clip": ("1", 1), "prompt_set": ("6", 0), **CONTEXTUALIZER},
         size=(400, 300)),
    Node("1", "CheckpointLoaderSimple", LOADER, size=(400, 120)),
    Node("4", "PersonalizeTrainEmbedding", WORD, size=(400, 130)),
    Node("5", "PersonalizeDiffusionLoss", DIFFUSION, size=(400, 150)),
    Node("7", "PersonalizeMaskedWordsLoss", {
        "contextualizer": ("18", 0), "prompt_set": ("6", 0), "previous": ("5", 0), **MASKED_WORDS}, size=(400, 190)),
    Node("17", "PersonalizeTrainingPrompts", CLASS_AFTER, size=(400, 170)),
    Node("8", "PersonalizeTrain", {
        **CHECKPOINT_WIRES, "subject": ("3", 0), "trainable": ("4", 0), "loss": ("7", 0), "recipe": ("17", 0), **SHOWN,
        "preset": "custom", "steps": 600, "batch_size": 4, "save_every": 100, "preview_every": 100}, size=(580, 740)),
    *draw_and_keep(9, train="8", graph="diverse_context", scene=CLASSED),
), groups=(
    Group("1 · Your subject", ("2", "3")),
    Group("2 · Once for each checkpoint", ("1", "6", "18")),
    Group("3 · What to learn", ("4", "5", "7", "17")),
    Group("4 · Train", ("8",)),
    Group("5 · Keep it, draw it", ("9", "10", "11", "12", "13", "14", "15", "16")),
), note=Note(DIVERSE_NOTE, (400, 560)))

XTI_NOTE = """\
**Press Run**: *Train* learns for the toy's word vectors of each of the U-Net's 16 cross-attention layers: more \
likeness than one for all, and as few files.

**Drawing needs *Apply Per-Layer Concept***, which stands here where *Apply Concept* would: connect both its outputs. \
Where another node reads the saved file, all layers get the mean of theirs.

**Your own subject**: name it in *Concept*, drop 4 or 5 pictures on *Subject*, write its word into the prompt.

SD1.x, SD2.x and SDXL only: other models have no such layers.
"""

LAYERED = tuple(
    Node("9", "PersonalizeApplyPerLayerConcept", {"model": ("8", 1), "clip": ("1", 1), "concept": ("8", 0)},
         size=(400, 100)) if node.id == "9" else
    Node(node.id, node.type, {name: ("9", 1) if value == ("9", 0) else ("9", 0) if value == ("8", 1) else value
                              for name, value in node.inputs.items()}, node.title, node.size, node.color)
    for node in draw_and_keep(9, train="8", graph="xti"))

XTI = Graph("xti", "Learn your subject as a word for each layer, XTI", nodes=(
    Node("2", "PersonalizeConcept", CONCEPT, size=(400, 180)),
    Node("3", "PersonalizeSubject", {"concept": ("2", 0), **PICTURES}, size=(400, 460)),
    Node("4", "PersonalizeTrainPerLayer", {"learning_rate": 0.005}, size=(400, 80)),
    Node("5", "PersonalizeDiffusionLoss", DIFFUSION, size=(400, 150)),
    Node("1", "CheckpointLoaderSimple", LOADER, size=(400, 120)),
    Node("8", "PersonalizeTrain", {
        **CHECKPOINT_WIRES, "subject": ("3", 0), "trainable": ("4", 0), "loss": ("5", 0), **TRAIN, "preset": "XTI",
        "steps": 500, "batch_size": 8, "micro_batch": 2, "save_every": 100, "preview_every": 100}, size=(580, 740)),
    *LAYERED,
), groups=(
    Group("1 · Your subject", ("2", "3")),
    Group("2 · What to learn, and from which model", ("4", "5", "1")),
    Group("3 · Train", ("8",)),
    Group("4 · Keep it, draw it", ("9", "10", "11", "12", "13", "14", "15", "16")),
), note=Note(XTI_NOTE, (400, 400)))

CUSTOM_NOTE = """\
**Custom Diffusion, two subjects at once.** Both words and what makes keys and values of the text are trained \
together, 19 of the U-Net's 860 million weights. The two *Subject* nodes take turns.

*Prior Pictures* keep what a toy is: where no pictures are connected the model draws 200 itself, once. \
*augmentation* zoom is the authors': the prompt says where the subject is far away or close up.

The result is two embeddings and one file of 77 MB in models/loras, for *Load LoRA* at strength 1. *Reduce to LoRA* \
makes it smaller.

**Your own**: name both in *Concept*, and drop pictures on both *Subject* nodes. The second has one picture here, the \
drawn girl of ComfyUI. Say what each is after its word, in *Training Prompts* by their captions and in *Prompt*.
"""

CUSTOM = Graph("custom_diffusion", "Learn two subjects together, Custom Diffusion", nodes=(
    Node("1", "CheckpointLoaderSimple", LOADER, size=(400, 120)),
    Node("2", "PersonalizeConcept", CONCEPT, size=(400, 250)),
    Node("3", "PersonalizeSubject", {"concept": ("2", 0), **PICTURES, "augmentation": "zoom", "captions": "\n".join(
        ["a photo of a {} toy"] * 5)}, "First subject", (400, 460)),
    Node("18", "PersonalizePriorPictures", {
        "subject": ("3", 0), **CHECKPOINT_WIRES, **PRIOR}, size=(400, 330)),
    Node("20", "PersonalizeConcept", {**CONCEPT, "placeholder": GIRL, "class_words": "girl"}, size=(400, 250)),
    Node("21", "LoadImage", {"image": PICTURE}, size=(400, 320)),
    Node("22", "PersonalizeSubject", {
        "concept": ("20", 0), "images": ("21", 0), "previous": ("18", 0), **PICTURES, "augmentation": "zoom",
        "folder": "", "captions": "a drawing of a {} girl"}, "Second subject", (400, 460)),
    Node("4", "PersonalizeTrainEmbedding", {**WORD, "learning_rate": 1e-5}, size=(400, 130)),
    Node("5", "PersonalizeTrainKeyValue", {"previous": ("4", 0), "learning_rate": 1e-5}, size=(400, 90)),
    Node("6", "PersonalizeDiffusionLoss", DIFFUSION, size=(400, 150)),
    Node("8", "PersonalizeTrain", {
        **CHECKPOINT_WIRES, "subject": ("22", 0), "trainable": ("5", 0), "loss": ("6", 0), **SHOWN,
        "preset": "Custom Diffusion", "steps": 300, "batch_size": 8, "micro_batch": 1, "save_every": 100,
        "preview_every": 100}, size=(580, 740)),
    *draw_and_keep(9, train="8", graph="custom_diffusion",
                   scene=f"a photo of a {SUBJECT} toy beside a {GIRL} girl on a pebble beach"),
), groups=(
    Group("1 · Two subjects, and from which model", ("2", "20", "21", "3", "1", "18", "22")),
    Group("2 · What to learn", ("4", "5", "6")),
    Group("3 · Train", ("8",)),
    Group("4 · Keep them, draw both", ("9", "10", "11", "12", "13", "14", "15", "16")),
), note=Note(CUSTOM_NOTE, (400, 520)))

DREAMBOOTH_NOTE = """\
**DreamBooth**: the whole U-Net and the text encoder are trained on your pictures, and beside them on pictures of the \
class, which the untrained model draws once (*Prior Pictures*, 200): so it does not forget what a toy is.

**Likeness before all else.** It takes 20 GB of memory and writes a file of 2 GB into models/loras, for *Load LoRA* \
with MODEL and CLIP at strength 1. *Reduce to LoRA* makes it small, and says what is lost.

**With less memory** put *Train Adapter* in the place of *Train U-Net*, and LoRA at *form* of *Train Text Encoder*.

**Your own subject**: name it in *Concept*, drop 4 or 5 pictures on *Subject*. The word itself is not trained: it \
begins, and stays, at what *initial_words* say; choose something rare. Write what the subject is after it.
"""

KEPT_APART = {**CONCEPT, "initial_words": "sks"}

DREAMBOOTH = Graph("dreambooth", "Learn your subject in the whole model, DreamBooth", nodes=(
    Node("2", "PersonalizeConcept", KEPT_APART, size=(400, 180)),
    Node("3", "PersonalizeSubject", {"concept": ("2", 0), **AS_TAKEN}, size=(400, 460)),
    Node("18", "PersonalizePriorPictures", {
        "subject": ("3", 0), **CHECKPOINT_WIRES, **PRIOR}, size=(400, 330)),
    Node("4", "PersonalizeTrainUNet", {"learning_rate": 2e-6}, size=(400, 80)),
    Node("5", "PersonalizeTrainTextEncoder", {
        "previous": ("4", 0), "form": "all weights", "rank": 8, "learning_rate": 2e-6}, size=(400, 140)),
    Node("6", "PersonalizeDiffusionLoss", DIFFUSION, size=(400, 150)),
    Node("17", "PersonalizeTrainingPrompts", CLASS_AFTER, size=(400, 170)),
    Node("1", "CheckpointLoaderSimple", LOADER, size=(400, 120)),
    Node("8", "PersonalizeTrain", {
        **CHECKPOINT_WIRES, "subject": ("18", 0), "trainable": ("5", 0), "loss": ("6", 0), "recipe": ("17", 0), **SHOWN,
        "preset": "DreamBooth: U-Net and text encoder", "steps": 800, "batch_size": 1, "save_every": 200,
        "preview_every": 100}, size=(580, 740)),
    *(Node(node.id, node.type, {**node.inputs, "clip": ("8", 5)}, node.title, node.size, node.color)
      if node.id == "9" else node for node in draw_and_keep(9, train="8", graph="dreambooth", scene=CLASSED)),
), groups=(
    Group("1 · Your subject, and its class", ("2", "3", "1", "18")),
    Group("2 · What to learn", ("4", "5", "6", "17")),
    Group("3 · Train", ("8",)),
    Group("4 · Keep it, draw it", ("9", "10", "11", "12", "13", "14", "15", "16")),
), note=Note(DREAMBOOTH_NOTE, (400, 520)))

CONTEXT_GRAPHS = (DIVERSE, XTI, CUSTOM, DREAMBOOTH)
