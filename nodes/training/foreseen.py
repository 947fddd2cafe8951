"""What a graph in API format says of a training before it runs: its settings nodes are asked, nothing is loaded."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..api_prompt import TRAIN, VALUES, is_link
from ..text.concept import Concept
from .batch import Prior
from .captions import captions_for
from .diffusion import DiffusionLoss
from .idle import Setting, Shown
from .picture_files import folder_contents
from .plan import Settings
from .presets import with_preset
from .prior import PriorPreservation
from .recipe import TemplateRecipe

Link = list[Any]  # [node, number of its output]
SUBJECT, PRIOR = "PersonalizeSubject", "PersonalizePriorPictures"
SETTINGS = {"PERSONALIZE_TRAINABLE", "PERSONALIZE_LOSS", "PERSONALIZE_RECIPE", "PERSONALIZE_PROMPT_SET"}
CONCEPTS = ("PersonalizeConcept", "PersonalizeLoadConcept")
LEFT_OPEN = {"PERSONALIZE_CONTEXTUALIZER", "CLIP_VISION"}  # of no account for what is foreseen, and a run makes them


class NotForeseen(Exception):
    """Only a run can tell: a value comes from a node that is not asked before."""


@dataclass(frozen=True)
class Foreseen:
    """A training as the graph states it.

    training: its settings. size: side of the pictures in pixels. precision: of the U-Net. inputs: of the Train node.
    """

    training: Setting
    size: int
    precision: str
    inputs: Mapping[str, Any]


class Graph:
    """A graph in API format, whose settings nodes can be asked for what they would give."""

    def __init__(self, prompt: Mapping[str, Any]):
        self.prompt = prompt

    def training(self, node: str) -> Foreseen:
        """What the Train node of that id would train. Raises NotForeseen, and ValueError with the sentence that a run
        would end with."""
        inputs = self.inputs(node)
        how = {name: inputs[name] for name in ("steps", "batch_size", "micro_batch", "optimizer", "weight_decay",
                                               "schedule", "warmup_steps", "clip_gradients", "seed")}
        settings = Settings(**how, checkpointing=inputs["gradient_checkpointing"])
        settings = with_preset(settings, inputs["preset"])
        shown, size = self._subjects(inputs["subject"])
        terms = self.value(inputs["loss"]) if "loss" in inputs else (DiffusionLoss(),)
        terms = (*terms, *((PriorPreservation(),) if any(each.prior for each in shown) else ()))
        recipe = self.value(inputs["recipe"]) if "recipe" in inputs else TemplateRecipe()
        training = Setting(settings, self.value(inputs["trainable"]), terms, recipe, shown, inputs["save_every"],
                           inputs["preview_every"], inputs["preview_prompt"])
        return Foreseen(training, size, inputs["precision"], inputs)

    def kind(self, node: str) -> str:
        """The class of a node; "" if there is none of that id."""
        return str(self.prompt.get(str(node), {}).get("class_type", ""))

    def inputs(self, node: str) -> dict[str, Any]:
        """Inputs of a node: widgets with their values or defaults, None for what is left open, links of the pack's own
        types as they are."""
        entry = self.prompt.get(str(node))
        if not isinstance(entry, Mapping) or not isinstance(entry.get("inputs"), Mapping):
            raise NotForeseen
        declared = {each.id: each for each in _class(self.kind(node)).GET_SCHEMA().inputs}
        found = {name: each.default for name, each in declared.items() if getattr(each, "default", None) is not None}
        for name, value in entry["inputs"].items():
            if name in declared:
                found[name] = self._given(declared[name], value)
        return found

    def _given(self, declared: Any, value: Any) -> Any:
        if not is_link(value):
            return value
        if declared.get_io_type() in LEFT_OPEN:
            return None
        return self.value(value) if hasattr(declared, "default") else value

    def value(self, link: Any) -> Any:
        """What an output of a settings node would be."""
        if not is_link(link):
            raise NotForeseen
        node, slot = str(link[0]), link[1]
        if self.kind(node) in VALUES:
            return self.prompt[node]["inputs"].get("value")
        if self.kind(node) == TRAIN and slot == 0:
            raise NotForeseen
        kind = _class(self.kind(node))
        given = kind.GET_SCHEMA().outputs[slot].io_type
        if self.kind(node) not in CONCEPTS and given not in SETTINGS:
            raise NotForeseen
        inputs = {name: self.value(given) if is_link(given) else given for name, given in self.inputs(node).items()}
        return kind.execute(**inputs).result[slot]

    def _subjects(self, link: Any) -> tuple[tuple[Shown, ...], int]:
        node = str(link[0])
        inputs = self.inputs(node)
        if self.kind(node) == TRAIN:
            return self._subjects(inputs["subject"])
        if self.kind(node) == PRIOR:
            shown, size = self._subjects(inputs["subject"])
            prior = Prior((), inputs["per_step"], inputs["weight"])
            return (*shown[:-1], replace(shown[-1], prior=prior)), size
        if self.kind(node) != SUBJECT:
            raise NotForeseen
        before = self._subjects(inputs["previous"])[0] if "previous" in inputs else ()
        return (*before, self._shown(inputs)), inputs["size"]

    def _shown(self, inputs: Mapping[str, Any]) -> Shown:
        concept = self._concept(inputs["concept"])
        contents = folder_contents(inputs["folder"], inputs["picture_files"])
        names, text = [path.name for path in contents.pictures], inputs["captions"]
        beside = ["a caption of {}" if path in contents.captions else "" for path in contents.pictures]
        captioned = len(list(filter(None, beside)))
        if text.strip() and "images" not in inputs:
            captioned = len(list(filter(None, captions_for(names, beside, (text,), concept.placeholder))))
        masked = None if "masks" not in inputs else len(names) or 1
        return Shown(concept.placeholder, len(names), captioned, masked)

    def _concept(self, link: Any) -> Concept:
        if is_link(link) and self.kind(link[0]) == TRAIN:
            inputs = self.inputs(link[0])
            return self._concept(self.inputs(inputs["subject"][0])["concept"])
        return self.value(link)[0]


def _class(kind: str) -> Any:
    import nodes  # ComfyUI's

    found = nodes.NODE_CLASS_MAPPINGS.get(kind)
    if found is None or not kind.startswith("Personalize"):
        raise NotForeseen
    return found
