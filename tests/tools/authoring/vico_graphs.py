"""The bundled workflows of ViCo: training, drawing from one or two references, and two subjects in one picture."""
from __future__ import annotations

from support.encoder_files import PICTURE
from support.vico_files import EMBEDDING

from .graph import Graph, Group, Node, Note
from .graphs import (
    CHECKPOINT_WIRES,
    CONCEPT,
    DIFFUSION,
    GREEN,
    LATENT,
    LOADER,
    PICTURES,
    PROMPTS,
    RED,
    SAMPLER,
    SCENE,
    SUBJECT,
    TRAIN,
)

GIRL = "<example-girl>"
ALL_PICTURES = {**PICTURES, "fit": "squash", "augmentation": "none", "variants": 1}
TRAIN_VICO = {"learning_rate": 1e-5, "embedding_learning_rate": 0.005, "placement": "decoder", "object_mask": "Eq. 5"}
REGULARISATION = {"weight": 0.0005, "target": "end of text", "placement": "decoder", "first_step": 1, "last_step": 0}
PICTURE_PROMPTS = {**PROMPTS, "kind": "pictures"}
RUN = {**TRAIN, "preset": "ViCo", "steps": 400, "batch_size": 4, "save_every": 50, "preview_every": 100}
APPLY = {"words": "", "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "object_mask": "as trained",
         "halves": "both", "reuse_steps": 1, "size": 0, "fit": "squash", "words_2": "", "prompt": ""}
MASKS = {"show": "each step", "opacity": 0.6}


def learning(subject: str, first: int, run: dict[str, object] = RUN) -> tuple[Node, ...]:
    """Six nodes with ids from `first` on and the prompts' with id 30: what is learned, what for, Train.

    subject: id of the last Subject. run: Train's numbers.
    """
    vico, diffusion, end, prompts, references, train = (str(first + number) for number in range(6))
    return (
        Node(vico, "PersonalizeTrainViCo", TRAIN_VICO, size=(400, 180)),
        Node(diffusion, "PersonalizeDiffusionLoss", DIFFUSION, size=(400, 180)),
        Node(end, "PersonalizeEndOfTextRegularisation", {"previous": (diffusion, 0), **REGULARISATION},
             size=(400, 200)),
        Node("30", "PersonalizePromptSet", PICTURE_PROMPTS, size=(400, 340)),
        Node(prompts, "PersonalizeTrainingPrompts", {
            "prompts": "", "use_captions": True, "prompt_set": ("30", 0)}, size=(400, 170)),
        Node(references, "PersonalizeTrainingReferences", {"recipe": (prompts, 0)}, size=(400, 60)),
        Node(train, "PersonalizeTrain", {
            **CHECKPOINT_WIRES, "subject": (subject, 0), "trainable": (vico, 0), "loss": (end, 0),
            "recipe": (references, 0), **run}, size=(580, 1120)))


def drawing(first: int, concept: tuple[str, int], model: tuple[str, int], image: tuple[str, int],
            scene: str, prefix: str, second: dict[str, object] | None = None) -> tuple[Node, ...]:
    """Nine nodes with ids from `first` on: Load ViCo to the picture and its masks.

    image: the reference. second: inputs of Apply ViCo for a second object.
    """
    load, vico, prompt, negative, latent, sampler, decode, save, masks = (str(first + i) for i in range(9))
    return (
        Node(load, "PersonalizeLoadViCo", {"file": "none", "concept": concept}, size=(400, 90)),
        Node(vico, "PersonalizeApplyViCo", {
            "model": model, "vico": (load, 0), "vae": ("1", 2), "image": image, **APPLY, **(second or {})},
             size=(400, 560)),
        Node(prompt, "PersonalizeEncodeWithSpans", {
            "clip": ("1", 1), "concept": concept, "prompt": scene, "words": ""}, "Prompt", (400, 240), GREEN),
        Node(negative, "CLIPTextEncode", {"clip": ("1", 1), "text": ""}, "Negative prompt", (400, 110),
             RED),
        Node(latent, "EmptyLatentImage", LATENT, size=(400, 130)),
        Node(sampler, "KSampler", {
            "model": (vico, 0), "positive": (prompt, 0), "negative": (negative, 0), "latent_image": (latent, 0),
            **SAMPLER}, size=(400, 290)),
        Node(decode, "VAEDecode", {"samples": (sampler, 0), "vae": ("1", 2)}, size=(400, 70)),
        Node(save, "SaveImage", {"images": (decode, 0), "filename_prefix": prefix}, size=(460, 520)),
        Node(masks, "PersonalizeShowMasks", {
            "record": (vico, 1), "latent": (sampler, 0), **MASKS, **({} if second else {"image": image})},
            "Masks of the reference", (460, 560)))


TRAIN_NOTE = """\
**Press Run**: *Train* learns the toy's word together with image blocks that look at a reference picture. The U-Net \
stays as it is. *Save Image* shows the toy in a new scene, *Masks of the reference* what ViCo looked at.

**Your own subject**: name it in *Concept*, drop 4 to 7 pictures on *Subject*, write its word into the prompt. \
*Prompt Set* gives *Training Prompts* 81 prompts of a picture, a photo and a drawing, as many as the authors train with.

**Steps.** 300 follow the prompt better, 400 keep more of the subject: click a preview on *Train* to use its step.

**Memory.** 8 GB: set *micro_batch* to 1 and *gradient_checkpointing* on.

**After that**: the template *Draw with fine detail from a picture, ViCo* draws with what was saved.
"""

TRAIN_VICO_GRAPH = Graph("vico_train", "Learn your subject with fine detail, ViCo", nodes=(
    Node("1", "CheckpointLoaderSimple", LOADER, size=(400, 120)),
    Node("2", "PersonalizeConcept", CONCEPT, size=(400, 180)),
    Node("3", "PersonalizeSubject", {"concept": ("2", 0), **ALL_PICTURES}, size=(400, 640)),
    *learning("3", first=4),
    Node("10", "ImageFromBatch", {"image": ("3", 1), "batch_index": 0, "length": 1}, "Reference",
         (400, 110)),
    *drawing(first=11, concept=("9", 0), model=("9", 1), image=("10", 0), scene=SCENE,
             prefix="personalize/vico_train"),
    Node("20", "PersonalizeSaveConcept", {
        "concept": ("9", 0), "name": "{}-vico", "format": "safetensors"}, size=(400, 180)),
), groups=(
    Group("1 · Your subject", ("2", "3")),
    Group("2 · What to learn, and from which model", ("1", "4", "5", "6", "30", "7", "8")),
    Group("3 · Train", ("9",)),
    Group("4 · Draw it with a reference", ("10", "11", "12", "13", "14", "15", "16", "17", "18", "19", "20")),
), note=Note(TRAIN_NOTE, (400, 440)))


def apply_graph(name: str, title: str, pictures: str, note: str) -> Graph:
    """Drawing with what vico_train has saved; pictures: names of the reference pictures."""
    return Graph(name, title, nodes=(
        Node("1", "CheckpointLoaderSimple", LOADER, size=(400, 120)),
        Node("2", "PersonalizeLoadConcept", {"embedding": EMBEDDING, "placeholder": "", "class_words": ""},
             size=(400, 140)),
        Node("3", "PersonalizeSubject", {"concept": ("2", 0), **ALL_PICTURES, "picture_files": pictures},
             "Reference", (400, 640)),
        *drawing(first=4, concept=("2", 0), model=("1", 0), image=("3", 1), scene=SCENE,
                 prefix=f"personalize/{name}"),
    ), groups=(
        Group("1 · Word and reference", ("3", "2", "1")),
        Group("2 · Draw it with the reference", ("4", "5", "6", "7", "8", "9", "10", "11", "12")),
    ), note=Note(note, (400, 400)))


APPLY_NOTE = """\
**First run the template *Learn your subject with fine detail, ViCo*.** It saves the word, which *Load \
Concept* reads here, and the image blocks, which *Load ViCo* \
finds by the word.

**The authors' files**: put `cross_attention-399.pt` into models/vico and choose it in *Load ViCo*; \
`embeddings_gs-399.pt` into models/embeddings, choose it in *Load Concept* and give it a word there.

**Reference**: any picture of the subject, also one that was not trained on.

**Faster**: *halves* shared, *reuse_steps* 4.
"""
TWO_REFERENCES_NOTE = """\
**Two pictures of one subject.** All pictures on *Reference* are looked at together: their patches follow each other, \
and each has its own mask. It helps where one picture does not show all of the subject, and takes longer.

**First run the template *Learn your subject with fine detail, ViCo***, which saves what is loaded here.
"""

TWO_OBJECTS_NOTE = """\
**Two subjects, one set of image blocks** (ViCo, Appendix J). The two *Subject* nodes take turns in the training. Then \
each is shown its own reference: the first at *image*, the second at *image_2*; the mask of each comes from its own \
word, in the order in which they were trained. 800 steps in place of 400, since each subject is in half of them.

The second subject has one picture only, the drawn girl of ComfyUI: it is its own reference. **Your own**: name both \
in *Concept*, drop pictures on *First subject*, and choose one in *Load Image* for the second.

**Say what each is**, as this prompt does: the class after its word keeps two subjects apart that would take each \
other's shape.

Try also *in the style of* between the two words.
"""

TWO_OBJECTS = Graph("vico_two_objects", "Learn two subjects for one picture, ViCo", nodes=(
    Node("1", "CheckpointLoaderSimple", LOADER, size=(400, 120)),
    Node("2", "PersonalizeConcept", CONCEPT, size=(400, 250)),
    Node("3", "PersonalizeSubject", {"concept": ("2", 0), **ALL_PICTURES}, "First subject", (400, 640)),
    Node("20", "PersonalizeConcept", {**CONCEPT, "placeholder": GIRL, "class_words": "girl"},
         size=(400, 250)),
    Node("21", "LoadImage", {"image": PICTURE}, size=(400, 320)),
    Node("22", "PersonalizeSubject", {
        "concept": ("20", 0), "images": ("21", 0), "previous": ("3", 0), **ALL_PICTURES, "folder": ""},
        "Second subject", (400, 320)),
    *learning("22", first=4, run={
        **RUN, "preset": "custom", "steps": 800, "save_every": 100}),
    Node("10", "ImageFromBatch", {"image": ("3", 1), "batch_index": 0, "length": 1}, "First reference",
         (400, 110)),
    *drawing(first=11, concept=("9", 0), model=("9", 1), image=("10", 0),
             scene=f"a photo of a {SUBJECT} toy beside a {GIRL} girl on a pebble beach",
             prefix="personalize/vico_two_objects",
             second={"image_2": ("21", 0)}),
), groups=(
    Group("1 · Two subjects", ("2", "20", "21", "3", "22")),
    Group("2 · What to learn, and from which model", ("1", "4", "5", "6", "30", "7", "8")),
    Group("3 · Train", ("9",)),
    Group("4 · Draw both", ("10", "11", "12", "13", "14", "15", "16", "17", "18", "19")),
), note=Note(TWO_OBJECTS_NOTE, (400, 400)))

VICO_GRAPHS = (
    TRAIN_VICO_GRAPH,
    apply_graph("vico_apply", "Draw with fine detail from a picture, ViCo", "toy-1.jpg", APPLY_NOTE),
    apply_graph("vico_two_references", "Draw with fine detail from two pictures, ViCo", "toy-1.jpg\ntoy-4.jpg",
                TWO_REFERENCES_NOTE),
    TWO_OBJECTS)
