"""A node's cached result ends when a file that it reads gets another content, whatever else stays the same."""
from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from personalize.nodes import files
from personalize.nodes.files import version_of
from personalize.nodes.training import nodes_train
from personalize.nodes.training.job import Outcome
from personalize.nodes.training.run_key import run_key
from support.training_graph import graph, write_inputs

NAME = "version-style"


def changed(path: Path) -> None:
    """One bit in the middle, with size and time as they were: as a sync client leaves a file."""
    about = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert (path.stat().st_mtime_ns, path.stat().st_size) == (about.st_mtime_ns, about.st_size)


@pytest.fixture
def places(base):
    """Files of every kind that nodes read, by the name that FILES gives them."""
    style = base / "models" / "embeddings" / f"{NAME}.safetensors"
    save_file({"clip_l": torch.ones(1, 32)}, style)
    pictures = base / "input" / "version-dogs"
    pictures.mkdir(exist_ok=True)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(pictures / "1.png")
    (pictures / "1.txt").write_text(f"a {{}} in embedding:{NAME}, at night", encoding="utf-8")
    prompts = base / "input" / "version-prompts.txt"
    prompts.write_text(f"a {{}} in embedding:{NAME}", encoding="utf-8")
    found = {"embedding": style, "picture": pictures / "1.png", "caption": pictures / "1.txt", "prompts": prompts}
    for kind, name in (("contextualizers", "version.safetensors"), ("loras", "version-delta.bin"),
                       ("loras", "<version>.bin"), ("vico", "version.safetensors"),
                       ("detex", "version.safetensors"), ("ipadapter", "version.safetensors"),
                       ("elite", "version-1.pt"), ("elite", "version-2.pt"),
                       ("blip_diffusion", "version/qformer/model.safetensors"),
                       ("blip_diffusion", "version/qformer/config.json"),
                       ("blip_diffusion", "version/qformer/vocab.txt"),
                       ("blip_diffusion", "version/preprocessor_config.json")):
        path = base / "models" / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
        found[f"{kind}/{name}"] = path
    yield found
    for path in found.values():
        path.unlink(missing_ok=True)
    shutil.rmtree(base / "models" / "blip_diffusion" / "version", ignore_errors=True)


STYLED = f"a {{}} in (embedding:{NAME}:1.2), at night"
SUBJECT = {"folder": ["version-dogs"], "picture_files": [""], "captions": [""]}
BLIP = [f"blip_diffusion/version/{name}" for name in ("qformer/model.safetensors", "qformer/config.json",
                                                      "qformer/vocab.txt", "preprocessor_config.json")]
# node → inputs and the files that it reads with them; every node that has a version of its inputs has rows
FILES = [
    ("Concept", {"embedding": f"{NAME}.safetensors"}, ["embedding"]),
         ("LoadConcept", {"embedding": NAME}, ["embedding"]),
    ("Subject", SUBJECT, ["picture", "caption", "embedding"]),
    ("Subject", {**SUBJECT, "folder": [""], "captions": ["", STYLED]}, ["embedding"]),
    ("PriorPictures", {"captions": [STYLED]}, ["embedding"]),
    ("PromptSet", {"file": "version-prompts.txt", "own_prompts": ""}, ["prompts", "embedding"]),
    ("PromptSet", {"file": "none", "own_prompts": STYLED}, ["embedding"]),
    *((node, {name: STYLED}, ["embedding"]) for node, name in (
        ("TrainingPrompts", "prompts"), ("Validation", "prompts"), ("PromptTokens", "prompt"),
        ("EncodeWithSpans", "prompt"), ("EncodePromptWithPicture", "prompt"), ("CoReTestTime", "prompt"),
        ("RecordAttention", "prompt"), ("AttentionOfLatent", "prompt"), ("Orthogonalize", "prompt"),
        ("SelfAttentionSwap", "prompt"), ("ApplyViCo", "prompt"))),
    ("LoadViCo", {"file": "version.safetensors"}, ["vico/version.safetensors"]),
    ("LoadViCo", {"file": "none"}, ["vico/version.safetensors"]),
    ("LoadContextualizer", {"file": "version.safetensors"}, ["contextualizers/version.safetensors"]),
    ("LoadContextualizer", {"file": "of this text encoder"}, ["contextualizers/version.safetensors"]),
    ("LoadCustomDiffusion", {"file": "version-delta.bin"}, ["loras/version-delta.bin", "loras/<version>.bin"]),
    ("DetexEncodePicture", {"file": "version.safetensors"}, ["detex/version.safetensors"]),
    ("DetexPrompt", {"file": "version.safetensors", "prompt": STYLED}, ["detex/version.safetensors", "embedding"]),
    ("LoadIPAdapter", {"file": "version.safetensors"}, ["ipadapter/version.safetensors"]),
    ("LoadElite", {"global_mapper": "version-1.pt", "local_mapper": "version-2.pt"},
     ["elite/version-1.pt", "elite/version-2.pt"]),
    ("LoadBlipDiffusion", {"folder": "version"}, BLIP)]
ALWAYS_ANEW = {"PersonalizeManageSteps"}
ASKS_THE_DISK = {"PersonalizeTrain", "PersonalizeSaveMasks"}  # whether what it gave still holds
ROWS = [(node, inputs, name) for node, inputs, names in FILES for name in names]


def test_every_node_with_versions_has_a_row(node_classes):
    with_versions = {each.GET_SCHEMA().node_id for each in node_classes
                     if "fingerprint_inputs" in {name for kind in each.__mro__ for name in vars(kind)
                                                 if kind.__module__.startswith("personalize")}}
    assert with_versions == {f"Personalize{node}" for node, _, _ in FILES} | ALWAYS_ANEW | ASKS_THE_DISK


def test_every_node_with_a_prompt_has_a_version(node_classes):
    """But for Train, whose prompts come by links, and whose previews change nothing."""
    prompts = {"prompt", "prompts", "own_prompts", "captions"}
    asked = {schema.node_id for schema in (each.GET_SCHEMA() for each in node_classes)
             if any(entry.id in prompts and entry.io_type == "STRING" for entry in schema.inputs)}
    assert asked <= {f"Personalize{node}" for node, _, _ in FILES}


@pytest.mark.parametrize("node, inputs, name", ROWS, ids=[f"{node}-{name}" for node, _, name in ROWS])
def test_another_content_is_another_version(node_classes, places, node, inputs, name):
    kind = next(each for each in node_classes if each.GET_SCHEMA().node_id == f"Personalize{node}")
    before = kind.fingerprint_inputs(**inputs)
    assert kind.fingerprint_inputs(**inputs) == before
    changed(places[name])
    after = kind.fingerprint_inputs(**inputs)
    assert after != before
    places[name].unlink()
    assert kind.fingerprint_inputs(**inputs) not in (before, after)


@pytest.mark.parametrize("size", [0, 1, files.SMALL_FILE, files.SMALL_FILE + 1, 5 * 2**20])
def test_versions_of_small_and_large_files(tmp_path, size):
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    seen = {version_of(path)}
    assert version_of(path) in seen
    for place in sorted({0, size // 2, size - 1}) if size else ():
        content = bytearray(path.read_bytes())
        content[place] ^= 255
        path.write_bytes(content)
        assert version_of(path) not in seen
        seen.add(version_of(path))
    assert version_of(None) == version_of(tmp_path / "none") == ""


@pytest.mark.parametrize("node, name", [
    ("prompts", "prompts"), ("prompt set", "own_prompts"), ("subject", "captions"), ("prior", "captions")])
def test_an_embedding_in_a_prompt_is_part_of_the_run(execute, base, places, monkeypatch, node, name):
    """Queued again after the file has changed, Train runs again, under another key."""
    write_inputs(base)
    keys, prompt = [], graph()
    lines = 3 if node == "subject" else 1
    prompt[node]["inputs"][name] = "\n".join([f"a {{}} in embedding:{NAME}"] * lines)

    def keep(job):
        keys.append(run_key(job))
        return Outcome(tuple(subject.concept for subject in job.subjects), {}, {"history": []})

    monkeypatch.setattr(nodes_train, "run_job", keep)
    session = execute.session()
    for _ in range(2):
        session(copy.deepcopy(prompt))
    assert len(keys) == 1, "nothing has changed"
    changed(places["embedding"])
    session(copy.deepcopy(prompt))
    assert len(keys) == 2 and keys[0] != keys[1]
