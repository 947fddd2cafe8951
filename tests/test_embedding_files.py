"""Embedding files: core reads what we write, we read what other tools write, nothing is overwritten or half-written."""
from __future__ import annotations

import collections
import errno
import json
import os
import struct

import folder_paths
import pytest
import safetensors
import safetensors.torch
import torch
from comfy.sd1_clip import load_embed

from personalize.nodes import files
from personalize.nodes.text.embedding_files import (
    embedding_names,
    file_stem,
    find_embedding,
    load_embedding,
    prompt_text,
    save_embedding,
)
from support.vectors import rows

WIDTHS = {"clip_l": 768, "clip_g": 1280}


def core_reads(folder, name, key, width):
    return load_embed(name, folder_paths.get_folder_paths("embeddings"), width, key)


# ------------------------------------------------------------------------------------------------ writing
@pytest.mark.smoke
def test_core_reads_what_we_write(embedding_folder):
    vectors = {key: rows(3, width) for key, width in WIDTHS.items()}
    path = save_embedding("my-dog", vectors, {"placeholder": "<my-dog>", "class_words": "dog"})
    assert path == embedding_folder / "my-dog.safetensors" and prompt_text(path) == "embedding:my-dog"
    for key, width in WIDTHS.items():
        assert torch.equal(core_reads(embedding_folder, "my-dog", key, width), vectors[key])
    loaded, metadata = load_embedding(path)
    assert {key: torch.equal(loaded[key], vectors[key]) for key in loaded} == {"clip_l": True, "clip_g": True}
    assert metadata == {"placeholder": "<my-dog>", "class_words": "dog", "personalize": "1"}


def test_a_name_is_never_reused_in_any_folder_core_searches(embedding_folder, tmp_path):
    vectors = {"clip_l": rows(1, 768)}
    (tmp_path / "second" / "deep").mkdir()
    torch.save({"emb_params": rows(2, 768)}, tmp_path / "second" / "deep" / "my-dog.pt")
    paths = [save_embedding("my-dog", {"clip_l": vectors["clip_l"] + i}, {}) for i in range(3)]
    assert [path.stem for path in paths] == ["my-dog-2", "my-dog-3", "my-dog-4"]
    for i, path in enumerate(paths):
        name = prompt_text(path).removeprefix("embedding:")
        assert torch.equal(core_reads(embedding_folder, name, "clip_l", 768), vectors["clip_l"] + i)


def test_a_fresh_comfyui_has_no_embeddings_folder_yet(embedding_folder):
    embedding_folder.rmdir()
    assert embedding_names() == []
    with pytest.raises(ValueError, match="There is no embedding"):
        find_embedding("my-dog")
    assert save_embedding("my-dog", {"clip_l": rows(1, 768)}, {}) == embedding_folder / "my-dog.safetensors"
    assert torch.equal(core_reads(embedding_folder, "my-dog", "clip_l", 768), rows(1, 768))


def test_subfolder_of_a_run(embedding_folder):
    path = save_embedding(file_stem("<my-dog>", 50), {"clip_l": rows(1, 768)}, {"step": 50}, subfolder="my run")
    assert path == embedding_folder / "my-run" / "my-dog-000050.safetensors"
    assert prompt_text(path) == "embedding:my-run/my-dog-000050"
    assert torch.equal(core_reads(embedding_folder, "my-run/my-dog-000050", "clip_l", 768), rows(1, 768))
    assert load_embedding(path)[1]["step"] == "50"


@pytest.mark.parametrize("name, stem", [("<my-dog>", "my-dog"), ("my (best) dog, 2", "my-best-dog-2"),
                                        ("rex:b", "rex-b"), ("dogs\\rex", "dogs/rex"), ("ein Hündchen", "ein-Hündchen"),
                                        ("v1.5", "v1.5")])
def test_saved_names_can_be_written_in_prompts(embedding_folder, name, stem):
    path = save_embedding(name, {"clip_l": rows(1, 768)}, {})
    assert prompt_text(path) == f"embedding:{stem}"
    assert torch.equal(core_reads(embedding_folder, stem, "clip_l", 768), rows(1, 768))


@pytest.mark.parametrize("name", ["../dog", "a/../../dog", "/etc/dog", "..\\dog", "C:\\dog", "dog/", "", "  ", "..",
                                  "<>"])
def test_names_that_leave_the_folder_are_refused(embedding_folder, tmp_path, name):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="The file name '.*' (would leave ComfyUI's folder|has no letter or digit)"):
        save_embedding(name, {"clip_l": rows(1, 768)}, {})
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("vectors, message", [
    ({}, "no vectors"), ({"clip_l": torch.zeros(16, 1, 768)}, r"shape \(16, 1, 768\)"),
    ({"clip_l": torch.full((1, 768), float("nan"))}, "NaN")])
def test_vectors_that_no_prompt_can_use_are_refused(embedding_folder, vectors, message):
    with pytest.raises(ValueError, match=message):
        save_embedding("dog", vectors, {})
    assert not list(embedding_folder.iterdir())


# ------------------------------------------------------------------------------------------------ atomic writing
def test_every_dtype_and_shared_memory_is_written_bit_for_bit(tmp_path):
    table = torch.randn(6, 5)
    tensors = {"view": table[1:3], "again": table[1:3], "turned": table.T, "half": table.bfloat16(),
               "nan": torch.tensor(float("nan")), "count": torch.tensor(7), "bytes": torch.arange(4, dtype=torch.uint8),
               "empty": torch.zeros(0, 3)}
    path = files.write_safetensors(tmp_path / "new" / "state.safetensors", tensors, {"step": "3"})
    read = safetensors.torch.load_file(path)
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        torch.testing.assert_close(read[name], tensor.contiguous(), rtol=0, atol=0, equal_nan=True)
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    assert header["__metadata__"] == {"step": "3"}
    assert [entry.name for entry in path.parent.iterdir()] == ["state.safetensors"]


def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = files.write_safetensors(tmp_path / "a.safetensors", {"x": torch.ones(3)})
    old = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda: files.write_safetensors(path, {"x": torch.zeros(3)}), lambda: files.write_text(path, "new")):
        with pytest.raises(OSError, match=r"Could not write .*a\.safetensors: No space left on device\. Nothing that"):
            write()
        assert path.read_bytes() == old and [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_disk_that_is_really_full_is_reported(tmp_path):
    def write(unfinished):
        unfinished.symlink_to("/dev/full")
        unfinished.write_text("x")

    with pytest.raises(OSError, match="No space left on device"):
        files.write_file(tmp_path / "a.txt", write)
    assert not list(tmp_path.iterdir())


def test_read_only_folder_is_reported(tmp_path):
    (tmp_path / "not a folder").write_text("")
    with pytest.raises(OSError, match="Could not write .*make the folder writable"):
        files.write_safetensors(tmp_path / "not a folder" / "a.safetensors", {"x": torch.ones(1)})
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o555)
        with pytest.raises(OSError, match="Permission denied"):
            files.write_text(tmp_path / "locked" / "a.txt", "x")


def test_what_is_on_the_disk_is_compared_before_it_counts(tmp_path, monkeypatch):
    path = files.write_safetensors(tmp_path / "a.safetensors", {"x": torch.ones(3)})
    old, save_file = path.read_bytes(), safetensors.torch.save_file

    def damage(tensors, filename, metadata):
        save_file(tensors, filename, metadata)
        with open(filename, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x17")

    monkeypatch.setattr(files.safetensors.torch, "save_file", damage)
    with pytest.raises(OSError, match="what was read back differs"):
        files.write_safetensors(path, {"x": torch.zeros(3)})
    assert path.read_bytes() == old and len(list(tmp_path.iterdir())) == 1


def test_an_interrupt_leaves_nothing_behind(tmp_path):
    def write(unfinished):
        unfinished.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_file(tmp_path / "a.txt", write)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ reading
def torch_1_10_parameter_dict(parameters: dict) -> torch.nn.ParameterDict:
    """What the Textual Inversion and ViCo scripts pickled: the instance attributes of that time."""
    module = torch.nn.ParameterDict()
    state = {"training": True, "_parameters": collections.OrderedDict(parameters), "_is_full_backward_hook": None,
             "_non_persistent_buffers_set": set()}
    state |= {name: collections.OrderedDict() for name in ("_buffers", "_backward_hooks", "_forward_hooks",
              "_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks", "_modules")}
    module.__dict__.clear()
    module.__dict__.update(state)
    return module


L2, G2, H1 = rows(2, 768), rows(2, 1280), rows(1, 1024)
SINGLE = {"clip_l": L2}
LAYOUTS = {
    "a1111.pt": ({"string_to_token": {"*": 265}, "string_to_param": {"*": L2}, "name": "dog", "step": 500,
                  "sd_checkpoint": None, "sd_checkpoint_name": None}, SINGLE, {"name": "dog", "step": "500"}),
    "textual-inversion.pt": ({"string_to_token": {"*": torch.tensor(265)},
                              "string_to_param": torch_1_10_parameter_dict({"*": torch.nn.Parameter(L2.clone())})},
                             SINGLE, {}),
    "today-parameter-dict.pt": ({"string_to_param": torch.nn.ParameterDict({"*": L2.clone()})}, SINGLE, {}),
    "a1111.safetensors": ({"emb_params": L2}, SINGLE, {}),
    "diffusers-one.bin": ({"<cat>": L2[0]}, {"clip_l": L2[:1]}, {}),
    "diffusers.safetensors": ({"<cat>": L2}, SINGLE, {}),
    "diffusers-numbered.bin": ({"<cat>": L2[0], "<cat>_1": L2[1]}, SINGLE, {}),
    "diffusers-sd2.bin": ({"<cat>": H1[0]}, {"clip_h": H1}, {}),
    "learned_embeds_steps_300.bin": ({f"dog_v{i}": rows(11, 1024)[i] for i in reversed(range(11))},
                                     {"clip_h": rows(11, 1024)}, {}),
    "list.bin": ([{"clip_l": L2, "clip_g": G2}], {"clip_l": L2, "clip_g": G2}, {}),
    "list-of-two.bin": ([{"clip_l": L2[:1]}, {"clip_l": L2[1:]}], SINGLE, {}),
    "kohya-sdxl.safetensors": ({"clip_g": G2, "clip_l": L2}, {"clip_l": L2, "clip_g": G2}, {}),
    "pivotal.safetensors": ({"text_encoders_0": L2, "text_encoders_1": G2}, {"clip_l": L2, "clip_g": G2}, {}),
    "half.safetensors": ({"clip_l": L2.half()}, {"clip_l": L2.half().float()}, {}),
    "bundle.safetensors": ({"bundle_emb.my.dog.clip_l": L2, "bundle_emb.my.dog.clip_g": G2,
                            "lora_unet_x.alpha": torch.tensor(1.0), "lora_unet_x.lora_down.weight": rows(4, 320)},
                           {"clip_l": L2, "clip_g": G2}, {"token": "my.dog"}),
    "bundle-param.safetensors": ({"bundle_emb.dog.string_to_param.*": L2, "lora_unet_x.alpha": torch.tensor(1.0)},
                                 SINGLE, {"token": "dog"}),
}


def write(folder, name, content):
    path = folder / name
    if name.endswith(".safetensors"):
        safetensors.torch.save_file({key: value.clone() for key, value in content.items()}, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_other_tools(embedding_folder, name):
    content, expected, said = LAYOUTS[name]
    loaded, metadata = load_embedding(write(embedding_folder, name, content))
    assert {key: value.tolist() for key, value in loaded.items()} == {k: v.tolist() for k, v in expected.items()}
    assert all(value.dtype == torch.float32 for value in loaded.values())
    assert metadata == said


# Of these core keeps the first tensor only, drops its row axis or its type, or (ParameterDict) reads none.
CORE_DIFFERS = {"diffusers-one.bin", "diffusers-sd2.bin", "diffusers-numbered.bin", "learned_embeds_steps_300.bin",
                "pivotal.safetensors", "textual-inversion.pt", "today-parameter-dict.pt", "half.safetensors"}


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - CORE_DIFFERS))
def test_layouts_are_read_as_core_reads_them(embedding_folder, name):
    loaded, _ = load_embedding(write(embedding_folder, name, LAYOUTS[name][0]))
    for key, value in loaded.items():
        assert torch.equal(core_reads(embedding_folder, name, key, value.shape[1]), value)


def test_the_clips_own_widths_decide_for_unnamed_tensors(embedding_folder, sdxl):
    from personalize.nodes.text.encoders import text_encoders

    encoders = text_encoders(sdxl.clip)
    by_width = {e.key: rows(2, e.width) for e in encoders}
    content = {"<a>": by_width["clip_g"], "<a>_0": by_width["clip_l"]}
    loaded, _ = load_embedding(write(embedding_folder, "x.bin", content), encoders)
    assert all(torch.equal(loaded[key], by_width[key]) for key in by_width)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("/tmp/personalize-was-run-by-a-pickle",)


def test_a_pickle_that_is_not_plain_tensors_is_not_run(embedding_folder):
    with pytest.raises(ValueError, match="harmful.pt is a pickle that holds more than plain tensors.*as .safetensors"):
        load_embedding(write(embedding_folder, "harmful.pt", {"string_to_param": {"*": L2}, "x": Harmful()}))
    assert not os.path.exists("/tmp/personalize-was-run-by-a-pickle")


@pytest.mark.parametrize("name, content, message", [
    ("two.bin", {"<cat>": L2[0], "<dog>": L2[1]}, "several words .* <cat>, <dog>"),
    ("lora.safetensors", {f"lora_unet_{i}.lora_down.weight": rows(4, 768) for i in range(9)}, "several words"),
    ("wide.safetensors", {"emb_params": rows(1, 4096)}, r"found emb_params \(1, 4096\), expected .* 768, 1024 or 1280"),
    ("none.bin", {"a": 1}, "found no tensor"),
    ("text.bin", "hello", "damaged or no embedding"),
    ("uneven.safetensors", {"clip_l": L2, "clip_g": G2[:1]}, r"2 for clip_l, 1 for clip_g|1 for clip_g, 2 for clip_l"),
    ("nan.safetensors", {"clip_l": L2 * float("nan")}, "NaN"),
])
def test_files_that_are_no_embedding_get_one_sentence(embedding_folder, name, content, message):
    with pytest.raises(ValueError, match=message) as refused:
        load_embedding(write(embedding_folder, name, content))
    assert name in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name, data", [
    ("text.pt", b"hello world"), ("cut.safetensors", b"\x10\0\0"),
    ("html.bin", b"<!DOCTYPE html><html></html>"), ("zip.pt", b"PK\x03\x04garbage")])
def test_damaged_files_get_one_sentence(embedding_folder, name, data):
    (embedding_folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name} is damaged or no embedding file"):
        load_embedding(embedding_folder / name)


# ------------------------------------------------------------------------------------------------ finding
def test_names_are_found_as_listed_typed_or_pasted(embedding_folder, tmp_path):
    path = save_embedding("dogs/rex", {"clip_l": L2}, {})
    other = write(tmp_path / "second", "cat.pt", {"string_to_param": {"*": L2}})
    assert set(embedding_names()) == {os.path.join("dogs", "rex.safetensors"), "cat.pt"}
    for name in ("dogs/rex", "dogs\\rex.safetensors", "embedding:dogs/rex", " dogs/rex "):
        assert find_embedding(name) == path
    assert find_embedding("cat") == other and prompt_text(other) == "embedding:cat"
    for name in ("rexx", "", "../second/cat", "/etc/passwd"):
        with pytest.raises(ValueError, match="There is no embedding"):
            find_embedding(name)
