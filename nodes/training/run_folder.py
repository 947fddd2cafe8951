"""What a run leaves on the disk: resumable state, losses, and its files in ComfyUI's model folders."""
from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import MARK, NotWritten, write_safetensors, write_text
from ..foreign.text import read_text
from ..locations import first_folder, location_of, path_at
from ..names import ROOM_FOR_STEP, safe_name
from ..notice import notice
from ..run_files import output_folder
from ..text.concept import Concept
from ..text.concept_files import concept_metadata
from ..text.embedding_files import embeddings_folder, file_stems, prompt_text, save_embedding
from ..weight_files import holds
from .parts.part import WEIGHTS, Artifact
from .progress import jsonable
from .run_records import MOST_BYTES, parse_report, read_state, step_of_state

STATES = "state-*.safetensors"
LARGEST_STATE_KEPT_PER_STEP = 2**20
REPORT = "report.json"
LARGEST_WEIGHTS_PER_STEP = 300 * 2**20
LARGEST_STATE_PER_SAVE = 2**30


class Attempts:
    """Writes that do not stop each other. failed: those that could not be done, in order."""

    def __init__(self):
        self.failed: list[NotWritten] = []

    def __call__(self, write: Callable[..., Any], *args: Any) -> Any:
        """What `write(*args)` returns, or None where that could not be written."""
        try:
            return write(*args)
        except NotWritten as error:
            self.failed.append(error)
            return None


class RunFolder:
    """The folder output/personalize/<name>-<start of the fingerprint> of one run.

    The fingerprint covers everything the result depends on but the number of steps, so that the same settings find the
    same folder: to continue, or to return what is finished.
    """

    def __init__(self, name: str, key: str):
        """name: what a person wrote, or the name of the run without the start of the fingerprint."""
        self.run = f"{safe_name(name, 'The name', ROOM_FOR_STEP)}-{key[:8]}"
        self.path = output_folder(self.run)
        self.key = key

    def state(self, most: int) -> tuple[dict[str, Tensor], int, list[dict]] | None:
        """Tensors, steps done and history of the furthest saved state of at most `most` steps, or None."""
        for path in sorted(self.path.glob(STATES), reverse=True):
            try:
                found = read_state(path, self.key, most)
            except ValueError as error:
                notice(
                    f"Training goes on from an earlier state, or from the beginning, because this one cannot be used: "
                    f"{error}"
                )
                continue
            if found is not None:
                return found
        return None

    def furthest_state(self, most: int) -> int:
        """The step of the furthest saved state of at most `most` steps, by what the files say of themselves; 0 if there
        is none."""
        paths = sorted(self.path.glob(STATES), reverse=True)
        steps = (step_of_state(path, self.key) for path in paths if path.name <= self.state_path(most).name)
        return next((step for step in steps if step), 0)

    def state_path(self, step: int) -> Path:
        """Where the state after `step` goes."""
        return self.path / STATES.replace("*", f"{step:06d}")

    def save_state(self, tensors: Mapping[str, Tensor], step: int, history: Sequence[dict]) -> None:
        """Everything needed to resume after `step`, in a file of its own; large states replace the earlier ones."""
        path = self.state_path(step)
        about = {"fingerprint": self.key, "step": str(step), "history": json.dumps(jsonable(list(history)))}
        write_safetensors(path, tensors, about)
        self.drop_earlier_states(tensors, step)

    def drop_earlier_states(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Deletes the states before `step` if its tensors are large."""
        if sum(t.nbytes for t in tensors.values()) > LARGEST_STATE_KEPT_PER_STEP:
            for earlier in self.path.glob(STATES):
                if earlier.name < self.state_path(step).name:
                    _remove(earlier)

    def report(self) -> dict[str, Any]:
        """What was last written by `save_report`; empty lists before that."""
        return saved_report(self.run)

    def save_report(self, report: Mapping[str, Any]) -> dict[str, str]:
        """Writes report.json and losses.csv; returns their paths."""
        return _write_report(self.path, report)

    def save_step(self, step: int, concepts: Sequence[Concept], weights: Mapping[str, Tensor], last: bool,
                  artifacts: Sequence[Artifact] = (), attempts: Attempts | None = None) -> dict[str, Any]:
        """Writes the concepts' embeddings and the weights of a step as files that stock nodes load, and what else the
        parts keep: the smallest first, and each although another could not be written.

        Files of more than 300 MB are only written for the last step.
        Returns {step, embeddings: what to write in a prompt, files: paths, part_files: paths of the artifacts,
        left_out: whether a file was too large to be written} of what is written; what could not be is in `attempts`.
        """
        attempts = attempts or Attempts()
        about = {"run": self.run, "step": str(step)}
        stems = file_stems([concept.placeholder for concept in concepts])
        embeddings = [attempts(self._save_embedding, concept, f"{stems[concept.placeholder]}-{step:06d}", about)
                      for concept in concepts]
        trained = Artifact(*WEIGHTS, weights)
        wanted = [artifact for artifact in (trained, *artifacts) if artifact.tensors]
        kept = sorted((artifact for artifact in wanted if last or not is_large(artifact)), key=bytes_of)
        written = {id(artifact): attempts(self._save_tensors, artifact, step) for artifact in kept}
        embeddings = [path for path in embeddings if path]
        files = [*embeddings, written.get(id(trained))]
        more = [written.get(id(artifact)) for artifact in artifacts]
        return {"step": step, "embeddings": list(map(prompt_text, embeddings)), "files": [str(f) for f in files if f],
                "part_files": [str(f) for f in more if f], "left_out": len(kept) < len(wanted)}

    def tensors_path(self, artifact: Artifact, step: int) -> Path:
        """Where what an artifact holds after `step` goes."""
        return first_folder(artifact.kind) / self.run / f"{artifact.name}-{step:06d}.safetensors"

    def embedding_paths(self, concepts: Sequence[Concept], step: int) -> list[Path]:
        """Where the embeddings of the concepts after `step` go, if there are no others of these names."""
        stems = file_stems([concept.placeholder for concept in concepts])
        return [embeddings_folder() / self.run / f"{stems[concept.placeholder]}-{step:06d}.safetensors"
                for concept in concepts]

    def _save_tensors(self, artifact: Artifact, step: int) -> Path:
        """The path of the file."""
        path = self.tensors_path(artifact, step)
        stored = artifact.tensors if artifact.whole else _half(artifact.tensors)
        about = {**artifact.metadata, "run": self.run, "step": str(step), MARK: "1"}
        return path if holds(path, stored) else write_safetensors(path, stored, about)

    def _save_embedding(self, concept: Concept, name: str, about: Mapping[str, str]) -> Path:
        return save_embedding(name, concept.vectors, {**concept_metadata(concept), **about}, subfolder=self.run)


def saved_report(run: str) -> dict[str, Any]:
    """What `RunFolder.save_report` last wrote of the run of that name; empty lists if there is nothing, or no report.

    Raises ValueError for a name that leads out of ComfyUI's output folder.
    """
    empty = {"run": run, "history": [], "previews": [], "saved": [], "message": "", "stopped": {}}
    path = output_folder(safe_name(run, "The run's name")) / REPORT
    try:
        report = parse_report(read_text(path, MOST_BYTES), empty)
        saved = [_with_paths(saved, _present_path) for saved in report["saved"]]
        return {**report, "run": run, "saved": saved}  # whatever run an edited report names
    except ValueError:
        return empty


def forget_missing_files(run: str) -> None:
    """Takes saved steps and previews whose files are gone out of a run's report, if there is one."""
    report, folder = saved_report(run), output_folder(run)
    saved = [entry for entry in report["saved"]
             if all(Path(file).exists() for file in (*entry["files"], *entry["part_files"]))]
    previews = [entry for entry in report["previews"] if (folder / entry["image"]["filename"]).exists()]
    if (folder / REPORT).exists() and (saved, previews) != (report["saved"], report["previews"]):
        _write_report(folder, {**report, "saved": saved, "previews": previews})


def forget_stop(run: str) -> None:
    """From now on a run that a person stopped counts as one that ended early by itself: it goes on."""
    report = saved_report(run)
    if report["stopped"]:
        _write_report(output_folder(run), {**report, "stopped": {}})


def _write_report(folder: Path, report: Mapping[str, Any]) -> dict[str, str]:
    history = report["history"]
    terms = list(dict.fromkeys(name for record in history for name in record["parts"]))
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(["step", "loss", *terms])
    rows.writerows([r["step"], r["loss"], *(r["parts"].get(name, "") for name in terms)] for r in history)
    stored = {**report, "saved": [_with_paths(saved, _stored_path) for saved in report["saved"]]}
    csv_path = folder / "losses.csv"
    attempts = Attempts()
    attempts(write_text, csv_path, table.getvalue())
    json_path = write_text(folder / REPORT, json.dumps(jsonable(stored)))
    for error in attempts.failed:
        raise error
    return {"json": str(json_path), "csv": str(csv_path)}


def bytes_of(artifact: Artifact) -> int:
    """Bytes of an artifact's tensors."""
    return sum(t.nbytes for t in artifact.tensors.values())


def is_large(artifact: Artifact) -> bool:
    """Whether it is saved at the last step only."""
    return bytes_of(artifact) > LARGEST_WEIGHTS_PER_STEP


def _with_paths(saved: Mapping[str, Any], changed: Callable[[Any], Any]) -> dict[str, Any]:
    return {**saved, **{field: [changed(path) for path in saved.get(field, ())] for field in ("files", "part_files")}}


def _stored_path(path: str) -> dict[str, str]:
    return location_of(Path(path))


def _present_path(stored: dict[str, str] | str) -> str:
    """Reports of earlier versions hold whole paths."""
    return stored if isinstance(stored, str) else str(path_at(stored))


def _remove(path: Path) -> None:
    """A file that someone holds open is removed with the next ones."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass


def _half(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.half() if t.ndim else t.float() for name, t in weights.items()}
