"""Nodes that make, use, save and load concepts."""
from __future__ import annotations

from comfy_api.latest import io, ui

from ..files import version_of
from ..locations import saving_problem
from ..types import ConceptType
from .apply import apply_concepts
from .concept import Concept, check_placeholder
from .concept_files import load_concept, save_concept
from .embedding_files import KIND, embedding_names, file_stems, find_embedding, load_embedding, prompt_text
from .embedding_layouts import LAYOUTS, SAFETENSORS
from .encoders import text_encoders
from .prompts import SLOT

NONE = "none"
LARGEST_COUNT = 64  # of 75 words that fit into one chunk of a prompt


class PersonalizeConcept(io.ComfyNode):
    """A name for a subject and where its vectors start."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeConcept", display_name="Concept", category="personalize/text",
            description="Names a subject: the made-up word that prompts will call it by, what it is, and the words or "
                        "the embedding that training starts from.",
            search_aliases=["placeholder", "trigger word", "textual inversion", "token", "embedding", "subject",
                            "character", "new word", "name"],
            inputs=[
                io.String.Input("placeholder", default="<my-dog>",
                                tooltip="Made-up word that stands for the subject in prompts: one word without spaces, "
                                        "brackets, colon or comma, and no word of the dictionary."),
                io.String.Input("class_words", default="dog",
                                tooltip="What the subject is, in one or a few ordinary words: dog, teddy bear."),
                io.String.Input("initial_words", default="",
                                tooltip="Words whose token vectors training starts from; the first as many as there "
                                        "are vectors, the last one repeated. Empty: the class words, as in CoRe."),
                io.Int.Input("vector_count", default=1, min=1, max=LARGEST_COUNT,
                             tooltip="Vectors, and so tokens of the prompt, that the subject takes up: 1 to 64. CoRe: "
                                     "1. More learn more detail and follow prompts less. Not used with an existing "
                                     "embedding, which has its own number."),
                io.Combo.Input("embedding", options=[NONE, *embedding_names()], default=NONE,
                               tooltip="Embedding of the embeddings folder to start from in place of the initial "
                                       "words, for example an earlier result; none: the initial words.")],
            outputs=[
                ConceptType.Output(display_name="concept", tooltip="The concept: for Subject, Apply Concept and "
                                                                   "losses."),
                io.String.Output(display_name="placeholder", tooltip="The word that prompts call it by."),
                io.String.Output(display_name="class_words", tooltip="What the subject is: for words and class_words "
                                                                     "of other nodes.")])

    @classmethod
    def validate_inputs(cls, embedding) -> bool | str:
        """Takes the check of `embedding` from ComfyUI, so that a name may be typed and a new file be used at once."""
        return _validated(embedding)

    @classmethod
    def fingerprint_inputs(cls, embedding=NONE, **_) -> str:
        """Changes when the embedding's file does."""
        return _file_version(embedding)

    @classmethod
    def execute(cls, placeholder, class_words, initial_words, vector_count, embedding) -> io.NodeOutput:
        """The concept, a chain of one link."""
        placeholder, class_words, initial_words = placeholder.strip(), class_words.strip(), initial_words.strip()
        if not class_words:
            raise ValueError("Class words are empty; write what the subject is, for example dog or teddy bear.")
        check_placeholder(placeholder, class_words)
        concept = Concept(placeholder, class_words, initial_words or class_words, vector_count)
        if embedding == NONE:
            return io.NodeOutput((concept,), placeholder, class_words)
        path = find_embedding(embedding)
        started = concept.with_vectors(load_embedding(path)[0], {"started_from": prompt_text(path)})
        return io.NodeOutput((started,), placeholder, class_words)


class PersonalizeApplyConcept(io.ComfyNode):
    """Teaches a CLIP a concept's placeholder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeApplyConcept", display_name="Apply Concept", category="personalize/text",
            description="Gives a CLIP with which CLIP Text Encode, and any other node that encodes prompts, "
                        "understands the concept's placeholder: with CLIP text encoders exactly as embedding:name of "
                        "a saved file, with others as an ordinary word. Several can follow each other.",
            search_aliases=["use embedding", "textual inversion", "placeholder", "trigger word", "use character"],
            inputs=[
                io.Clip.Input("clip", tooltip="Text encoder of the checkpoint the concept was trained on, or of one of "
                                              "the same family. It stays as it is."),
                ConceptType.Input("concept", tooltip="From Train, Load Concept, or Concept. What has not been trained "
                                                     "yet means its initial words.")],
            outputs=[io.Clip.Output(display_name="clip", tooltip="The CLIP that knows the placeholder, also as "
                                                                 "(<my-dog>:1.2) and in negative prompts.")])

    @classmethod
    def execute(cls, clip, concept) -> io.NodeOutput:
        """A clone of the CLIP."""
        return io.NodeOutput(apply_concepts(clip, concept))


class PersonalizeSaveConcept(io.ComfyNode):
    """Writes a concept as an embedding file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeSaveConcept",
            display_name="Save Concept",
            category="personalize/text",
            is_output_node=True,
            description="Saves a concept as an ordinary embedding file in ComfyUI's embeddings folder. Stock nodes use "
            "it without this pack: paste the text this node gives into any prompt.",
            search_aliases=["save embedding", "export embedding", "textual inversion", "save character", "export"],
            inputs=[
                ConceptType.Input("concept", tooltip="A trained or loaded concept."),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="File name without extension, also with a folder, as "
                    "dogs/rex. {} becomes the placeholder without brackets, as in {}-vico; empty: it alone. If another "
                    "file has the name, -2, -3 and so on is added; nothing is ever overwritten.",
                ),
                io.Combo.Input(
                    "format",
                    options=[SAFETENSORS, *LAYOUTS],
                    default=SAFETENSORS,
                    optional=True,
                    tooltip="safetensors: ComfyUI's own, with all settings. The others are for other programs: "
                    "A1111 and diffusers (Textual Inversion), the scripts of Textual Inversion and "
                    "ViCo, diffusers, CoRe's scripts; they hold the vectors of one text encoder and "
                    "no settings.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="prompt_text",
                    is_output_list=True,
                    tooltip="What to write in a prompt, for example embedding:my-dog; one text for each concept.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, name=None) -> bool | str:
        """Says of a name before anything runs that nothing could be saved by it."""
        if name is None or not name.strip():
            return True
        return saving_problem(KIND, name.replace(SLOT, "word"), "The file name") or True

    @classmethod
    def execute(cls, concept, name, format=SAFETENSORS) -> io.NodeOutput:
        """One file per concept of the wire."""
        name = name.strip()
        stems = file_stems([each.placeholder for each in concept])
        if SLOT in name:
            stems = {word: name.replace(SLOT, stem) for word, stem in stems.items()}
        elif name:
            stems = {word: f"{name}-{stem}" if len(concept) > 1 else name for word, stem in stems.items()}
        paths = [save_concept(each, stems[each.placeholder], format) for each in concept]
        texts = [prompt_text(path) for path in paths]
        shown = "\n".join(f"{text}{_of_layers(each)}\n{path}" for each, text, path in zip(concept, texts, paths))
        return io.NodeOutput(texts, ui=ui.PreviewText(shown))


class PersonalizeLoadConcept(io.ComfyNode):
    """Reads a concept from an embedding file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeLoadConcept", display_name="Load Concept", category="personalize/text",
            description="Reads an embedding file as a concept: files of this pack with their settings, and those of "
                        "Textual Inversion, A1111, diffusers, kohya, CoRe, ViCo, and embeddings inside LoRA files.",
            search_aliases=["load embedding", "import embedding", "textual inversion", "load textual inversion",
                            "load character"],
            inputs=[
                io.Combo.Input("embedding", options=embedding_names(),
                               tooltip="File of ComfyUI's embeddings folder. New files are listed after the page is "
                                       "refreshed (key R); a name given by a workflow or the API is found at once."),
                io.String.Input("placeholder", default="",
                                tooltip="Word that prompts call it by. Empty: as the file says, else its name in <>."),
                io.String.Input("class_words", default="",
                                tooltip="What it is, for losses and further training. Empty: as the file says."),
                io.Clip.Input("clip", optional=True, tooltip="Only needed for files that do not name their text "
                                                             "encoder and have an unusual width (not 768, 1024 or "
                                                             "1280).")],
            outputs=[
                ConceptType.Output(display_name="concept",
                                   tooltip="The concept: for Apply Concept, losses, more training."),
                io.String.Output(display_name="placeholder", tooltip="The word that prompts call it by."),
                io.String.Output(display_name="class_words", tooltip="What the subject is, as the file or class_words "
                                                                     "says.")])

    @classmethod
    def validate_inputs(cls, embedding) -> bool | str:
        """Takes the check of `embedding` from ComfyUI, so that a name may be typed and a new file be used at once."""
        return _validated(embedding)

    @classmethod
    def fingerprint_inputs(cls, embedding=NONE, **_) -> str:
        """Changes when the file does."""
        return _file_version(embedding)

    @classmethod
    def execute(cls, embedding, placeholder, class_words, clip=None) -> io.NodeOutput:
        """The concept, a chain of one link."""
        encoders = text_encoders(clip) if clip is not None else ()
        concept = load_concept(find_embedding(embedding), placeholder.strip(), class_words.strip(), encoders)
        return io.NodeOutput((concept,), concept.placeholder, concept.class_words)


def _of_layers(concept: Concept) -> str:
    """What a person is told who would write the text of a concept with vectors for each layer into a prompt."""
    return "" if concept.vectors.axis is None else (
        " (the mean of its layers: for what each layer learned connect Load Concept and Apply Per-Layer Concept)")


def _validated(embedding: str | None) -> bool | str:
    if embedding in (None, NONE):
        return True
    try:
        find_embedding(embedding)
        return True
    except ValueError as error:
        return str(error)


def _file_version(embedding: str | None) -> str:
    try:
        return version_of(find_embedding(embedding or NONE))
    except ValueError as error:
        return str(error)


NODES: list[type] = [PersonalizeConcept, PersonalizeApplyConcept, PersonalizeSaveConcept, PersonalizeLoadConcept]
