"""Files from elsewhere: what a reader makes of them is bounded by their own size, and every refusal is one sentence."""
from __future__ import annotations

import functools
import json
import os
import pickle
import struct
import sys
import tarfile
import tracemalloc
import zipfile

import pytest
import torch
from safetensors.torch import save, save_file

from personalize.nodes.foreign import opened
from personalize.nodes.model_files import find_file
from personalize.nodes.names import safe_name
from personalize.nodes.papers.vico.files import read_vico
from personalize.nodes.text.embedding_files import find_embedding, load_embedding
from personalize.nodes.training.captions import read_caption
from personalize.nodes.visual_prompts.blip_diffusion_files import find_folder
from personalize.nodes.visual_prompts.blip_diffusion_settings import read_settings
from personalize.nodes.visual_prompts.elite_files import read_elite
from personalize.nodes.visual_prompts.ip_adapter_files import read_ip_adapter
from personalize.nodes.visual_prompts.word_list import read_word_list
from personalize.nodes.weight_files import read_metadata, read_state_dict, read_weights
from support import hostile_files
from support.hostile_files import TORCH, archive, embedding, entry, safetensors, saved, tensor, unicode

ROW = torch.arange(1, 769, dtype=torch.float32)
BYTES = ROW.numpy().tobytes()
SPARE = 64 * 2**20


@pytest.fixture(scope="module")
def bombs(tmp_path_factory):
    return hostile_files.bombs(tmp_path_factory.mktemp("bombs"))


def refused(path, message="") -> str:
    """The sentence with which an embedding file is refused."""
    with pytest.raises(ValueError, match=message or None) as error:
        load_embedding(path)
    sentence = str(error.value)
    assert type(error.value) is ValueError and path.name in sentence and "\n" not in sentence and len(sentence) < 500
    return sentence


# ------------------------------------------------------------------------------------------------ bounds
NAMES = ("stride", "size", "overflow", "deep", "itself", "doubled", "many names", "many lists", "memo", "directory",
         "packed", "header", "zeros", "metadata", "empties")


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_bounded_by_the_files_own_size(bombs, name):
    """numpy and Python tell tracemalloc what they take; torch makes no tensor of its own before a file is accepted."""
    tracemalloc.start()
    try:
        refused(bombs[name])
        assert tracemalloc.get_traced_memory()[1] <= 3 * bombs[name].stat().st_size + SPARE
    finally:
        tracemalloc.stop()


def test_what_is_wrong_is_named(bombs):
    for name, message in {
            "stride": "describes more numbers than its 3.58 KB can hold; get it from another source",
            "itself": "holds lists in lists without an end", "many lists": "a pickle of too many parts",
            "directory": "an archive of too many parts", "packed": "an archive with compressed or encrypted parts",
            "metadata": r"a header of 40 MB, more than the 8.39 MB that are read"}.items():
        refused(bombs[name], message)


@pytest.mark.smoke
def test_vectors_repeated_by_a_stride_are_read(tmp_path):
    loaded, _ = load_embedding(saved({"emb_params": ROW.expand(4, 768)}, tmp_path / "a.pt"))
    assert torch.equal(loaded["clip_l"], ROW.repeat(4, 1))


# ------------------------------------------------------------------------------------------------ what torch writes
@pytest.mark.parametrize("how", [{}, {"pickle_protocol": 4}, {"_use_new_zipfile_serialization": False},
                                 {"_use_new_zipfile_serialization": False, "pickle_protocol": 5}])
def test_everything_plain_that_torch_saves(tmp_path, how):
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
              torch.int8,
              torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn)
    whole = torch.arange(24.0).view(4, 6)
    content = {"types": {str(dtype): ROW[:6].to(dtype) for dtype in dtypes},
               "views": [whole[1:3], whole.T, whole[:, 1]],
               "odd": (torch.tensor(7.0), torch.zeros(0, 3), ROW.expand(2, 768)), "tied": [whole, whole],
               "beside": {"name": "dog", "step": 5, "none": None, "on": True, "size": whole.shape, "set": {1}},
               "parameter": torch.nn.Parameter(whole.clone()), "module": torch.nn.Linear(2, 3).state_dict()}
    found, _ = read_weights(saved(content, tmp_path / "a.pt", **how), "file")
    _compare(found, content)
    assert found["tied"][0] is found["tied"][1]


def _compare(found, expected):
    """Sets, sizes and classes stand beside tensors: nobody looks at them."""
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and found.shape == expected.shape and torch.equal(found, expected.detach())
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            _compare(found[key], expected[key])
    elif isinstance(expected, (list, tuple)) and not isinstance(expected, torch.Size):
        assert len(found) == len(expected)
        for pair in zip(found, expected):
            _compare(*pair)
    elif not isinstance(expected, (set, torch.Size)):
        assert found == expected


@pytest.mark.smoke
def test_everything_that_safetensors_saves(tmp_path):
    tensors = {f"{dtype}": ROW[:3].to(dtype) for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)}
    tensors |= {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 3)}
    save_file(tensors, tmp_path / "a.safetensors", {"step": "3"})
    found, metadata = read_weights(tmp_path / "a.safetensors", "file")
    assert metadata == read_metadata(tmp_path / "a.safetensors", "file") == {"step": "3"}
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert all(found[name].dtype == tensors[name].dtype for name in tensors)


# ------------------------------------------------------------------------------------------------ numbers
@pytest.mark.parametrize("value, message", [
    (ROW * float("nan"), "NaN or infinite"), (ROW.double() * 1e300, "NaN or infinite"), (ROW.int(), "type int32"),
    (ROW.bool(), "type bool"), (ROW.to(torch.complex64), "type complex64"), (torch.zeros(0, 768), "an empty tensor"),
    (torch.zeros(0), "found no tensor|expected vectors of width"),
    (torch.zeros(768), "Vector 1 of .* is zero"), (torch.stack([ROW, ROW * 0]), "Vector 2 of .* is zero"),
    (torch.ones(1001, 768), "1001 vectors"), (torch.ones(1, 1, 768), "found no tensor")])
def test_numbers_that_are_no_embedding(tmp_path, value, message):
    refused(saved({"emb_params": value}, tmp_path / "a.pt"), message)


@pytest.mark.parametrize("tensors, message", [
    ({"a\nb": ROW.int()}, "look at a�b"), ({"a\r\u2028b": ROW * float("nan")}, "look at a��b"),
    ({"a\nb": torch.zeros(0, 768)}, "look at a�b"), ({"a\nb": torch.ones(3)}, "found a�b")])
def test_a_name_in_a_file_does_not_break_the_sentence(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "a.safetensors")
    assert message in refused(tmp_path / "a.safetensors")


OTHER = save({"weight": ROW})
ODD_NAME = "two\nlines\u2028.pt"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows such names")
@pytest.mark.parametrize("read, content", [
    (load_embedding, b""), (load_embedding, OTHER), (read_ip_adapter, OTHER), (read_vico, OTHER),
    (read_caption, b"\xff"), (lambda path: read_elite(path, path), OTHER)])
def test_a_files_own_name_does_not_break_the_sentence(tmp_path, read, content):
    (tmp_path / ODD_NAME).write_bytes(content)
    with pytest.raises(ValueError) as error:
        read(tmp_path / ODD_NAME)
    assert str(error.value).startswith("two�lines�.pt ") and str(error.value).isprintable()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows such names")
@pytest.mark.parametrize("read, file", [(lambda folder: read_word_list([folder], 10, 10), "vocab.txt"),
                                        (lambda folder: read_settings(folder, 768, 768, 1e-12), "model_index.json")])
def test_a_folders_own_name_does_not_break_the_sentence(tmp_path, read, file):
    (tmp_path / ODD_NAME).mkdir()
    (tmp_path / ODD_NAME / file).write_text("{")
    with pytest.raises(ValueError) as error:
        read(tmp_path / ODD_NAME)
    assert "two�lines�.pt" in str(error.value) and str(error.value).isprintable()


@pytest.mark.parametrize("find", [find_embedding, find_folder, functools.partial(find_file, "ipadapter"),
                                  functools.partial(safe_name, what="The file name")])
def test_a_name_that_is_typed_does_not_break_the_sentence(find):
    with pytest.raises(ValueError) as error:
        find("../two\nlines\u2028")
    assert "two�lines�" in str(error.value) and str(error.value).isprintable()


def test_a_type_in_a_file_does_not_break_the_sentence(tmp_path):
    header = json.dumps({"a\nb": {"dtype": "F\n9", "shape": [768], "data_offsets": [0, 3072]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(3072))
    assert "type F�9 (look at a�b)" in refused(tmp_path / "a.safetensors")


def test_an_encoder_that_only_another_ones_files_know_may_be_zero(tmp_path):
    """Converters of SD1.x embeddings to SDXL write zeros for clip_g."""
    save_file({"clip_l": ROW[None], "clip_g": torch.zeros(1, 1280)}, tmp_path / "a.safetensors")
    assert set(load_embedding(tmp_path / "a.safetensors")[0]) == {"clip_l", "clip_g"}


@pytest.mark.parametrize("value", [torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr(),
                                   torch.empty(3, device="meta"),
                                   torch.quantize_per_tensor(ROW, 0.1, 0, torch.qint8)])
def test_tensors_that_are_not_plain(tmp_path, value):
    refused(saved({"emb_params": value}, tmp_path / "a.pt"), "sparse, quantised or nested tensors")


def test_vectors_of_no_width(tmp_path):
    refused(saved({"clip_l": torch.zeros(0)}, tmp_path / "a.pt"), "an empty tensor .look at clip_l")


# ------------------------------------------------------------------------------------------------ lies and damage
def test_pickles_that_ask_for_more_than_values(tmp_path):
    for code in (b"cos\nmkdir\n" + unicode("x") + b"\x85R.", b"(S'x'\nios\nmkdir\n.", b"\x82\1.",
                 b"cbuiltins\neval\n."):
        refused(archive(tmp_path / "a.pt", TORCH + code, {}), "could run code when opened, so it was not opened")
    for code in (b"(K\1K\2d.", b"h\5.", b"R.", b"]K\1K\2s.", b"}(](K\1e]u.", b"}(K\1K\2K\1K\3u.", b"K\1)R.", b"t.",
                 b"ctorch._utils\n_rebuild_tensor_v2\n)R.", b"ccollections\nOrderedDict\nK\1R.", b"N)b."):
        refused(archive(tmp_path / "a.pt", TORCH + code, {}))


def test_archives_that_are_not_torchs(tmp_path):
    whole = tensor("0", 768, (1, 768), (768, 1))
    assert torch.equal(load_embedding(embedding(tmp_path / "a.pt", whole, {"0": BYTES}))[0]["clip_l"], ROW[None])
    refused(embedding(tmp_path / "a.pt", whole, {"0": BYTES}, more={"archive/constants.pkl": b""}), "TorchScript")
    refused(embedding(tmp_path / "a.pt", whole, {"0": BYTES}, more={"archive/byteorder": b"big"}), "order of bytes")
    refused(embedding(tmp_path / "a.pt", whole, {"0": BYTES}, more={"b/data.pkl": b""}), "damaged")
    refused(embedding(tmp_path / "a.pt", whole, {"0": BYTES[:-4]}), "damaged")
    refused(embedding(tmp_path / "a.pt", whole, {"1": BYTES}), "damaged")
    for odd in (tensor("0", 768, (1, 768), (768, -1)), tensor("0", 768, (1, 768), (768,)),
                tensor("0", 768, (1, 768), (768, 1), 1), tensor("0", 768, (1,) * 9, (1,) * 9),
                tensor("0", 768, (1, -768), (768, 1)), tensor("0", 768, (1, 768), (768, 1), storage="QInt8Storage")):
        refused(embedding(tmp_path / "a.pt", odd, {"0": BYTES}))
    with tarfile.open(tmp_path / "old.pt", "w") as file:
        file.add(__file__, "storages")
    refused(tmp_path / "old.pt", "is a tar archive, as torch wrote before 2017")
    with zipfile.ZipFile(tmp_path / "picture.pt", "w") as file:
        file.writestr("a.png", b"")
    refused(tmp_path / "picture.pt", "damaged")


def test_streams_that_lie(tmp_path):
    whole = saved({"emb_params": ROW}, tmp_path / "a.pt", _use_new_zipfile_serialization=False).read_bytes()
    at = whole.index(BYTES) - 8
    for count in (2**62, -1, 769, 767):
        (tmp_path / "b.pt").write_bytes(whole[:at] + struct.pack("<q", count) + whole[at + 8:])
        refused(tmp_path / "b.pt", "damaged")
    (tmp_path / "c.pt").write_bytes(pickle.dumps({"emb_params": [1.0] * 768}))
    refused(tmp_path / "c.pt", "damaged")


@pytest.mark.parametrize("header, data", [
    ({"clip_l": entry((2, 768), 0, 3072)}, BYTES), ({"clip_l": entry((1, 768), 4, 3076)}, b"0000" + BYTES),
    ({"clip_l": entry((1, 768), 0, 3072), "b": entry((1, 768), 0, 3072)}, BYTES),
    ({"clip_l": entry((1, 768), 0, 3072)}, BYTES + b"0"), ({"clip_l": entry((1, 768), 0, 3072)}, BYTES[:-1]),
    ({"clip_l": entry((1, -768), 0, 3072)}, BYTES), ({"clip_l": entry((1.0, 768), 0, 3072)}, BYTES),
    ({"clip_l": entry((1,) * 9 + (768,), 0, 3072)}, BYTES), ({"clip_l": entry((0, 2**62), 0, 0)}, b""),
    ({"clip_l": entry((1, 768), 0, 3072, "F4")}, BYTES), ({"clip_l": [1]}, BYTES), ([1], b""), (b"{", b""),
    ({"clip_l": entry((1, 768), 0, 3072), "__metadata__": {"a": 1}}, BYTES),
                                          ({"x" * 1001: entry((768,), 0, 3072)}, BYTES),
    ((b'{"clip_l":{"dtype":"F32","shape":[768],"data_offsets":[0,3072]},'
      b'"clip_l":{"dtype":"F32","shape":[768],"data_offsets":[0,3072]}}'), BYTES),
    (b"[" * 100_000, b""), (b"\xff\xfe{}", b"")])
def test_headers_that_lie(tmp_path, header, data):
    refused(safetensors(tmp_path / "a.safetensors", header, data))


def test_names_that_two_tensors_share(tmp_path):
    with pytest.raises(ValueError, match="a.pt is damaged"):
        read_state_dict(saved({"a": {"b": ROW}, "a.b": ROW}, tmp_path / "a.pt"), "file")


# ------------------------------------------------------------------------------------------------ no files
def test_what_is_no_file(tmp_path):
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "empty.pt").touch()
    (tmp_path / "gone.pt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.pt")
        refused(tmp_path / "pipe.pt", "is no file but a folder, a pipe or a device")
    refused(tmp_path / "folder.pt", "is no file but a folder")
    refused(tmp_path / "empty.pt", "is empty; download or save it again")
    refused(tmp_path / "gone.pt", "cannot be read .No such file or directory.")
    saved({"emb_params": ROW}, tmp_path / "real.pt")
    (tmp_path / "link.pt").symlink_to(tmp_path / "real.pt")
    assert torch.equal(load_embedding(tmp_path / "link.pt")[0]["clip_l"], ROW[None])


def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    """safetensors maps files into memory: there the process ends."""
    path = tmp_path / "a.safetensors"
    save_file({"clip_l": torch.ones(900, 768)}, path)
    real = opened.read_exactly

    def shorter(file, count):
        os.truncate(path, 5_000)
        return real(file, count)

    monkeypatch.setattr("personalize.nodes.foreign.safetensors_file.read_exactly", shorter)
    refused(path, "changed while it was read; wait until it is written")
