"""Which steps of a run can be used: what its report says, mended by what is on the disk.

A step is several files and the report is written after them, so a killed run may leave files that no report names; and
files that a report names may have been deleted since."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..run_files import RunFile, files_of_run
from ..text.embedding_files import prompt_text
from .parts.part import WEIGHTS, TrainablePart
from .run_pictures import drawn_entry, in_order, photographs_of

Report = Mapping[str, Any]


def reconciled(report: Report, words: Sequence[str], parts: Sequence[TrainablePart]) -> dict[str, Any]:
    """The report of a run with those saved steps and pictures that are there.

    words: placeholders of the subjects, in order. parts: what the run trains; tells which files belong to a step.
    """
    files, kept = files_of_run(report["run"]), kept_files(parts)
    saved = {entry["step"]: entry for entry in report["saved"] if is_whole(entry, words, kept)}
    steps = {file.step for file in files if file.what == "embedding" and file.step is not None}
    for step in sorted(steps - saved.keys()):
        entry = _entry_of(step, [file for file in files if file.step == step], words, kept)
        if entry:
            saved[step] = entry
    known = {entry["image"]["filename"]: entry for entry in report["previews"]}
    drawn = [file for file in files if file.what == "preview" and file.step is not None]
    previews = [known.get(file.path.name) or drawn_entry(report["run"], file) for file in drawn]
    mended = {**report, "saved": [saved[step] for step in sorted(saved)], "previews": in_order(previews),
              "photographs": photographs_of(report["run"])}
    return mended if mended["photographs"] else {name: mended[name] for name in mended if name != "photographs"}


def kept_files(parts: Sequence[TrainablePart]) -> list[tuple[str, str]]:
    """(kind of folder, stem) of the files that a step has beside its embeddings."""
    return list(dict.fromkeys(file for part in parts for file in part.keeps))


def missing_file(entry: Report) -> Path | None:
    """A file of a saved step that is not there any more."""
    return next((Path(file) for file in (*entry["files"], *entry["part_files"]) if not Path(file).exists()), None)


def is_whole(entry: Report, words: Sequence[str], kept: Sequence[tuple[str, str]]) -> bool:
    """Whether all files of a saved step are there, apart from those that were too large to be saved."""
    if missing_file(entry) or len(entry["embeddings"]) != len(words):
        return False
    return entry.get("left_out") or len(entry["files"]) + len(entry["part_files"]) >= len(words) + len(kept)


def _entry_of(step: int, files: Sequence[RunFile], words: Sequence[str], kept: Sequence[tuple[str, str]]
              ) -> dict[str, Any] | None:
    """As `RunFolder.save_step` returns it, or None where a file is missing."""
    found = [_newest(file for file in files if file.text == word) for word in words]
    places = {place: _newest(file for file in files if (file.kind, file.stem) == place) for place in kept}
    embeddings = [path for path in found if path is not None]
    beside = {place: path for place, path in places.items() if path is not None}
    if len(embeddings) < len(words) or len(beside) < len(kept):
        return None
    weights = [str(path) for place, path in beside.items() if place == WEIGHTS]
    more = [str(path) for place, path in beside.items() if place != WEIGHTS]
    return {"step": step, "embeddings": list(map(prompt_text, embeddings)), "files": [*map(str, embeddings), *weights],
            "part_files": more, "left_out": False}


def _newest(files: Iterable[RunFile]) -> Path | None:
    paths = [file.path for file in files]
    return max(paths, key=lambda path: path.stat().st_mtime_ns) if paths else None
