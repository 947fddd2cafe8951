"""The node that writes ViCo for its authors' scripts."""
from __future__ import annotations

from comfy_api.latest import io, ui

from ...locations import OUTPUT, saving_problem
from ...text.embedding_files import file_stem
from ...types import ConceptType, ViCoType
from .authors_files import save_for_authors
from .files import ViCo
from .nodes_apply import CATEGORY


class PersonalizeSaveViCo(io.ComfyNode):
    """Writes image blocks and their word in the authors' layout."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeSaveViCo",
            display_name="Save ViCo",
            category=CATEGORY,
            is_output_node=True,
            description="Saves trained image blocks and their word as the scripts of ViCo's authors read them. This "
            "pack does not need it: Train has saved both already.",
            search_aliases=["export", "cross_attention", "embeddings_gs", "authors"],
            inputs=[
                ViCoType.Input("vico", tooltip="From Load ViCo: image blocks trained on SD1.x with placement decoder."),
                ConceptType.Input(
                    "concept", tooltip="The word that was trained with them: from Train or Load Concept."
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="Folder below output/vico. Empty: made of the placeholder. If "
                    "something else has the name, -2, -3 and so on is added.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="arguments",
                    tooltip="What to give the authors' vico_txt2img.py: --ft_path and --load_step. In "
                    "their prompts the subject is called *",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, name=None) -> bool | str:
        """Says of a name before anything runs that nothing could be saved by it."""
        if name is None or not name.strip():
            return True
        return saving_problem(OUTPUT, f"vico/{name.strip()}", "The name") or True

    @classmethod
    def execute(cls, vico: ViCo, concept, name: str) -> io.NodeOutput:
        """STRING."""
        if len(concept) > 1:
            words = ", ".join(each.placeholder for each in concept)
            raise ValueError(
                f"concept holds {words}, but the authors' scripts know one word; load the one you want with "
                "Load Concept."
            )
        folder, step = save_for_authors(vico, concept[0], name.strip() or file_stem(concept[0].placeholder))
        arguments = f'--ft_path "{folder}" --load_step {step}'
        return io.NodeOutput(arguments, ui=ui.PreviewText(arguments))


NODES = [PersonalizeSaveViCo]
