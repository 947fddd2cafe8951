"""The node that lists and deletes what a run saved."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from comfy_api.latest import io, ui

from ..foreign.text import readable_size
from ..locations import location_of
from ..run_files import RunFile, run_names
from ..text.embedding_files import prompt_text
from .step_files import check_run, chosen_files, delete_files, step_files, unfinished_files

LIST, DELETE, KEEP, WHOLE = "list", "delete these steps", "keep only these steps", "delete the whole run"


class PersonalizeManageSteps(io.ComfyNode):
    """Lists and deletes the files of a run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="PersonalizeManageSteps",
            display_name="Manage Steps",
            category="personalize/training",
            is_output_node=True,
            description="Lists all that a run of Train saved, with sizes: embeddings, trained weights, states to "
            "continue from, pictures, records. Deletes the steps you do not need, or all of it. It touches only files "
            "that this pack has written.",
            search_aliases=["checkpoints", "delete embeddings", "clean up", "training steps", "disk space",
                            "saved steps"],
            inputs=[
                io.Combo.Input("run", options=run_names(), tooltip="Run of Train: the name of its folders."),
                io.Combo.Input(
                    "operation",
                    options=[LIST, DELETE, KEEP, WHOLE],
                    default=LIST,
                    tooltip="list changes nothing. Deleted files are gone for good; after the run it is list again.",
                ),
                io.String.Input("step_numbers", default="",
                                tooltip="Steps to delete or to keep: 50, 100-250. Only for these two operations."),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="What is there, and what was deleted."),
                io.String.Output(
                    display_name="prompt_texts",
                    is_output_list=True,
                    tooltip="What to write in a prompt for each embedding that is left, in order of steps.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, run) -> bool | str:
        """Says before anything runs that there is no such run."""
        return check_run(run)

    @classmethod
    def fingerprint_inputs(cls, **_) -> float:
        """Never the same: the files may have changed."""
        return float("nan")

    @classmethod
    def execute(cls, run: str, operation: str, step_numbers: str) -> io.NodeOutput:
        """Report and prompt texts of what is left."""
        files, leftovers = step_files(run), unfinished_files(run)
        gone = []
        if operation == WHOLE:
            gone = files
        elif operation != LIST:
            gone = chosen_files(files, step_numbers, keep=operation == KEEP)
        left = [file for file in files if file not in gone]
        if operation != LIST:
            delete_files(run, gone)
        report = "\n".join([_head(run, left, gone), *map(_line, left), *_of_leftovers(leftovers, operation != LIST),
                            *_of_resuming(files, left)])
        texts = [prompt_text(file.path) for file in left if file.what == "embedding"]
        return io.NodeOutput(report, texts, ui=ui.PreviewText(report))


def _head(run: str, left: Sequence[RunFile], gone: Sequence[RunFile]) -> str:
    return f"{run}: {_sum(left)}" + (f"; {_sum(gone)} deleted" if gone else "")


def _line(file: RunFile) -> str:
    where = location_of(file.path)
    name = f"{prompt_text(file.path)} {file.text}" if file.what == "embedding" else f"{where['kind']}/{where['name']}"
    step = "record" if file.step is None else f"step {file.step}"
    return f"{step}  {name}  {readable_size(file.size)}"


def _of_leftovers(paths: Sequence[Path], deleted: bool) -> list[str]:
    if not paths:
        return []
    size = readable_size(sum(path.stat().st_size for path in paths if path.exists()))
    return ["Unfinished files of a killed run are deleted." if deleted else
            f"Unfinished, being written or left by a killed run: {size}; any deletion removes what is left."]


def _of_resuming(before: Sequence[RunFile], left: Sequence[RunFile]) -> list[str]:
    """From where Train goes on, if that has changed."""
    furthest, now = (max((file.step or 0 for file in files if file.what == "state"), default=0)
                     for files in (before, left))
    if not left or furthest == now:
        return []
    return [
        f"Run again, Train trains on from step {now}." if now else "Run again, Train begins anew: no state is left."
    ]


def _sum(files: Sequence[RunFile]) -> str:
    return f"{len(files)} file{'s' * (len(files) != 1)}, {readable_size(sum(file.size for file in files))}"


NODES: list[type] = [PersonalizeManageSteps]
