"""The node that lists and deletes the embeddings a run saved step by step."""
from __future__ import annotations

from comfy_api.latest import io, ui

from .step_files import StepFile, delete_files, parse_steps, run_names, step_files

LIST, DELETE, KEEP = "list", "delete these steps", "keep only these steps"


class PersonalizeManageSteps(io.ComfyNode):
    """Lists and deletes the per-step files of a run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeManageSteps", display_name="Manage Steps", category="personalize/text",
            is_output_node=True,
            description="Lists the embeddings that Train saved on the way and deletes those you do not need. It "
                        "touches only files in the embeddings folder that this pack has written.",
            search_aliases=["checkpoints", "delete embeddings", "clean up", "training steps"],
            inputs=[
                io.Combo.Input("run", options=run_names(), tooltip="Run of Train, a folder in the embeddings folder."),
                io.Combo.Input("action", options=[LIST, DELETE, KEEP], default=LIST,
                               tooltip="list changes nothing. Deleted files are gone for good; set it back to list "
                                       "afterwards."),
                io.String.Input("steps", default="", tooltip="Steps to delete or to keep: 50, 100-250. Not used by "
                                                             "list.")],
            outputs=[
                io.String.Output(display_name="report", tooltip="What is there, and what was deleted."),
                io.String.Output(display_name="prompt_texts", is_output_list=True,
                                 tooltip="What to write in a prompt for each file that is left, in order of steps.")])

    @classmethod
    def validate_inputs(cls, run) -> bool | str:
        """Takes the check of `run` from ComfyUI, whose list of runs may be older than the newest one."""
        try:
            if run is not None:
                step_files(run)
            return True
        except ValueError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, **_) -> float:
        """Never the same: the files may have changed."""
        return float("nan")

    @classmethod
    def execute(cls, run, action, steps) -> io.NodeOutput:
        """Report and prompt texts of what is left."""
        files = step_files(run)
        gone = [] if action == LIST else _to_delete(files, steps, keep=action == KEEP)
        left = [file for file in files if file not in gone]
        delete_files(gone)
        lines = [f"{file.prompt}  ({file.placeholder}, step {file.step})" for file in left]
        report = "\n".join([f"{run}: {len(left)} files" + (f", {len(gone)} deleted" if gone else ""), *lines])
        return io.NodeOutput(report, [file.prompt for file in left], ui=ui.PreviewText(report))


def _to_delete(files: list[StepFile], steps: str, keep: bool) -> list[StepFile]:
    named = parse_steps(steps)
    if not named:
        raise ValueError("No steps are named; write which ones, for example 50, 100-250.")
    chosen = [file for file in files if any(file.step in part for part in named)]
    if not chosen:
        have = ", ".join(str(step) for step in sorted({file.step for file in files}))
        raise ValueError(f"The run has no file of the steps '{steps}'; it has {have or 'none'}.")
    return [file for file in files if file not in chosen] if keep else chosen


NODES: list[type] = [PersonalizeManageSteps]
