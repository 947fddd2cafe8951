"""Embeddings and image blocks saved for other people's programs: read as those read them, and read back here."""
from __future__ import annotations

import os
from pathlib import Path

import folder_paths
import pytest
import torch
from comfy.sd1_clip import load_embed
from safetensors.torch import save_file
from torch import nn

from personalize.nodes.files import write_torch
from personalize.nodes.papers.vico.authors_files import save_for_authors
from personalize.nodes.papers.vico.files import read_vico
from personalize.nodes.text.concept import Concept
from personalize.nodes.text.concept_files import load_concept, save_concept
from personalize.nodes.text.embedding_files import save_embedding
from personalize.nodes.text.embedding_layouts import LAYOUTS, SAFETENSORS
from support.failures import PromptFailed
from support.prompts import loader, node
from support.vectors import rows
from tiny.vico import TINY_SD15, official_tensors

PLAIN, SCRIPTS, DIFFUSERS, CORE = LAYOUTS
WORD = "<my-dog>"


def concept(count=2, width=768, key="clip_l", **settings):
    return Concept(WORD, "dog", "dog").with_vectors({key: rows(count, width)}, settings)


# ------------------------------------------------------------------------------------------------ other programs' reade
class ScriptsReader(nn.Module):
    """What the scripts of Textual Inversion and ViCo do with an embedding file: it takes the place of their own
    module."""

    def __init__(self):
        super().__init__()
        self.tokens, self.parameters_by_word = {}, nn.ParameterDict()

    def load(self, path) -> dict[int, torch.Tensor]:
        """The number of each word in a prompt → its vectors."""
        content = torch.load(path, map_location="cpu", weights_only=False)
        self.tokens = content["string_to_token"]
        self.parameters_by_word = content["string_to_param"]
        assert len(list(self.parameters_by_word.parameters())) == len(self.tokens), "their optimiser asks for them"
        return {int(number.to("cpu")): self.parameters_by_word[word].to("cpu").detach()
                for word, number in self.tokens.items()}


def read_as_a1111(path) -> torch.Tensor:
    content = torch.load(path, map_location="cpu", weights_only=True)
    ((_, vectors),) = content["string_to_param"].items()
    return vectors


def read_as_diffusers(path) -> dict[str, torch.Tensor]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    if "string_to_param" in content:
        return {content["name"]: content["string_to_param"]["*"]}
    ((word, vectors),) = content.items()
    return {word: vectors if vectors.ndim > 1 else vectors[None]}


def read_as_core(path, width: int) -> tuple[list[str], torch.Tensor]:
    """The words that go into a prompt, joined by spaces, and the rows of the enlarged table that they mean."""
    content = torch.load(path, weights_only=True)
    table, words = torch.zeros(len(content), width), list(content)
    for number, vector in enumerate([content[word] for word in words]):
        table[number] = vector
    return words, table


# ------------------------------------------------------------------------------------------------ embeddings
def test_the_scripts_of_textual_inversion_and_vico_read_it(embedding_folder):
    path = save_concept(concept(), "rex", SCRIPTS)
    asterisk = ScriptsReader().load(path)
    assert list(asterisk) == [265] and torch.equal(asterisk[265], rows(2, 768))
    with pytest.raises(TypeError, match="cannot assign 'dict' as child module"):
        ScriptsReader().load(save_concept(concept(), "plain", PLAIN))  # why there are two formats


def test_the_asterisk_has_the_number_that_clip_gives_it(sd15):
    (pairs,) = sd15.clip.tokenize("*")["l"]
    assert pairs[1][0] == 265 == int(LAYOUTS[PLAIN].content(WORD, rows(1, 4))["string_to_token"]["*"])


@pytest.mark.parametrize("layout", [PLAIN, DIFFUSERS, CORE])
@pytest.mark.parametrize("count, width, key", [(1, 768, "clip_l"), (3, 1024, "clip_h")])
def test_plain_tensors_are_read_bit_for_bit_by_other_programs(embedding_folder, layout, count, width, key):
    path, vectors = save_concept(concept(count, width, key), "rex", layout), rows(count, width)
    if layout == PLAIN:
        assert torch.equal(read_as_a1111(path), vectors)
    if layout != CORE:
        (word, read), = read_as_diffusers(path).items()
        assert word == WORD and torch.equal(read, vectors)
    else:
        words, table = read_as_core(path, width)
        assert words == [f"{WORD}_v{i}" for i in range(count)] and torch.equal(table, vectors)
    assert path.stat().st_size < vectors.nbytes + 4096, "a tensor came with memory that is not its own"


@pytest.mark.parametrize("layout", [SAFETENSORS, *LAYOUTS])
def test_this_pack_reads_every_layout(embedding_folder, layout):
    path = save_concept(concept(), "rex", layout)
    loaded = load_concept(path)
    assert loaded.count == 2 and torch.equal(loaded.vectors["clip_l"], rows(2, 768))


@pytest.mark.parametrize("layout", [PLAIN, SCRIPTS, DIFFUSERS])
def test_comfyui_reads_it(embedding_folder, layout):
    save_concept(concept(), "rex", layout)
    assert torch.equal(load_embed("rex", [str(embedding_folder)], 768, "clip_l"), rows(2, 768))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_content_is_the_same_file(embedding_folder, layout):
    first = save_concept(concept(), "rex", layout)
    before = first.read_bytes(), first.stat().st_mtime_ns
    assert save_concept(concept(), "rex", layout) == first
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    other = save_concept(concept(3), "rex", layout)
    assert other.name == f"rex-2{first.suffix}" == save_concept(concept(3), "rex", layout).name
    assert save_concept(concept(), "rex").name == "rex-3.safetensors"
    assert sorted(os.listdir(embedding_folder)) == sorted([first.name, other.name, "rex-3.safetensors"])


def test_what_a_layout_cannot_hold_is_refused(embedding_folder):
    both = Concept(WORD, "dog", "dog").with_vectors({"clip_l": rows(1, 768), "clip_g": rows(1, 1280)})
    with pytest.raises(ValueError, match="vectors for clip_l and clip_g, but this format holds one text encoder's"):
        save_concept(both, "rex", CORE)
    assert not os.listdir(embedding_folder)


def test_a_file_that_cannot_be_written_leaves_nothing(embedding_folder, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device"):
        save_concept(concept(), "rex", PLAIN)
    assert not os.listdir(embedding_folder)


def test_the_node_saves_what_stock_nodes_encode(execute, embeddings, tiny_checkpoints):
    save_embedding("start", {"clip_l": rows(2, 32)}, {"placeholder": WORD, "class_words": "dog"})
    for layout in (SAFETENSORS, PLAIN, DIFFUSERS):
        prompt = {"1": loader(tiny_checkpoints["sd15"]),
                  "2": node("PersonalizeLoadConcept", embedding="start", placeholder="", class_words=""),
                  "3": node("PersonalizeSaveConcept", concept=["2", 0], name="rex", format=layout),
                  "4": node("CLIPTextEncode", clip=["1", 1], text=["3", 0]),
                  "5": node("CLIPTextEncode", clip=["1", 1], text="embedding:start")}
        got = execute(prompt, get={"saved": ["4", 0], "start": ["5", 0], "text": ["3", 0]}).values
        assert got["text"].startswith("embedding:rex") and torch.equal(got["saved"][0][0], got["start"][0][0])


# ------------------------------------------------------------------------------------------------ ViCo
class ScriptsModel(nn.Module):
    """Has parameters at the names that the authors' model gives its image blocks, and loads them as their script
    does."""

    def __init__(self, widths):
        super().__init__()
        self.held = {f"model.{name}": torch.zeros_like(tensor) for name, tensor in official_tensors(widths).items()}
        self.filled: set[str] = set()

    def load(self, path):
        content = {"model." + name: tensor for name, tensor in torch.load(path, map_location="cpu",
                                                                          weights_only=True).items()}
        for name in content.keys() & self.held.keys():
            self.held[name].copy_(content[name])
            self.filled.add(name)


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    return tmp_path / "output"


def blocks_file(tmp_path, **changes) -> Path:
    about = {"format": "vico", "variant": "released", "words": f'["{WORD}"]', "size": "64", "text_width": "32"}
    tensors = {name: tensor.half() for name, tensor in official_tensors(TINY_SD15).items()}
    save_file(tensors, tmp_path / "blocks.safetensors", {**about, **changes})
    return tmp_path / "blocks.safetensors"


def test_the_authors_scripts_read_image_blocks_and_their_word(output, tmp_path):
    vico = read_vico(blocks_file(tmp_path))
    folder, step = save_for_authors(vico, concept(1, 32, step="350"), "rex")
    files = {path.name: path for path in (folder / "checkpoints").iterdir()}
    assert (folder, step, sorted(files)) == (output / "vico" / "rex", 349,
                                             ["cross_attention-349.pt", "embeddings_gs-349.pt"])
    model = ScriptsModel(TINY_SD15)
    model.load(files["cross_attention-349.pt"])
    assert model.filled == set(model.held) and len(model.filled) == 80
    expected = official_tensors(TINY_SD15)
    assert all(torch.equal(model.held[f"model.{name}"], tensor.half().float()) for name, tensor in expected.items())
    assert torch.equal(ScriptsReader().load(files["embeddings_gs-349.pt"])[265], rows(1, 32))
    read = read_vico(files["cross_attention-349.pt"])
    assert all(torch.equal(tensor, vico.blocks[block][name].float())
               for block, tensors in read.blocks.items() for name, tensor in tensors.items())


def test_vico_saved_again_is_the_same_and_another_one_gets_another_folder(output, tmp_path):
    vico, word = read_vico(blocks_file(tmp_path)), concept(1, 32)
    first, other = save_for_authors(vico, word, "rex"), save_for_authors(vico, concept(2, 32), "rex")
    times = [path.stat().st_mtime_ns for path in first[0].rglob("*.pt")]
    assert first == (output / "vico" / "rex", 399) == save_for_authors(vico, word, "rex")
    assert other == (output / "vico" / "rex-2", 399) and len(times) == 2
    assert save_for_authors(vico, concept(2, 32, step="50"), "rex")[0] == first[0], "another step has names of its own"


def test_vico_that_the_scripts_would_pass_over_is_refused(execute, output, tmp_path, base):
    path = base / "models" / "vico" / "encoder.safetensors"
    path.parent.mkdir(exist_ok=True)
    tensors = {name.replace("output_blocks.4", "input_blocks.4"): tensor
               for name, tensor in official_tensors(TINY_SD15).items()}
    write_torch(path.with_suffix(".pt"), tensors)
    with pytest.raises(ValueError, match="image blocks in other places than the decoder"):
        save_for_authors(read_vico(path.with_suffix(".pt")), concept(1, 32), "rex")
    with pytest.raises(ValueError, match="has learned nothing yet"):
        save_for_authors(read_vico(blocks_file(tmp_path)), Concept(WORD, "dog", "dog"), "rex")
    with pytest.raises(
        ValueError, match="has vectors for clip_h, but the authors' scripts draw with Stable Diffusion 1.x"
    ):
        save_for_authors(read_vico(blocks_file(tmp_path)), concept(1, 1024, "clip_h"), "rex")
    path.with_suffix(".pt").unlink()
    assert not output.exists()


def test_the_vico_node_says_what_to_give_the_script(execute, output, tmp_path, base, embeddings):
    save_embedding("start", {"clip_l": rows(1, 32)}, {"placeholder": WORD, "class_words": "dog", "step": "50"})
    folder = base / "models" / "vico"
    folder.mkdir(exist_ok=True)
    write_torch(folder / "cross_attention-49.pt", official_tensors(TINY_SD15))
    load = node("PersonalizeLoadConcept", embedding="start", placeholder="", class_words="")
    prompt = {"1": load, "2": node("PersonalizeLoadViCo", file="cross_attention-49.pt"),
              "3": node("PersonalizeSaveViCo", vico=["2", 0], concept=["1", 0], name="")}
    arguments = execute(prompt, get={"arguments": ["3", 0]}).values["arguments"]
    assert arguments == f'--ft_path "{output / "vico" / "my-dog"}" --load_step 49'
    written = torch.load(output / "vico" / "my-dog" / "checkpoints" / "cross_attention-49.pt", weights_only=True)
    assert written.keys() == official_tensors(TINY_SD15).keys()
    prompt["1"] = node("PersonalizeConcept", placeholder=WORD, class_words="dog", initial_words="", vector_count=1,
                       embedding="none")
    with pytest.raises(PromptFailed, match="has learned nothing yet"):
        execute(prompt)
    (folder / "cross_attention-49.pt").unlink()
