"""The node that puts a step of a run into one folder."""
from __future__ import annotations

from comfy_api.latest import io, ui

from ..run_files import run_names
from .export import export_step
from .step_files import check_run


class PersonalizeExportStep(io.ComfyNode):
    """Copies what a step left into a new folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeExportStep", display_name="Export Step", category="personalize/training",
            is_output_node=True,
            description="Puts a saved step of Train into one new folder, to keep or to give away: embedding, trained "
                        "weights, its pictures beside photographs, settings and workflow. The button Export on Train's "
                        "pictures does the same.",
            search_aliases=["export", "share embedding", "package", "backup"],
            inputs=[
                io.Combo.Input("run", options=run_names(), tooltip="Run of Train: the name of its folders."),
                io.Int.Input("step", default=0, min=0, max=100000,
                             tooltip="A step whose files were saved; 0: the last one."),
            ],
            outputs=[io.String.Output(display_name="report", tooltip="Where the folder is, and what is not in it.")])

    @classmethod
    def validate_inputs(cls, run) -> bool | str:
        """Says before anything runs that there is no such run."""
        return check_run(run)

    @classmethod
    def execute(cls, run: str, step: int) -> io.NodeOutput:
        """A new folder for every call."""
        report = export_step(run, step).sentence
        return io.NodeOutput(report, ui=ui.PreviewText(report))


NODES: list[type] = [PersonalizeExportStep]
