"""The bundled workflows of DETEX: training, and drawing with poses and backgrounds of pictures."""
from __future__ import annotations

from support.detex_files import FILE, LORA
from support.encoder_files import PICTURE, VIT_L

from .context_graphs import AS_TAKEN, CLASSED, PRIOR
from .graph import Graph, Group, Node, Note
from .graphs import CHECKPOINT_WIRES, CONCEPT, DIFFUSION, GREEN, LATENT, LOADER, RED, SAMPLER, TRAIN, draw_and_keep
from .visual_graphs import drawing

MASKED = {**AS_TAKEN, "folder": "example-toy-masked"}
TRAIN_DETEX = {"subject_is": "inanimate", "learning_rate": 1e-5, "filtered": 0.5, "attribute_word": "", "blank": "grey",
               "mapper": True, "subject_only": False}
ATTENTION = {"weight": 0.01, "map_values": "largest value 1", "squared": False, "first_step": 1, "last_step": 0}
BEACH = "Photo of a {} on a pebble beach"
GUIDED = {**SAMPLER, "cfg": 6.0}

TRAIN_NOTE = """\
**Press Run**: *Train* learns the toy's word, and beside it words for the view and the background of each picture, so \
that the toy's word need not mean them. *Save Image* shows the toy by its word alone, in a new place.

**Files**: `clip-vit-large-patch14` in models/clip_vision (the README says where it is).

**Your own subject**: name it in *Concept* and say what it is, drop 4 or 5 pictures on *Subject* and press *Make \
masks* there. *Train DETEX*: animate for people and animals. Write word and class into the prompt.

**After that**: the template *Keep the pose or background of a picture, DETEX* draws with what was saved.

**Memory.** 8 GB: set *micro_batch* to 1 and *gradient_checkpointing* on.
"""

TRAIN_GRAPH = Graph("detex_train", "Learn your subject apart from its pictures, DETEX", nodes=(
    Node("2", "PersonalizeConcept", CONCEPT, size=(400, 180)),
    Node("3", "PersonalizeSubject", {"concept": ("2", 0), **MASKED}, size=(400, 640)),
    Node("1", "CheckpointLoaderSimple", LOADER, size=(400, 120)),
    Node("18", "PersonalizePriorPictures", {"subject": ("3", 0), **CHECKPOINT_WIRES, **PRIOR}, size=(400, 330)),
    Node("19", "CLIPVisionLoader", {"clip_name": VIT_L}, size=(400, 80)),
    Node("4", "PersonalizeTrainDetex", {"clip_vision": ("19", 0), **TRAIN_DETEX}, size=(400, 200)),
    Node("5", "PersonalizeDiffusionLoss", DIFFUSION, size=(400, 150)),
    Node("6", "PersonalizeAttributeAttentionLoss", {"previous": ("5", 0), **ATTENTION}, size=(400, 190)),
    Node("8", "PersonalizeTrain", {
        **CHECKPOINT_WIRES, "subject": ("18", 0), "trainable": ("4", 0), "loss": ("6", 0), "recipe": ("4", 1), **TRAIN,
        "preview_prompt": "Photo of a {} toy", "preset": "DETEX", "steps": 600, "batch_size": 4, "save_every": 200,
        "preview_every": 100}, size=(580, 740)),
    *draw_and_keep(9, train="8", graph="detex_train", scene=CLASSED),
), groups=(
    Group("1 · Your subject, and its class", ("2", "3", "1", "18")),
    Group("2 · What to learn", ("19", "4", "5", "6")),
    Group("3 · Train", ("8",)),
    Group("4 · Keep it, draw it", ("9", "10", "11", "12", "13", "14", "15", "16")),
), note=Note(TRAIN_NOTE, (400, 520)))


def prompt(node: str, title: str, text: str = BEACH, pose_of: int = 0, background_of: int = 0, other_subject: str = ""
           ) -> Node:
    """DETEX Prompt with that id."""
    return Node(node, "PersonalizeDetexPrompt", {
        "file": FILE, "prompt": text, "pose_of": pose_of, "background_of": background_of,
        "other_subject": other_subject}, title, (500, 480))


def drawn(first: int, written: str, name: str, clip: tuple[str, int] = ("1", 1)) -> tuple[Node, ...]:
    """Four nodes with ids from `first` on: what the prompt of node `written` draws, beside the nodes of `shared`."""
    encode = str(first)
    return (Node(encode, "CLIPTextEncode", {"clip": clip, "text": (written, 0)}, size=(400, 80), color=GREEN),
            *drawing(first + 1, name, {"model": ("2", 0), "positive": (encode, 0), "negative": ("3", 0),
                                       "latent": ("4", 0), "vae": ("1", 2)}, GUIDED))


def shared() -> tuple[Node, ...]:
    """Nodes 1 to 4: the checkpoint with the LoRA of the training, what no picture shall show, and where it begins."""
    return (Node("1", "CheckpointLoaderSimple", LOADER, size=(400, 120)),
            Node("2", "LoraLoaderModelOnly", {"model": ("1", 0), "lora_name": LORA, "strength_model": 1.0},
                 size=(400, 110)),
            Node("3", "CLIPTextEncode", {"clip": ("1", 1), "text": ""}, "Negative prompt", (400, 110), RED),
            Node("4", "EmptyLatentImage", LATENT, size=(400, 130)))


OWN_FILES = """
**First run the template *Learn your subject apart from its pictures, DETEX*.** Then choose what it saved: the LoRA at \
*Load LoRA*, and its file at each *DETEX Prompt*, both in the folder of that run. The training pictures appear on the \
node.
"""

KEEP_NOTE = """\
**Three prompts, one seed**: the subject alone; with the pose (of a thing: the view) of a picture; with its background.

**Press a button** under a picture on *DETEX Prompt* to keep its pose or background, again to let it go. The node \
shows the prompt that it has written.
""" + OWN_FILES

KEEP_GRAPH = Graph("detex_keep", "Keep the pose or background of a picture, DETEX", nodes=(
    *shared(),
    prompt("5", "Prompt: the subject alone"),
    prompt("6", "Prompt: keep the pose", pose_of=3),
    prompt("7", "Prompt: keep the background", "Photo of a {}", background_of=4),
    *drawn(10, "5", "Subject alone"), *drawn(14, "6", "Pose kept"), *drawn(18, "7", "Background kept"),
), groups=(
    Group("1 · What to keep", ("5", "6", "7")),
    Group("2 · The model, with its training", ("1", "2", "3", "4")),
    Group("3 · The subject alone", ("10", "11", "12", "13")),
    Group("4 · With the pose", ("14", "15", "16", "17")),
    Group("5 · With the background", ("18", "19", "20", "21")),
), note=Note(KEEP_NOTE, (400, 420)))

MIX_NOTE = """\
**Mixed**: the pose of one training picture, the background of another.

**Another subject**: *other_subject* cat takes the pose and the place; the learned word is left out.

**A new picture**: *DETEX Encode Picture* makes two words of it, two *Apply Concept* teach them to the CLIP, and the \
prompt says them. It needs `clip-vit-large-patch14`, the image encoder of the training.
""" + OWN_FILES

MIX_GRAPH = Graph("detex_mix", "Mix poses and backgrounds of pictures, DETEX", nodes=(
    *shared(),
    prompt("5", "Prompt: mixed", "Photo of a {}", pose_of=3, background_of=4),
    prompt("6", "Prompt: another subject", "Photo of a {}", pose_of=3, background_of=4, other_subject="cat"),
    prompt("7", "Prompt: a new picture", "Photo of a {} with <new-pose> view in <new-background> background"),
    Node("22", "LoadImage", {"image": PICTURE}, "A new picture", (400, 320)),
    Node("23", "CLIPVisionLoader", {"clip_name": VIT_L}, size=(400, 80)),
    Node("24", "PersonalizeDetexEncodePicture", {
        "file": FILE, "clip_vision": ("23", 0), "image": ("22", 0), "name": "new"}, size=(400, 150)),
    Node("25", "PersonalizeApplyConcept", {"clip": ("1", 1), "concept": ("24", 0)}, size=(400, 80)),
    Node("26", "PersonalizeApplyConcept", {"clip": ("25", 0), "concept": ("24", 1)}, size=(400, 80)),
    *drawn(10, "5", "Mixed"), *drawn(14, "6", "Another subject"), *drawn(18, "7", "A new picture", ("26", 0)),
), groups=(
    Group("1 · What to mix", ("5", "6", "7")),
    Group("2 · The model, with its training", ("1", "2", "3", "4")),
    Group("3 · Words of a new picture", ("22", "23", "24", "25", "26")),
    Group("4 · Mixed", ("10", "11", "12", "13")),
    Group("5 · Another subject", ("14", "15", "16", "17")),
    Group("6 · With a new picture", ("18", "19", "20", "21")),
), note=Note(MIX_NOTE, (400, 520)))

DETEX_GRAPHS = (TRAIN_GRAPH, KEEP_GRAPH, MIX_GRAPH)
