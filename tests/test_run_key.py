"""The key of a run: every input of every node before Train is in it, or is known to change nothing."""
from __future__ import annotations

import copy
import functools

import pytest
import torch
from safetensors.torch import save_file

from personalize.nodes.training import nodes_train
from personalize.nodes.training.job import Outcome
from personalize.nodes.training.run_key import run_key
from support.training_graph import CHANGES, Same, whole_graph, write_inputs

ROWS = [(node, name) for node, inputs in CHANGES.items() for name in inputs]


@pytest.fixture(scope="module")
def key_of(execute, base):
    """Call with a node and changed inputs: the key of the job that Train makes of the graph."""
    write_inputs(base)
    save_file({"clip_l": torch.ones(1, 32)}, base / "models" / "embeddings" / "key-embedding.safetensors")
    session, keys = execute.session(), []

    def keep(job):
        keys.append(run_key(job))
        return Outcome(tuple(subject.concept for subject in job.subjects), {}, {"history": []})

    def key(node="", **changed) -> str:
        prompt = whole_graph(node)
        if node:
            prompt[node]["inputs"].update(changed)
            prompt[node]["inputs"] = {name: value
                                      for name, value in prompt[node]["inputs"].items() if value is not None}
        session(copy.deepcopy(prompt))
        return keys[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nodes_train, "run_job", keep)
        yield key


@pytest.fixture(scope="module")
def plain_key(key_of):
    """Call with a node: the key of the unchanged graph in which it counts."""
    return functools.cache(key_of)


def test_every_input_of_the_nodes_before_train_has_a_row(node_classes):
    schemas = {each.GET_SCHEMA().node_id: each.GET_SCHEMA() for each in node_classes}
    expected = {(name, entry.id) for name, node in whole_graph().items() if node["class_type"] in schemas
                and not name.startswith("other") for entry in schemas[node["class_type"]].inputs}
    assert set(ROWS) == expected
    into_training = {"PERSONALIZE_SUBJECT", "PERSONALIZE_TRAINABLE", "PERSONALIZE_LOSS", "PERSONALIZE_RECIPE",
                     "PERSONALIZE_PROMPT_SET"}
    makers = {schema.node_id for schema in schemas.values() if {each.io_type
                                                                for each in schema.outputs} & into_training}
    missing = makers - {node["class_type"] for node in whole_graph().values()}
    assert not missing, "a new node for training is not in the graph"


@pytest.mark.parametrize("node, name", ROWS, ids=[f"{node}.{name}" for node, name in ROWS])
def test_another_value_of_an_input_is_another_run(key_of, plain_key, node, name):
    change = CHANGES[node][name]
    if isinstance(change, Same):
        assert key_of(node, **{name: change.value}) == plain_key(node), change.why
    else:
        assert key_of(node, **{name: change}) != plain_key(node)


def test_a_falling_learning_rate_makes_the_steps_part_of_the_run(key_of):
    assert key_of("train", schedule="cosine", steps=4) != key_of("train", schedule="cosine", steps=8)
