"""The embeddings that a training run saved step by step: listing and deleting them."""
from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import safetensors
from safetensors import SafetensorError

from .embedding_files import MARK, embeddings_folder, prompt_text

_STEP_FILE = re.compile(r".+-\d{6}(-\d+)?\.safetensors")
_RANGE = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")


@dataclass(frozen=True)
class StepFile:
    """One saved step of a placeholder. prompt: what to write in a prompt, e.g. "embedding:my-run/my-dog-000050"."""

    path: Path
    placeholder: str
    step: int

    @property
    def prompt(self) -> str:
        """What to write in a prompt for this file."""
        return prompt_text(self.path)


def run_names() -> list[str]:
    """Names of the runs that have files in the embeddings folder; a name with a slash is a folder in a folder."""
    root = embeddings_folder()
    folders = {path.parent for path in root.rglob("*.safetensors") if _STEP_FILE.fullmatch(path.name)}
    return sorted(folder.relative_to(root).as_posix() for folder in folders - {root})


def step_files(run: str) -> list[StepFile]:
    """Files of a run that this pack wrote, by placeholder and step.

    Raises ValueError if there is no such run in the embeddings folder.
    """
    root = embeddings_folder().resolve()
    folder = (root / run).resolve()
    if root not in folder.parents or not folder.is_dir():
        raise ValueError(f"There is no run '{run}' in {embeddings_folder()}; choose one from the list, or refresh the "
                         "page (key R).")
    folder = embeddings_folder() / run
    found = [(path, _metadata(path)) for path in folder.glob("*.safetensors") if not path.is_symlink()]
    files = [StepFile(path, said.get("placeholder", "?"), int(said["step"])) for path, said in found
             if MARK in said and said.get("step", "").isdigit()]
    return sorted(files, key=lambda file: (file.placeholder, file.step, file.path.name))


def delete_files(files: list[StepFile]) -> None:
    """Deletes the files, and their run's folder if that leaves it empty.

    Raises OSError with one sentence if one cannot be deleted; those before it are gone then.
    """
    for file in files:
        try:
            file.path.unlink(missing_ok=True)
        except OSError as error:
            raise OSError(f"Could not delete {file.path}: {error.strerror}; make the folder writable.") from error
    for folder in {file.path.parent for file in files}:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


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


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}
