"""The Train node."""
from __future__ import annotations

from comfy_api.latest import io

from ..inputs import batch_size_input, seed_input, steps_input
from ..names import ROOM_FOR_STEP, safe_name
from ..types import ConceptType, LossType, RecipeType, SubjectType, TrainableType, ValidationType
from .applied import with_weights
from .batch import with_concepts
from .diffusion import DiffusionLoss
from .graph_signature import Graph, NotKnown
from .job import Job, run_job
from .next_run import CONTINUE, RESULTS, RESUME, START_OVER
from .optimizer import OPTIMIZERS, SCHEDULES
from .plan import Settings
from .presets import CUSTOM, PRESETS, with_preset
from .prior import prior_terms
from .progress import shown_report
from .recipe import TemplateRecipe
from .session import PRECISIONS


class PersonalizeTrain(io.ComfyNode):
    """Trains what is chained to it on the subjects' pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs; frozen with the first release."""
        return io.Schema(
            node_id="PersonalizeTrain", display_name="Train", category="personalize/training",
            description="Learns the subjects from their pictures. The models stay as they are; the results are "
                        "ordinary embedding and LoRA files, saved on the way and at the end. With unchanged settings "
                        "it returns what it has learned without training again, also after a restart.",
            search_aliases=["train", "learn", "teach", "personalize", "textual inversion", "dreambooth",
                            "lora training", "train lora", "fine-tune", "finetune", "character", "style",
                            "face", "kohya", "trainer"],
            inputs=[
                io.Model.Input("model", tooltip="SD1.x, SD2.x, SDXL, Lumina 2 or Z-Image, also with LoRAs and "
                                     "other nodes' patches."),
                io.Clip.Input("clip", tooltip="Text encoder of the same checkpoint."),
                io.Vae.Input("vae", tooltip="VAE of the same checkpoint: encodes the pictures and draws the previews."),
                SubjectType.Input("subject", tooltip="Pictures and the word they are to be called by."),
                TrainableType.Input("trainable", tooltip="What may change: Train Embedding, Train Adapter, Train "
                                                         "U-Net, Train Text Encoder, Train ViCo or Train DETEX."),
                LossType.Input("loss", optional=True,
                               tooltip="What training strives for. Not connected: the diffusion loss alone."),
                RecipeType.Input("recipe", optional=True,
                                 tooltip="Which prompts go with the pictures. Not connected: a photo of a {}"),
                io.String.Input("name", default="", tooltip="Name of the run, with which its files and folders begin. "
                                                            "Empty: the word, and what is trained: my-dog-lora."),
                io.Combo.Input("preset", options=[CUSTOM, *PRESETS],
                               tooltip="A paper's own numbers for steps, batch size, optimiser, weight decay, "
                                       "schedule, warm-up and clipping; they take the place of what is set below. "
                                       "Learning rates, rescaling and losses are set on their own nodes."),
                steps_input(300, "Steps of the optimiser in all. CoRe: 300 for the embedding, 1000 for the U-Net."),
                batch_size_input(6, "Pictures a step learns from. CoRe: 6 for the embedding, 4 for the U-Net."),
                io.Int.Input("micro_batch", default=0, min=0, max=64, advanced=True,
                             tooltip="Pictures computed at once: fewer need less memory, and the result differs by "
                                     "rounding only. 0: all of them, half if they do not fit."),
                io.Combo.Input("optimizer", options=list(OPTIMIZERS), advanced=True,
                               tooltip="Optimiser of torch.optim. CoRe: AdamW."),
                io.Float.Input("weight_decay", default=0.01, min=0.0, max=1.0, step=0.001, advanced=True,
                               tooltip="Decoupled weight decay, 0 to 1. CoRe: 0.01."),
                io.Combo.Input("schedule", options=list(SCHEDULES), advanced=True,
                               tooltip="Learning rate over the run: constant, or falling to zero. CoRe: constant."),
                io.Int.Input("warmup_steps", default=0, min=0, max=100000, advanced=True,
                             tooltip="Steps over which the learning rate rises from zero. CoRe: 0."),
                io.Float.Input("clip_gradients", default=0.0, min=0.0, max=1000.0, step=0.1, advanced=True,
                               tooltip="Largest length of all gradients together; 0: no clipping, as in CoRe."),
                seed_input("Start of every random draw: order, noise, timesteps, regularisation prompts."),
                io.Combo.Input("precision", options=list(PRECISIONS), advanced=True,
                               tooltip="What the U-Net computes in. auto: as loaded, bf16 in place of fp16. Vectors "
                                       "and adapters are always fp32."),
                io.Boolean.Input("gradient_checkpointing", default=False, advanced=True,
                                 tooltip="On: less memory, about a third more time, the same result."),
                io.Int.Input("save_every", default=50, min=0, max=100000, advanced=True,
                             tooltip="Steps between saved embeddings. 0: only at the end. CoRe: 50."),
                io.Int.Input("preview_every", default=50, min=0, max=100000, advanced=True,
                             tooltip="Steps between preview pictures, from step 0. 0: none."),
                io.String.Input("preview_prompt", default="a photo of {}", advanced=True,
                                tooltip="Prompt of the previews; {} becomes the placeholder."),
                io.Combo.Input("resume", options=list(RESUME), advanced=True,
                               tooltip="continue: go on where a run with the same settings was interrupted, or return "
                                       "its result; what you stopped stays stopped until you press Continue on the "
                                       "node. start over: train again from the beginning, each time. continue stopped: "
                                       "as the button, for graphs without the page."),
                io.Int.Input("use_step", default=0, min=0, max=100000, advanced=True,
                             tooltip="Return the files saved at this step, without training. 0: train to the last "
                                     "step. A whole U-Net is saved at the last step only."),
                io.String.Input("use_step_of", default="", optional=True,
                                extra_dict={"hidden": True},
                                tooltip="The run that use_step was chosen of; with other settings the choice falls "
                                        "away. Empty: use_step is of any run, and missing there an error."),
                ValidationType.Input("validation", optional=True,
                                     tooltip="Several pictures at each preview in place of preview_prompt's one, from "
                                             "Validation Pictures."),
            ],
            outputs=[
                ConceptType.Output(display_name="concept", tooltip="The subjects with what was learned: for Apply "
                                                                   "Concept, Save Concept or the next stage."),
                io.Model.Output(display_name="model", tooltip="The model with the trained weights; the same model if "
                                                              "only embeddings were trained."),
                io.LoraModel.Output(display_name="lora", tooltip="The trained weights alone, for Save LoRA Weights."),
                io.LossMap.Output(display_name="loss_map", tooltip="Loss of every step, for Plot Loss Graph."),
                SubjectType.Output(display_name="subject",
                                   tooltip="The same pictures, captions and masks with what was learned: for Train of "
                                           "the next stage."),
                io.Clip.Output(display_name="clip", tooltip="The CLIP with the trained weights, for Apply Concept; the "
                                                            "same CLIP if Train Text Encoder is not used."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo], is_output_node=True)

    @classmethod
    def validate_inputs(cls, name=None) -> bool | str:
        """Says before anything runs that no folder can have this name."""
        try:
            return not (name and name.strip()) or bool(safe_name(name, "The name", ROOM_FOR_STEP))
        except ValueError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, name=None, resume=CONTINUE, **_) -> int | float:
        """Another one where what was returned is not what running again would return."""
        return float("nan") if resume == START_OVER else RESULTS.changes(name)

    @classmethod
    def execute(cls, model, clip, vae, subject, trainable, name: str, preset: str, steps: int, batch_size: int,
                micro_batch: int, optimizer: str, weight_decay: float, schedule: str, warmup_steps: int,
                clip_gradients: float, seed: int, precision: str, gradient_checkpointing: bool, save_every: int,
                preview_every: int, preview_prompt: str, resume: str, use_step: int, loss=None,
                recipe=None, use_step_of: str = "", validation=None) -> io.NodeOutput:
        """Trains or returns what is already learned."""
        settings = with_preset(Settings(steps, batch_size, micro_batch, optimizer, weight_decay, schedule, warmup_steps,
                                        clip_gradients, seed, gradient_checkpointing), preset)
        terms = (*(loss or (DiffusionLoss(),)), *prior_terms(subject))
        job = Job(model, clip, vae, tuple(subject), tuple(trainable), terms, recipe or TemplateRecipe(), settings,
                  precision, name, save_every, preview_every, preview_prompt, resume, use_step, use_step_of,
                  cls.hidden.unique_id, _graph(cls.hidden), validation,
                  (cls.hidden.extra_pnginfo or {}).get("workflow") or cls.hidden.prompt)
        outcome = run_job(job)
        model, clip = with_weights(model, clip, outcome.weights)
        losses = {"loss": [record["loss"] for record in outcome.report["history"]]}
        return io.NodeOutput(outcome.concepts, model, outcome.weights, losses, with_concepts(subject, outcome.concepts),
                             clip, ui={"personalize_training": [shown_report(outcome.report)]})


def _graph(hidden) -> str | None:
    """The name of the graph in front of the node, None where it has none."""
    try:
        return Graph(hidden.prompt or {}, executed=True).signature(hidden.unique_id)
    except NotKnown:
        return None


NODES = [PersonalizeTrain]
