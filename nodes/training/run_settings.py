"""What a run was made with, in its folder for people to read: settings.json, and the workflow it was started from."""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import write_text
from ..run_files import SETTINGS, WORKFLOW, output_folder
from .plan import Plan

# Of a job: where it is from, what is done with the run.
_NOT_SETTINGS = ("workflow", "node", "graph", "resume", "use_step", "use_step_of")


def save_settings(run: str, plan: Plan) -> None:
    """Writes settings.json. Raises NotWritten."""
    said = {name: value for name, value in readable(plan).items() if name not in _NOT_SETTINGS}
    write_text(output_folder(run) / SETTINGS, json.dumps({**said, "run": run}, indent=1, ensure_ascii=False))


def save_workflow(run: str, workflow: Any) -> None:
    """Writes workflow.json, which ComfyUI's page opens. Raises NotWritten."""
    write_text(output_folder(run) / WORKFLOW, json.dumps(workflow, ensure_ascii=False))


def readable(value: Any) -> Any:
    """Settings as JSON knows them: of a picture its name, of tensors their shape, of any other object its class."""
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, Tensor):
        return f"tensor {'×'.join(map(str, value.shape))}"
    if isinstance(value, Path):
        return value.name
    if isinstance(value, Mapping):
        return {str(name): readable(each) for name, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(map(readable, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if hasattr(value, "photograph"):
            return {"picture": value.name, "caption": value.caption, "size": list(value.size)}
        fields = {field.name: readable(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    return type(getattr(value, "model", value)).__name__
