"""What a run has on the disk, found there and not by what it says: in the model folders and in its output folder."""
from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .files import MARK
from .foreign.safetensors_file import MOST_OWN_HEADER
from .locations import OUTPUT, first_folder, folders_of, kinds
from .weight_files import read_metadata

RUNS = "personalize"  # folder of all runs in ComfyUI's output folder
EXPORTS = "exports"  # folder in it of what was exported, which are no runs
SETTINGS, WORKFLOW = "settings.json", "workflow.json"
GRAPHS = "graphs.json"  # which graphs led to the run
_RECORD = re.compile(r"(?:report|settings|workflow|graphs)\.json|losses\.csv|photograph-\d+\.jpg")
_RUN = re.compile(r".+-[0-9a-f]{8}")
_STEP = re.compile(r"(.+)-(\d{6,9})(?:-\d+)?\.(?:safetensors|png)")

What = Literal["embedding", "weights", "state", "preview", "record"]


@dataclass(frozen=True)
class RunFile:
    """A file of a run.

    kind: "output" or the kind of model folder it is in. what: "embedding" has a placeholder; "weights" are a LoRA or
    what else a part of the training keeps; "record" is what belongs to no step: report, losses, settings,
    workflow and photographs; of step None.
    stem: name of the file without the step. size: bytes. text: the placeholder of an embedding, else "".
    """

    path: Path
    kind: str
    what: What
    stem: str
    step: int | None
    size: int
    text: str = ""


def files_of_run(run: str) -> list[RunFile]:
    """All files that this pack wrote for a run, by step, the records last; run: the name of its folders.

    Model files count if their metadata say that this pack wrote them. Unfinished files of killed runs are not listed:
    `remove_leftovers` takes them away.
    """
    found = {file.path: file for kind in kinds() for file in _model_files(kind, run)}
    files = [*found.values(), *_output_files(output_folder(run))]
    return sorted(files, key=lambda file: (file.step is None, file.step or 0, file.kind, file.stem, file.path.name))


def run_names() -> list[str]:
    """Names of all runs that have files; a name with a slash is a folder in a folder."""
    runs = [path.parent.relative_to(folder) for folder in folders_of("embeddings")
            for path in folder.rglob("*.safetensors") if _STEP.fullmatch(path.name)]
    root = first_folder(OUTPUT) / RUNS
    runs += [folder.relative_to(root) for folder in root.rglob("*") if folder.is_dir() and _output_files(folder)
             and not folder.is_relative_to(root / EXPORTS)]
    runs += [folder.relative_to(root) for kind in kinds() for root in folders_of(kind) for folder in root.glob("*")
             if _RUN.fullmatch(folder.name) and any(_STEP.fullmatch(path.name)
                                                    for path in folder.glob("*.safetensors"))]
    return sorted({run.as_posix() for run in runs if run.parts})


def folders_of_run(run: str) -> list[Path]:
    """Where files of a run are; only folders that exist."""
    folders = [folder / run for kind in kinds() for folder in folders_of(kind)] + [output_folder(run)]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def output_folder(run: str) -> Path:
    """The folder of a run's state, report and previews."""
    return first_folder(OUTPUT) / RUNS / run


def _model_files(kind: str, run: str) -> list[RunFile]:
    files = []
    for path in (path for folder in folders_of(kind) for path in (folder / run).glob("*.safetensors")):
        said, match = _metadata(path), _STEP.fullmatch(path.name)
        if match and MARK in said and said.get("run") == run:
            word = said.get("placeholder", "") if kind == "embeddings" else ""
            what = "embedding" if word else "weights"
            files.append(RunFile(path, kind, what, match[1], int(match[2]), _size(path), word))
    return files


def _output_files(folder: Path) -> list[RunFile]:
    files = []
    for path in folder.glob("*"):
        match = _STEP.fullmatch(path.name)
        if match and (match[1] == "preview" or match[1] == "state" and "fingerprint" in _metadata(path)):
            files.append(RunFile(path, OUTPUT, match[1], match[1], int(match[2]), _size(path)))
        elif _RECORD.fullmatch(path.name):
            files.append(RunFile(path, OUTPUT, "record", path.stem, None, _size(path)))
    return files


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _metadata(path: Path) -> dict[str, str]:
    try:
        return read_metadata(path, "file of a run", MOST_OWN_HEADER)
    except ValueError:
        return {}
