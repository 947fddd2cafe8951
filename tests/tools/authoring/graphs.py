"""The bundled workflows."""
from __future__ import annotations

from .graph import Graph, Group, Node, Note

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
EMBEDDING = "example-toy.safetensors"
SUBJECT = "<example-toy>"
SCENE = f"a photo of {SUBJECT} on a pebble beach"
GREEN, RED = "#232", "#322"
STAGE_1, STAGE_2 = "CoRe stage 1: embedding", "CoRe stage 2: U-Net"

LOADER = {"ckpt_name": CHECKPOINT}
CONCEPT = {"placeholder": SUBJECT, "class_words": "toy", "initial_words": "", "vector_count": 1, "embedding": "none"}
PICTURES = {"folder": "example-toy", "size": 512, "fit": "crop", "augmentation": "as released", "variants": 16,
            "seed": 0, "picture_files": "", "captions": ""}
EMBEDDING_PART = {"learning_rate": 0.005, "rescale_first_step": 121, "rescale_last_step": 180}
DIFFUSION = {"weight": 1.0, "background_weight": 1.0, "first_step": 1, "last_step": 0, "noise_levels": "constant"}
PROMPTS = {"kind": "inanimate", "background": True, "action": True, "outfit": True, "style": True, "colour": True,
           "file": "none", "own_prompts": "", "accessory": True, "viewpoint": True, "relation": True,
           "companions": True, "count": 2000}
CORE = {"formulas": "as released", "embedding_weight": 1.0, "attention_weight": 1.0, "attention": "exact",
        "first_step": 1, "last_step": 0}
TRAIN = {"name": "", "micro_batch": 0, "optimizer": "AdamW", "weight_decay": 0.01, "schedule": "constant",
         "warmup_steps": 0, "clip_gradients": 0.0, "seed": 0, "precision": "auto", "gradient_checkpointing": False,
         "preview_prompt": "a photo of {}", "resume": "continue", "use_step": 0, "use_step_of": ""}
TRAIN_1 = {**TRAIN, "preset": STAGE_1, "steps": 300, "batch_size": 6, "save_every": 50,
           "preview_every": 50}
TRAIN_2 = {**TRAIN, "preset": STAGE_2, "steps": 1000, "batch_size": 4, "micro_batch": 1,
           "save_every": 200, "preview_every": 200}
SAMPLER = {"seed": 1, "steps": 25, "cfg": 7.5, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0}
LATENT = {"width": 512, "height": 512, "batch_size": 1}
HEAT = {"scale": "each map", "colours": "viridis", "opacity": 0.6, "longest_side": 512}
SUBJECT_MASK = {"words": "dog", "mask_method": "Otsu", "threshold": 0.3}

CHECKPOINT_WIRES = {"model": ("1", 0), "clip": ("1", 1), "vae": ("1", 2)}

LEARN_WORD = (
    Node("2", "PersonalizeConcept", CONCEPT, size=(400, 180)),
    Node("5", "PersonalizeDiffusionLoss", DIFFUSION, size=(400, 150)),
    Node("6", "PersonalizePromptSet", PROMPTS, size=(400, 220)),
    Node("3", "PersonalizeSubject", {"concept": ("2", 0), **PICTURES}, size=(400, 460)),
    Node("7", "PersonalizeCoReLoss", {"prompt_set": ("6", 0), "previous": ("5", 0), **CORE},
         size=(400, 190)),
    Node("4", "PersonalizeTrainEmbedding", EMBEDDING_PART, size=(400, 130)),
    Node("1", "CheckpointLoaderSimple", LOADER, size=(400, 120)),
)


def draw_and_keep(first: int, train: str, graph: str, scene: str | tuple[str, int] = SCENE) -> tuple[Node, ...]:
    """Eight nodes with ids from `first` on: what the Train node `train` gives, saved and drawn.

    graph: name of the workflow. scene: the prompt, or the node that gives it.
    """
    apply, prompt, negative, latent, sampler, decode, save, keep = (str(first + number) for number in range(8))
    return (
        Node(apply, "PersonalizeApplyConcept", {"clip": ("1", 1), "concept": (train, 0)}, size=(400, 80)),
        Node(keep, "PersonalizeSaveConcept", {"concept": (train, 0), "name": "", "format": "safetensors"},
             size=(400, 200)),
        Node(prompt, "CLIPTextEncode", {"clip": (apply, 0), "text": scene}, "Prompt", (400, 130), GREEN),
        Node(negative, "CLIPTextEncode", {"clip": (apply, 0), "text": ""}, "Negative prompt",
             (400, 110), RED),
        Node(latent, "EmptyLatentImage", LATENT, size=(400, 130)),
        Node(sampler, "KSampler", {
            "model": (train, 1), "positive": (prompt, 0), "negative": (negative, 0), "latent_image": (latent, 0),
            **SAMPLER}, size=(400, 290)),
        Node(decode, "VAEDecode", {"samples": (sampler, 0), "vae": ("1", 2)}, size=(260, 80)),
        Node(save, "SaveImage", {"images": (decode, 0), "filename_prefix": f"personalize/{graph}"},
             size=(460, 540)))


TRAIN_EMBEDDING_NOTE = """\
**Press Run** and watch *Train* learn the toy; then look at *Save Image*.

Without the checkpoint ComfyUI offers to download it (2 GB).

**Your own subject**
1. *Concept*: choose a word for it, and say what it is: dog, teddy bear, backpack.
2. *Subject*: drop 4 or 5 pictures on the node.
3. *Prompt Set*: animate for people and animals.
4. Put your word into the prompt.

**Memory.** 8 GB: set *micro_batch* to 2. 6 GB: 1, and *gradient_checkpointing* on.

**After that**: click the preview you like best and press Run again: *Train* returns that step. *Save Concept* shows \
what to write in any prompt, also without this pack: of the word `<my-dog>` **embedding:my-dog**; saved again it \
becomes *-2*, *-3*.
"""

TRAIN_EMBEDDING = Graph("train_embedding_core", "Learn your subject as a word", nodes=(
    *LEARN_WORD,
    Node("8", "PersonalizeTrain", {
        **CHECKPOINT_WIRES, "subject": ("3", 0), "trainable": ("4", 0), "loss": ("7", 0), **TRAIN_1}, size=(580, 740)),
    *draw_and_keep(9, train="8", graph="train_embedding_core"),
    Node("17", "LossGraphNode", {"loss": ("8", 3), "filename_prefix": "loss_graph"}, size=(400, 260)),
), groups=(
    Group("1 · Your subject", ("2", "3")),
    Group("2 · What to learn, and from which model", ("5", "6", "7", "4", "1")),
    Group("3 · Train", ("8",)),
    Group("4 · Keep it, draw it", ("9", "10", "11", "12", "13", "14", "15", "16", "17")),
), note=Note(TRAIN_EMBEDDING_NOTE, (400, 480)))

TRAIN_LORA_NOTE = """\
**Press Run**: *Train* learns the toy's word and a LoRA of the U-Net at the same time ("pivotal tuning"), each with a \
learning rate of its own. More likeness than a word alone, less memory than the whole U-Net.

**Your own subject**: name it in *Concept*, drop 4 to 20 pictures on *Subject*, write its word into the prompt. \
*Training Prompts* must be true of your pictures: for drawings write drawing in the place of photo.

**Two files** are saved: the embedding, and the LoRA in models/loras. Use them together, here or with ComfyUI's own \
*Load LoRA*. If the pictures show little but your subject, lower the LoRA's strength there.

**Memory.** 8 GB: set *micro_batch* to 1 and *gradient_checkpointing* on.

**Which step?** *Validation Pictures* draws four prompts every 100 steps, in at most a quarter of the run's time. \
Click one on *Train* to see them side by side, beside your photographs, and choose the step that looks best.

*Prompt Tokens* shows how the prompt is read, and which real words the learned one has come near to.
"""

LORA = {"algorithm": "LoRA", "rank": 16, "alpha": 16.0, "learning_rate": 1e-4, "attention_only": True}
TEMPLATES = {"prompts": """a photo of a {}
a picture of the {}
a close look at a {}
one {} in a picture
a view of the {}""", "use_captions": True}

VALIDATION = {"prompts": """a photo of {}
a photo of {} on the beach
a photo of {} in the snow
an oil painting of {}""", "noises": 1, "share_of_time": 0.25, "seed": 0, "size": 0, "sampler": "as suits the model",
              "scheduler": "as suits the model", "sampling_steps": 0, "cfg": 0.0}

TRAIN_LORA = Graph("train_lora", "Learn your subject as a word and a LoRA", nodes=(
    Node("2", "PersonalizeConcept", CONCEPT, size=(400, 180)),
    Node("4", "PersonalizeTrainEmbedding", {
        "learning_rate": 0.001, "rescale_first_step": 0, "rescale_last_step": 0}, size=(400, 130)),
    Node("3", "PersonalizeSubject", {
        "concept": ("2", 0), **PICTURES, "augmentation": "none", "variants": 1}, size=(400, 460)),
    Node("5", "PersonalizeTrainAdapter", {"previous": ("4", 0), **LORA}, size=(400, 180)),
    Node("6", "PersonalizeDiffusionLoss", DIFFUSION, size=(400, 150)),
    Node("7", "PersonalizeTrainingPrompts", TEMPLATES, size=(400, 200)),
    Node("19", "PersonalizeValidation", VALIDATION, size=(400, 240)),
    Node("1", "CheckpointLoaderSimple", LOADER, size=(400, 120)),
    Node("8", "PersonalizeTrain", {
        **CHECKPOINT_WIRES, "subject": ("3", 0), "trainable": ("5", 0), "loss": ("6", 0), "recipe": ("7", 0),
        "validation": ("19", 0), **TRAIN,
        "preset": "custom", "steps": 600, "batch_size": 4, "save_every": 100,
        "preview_every": 100}, size=(580, 740)),
    *draw_and_keep(9, train="8", graph="train_lora", scene=("18", 0)),
    Node("18", "PrimitiveStringMultiline", {"value": SCENE}, "Prompt", (400, 130), GREEN),
    Node("17", "PersonalizePromptTokens", {
        "clip": ("1", 1), "concept": ("8", 0), "prompt": ("18", 0), "neighbours": 5}, size=(400, 240)),
), groups=(
    Group("1 · Your subject", ("2", "3")),
    Group("2 · What to learn, and from which model", ("4", "5", "6", "7", "19", "1")),
    Group("3 · Train", ("8",)),
    Group("4 · Keep it, draw it", ("9", "10", "11", "12", "13", "14", "15", "16", "17", "18")),
), note=Note(TRAIN_LORA_NOTE, (400, 560)))

TWO_STAGE_NOTE = """\
**The two stages of the CoRe paper.** Stage 1 finds the word: an embedding, trained with CoRe. Stage 2 fits the \
picture: the whole U-Net, with that word held fixed. It takes word and pictures over from stage 1.

The result is two files: the embedding, and a LoRA-format file with the changes of the U-Net (1.7 GB for SD1.5), which \
*Train* writes into models/loras. Use them together, with *Load LoRA* at strength 1.

**Memory.** Stage 2 needs about 20 GB for SD1.5, with *micro_batch* 1 as set here, and 12 GB of disk. With less, put \
*Train Adapter* in the place of *Train U-Net*, preset *custom*, 500 steps: a small LoRA.

**Previews of stage 2** can be looked at, but only its last step is saved. For an earlier one set *steps* to it.

Try the template *Learn your subject as a word* first: it is stage 1 alone, and often enough.
"""

TWO_STAGE = Graph("core_two_stage", "Learn your subject in two stages, word and U-Net", nodes=(
    *LEARN_WORD,
    Node("8", "PersonalizeTrain", {
        **CHECKPOINT_WIRES, "subject": ("3", 0), "trainable": ("4", 0), "loss": ("7", 0), **TRAIN_1},
        title="Train: stage 1", size=(580, 740)),
    Node("10", "PersonalizeTrainUNet", {"learning_rate": 2e-6}, size=(400, 80)),
    Node("11", "PersonalizeTrain", {
        **CHECKPOINT_WIRES, "subject": ("8", 4), "trainable": ("10", 0), **TRAIN_2},
        title="Train: stage 2", size=(580, 740)),
    *draw_and_keep(12, train="11", graph="core_two_stage"),
), groups=(
    Group("1 · Your subject", ("2", "3")),
    Group("2 · What to learn, and from which model", ("5", "6", "7", "4", "1")),
    Group("3 · Stage 1: the word", ("8",)),
    Group("4 · Stage 2: the U-Net", ("10", "11")),
    Group("5 · Keep it, draw it", ("12", "13", "14", "15", "16", "17", "18", "19")),
), note=Note(TWO_STAGE_NOTE, (400, 520)))

TEST_TIME_NOTE = """\
**First run the template *Learn your subject as a word***: it saves the embedding that *Load \
Concept* reads here. Any other embedding will do \
too: choose it, and write its word into the prompt.

Sometimes a learned word drowns the rest of a prompt: the toy comes, the rain does not. *CoRe Test-Time Optimization* \
adjusts the word for this one prompt in 10 steps, without the training pictures: what it looks at is the first picture.

Compare *Before* and *After*: same seed, same settings. If the prompt was followed already, they hardly differ.
"""

TEST_TIME = Graph("core_test_time", "Make one prompt be followed better", nodes=(
    Node("1", "CheckpointLoaderSimple", LOADER, size=(400, 120)),
    Node("2", "PersonalizeLoadConcept", {"embedding": EMBEDDING, "placeholder": "", "class_words": ""},
         size=(400, 150)),
    Node("3", "PrimitiveStringMultiline", {"value": SCENE + " in the rain, oil painting"}, title="Prompt",
         size=(400, 130), color=GREEN),
    Node("4", "CLIPTextEncode", {"clip": ("1", 1), "text": ""}, title="Negative prompt", size=(400, 110),
         color=RED),
    Node("5", "EmptyLatentImage", LATENT, size=(400, 130)),
    Node("6", "PersonalizeApplyConcept", {"clip": ("1", 1), "concept": ("2", 0)}, size=(400, 80)),
    Node("7", "CLIPTextEncode", {"clip": ("6", 0), "text": ("3", 0)}, size=(400, 80), color=GREEN),
    Node("8", "KSampler", {
        "model": ("1", 0), "positive": ("7", 0), "negative": ("4", 0), "latent_image": ("5", 0), **SAMPLER},
        size=(400, 290)),
    Node("9", "VAEDecode", {"samples": ("8", 0), "vae": ("1", 2)}, size=(400, 70)),
    Node("10", "SaveImage", {"images": ("9", 0), "filename_prefix": "personalize/before"}, title="Before",
         size=(400, 420)),
    Node("11", "PersonalizeCoReTestTime", {
        "model": ("1", 0), "clip": ("1", 1), "concept": ("2", 0), "prompt": ("3", 0), "latent": ("8", 0), "steps": 10,
        "learning_rate": 0.0005, "formulas": "as released", "batch_size": 6, "size": 512, "seed": 0}, size=(400, 340)),
    Node("12", "KSampler", {
        "model": ("1", 0), "positive": ("11", 1), "negative": ("4", 0), "latent_image": ("5", 0), **SAMPLER},
        size=(400, 290)),
    Node("13", "VAEDecode", {"samples": ("12", 0), "vae": ("1", 2)}, size=(400, 70)),
    Node("14", "SaveImage", {"images": ("13", 0), "filename_prefix": "personalize/after"}, title="After",
         size=(400, 420)),
), groups=(
    Group("1 · Subject and prompt", ("2", "3", "1")),
    Group("2 · Draw it", ("4", "5", "6", "7", "8")),
    Group("3 · Refine the word for this prompt, draw again", ("11", "12")),
    Group("4 · Compare", ("9", "10", "13", "14")),
), note=Note(TEST_TIME_NOTE, (400, 330)))

LOOK_INSIDE_NOTE = """\
**Press Run** and look at *Show Attention*: where the model looked for each word while it drew.

**Other words**: change the prompt, and write the words into *Record Attention*. Left empty, it takes the words that \
*Encode with Spans* was told to remember, and every placeholder.

*Show Attention* also shows each step or each layer; *Subject Mask* turns the map of one word into a mask.

**A picture of your own**: *Load Image* and *VAE Encode* in the place of the sampler's latent at *Attention of \
Latent*. It needs no sampler.

Any sampler will do, and *The picture* is the same as without.
"""

SEEN = "a photo of a dog with a red hat on a beach"

LOOK_INSIDE = Graph("look_inside", "See where the model looks for each word", nodes=(
    Node("1", "CheckpointLoaderSimple", LOADER, size=(400, 120)),
    Node("2", "PersonalizeEncodeWithSpans", {
        "clip": ("1", 1), "prompt": SEEN, "words": "dog, red hat, beach"}, "Prompt", (400, 300), GREEN),
    Node("3", "CLIPTextEncode", {"clip": ("1", 1), "text": ""}, title="Negative prompt", size=(400, 110),
         color=RED),
    Node("4", "EmptyLatentImage", LATENT, size=(400, 130)),
    Node("5", "PersonalizeRecordAttention", {
        "model": ("1", 0), "words": "", "layers": "all", "layer_numbers": "", "keep": "every step",
        "start_percent": 0.0, "end_percent": 1.0, "prompt": ""}, size=(400, 420)),
    Node("6", "KSampler", {
        "model": ("5", 0), "positive": ("2", 0), "negative": ("3", 0), "latent_image": ("4", 0), **SAMPLER},
        size=(400, 290)),
    Node("7", "VAEDecode", {"samples": ("6", 0), "vae": ("1", 2)}, size=(400, 70)),
    Node("13", "PreviewImage", {"images": ("7", 0)}, "The picture", (340, 300)),
    Node("8", "PersonalizeShowAttention", {
        "record": ("5", 1), "image": ("7", 0), "latent": ("6", 0), **HEAT, "show": "mean"}, size=(660, 520)),
    Node("9", "PersonalizeSubjectMask", {
        "record": ("5", 1), "image": ("7", 0), "latent": ("6", 0), **SUBJECT_MASK}, size=(660, 520)),
    Node("10", "PersonalizeAttentionOfLatent", {
        "model": ("1", 0), "conditioning": ("2", 0), "latent": ("6", 0), "words": "", "timesteps": "200, 400",
        "seed": 0, "layers": "all", "layer_numbers": "", "keep": "every step", "prompt": ""}, size=(400, 440)),
    Node("11", "PersonalizeShowAttention", {
        "record": ("10", 0), "image": ("7", 0), **HEAT, "show": "each step"}, size=(660, 520)),
    Node("12", "PersonalizeSubjectMask", {"record": ("10", 0), "image": ("7", 0), **SUBJECT_MASK},
         size=(660, 520)),
), groups=(
    Group("1 · Prompt", ("2", "1", "3", "4")),
    Group("2 · Record while it draws", ("5", "6", "7")),
    Group("3 · The picture, and where the model looked", ("13", "8", "9")),
    Group("4 · Or look at a picture you have", ("10", "11", "12")),
), note=Note(LOOK_INSIDE_NOTE, (400, 380)))

GRAPHS = (TRAIN_EMBEDDING, TRAIN_LORA, TWO_STAGE, TEST_TIME, LOOK_INSIDE)
