"""What would only fail when a run saves, looked at before its first step."""
from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..files import remove_leftovers
from ..foreign.text import readable_size
from ..locations import OUTPUT, check_folder, check_name, first_folder
from ..run_files import RUNS
from ..text.concept import Concept
from .parts.part import Artifact
from .run_folder import LARGEST_STATE_KEPT_PER_STEP, LARGEST_STATE_PER_SAVE, RunFolder, is_large

RECORD = 500  # bytes of a step's record in a state or report
NAME = 160  # bytes of a tensor's name and place in a file
HEAD = 2000  # bytes of what a file says of itself


@dataclass(frozen=True)
class Saves:
    """What a run will still save.

    steps: at which it saves, the last step at the end. artifacts: weights and what else the parts keep.
    state, tensors: bytes of a state, number of its tensors. previews, picture: how many pictures, and bytes of one.
    """

    steps: Sequence[int]
    concepts: Sequence[Concept]
    artifacts: Sequence[Artifact]
    state: int
    tensors: int = 0
    previews: int = 0
    picture: int = 0


def clear_away(kinds: Iterable[str]) -> None:
    """Removes what killed runs left unfinished where runs save: output and the model folders that get files."""
    folders = [first_folder(kind) for kind in ("embeddings", *kinds)]
    remove_leftovers([first_folder(OUTPUT) / RUNS, *dict.fromkeys(folders)])


def check_places(folder: RunFolder, concepts: Sequence[Concept], kinds: Iterable[str], step: int) -> None:
    """Makes the run's folders and looks whether they and the disk take its files.

    kinds: of model folders that get files. step: the last one. Raises OSError with one sentence.
    """
    for kind in dict.fromkeys(("embeddings", *kinds)):
        check_folder(kind, folder.run)
    check_folder(OUTPUT, f"{RUNS}/{folder.run}")
    for concept, path in zip(concepts, folder.embedding_paths(concepts, step), strict=True):
        check_name(path, f"give {concept.placeholder[:30]} a shorter word in Concept")
    check_name(folder.state_path(step), "give Train a shorter name")


def check_room(folder: RunFolder, saves: Saves) -> None:
    """Raises OSError with one sentence if a disk has less room than the run will need there."""
    needed: dict[int, int] = {}
    places: dict[int, Path] = {}
    for path, size in _planned(folder, saves):
        place = next(parent for parent in path.parents if parent.exists())
        disk = place.stat().st_dev
        needed[disk] = needed.get(disk, 0) + size
        places.setdefault(disk, place)
    for disk, place in places.items():
        free = shutil.disk_usage(place).free
        if needed[disk] > free:
            raise OSError(f"This run will save about {readable_size(needed[disk])} on the disk of {place}, where "
                          f"{readable_size(free)} are free; make room there, or save and preview less often.")


def _stored_size(tensors: Mapping[str, Tensor], bytes_each: int) -> int:
    return sum(bytes_each * tensor.numel() + NAME for tensor in tensors.values())


def _planned(folder: RunFolder, saves: Saves) -> list[tuple[Path, int]]:
    """(path, bytes) of all files that are not there yet."""
    steps, last = saves.steps, saves.steps[-1:]
    embeddings = [(path, HEAD + _stored_size(concept.vectors, 4)) for step in steps
                  for concept, path in zip(saves.concepts, folder.embedding_paths(saves.concepts, step), strict=True)]
    tensors = [(folder.tensors_path(artifact, step), HEAD + _stored_size(artifact.tensors, 2))
               for artifact in saves.artifacts if artifact.tensors
               for step in (last if is_large(artifact) else steps)]
    new = [(path, size) for path, size in (*embeddings, *tensors) if not path.exists()]
    records = folder.path / "records"
    return [*new, (records, _states(saves) + 2 * RECORD * max(steps) + saves.previews * saves.picture)]


def _states(saves: Saves) -> int:
    """Bytes of all states that are there at once: small ones stay, a large one goes when the next is written."""
    file = saves.state + NAME * saves.tensors
    if saves.state <= LARGEST_STATE_KEPT_PER_STEP:
        return sum(file + RECORD * step for step in saves.steps)
    at_once = 1 if len(saves.steps) == 1 or saves.state > LARGEST_STATE_PER_SAVE else 2
    return at_once * (file + RECORD * saves.steps[-1])
