"""A name for the graph in front of a Train node, found without loading a model: two graphs of one name give one run.

It is made of the nodes' classes and values, without those that a node of the pack says change nothing beside the others
(`idle_inputs`), of what the nodes say of files that they read (`fingerprint_inputs`, IS_CHANGED), and of the files that
their values name. A node that says it is never the same leaves the graph without a
name. What another Train node in front gives is named by its run and the step that it returns.
"""
from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import math
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import folder_paths

from ..api_prompt import TRAIN, VALUES, is_link
from ..locations import kinds
from ..text.embedding_versions import embedding_versions
from ..text.placeholders import EMBEDDING
from .graph_records import run_of_graph
from .next_run import CONTINUE, START_OVER, Choice, NextRun, next_run, usable_steps
from .presets import numbers_of
from .run_key import FORMAT

# Inputs of Train that change no result, or what is returned of it only.
NOT_IN_RUN = frozenset({"micro_batch", "gradient_checkpointing", "save_every", "preview_every", "preview_prompt",
                        "resume", "use_step", "use_step_of", "validation"})
LONGEST_FILE_NAME = 255


class NotKnown(Exception):
    """Of a graph without a name. node: id of the node that is the cause."""

    def __init__(self, node: str):
        super().__init__(node)
        self.node = node


class Graph:
    """A prompt in API format, read for its Train nodes. Reads files, so not to be used in the server's event loop.

    executed: what is in front of a Train node has just run, so that what the disk says of it is what was returned.
    """

    def __init__(self, prompt: Mapping[str, Any], executed: bool = False):
        self._nodes = {str(node): about for node, about in prompt.items()}
        self._executed = executed
        self._names: dict[tuple[str, int], str] = {}
        self._changes = _Changes(self._nodes)

    def value(self, node: str, name: str) -> Any:
        """A value of a node, also one that comes by a link from a node of one value. Raises NotKnown."""
        value = self._inputs(node).get(name)
        for _ in self._nodes:
            if not is_link(value):
                return value
            source = str(value[0])
            if self._class(source) not in VALUES:
                raise NotKnown(source)
            value = self._inputs(source).get("value")
        raise NotKnown(node)

    def settings(self, node: str) -> dict[str, Any]:
        """Values of a Train node, with those of its preset in their place."""
        return {**self._inputs(node), **numbers_of(self.value(node, "preset"))}

    def steps(self, node: str) -> int:
        """Steps in all. Raises NotKnown."""
        return int(numbers_of(self.value(node, "preset")).get("steps") or self.value(node, "steps"))

    def choice(self, node: str) -> Choice:
        """The step that a person chose."""
        return Choice(int(self.value(node, "use_step") or 0), str(self.value(node, "use_step_of") or ""))

    def next_run(self, node: str) -> tuple[NextRun, str]:
        """What a Train node does next, and the name of the run, "" for a new one. Raises NotKnown."""
        steps, resume, choice = self.steps(node), self.value(node, "resume"), self.choice(node)
        folder = run_of_graph(self.signature(node))
        run = folder.run if folder else ""
        if choice.step and not choice.why_void(run):
            act = "returns" if choice.step in usable_steps(run) else "fails"
            return NextRun(act, choice.step, steps, "chosen"), run
        if folder is None:
            return NextRun("starts over" if resume == START_OVER else "trains", 0, steps), ""
        return next_run(folder, steps, resume), run

    def missing_input(self, node: str) -> tuple[str, str] | None:
        """(node, input) of something that must be connected and is not, at a Train node or at one of the pack's in
        front of it."""
        for each in self._in_front(node):
            for name in _required(self._class(each)):
                if name not in self._inputs(each):
                    return each, name
        return None

    def _in_front(self, node: str) -> list[str]:
        found = [node]
        for each in found:
            links = (str(value[0]) for value in self._inputs(each).values() if is_link(value))
            found += [link for link in dict.fromkeys(links) if link in self._nodes and link not in found]
        return found

    def signature(self, node: str) -> str:
        """The name of the graph in front of a Train node, with what counts of the node itself. Raises NotKnown."""
        settings = self.settings(node)
        left_out = NOT_IN_RUN | ({"steps"} if settings.get("schedule") == "constant" else set())
        return self._named(node, {name: value for name, value in settings.items() if name not in left_out})

    def _name(self, node: str, output: int) -> str:
        if (node, output) not in self._names:
            self._names[node, output] = ""  # for a graph that leads into itself
            is_train = self._class(node) == TRAIN
            self._names[node, output] = (self._name_of_result(node) if is_train
                                         else self._named(node, self._acting(node, output)))
        return self._names[node, output]

    def _acting(self, node: str, output: int) -> dict[str, Any]:
        """The inputs of a node that this output can depend on, beside the others."""
        inputs = self._inputs(node)
        idle = _idle(self._class(node), inputs, output)
        return {name: value for name, value in inputs.items() if name not in idle}

    def _name_of_result(self, node: str) -> str:
        """Of what another Train node returns."""
        if not self._executed:
            return f"{self.signature(node)} {self.next_run(node)[0].ends_at}"
        choice, folder = self.choice(node), run_of_graph(self.signature(node))
        if folder is None:
            raise NotKnown(node)
        if choice.step and not choice.why_void(folder.run):
            return f"{self.signature(node)} {choice.step}"
        return f"{self.signature(node)} {next_run(folder, self.steps(node), CONTINUE).ends_at}"

    def _named(self, node: str, inputs: Mapping[str, Any]) -> str:
        """Of a node with these inputs."""
        said = {name: [self._name(str(value[0]), value[1]), value[1]] if is_link(value) else [_plain(value)]
                for name, value in inputs.items()}
        files = [version for value in inputs.values() if isinstance(value, str) for version in _versions(value)]
        content = [FORMAT, self._class(node), sorted(said.items()), files, self._changes.of(node)]
        return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()

    def _class(self, node: str) -> str:
        return self._nodes.get(node, {}).get("class_type", "")

    def _inputs(self, node: str) -> Mapping[str, Any]:
        if node not in self._nodes:
            raise NotKnown(node)
        return self._nodes[node].get("inputs", {})


class _Changes:
    """What nodes say of files that they read, as ComfyUI asks them."""

    def __init__(self, nodes: Mapping[str, Any]):
        self._nodes = nodes

    def of(self, node: str) -> str:
        """Raises NotKnown for a node that says it is never the same, or that ComfyUI has not."""
        import nodes as comfy_nodes

        kind = self._nodes[node].get("class_type")
        if kind not in comfy_nodes.NODE_CLASS_MAPPINGS:
            raise NotKnown(node)
        if kind == TRAIN:
            return ""
        said = _in_own_loop(self._asked, node)
        said = said if isinstance(said, list) else [said]
        if any(isinstance(each, float) and math.isnan(each) for each in said):
            raise NotKnown(node)
        return _within_home(json.dumps(said, default=str))

    async def _asked(self, node: str) -> Any:
        from comfy_execution.graph import DynamicPrompt
        from execution import IsChangedCache

        about, results = self._nodes[node], cast(Any, None)  # which are not looked at
        alone = {node: {"class_type": about["class_type"], "inputs": dict(about.get("inputs", {}))}}
        return await IsChangedCache("", DynamicPrompt(alone), results).get(node)


@functools.lru_cache
def _required(kind: str) -> tuple[str, ...]:
    """Inputs that a node of the pack must have."""
    node = _of_pack(kind)
    return tuple(node.INPUT_TYPES().get("required", ())) if node else ()


def _idle(kind: str, inputs: Mapping[str, Any], output: int) -> Collection[str]:
    """Inputs that change nothing in an output beside the others, as far as a node of the pack says so."""
    says = getattr(_of_pack(kind), "idle_inputs", None)
    return says(inputs, output) if says else ()


def _of_pack(kind: str) -> Any:
    """The class of a node of the pack, None for others."""
    import nodes as comfy_nodes

    return comfy_nodes.NODE_CLASS_MAPPINGS.get(kind) if kind.startswith("Personalize") else None


def _in_own_loop(ask, *values) -> Any:
    """What an async function gives, also where this thread runs an event loop."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(asyncio.run(ask(*values))))
    thread.start()
    thread.join()
    return answers[0] if answers else math.nan


def _versions(value: str) -> Iterator[str]:
    """Of the model files that a value names, and of embeddings in a prompt."""
    if EMBEDDING in value:
        yield _within_home(embedding_versions(value))
    if len(value) <= LONGEST_FILE_NAME and "." in value and "\n" not in value and "\0" not in value:
        for path in _model_files(value):
            yield _file_version(path)


def _model_files(name: str) -> Iterator[Path]:
    for kind in kinds():
        for folder in folder_paths.folder_names_and_paths[kind][0]:
            path = Path(folder) / name
            if path.is_file():
                yield path
                break


def _file_version(path: Path) -> str:
    about = path.stat()
    return _version_at(str(path), about.st_size, about.st_mtime_ns)


@functools.lru_cache(1000)
def _version_at(path: str, size: int, changed: int) -> str:
    """Size, time and three pieces of a file."""
    pieces = hashlib.sha256()
    with open(path, "rb") as file:
        for start in (0, size // 2, max(0, size - 2**16)):
            file.seek(start)
            pieces.update(file.read(2**16))
    return f"{Path(path).name} {size} {changed} {pieces.hexdigest()}"


def _within_home(text: str) -> str:
    """Without the place of ComfyUI, so that moving it changes nothing."""
    return text.replace(folder_paths.base_path, "")


def _plain(value: Any) -> Any:
    """Equal numbers are the same, whatever their type."""
    return int(value) if type(value) is float and math.isfinite(value) and value == int(value) else value
