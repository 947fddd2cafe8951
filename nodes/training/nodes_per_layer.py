"""Nodes for words with vectors for each cross-attention layer."""
from __future__ import annotations

from comfy_api.latest import io

from ..attention.by_layer import read_by_layer
from ..families.find import unet_of
from ..inputs import learning_rate_input, parts_output, previous_parts_input
from ..text.apply import apply_layered_concepts
from ..types import ConceptType
from .parts.per_layer import PerLayerPart


class PersonalizeTrainPerLayer(io.ComfyNode):
    """Adds vectors for each layer to what is trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeTrainPerLayer", display_name="Train Per-Layer", category="personalize/training",
            description="Trains vectors of the placeholder for each cross-attention layer of the U-Net, XTI: in place "
                        "of Train Embedding, where one vector for all layers says too little. The result needs Apply "
                        "Per-Layer Concept.",
            search_aliases=["XTI", "extended textual inversion", "P+", "textual inversion", "layers"],
            inputs=[learning_rate_input(5e-3, "XTI: 0.005, with a batch of 8 for 500 steps."),
                    previous_parts_input()],
            outputs=[parts_output()])

    @classmethod
    def execute(cls, learning_rate: float, previous=()) -> io.NodeOutput:
        """The chain with one more part."""
        return io.NodeOutput((*previous, PerLayerPart(learning_rate)))


class PersonalizeApplyPerLayerConcept(io.ComfyNode):
    """Teaches a CLIP a placeholder for each layer, and a model to read it so."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeApplyPerLayerConcept", display_name="Apply Per-Layer Concept",
            category="personalize/text",
            description="Apply Concept for what Train Per-Layer learned: each cross-attention layer reads the prompt "
                        "with its own vectors of the word. Use both outputs, for one model and one CLIP. Several can "
                        "follow each other.",
            search_aliases=["XTI", "P+", "extended textual inversion", "use embedding", "placeholder"],
            inputs=[
                io.Model.Input("model", tooltip="SD1.x, SD2.x or SDXL, as the concept was trained on; also with LoRAs "
                                                "and other patches. It stays as it is."),
                io.Clip.Input("clip", tooltip="Text encoder of the same checkpoint, also after Apply Concept."),
                ConceptType.Input("concept", tooltip="From Train with Train Per-Layer, or Load Concept. One with the "
                                                     "same vectors for all layers acts as in Apply Concept.")],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For the sampler. With another model each layer reads "
                                                              "the mean of all layers."),
                io.Clip.Output(display_name="clip", tooltip="For CLIP Text Encode, of prompts that hold the word and "
                                                            "of others.")])

    @classmethod
    def execute(cls, model, clip, concept) -> io.NodeOutput:
        """Clones of MODEL and CLIP."""
        taught = apply_layered_concepts(clip, concept, len(unet_of(model).layers))
        patched = model.clone()
        read_by_layer(patched)
        return io.NodeOutput(patched, taught)


NODES: list[type] = [PersonalizeTrainPerLayer, PersonalizeApplyPerLayerConcept]
