"""A step of a run as one folder to keep or to give away: what it learned, how it was made, and its pictures."""
from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files import NotWritten, write_file, write_text
from ..locations import OUTPUT, first_folder, readable_path
from ..names import safe_name
from ..run_files import EXPORTS, RUNS, SETTINGS, WORKFLOW, RunFile, files_of_run, output_folder
from .run_folder import saved_report
from .run_pictures import drawn_entry, in_order

MOST_LETTERS_OF_A_PROMPT = 60
_KEY = re.compile(r"-[0-9a-f]{8}$")


@dataclass(frozen=True)
class Exported:
    """folder: that was made. sentence: where it is, and what is not in it."""

    folder: Path
    sentence: str


def export_step(run: str, step: int) -> Exported:
    """Copies a saved step into a new folder output/personalize/exports/<name>-step<N>; step: 0 for the last one.

    Raises ValueError with one sentence if the run has no such step, NotWritten if the copy cannot be written: nothing
    is left of it then.
    """
    files = files_of_run(safe_name(run, "The run's name"))
    saved = sorted({file.step for file in files if file.what in ("embedding", "weights") and file.step is not None})
    if not saved:
        raise ValueError(f"The run '{run}' has no saved step; train it, or choose another run.")
    if step and step not in saved:
        raise ValueError(f"Step {step} of {run} has no saved file; it has steps {', '.join(map(str, saved))}.")
    step = step or saved[-1]
    folder = _new_folder(f"{_KEY.sub('', run)}-step{step}")
    try:
        learned = [file for file in files if file.step == step and file.what in ("embedding", "weights")]
        for source, name in [*_learned(learned), *_pictures(run, files, step), *_records(run)]:
            _copy(source, folder / name)
        without = _what_is_left_out(run, step)
        write_text(folder / "how-to-use.txt", "\n".join([*_how_to_use(run, step, learned), *without, ""]))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Exported(folder, " ".join([f"Step {step} is in {readable_path(folder)}.", *without]))


def _new_folder(name: str) -> Path:
    """Never one that is there."""
    root = first_folder(OUTPUT) / RUNS / EXPORTS
    for number in range(1, 10_000):
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise NotWritten(folder, error.strerror or str(error)) from error
    raise NotWritten(root / name, "there are 9999 exports of that name")


def _learned(files: Sequence[RunFile]) -> Iterator[tuple[Path, str]]:
    yield from ((file.path, f"{file.kind}/{file.path.name}") for file in files)


def _pictures(run: str, files: Sequence[RunFile], step: int) -> Iterator[tuple[Path, str]]:
    known = {entry["image"]["filename"]: entry for entry in saved_report(run)["previews"]}
    drawn = {file.path.name: file for file in files if file.what == "preview" and file.step == step}
    entries = in_order(known.get(name) or drawn_entry(run, file) for name, file in drawn.items())
    for number, entry in enumerate(entries, 1):
        shows = re.sub(r"\W+", "-", entry.get("prompt", ""))[:MOST_LETTERS_OF_A_PROMPT].strip("-")
        name = "-".join(filter(None, [f"{number:02}", shows]))
        yield drawn[entry["image"]["filename"]].path, f"pictures/{name}.png"
    for path in sorted(output_folder(run).glob("photograph-*.jpg")):
        yield path, f"pictures/{path.name}"


def _records(run: str) -> Iterator[tuple[Path, str]]:
    yield from ((output_folder(run) / name, name) for name in (SETTINGS, WORKFLOW)
                if (output_folder(run) / name).is_file())


def _copy(source: Path, target: Path) -> None:
    write_file(target, lambda unfinished: shutil.copyfile(source, unfinished))


def _what_is_left_out(run: str, step: int) -> list[str]:
    entry = next((entry for entry in saved_report(run)["saved"] if entry["step"] == step), {})
    if not entry.get("left_out"):
        return []
    return ["Its trained weights are not there: files of more than 300 MB are saved at the last step only."]


def _how_to_use(run: str, step: int, learned: Sequence[RunFile]) -> Iterator[str]:
    yield f"Step {step} of the training {run}, made with ComfyUI-Personalize."
    yield ""
    for kind in sorted({file.kind for file in learned}):
        yield f"{kind}: copy the files into ComfyUI/models/{kind}."
    for file in learned:
        if file.what == "embedding":
            yield f"In a prompt, write embedding:{file.path.stem} for {file.text}."
    if any(file.kind == "loras" for file in learned):
        yield "The weights in loras are used with Load LoRA at strength 1, together with the embedding."
    if any(file.kind == "vico" for file in learned):
        yield "The image blocks in vico are used with Load ViCo and Apply ViCo."
