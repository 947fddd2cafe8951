"""One word for one thing: inputs of one name are alike on every node, and pages and templates name what is there."""
from __future__ import annotations

import json
import re
from collections import defaultdict

import pytest

from authoring.catalog import ALL_GRAPHS
from support.paths import PACK
from support.workflows import WIDGETS

FORMER = {
    "text": "prompt", "word": "words", "word_2": "words_2", "start": "start_percent", "end": "end_percent",
    "method": "mask_method", "local_weight": "local_strength", "text_weight": "text_strength", "pictures": "images",
    "rescale_from": "rescale_first_step", "rescale_to": "rescale_last_step", "vectors": "vector_count",
    "lambda_emb": "embedding_weight", "lambda_attn": "attention_weight", "caption": "basis_conditioning",
}
MEANING = {  # input -> what its tooltip says on every node
    "start_percent": "share of the sampling schedule, 0 to 1: 0 is pure noise", "seed": "Start of", "steps": "Steps",
    "end_percent": "share of the sampling schedule, 0 to 1: 1 is the finished picture", "size": "Side .*in pixels",
    "words": "[Ww]ords .*separated by commas", "threshold": "scale from 0, .* to 1", "opacity": "0 to 1: 0",
    "mask_method": "Otsu finds the threshold", "previous": "^(Other|Another)",
}
ENDINGS = {  # how an input's name ends -> what its tooltip says on every node
    "strength": "0 is off", "weight": "ultiplies|counts, 0 to 1", "learning_rate": "Step size of the optimiser",
    "first_step": "First (training )?step", "last_step": "Last .*step .*; 0: to the end",
}
LISTS_OF_FILES = {"file", "folder", "embedding", "run", "global_mapper", "local_mapper"}
CHAIN = "previous"  # of whatever the node adds to
OTHER_RANGE = {("PersonalizeApplyIPAdapter", "strength"),  # the authors' factor, also beyond 1 and below 0
               ("PersonalizeApplyElite", "local_strength")}  # λ
OTHER_LENGTH = {"prompt", "captions"}  # one line or several, as there is room on the node


@pytest.fixture(scope="module")
def schemas(node_classes):
    return [cls.GET_SCHEMA() for cls in node_classes]


@pytest.fixture(scope="module")
def inputs(schemas):
    """Name → [(node id, input)]."""
    found = defaultdict(list)
    for schema in schemas:
        for given in schema.inputs:
            found[given.id].append((schema.node_id, given))
    return found


def kind_of(node_id: str, given) -> tuple:
    """What inputs of one name have in common: type, range, whether a seed has its second widget."""
    least, most = getattr(given, "min", None), getattr(given, "max", None)
    if (node_id, given.id) in OTHER_RANGE or least == 0 and re.search(r"\b0: ", given.tooltip):
        least = most = None
    return given.get_io_type(), least, most, bool(getattr(given, "control_after_generate", None))


def in_one_order(lists: list[list[str]]) -> bool:
    """Whether no two lists have two of their entries in different orders."""
    return all([each for each in one if each in other] == [each for each in other if each in one]
               for one in lists for other in lists)


@pytest.mark.smoke
def test_inputs_of_one_name_are_alike(inputs):
    different = {}
    for name, given in inputs.items():
        kinds = [kind_of(*each) for each in given]
        limited = {kind for kind in kinds if kind[1:3] != (None, None)}
        if len({kind[0] for kind in kinds}) > 1 and name != CHAIN or len(limited) > 1:
            different[name] = sorted(set(map(str, kinds)))
        options = [list(getattr(each, "options", None) or []) for _, each in given]
        if name not in LISTS_OF_FILES and not in_one_order(options):
            different[name] = options
        lengths = {bool(getattr(each, "multiline", False)) for _, each in given}
        if len(lengths) > 1 and name not in OTHER_LENGTH:
            different[name] = "one line and several"
    assert different == {}


def test_an_output_has_the_type_of_the_input_that_it_goes_to(schemas, inputs):
    types = {name: {each.get_io_type() for _, each in given} for name, given in inputs.items()}
    for schema in schemas:
        for output in schema.outputs:
            types.setdefault(output.display_name, set()).add(output.get_io_type())
    assert {name: kinds for name, kinds in types.items() if len(kinds) > 1 and name != CHAIN} == {}


def test_wires_of_the_pack_carry_its_name(schemas):
    core = {"MODEL", "CLIP", "VAE", "IMAGE", "MASK", "LATENT", "CONDITIONING", "CLIP_VISION", "LORA_MODEL", "LOSS_MAP",
            "STRING", "INT", "FLOAT", "BOOLEAN", "COMBO"}
    types = {each.get_io_type() for schema in schemas for each in (*schema.inputs, *schema.outputs)}
    assert {each for each in types - core if not each.startswith("PERSONALIZE_")} == set()


@pytest.mark.smoke
def test_former_names_are_gone(inputs):
    assert {name: FORMER[name] for name in inputs if name in FORMER} == {}


def test_inputs_of_one_name_mean_one_thing(inputs):
    wrong = []
    for name, given in inputs.items():
        meant = [MEANING[name]] if name in MEANING else [ENDINGS[each] for each in ENDINGS if name.endswith(each)]
        wrong += [f"{node_id}.{name} does not say '{meaning}': {each.tooltip}" for node_id, each in given
                  for meaning in meant if not re.search(meaning, each.tooltip)]
    assert wrong == []


def test_a_share_says_its_ends(inputs):
    silent = [f"{node_id}.{name}: {each.tooltip}" for name, given in inputs.items() for node_id, each in given
              if (getattr(each, "min", None), getattr(each, "max", None)) == (0.0, 1.0)
              and each.get_io_type() == "FLOAT" and not re.search(r"\b0\b.*\b1\b", each.tooltip)]
    assert silent == []


def test_a_class_is_named_by_its_node(node_classes):
    assert [cls.__name__ for cls in node_classes] == [cls.GET_SCHEMA().node_id for cls in node_classes]


# ------------------------------------------------------------------------------------------------ pages and templates
def rows_of(page: str, head: str) -> set[str]:
    """First cells of the help page's table that begins with this head, parted by commas."""
    table = re.search(rf"^\| {head} \|.*\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    cells = [row.split("|")[1] for row in table[1].splitlines()] if table else []
    return {name.strip() for cell in cells for name in cell.split(",")}


def test_a_help_page_names_the_inputs_and_outputs_of_its_node(schemas):
    different = {}
    for schema in schemas:
        page = (PACK / "js" / "docs" / f"{schema.node_id}.md").read_text(encoding="utf-8")
        told, there = rows_of(page, "input"), {given.id for given in schema.inputs}
        outputs = rows_of(page, "output") - {output.display_name for output in schema.outputs}
        if told != there or outputs:
            different[schema.node_id] = sorted(told ^ there | outputs)
    assert different == {}


def test_texts_name_only_what_is_there(schemas):
    """What looks like a name, *micro_batch*, on help pages and in the notes of templates."""
    known = {each for schema in schemas for each in (*(given.id for given in schema.inputs),
                                                     *(output.display_name for output in schema.outputs))}
    others = {"dpm_adaptive", "conditioning_to", "dog_v0", "dog_v1"}
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted((PACK / "js" / "docs").glob("*.md"))}
    texts |= {graph.name: graph.note.text for graph in ALL_GRAPHS}
    unknown = {}
    for name, text in texts.items():
        without_code = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
        found = set(re.findall(r"(?<![\w/λ.])[a-z]+(?:_[a-z0-9]+)+\b(?!\.)", without_code)) - known - others
        found -= {graph.name for graph in ALL_GRAPHS}
        if found:
            unknown[name] = sorted(found)
    assert unknown == {}


def test_templates_fill_in_only_inputs_that_are_there(schemas):
    known = {schema.node_id: {given.id for given in schema.inputs} for schema in schemas}
    described = {(graph.name, node.type, name) for graph in ALL_GRAPHS for node in graph.nodes for name in node.inputs
                 if name not in known.get(node.type, node.inputs)}
    saved = {(path.stem, node["type"], given["name"]) for path in sorted((PACK / "workflows").glob("*.json"))
             for node in json.loads(path.read_text(encoding="utf-8"))["nodes"] if node["type"] in known
             for given in node["inputs"] if given["name"] not in known[node["type"]]}
    assert described | saved == set()


def test_templates_fill_in_every_widget(schemas):
    """The page gives a widget that is left out what a former graph had in the node of that number."""
    widgets = {schema.node_id: {given.id for given in schema.inputs if given.get_io_type() in WIDGETS}
               for schema in schemas}
    left_out = {(graph.name, node.type): sorted(widgets[node.type] - node.inputs.keys()) for graph in ALL_GRAPHS
                for node in graph.nodes if widgets.get(node.type, set()) - node.inputs.keys()}
    assert left_out == {}


def test_the_page_asks_for_widgets_that_are_there(inputs):
    scripts = [path for path in (PACK / "js").rglob("*.js") if "vendor" not in path.parts]
    asked = {(path.name, name) for path in scripts for name in re.findall(
        r"(?:widgetOf\([\w.#]+, |#value\(|#set\(|\.?(?:[sS]etW|\.w)idget\(|typed(?:Value|Text)\(\w+, )\"(\w+)\"",
        path.read_text(encoding="utf-8"))}
    assert len(asked) > 4 and {each for each in asked if each[1] not in inputs} == set()
