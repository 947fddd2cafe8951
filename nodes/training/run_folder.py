"""What a run leaves on the disk: resumable state, losses, previews, and its files in ComfyUI's model folders."""
from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, Mapping, Sequence

import folder_paths
import numpy as np
import safetensors
import torch
from PIL import Image
from torch import Tensor

from ..files import ROOM_FOR_STEP, atomic, holds, safe_name, write_safetensors, write_text
from ..text.concept import Concept
from ..text.concept_files import concept_metadata
from ..text.embedding_files import MARK, file_stems, prompt_text, save_embedding
from .interfaces import Artifact
from .progress import jsonable

STATES = "state-*.safetensors"
LARGEST_STATE_KEPT_PER_STEP = 2**20
REPORT = "report.json"
LARGEST_WEIGHTS_PER_STEP = 300 * 2**20
LARGEST_STATE_PER_SAVE = 2**30


class RunFolder:
    """The folder output/personalize/<name>-<start of the fingerprint> of one run.

    The fingerprint covers everything the result depends on but the number of steps, so that the same settings find the
    same folder: to continue, or to return what is finished.
    """

    def __init__(self, name: str, key: str):
        self.run = f"{safe_name(name, 'The name', ROOM_FOR_STEP)}-{key[:8]}"
        self.path = _folder(self.run)
        self.key = key

    def state(self, most: int) -> tuple[dict[str, Tensor], int, list[dict]] | None:
        """Tensors, steps done and history of the furthest saved state of at most `most` steps, or None."""
        for path in sorted(self.path.glob(STATES), reverse=True):
            try:
                with safetensors.safe_open(path, framework="pt") as file:
                    about = file.metadata() or {}
                    if about.get("fingerprint") != self.key or int(about["step"]) > most:
                        continue
                    tensors = {name: file.get_tensor(name) for name in file.keys()}
            except (OSError, safetensors.SafetensorError):
                continue
            return tensors, int(about["step"]), json.loads(about["history"])
        return None

    def save_state(self, tensors: Mapping[str, Tensor], step: int, history: Sequence[dict]) -> None:
        """Everything needed to resume after `step`, in a file of its own; large states replace the earlier ones."""
        path = self.path / STATES.replace("*", f"{step:06d}")
        about = {"fingerprint": self.key, "step": str(step), "history": json.dumps(jsonable(list(history)))}
        write_safetensors(path, tensors, about)
        if sum(t.nbytes for t in tensors.values()) > LARGEST_STATE_KEPT_PER_STEP:
            for earlier in self.path.glob(STATES):
                if earlier.name < path.name:
                    earlier.unlink()

    def report(self) -> dict[str, Any]:
        """What was last written by `save_report`; empty lists before that."""
        return saved_report(self.run)

    def save_report(self, report: Mapping[str, Any]) -> dict[str, str]:
        """Writes report.json and losses.csv; returns their paths."""
        history = report["history"]
        terms = list(dict.fromkeys(name for record in history for name in record["parts"]))
        table = io.StringIO()
        rows = csv.writer(table)
        rows.writerow(["step", "loss", *terms])
        rows.writerows([r["step"], r["loss"], *(r["parts"].get(name, "") for name in terms)] for r in history)
        json_path = write_text(self.path / REPORT, json.dumps(jsonable(report)))
        csv_path = write_text(self.path / "losses.csv", table.getvalue())
        return {"json": str(json_path), "csv": str(csv_path)}

    def save_preview(self, image: Tensor, step: int) -> dict[str, str]:
        """Writes a picture (H, W, 3) in 0…1; returns how the page asks the server for it."""
        name = f"preview-{step:06d}.png"
        pixels = (image.clamp(0, 1).cpu().numpy() * 255).round().astype(np.uint8)
        with atomic(self.path / name) as unfinished:
            Image.fromarray(pixels).save(unfinished, format="PNG")
        return {"filename": name, "subfolder": f"personalize/{self.run}", "type": "output"}

    def save_step(self, step: int, concepts: Sequence[Concept], weights: Mapping[str, Tensor], last: bool,
                  artifacts: Sequence[Artifact] = ()) -> dict[str, Any]:
        """Writes the concepts' embeddings and the weights of a step as files that stock nodes load, and what else the
        parts keep.

        Files of more than 300 MB are only written for the last step.
        Returns {step, embeddings: what to write in a prompt, files: paths, part_files: paths of the artifacts,
        left_out: whether a file was too large to be written}.
        """
        about = {"run": self.run, "step": str(step)}
        stems = file_stems([concept.placeholder for concept in concepts])
        paths = [save_embedding(f"{stems[concept.placeholder]}-{step:06d}", concept.vectors,
                                {**concept_metadata(concept), **about}, subfolder=self.run) for concept in concepts]
        embeddings = [prompt_text(path) for path in paths]
        trained = Artifact("loras", "weights", weights)
        paths += self._save_tensors(trained, step, last)
        more = [path for artifact in artifacts for path in self._save_tensors(artifact, step, last)]
        return {"step": step, "embeddings": embeddings, "files": list(map(str, paths)),
                "part_files": list(map(str, more)),
                "left_out": not last and any(map(_is_large, (trained, *artifacts)))}

    def _save_tensors(self, artifact: Artifact, step: int, last: bool) -> list[Path]:
        """The path of the file in half precision; none if there is nothing to save or it is too large."""
        tensors = artifact.tensors
        if not tensors or not last and _is_large(artifact):
            return []
        folder = Path(folder_paths.get_folder_paths(artifact.kind)[0]) / self.run
        path = folder / f"{artifact.name}-{step:06d}.safetensors"
        halves, about = _half(tensors), {**artifact.metadata, "run": self.run, "step": str(step), MARK: "1"}
        return [path if holds(path, halves) else write_safetensors(path, halves, about)]


def saved_report(run: str) -> dict[str, Any]:
    """What `RunFolder.save_report` last wrote of the run of that name; empty lists if there is nothing, or no report.

    Raises ValueError for a name that leads out of ComfyUI's output folder.
    """
    empty = {"run": run, "history": [], "previews": [], "saved": [], "message": ""}
    path = _folder(run) / REPORT
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return empty
    return {**empty, **stored} if _is_report(stored, empty) else empty


def _is_report(stored: Any, empty: Mapping[str, Any]) -> bool:
    if not isinstance(stored, dict):
        return False
    whole = {**empty, **stored}
    return (all(type(whole[name]) is type(value) for name, value in empty.items())
            and all(isinstance(entry, dict) for name in ("history", "previews", "saved") for entry in whole[name]))


def _folder(run: str) -> Path:
    return Path(folder_paths.get_output_directory()) / "personalize" / safe_name(run, "The run's name")


def _is_large(artifact: Artifact) -> bool:
    return sum(t.nbytes for t in artifact.tensors.values()) > LARGEST_WEIGHTS_PER_STEP


def _half(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.half() if t.ndim else t.float() for name, t in weights.items()}
