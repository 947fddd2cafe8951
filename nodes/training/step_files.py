"""The files that a training run left, step by step: listing and deleting them."""
from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath

from ..files import reason, remove_leftovers, unfinished
from ..run_files import RunFile, files_of_run, folders_of_run
from .progress import RUNS
from .run_folder import forget_missing_files

_RANGE = re.compile(r"(\d{1,9})(?:\s*-\s*(\d{1,9}))?")


def step_files(run: str) -> list[RunFile]:
    """Files that this pack wrote for a run, by step, the records last; none that are reached through links.

    Raises ValueError if there is no such run in ComfyUI's folders.
    """
    folders = _folders(run)
    listed = files_of_run(run) if folders else []
    files = [file for file in listed if file.path.parent in folders and not file.path.is_symlink()]
    if not files:
        raise ValueError(
            f"There is no run '{run}' that has files in ComfyUI's folders; choose one from the list, or refresh "
            "the page (key R)."
        )
    return files


def check_run(run: str | None) -> bool | str:
    """For `validate_inputs`: takes the check of a run from ComfyUI, whose list may be older than the newest run.

    run: None where it comes by a link.
    """
    try:
        return run is None or bool(step_files(run))
    except ValueError as error:
        return str(error)


def unfinished_files(run: str) -> list[Path]:
    """What is being written for a run, or was when its process was killed."""
    return [path for folder in unfinished(_folders(run)) for path in folder.rglob("*") if path.is_file()]


def delete_files(run: str, files: Sequence[RunFile]) -> None:
    """Deletes files of a run, what killed processes left unfinished in its folders, and folders that are empty then;
    the report forgets what is gone.

    Raises ValueError if the run is in progress, also in another process; OSError with one sentence if a file cannot be
    deleted: the others are gone then.
    """
    folders = _folders(run)
    remove_leftovers(folders)
    if RUNS.find(run) or unfinished(folders):
        raise ValueError(f"The run {run} is in progress; wait until it ends, or press Stop on Train, then delete.")
    failed = [error for file in files if (error := _deleted(file.path))]
    forget_missing_files(run)
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
    if failed:
        raise OSError(
            f"Could not delete {' and '.join(failed)}; close what has it open, or make the folder writable, then "
            "delete again."
        )


def chosen_files(files: Sequence[RunFile], text: str, keep: bool) -> list[RunFile]:
    """The files to delete: those of the steps in `text`, or with `keep` of all other steps; the records stay.

    Raises ValueError if `text` names no step, or one that has no file: nothing is deleted for a slip.
    """
    named, steps = parse_steps(text), {file.step for file in files if file.step is not None}
    if not named:
        raise ValueError("No steps are named; write which ones, for example 50, 100-250.")
    missing = next((part for part in named if not steps.intersection(part)), None)
    if missing is not None:
        raise ValueError(
            f"The run has no file of step {_shown(missing)}; it has {_listed(steps)}. Nothing was deleted."
        )
    inside = {step for step in steps if any(step in part for part in named)}
    return [file for file in files if file.step in (steps - inside if keep else inside)]


def parse_steps(text: str) -> list[range]:
    """Steps such as "50, 100-250": single ones and ranges with both ends.

    Raises ValueError naming a part that is neither.
    """
    steps = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _RANGE.fullmatch(part)
        if not match:
            raise ValueError(f"The steps '{text}' hold '{part}', which is no number; write steps and ranges such as "
                             "50, 100-250.")
        steps.append(range(int(match[1]), int(match[2] or match[1]) + 1))
    return steps


def _folders(run: str) -> list[Path]:
    """Folders of a run inside ComfyUI's folders; none for a name that leads elsewhere, and none behind a link."""
    parts = PureWindowsPath(run).parts  # splits at both kinds of slashes, and knows drives
    if not parts or PureWindowsPath(run).anchor or ".." in parts:
        return []
    return [folder for folder in folders_of_run(run) if _stays_where_it_is(folder, parts)]


def _stays_where_it_is(folder: Path, parts: Sequence[str]) -> bool:
    """Whether no part of the run's name is a link to another place."""
    root = folder.parents[len(parts) - 1]
    return folder.resolve() == root.resolve().joinpath(*parts)


def _deleted(path: Path) -> str:
    """"", or why the file is still there."""
    try:
        path.unlink(missing_ok=True)
        return ""
    except OSError as error:
        return f"{path} ({reason(error)})"


def _shown(part: range) -> str:
    return str(part.start) if len(part) == 1 else f"{part.start}-{part.stop - 1}"


def _listed(steps: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(steps))) or "none"
