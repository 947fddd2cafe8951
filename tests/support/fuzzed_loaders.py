"""Every loader of files that a person or another tool can give: sound files to start from, and what must hold of
results."""
from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as save_safetensors

from personalize.nodes.papers.vico.files import ViCo, read_vico
from personalize.nodes.text.concept import Concept
from personalize.nodes.text.concept_files import load_concept
from personalize.nodes.text.embedding_files import load_embedding
from personalize.nodes.text.prompts import SLOT, PromptSet, read_prompts
from personalize.nodes.training.captions import read_caption
from personalize.nodes.training.picture_reading import read_picture
from personalize.nodes.training.run_folder import REPORT, RunFolder, saved_report
from personalize.nodes.visual_prompts.blip_diffusion_files import read_blip_diffusion
from personalize.nodes.visual_prompts.elite_files import read_elite
from personalize.nodes.visual_prompts.ip_adapter_files import BASE, read_ip_adapter
from personalize.nodes.visual_prompts.word_list import read_word_list
from tiny import blip_diffusion, elite, ip_adapter
from tiny.vico import official_tensors

RUN, KEY = "fuzzed", "0123456789abcdef"
WORDS = json.dumps({"model": {"type": "WordPiece", "vocab": {word: i for i, word in enumerate(blip_diffusion.WORDS)}}})


@dataclass(frozen=True)
class Loader:
    """One way in.

    seeds: name of a file → sound contents. read: reads what is at a path, or in its folder. holds: raises
    AssertionError unless a result is what the loader says. beside: other files that must be there, by their place in
    the folder. place: where the file itself lies in the folder; "" for its own name. bounded: whether memory goes with
    the file's size. names: that the file may use.
    """

    seeds: Mapping[str, Sequence[bytes]]
    read: Callable[[Path], Any]
    holds: Callable[[Any], None]
    beside: Mapping[str, bytes] = field(default_factory=dict)
    place: str = ""
    bounded: bool = True
    names: Sequence[str] = ()


# ------------------------------------------------------------------------------------------------ sound files
def pickled(content: Any, **how: Any) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(content, file, **how)
    return file.getvalue()


def packed(tensors: Mapping[str, torch.Tensor], about: Mapping[str, str] | None = None) -> bytes:
    """What safetensors writes."""
    return save_safetensors({name: tensor.clone() for name, tensor in tensors.items()}, dict(about or {}) or None)


def every_way(content: Any, flat: Mapping[str, torch.Tensor],
              about: Mapping[str, str] | None = None) -> dict[str, list[bytes]]:
    """Both formats of torch and safetensors."""
    return {".pt": [pickled(content), pickled(content, _use_new_zipfile_serialization=False)],
            ".safetensors": [packed(flat, about)]}


def _draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _embeddings() -> dict[str, list[bytes]]:
    row, wide = _draw(2, 768), _draw(2, 1280)
    about = {"placeholder": "<my-dog>", "class_words": "dog", "step": "50", "run": RUN, "personalize": "1"}
    old = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": torch.nn.ParameterDict({"*": row.clone()})}
    seeds = every_way({"string_to_param": {"*": row}, "name": "dog", "step": 5}, {"clip_l": row, "clip_g": wide}, about)
    seeds[".pt"] += [pickled(old), pickled({"<dog>": row[0], "<dog>_1": row[1]}),
                     pickled([{"clip_l": row, "clip_g": wide}])]
    seeds[".safetensors"].append(packed({"bundle_emb.dog.clip_l": row, "lora_unet_x.alpha": torch.tensor(1.0)}))
    return seeds


def _blip_folder(tmp: Path, layout: str) -> dict[str, bytes]:
    blip_diffusion.write(tmp, 16, layout)
    return {path.relative_to(tmp).as_posix(): path.read_bytes() for path in tmp.rglob("*") if path.is_file()}


def _state() -> bytes:
    record = {"step": 1, "total": 9, "loss": 0.5, "parts": {"diffusion": 0.5}, "norms": {}, "lr": {"embedding": 5e-3},
              "seconds_left": 3.0}
    history = json.dumps([{**record, "step": step} for step in (1, 2, 3)])
    tensors = {"part.0.vectors.<my-dog>.clip_l": _draw(1, 32), "optimizer.0.exp_avg": _draw(1, 32),
               "optimizer.0.step": torch.tensor(3.0)}
    return packed(tensors, {"fingerprint": KEY, "step": "3", "history": history})


def _report() -> bytes:
    record = {"step": 1, "loss": None, "parts": {"diffusion": None}, "norms": {"a|b": 1.0}, "lr": {}}
    saved = {"step": 1, "embeddings": ["embedding:a"], "files": ["/a.safetensors", {"kind": "loras", "name": "a/b"}],
             "part_files": [], "left_out": False}
    preview = {"step": 1, "image": {"filename": "a.png", "subfolder": "personalize/a", "type": "output"}}
    return json.dumps({"run": RUN, "history": [record], "saved": [saved], "previews": [preview],
                       "message": "m"}).encode()


def _picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(40 * 40 * 3, dtype=np.uint8).reshape(40, 40, 3)).save(file, format=kind)
    return file.getvalue()


# ------------------------------------------------------------------------------------------------ what must hold
def _are_numbers(tensors) -> None:
    for tensor in tensors:
        assert tensor.is_floating_point() and tensor.numel() and bool(tensor.float().isfinite().all())


def _is_embedding(result: tuple) -> None:
    vectors, about = result
    counts = {rows.shape[0] for rows in vectors.values()}
    assert vectors and len(counts) == 1 and 1 <= counts.pop() <= 1_000
    assert all(rows.dtype == torch.float32 and rows.ndim == 2 for rows in vectors.values())
    assert torch.stack([rows.any(1) for rows in vectors.values()]).any(0).all()
    assert all(isinstance(part, str) for pair in about.items() for part in pair)
    _are_numbers(vectors.values())


def _is_concept(concept: Concept) -> None:
    _is_embedding((concept.vectors, {**concept.settings, "class_words": concept.class_words}))
    assert concept.placeholder and concept.count == next(iter(concept.vectors.values())).shape[0]


def _is_vico(vico: ViCo) -> None:
    assert vico.blocks and vico.variant in ("paper", "released", "none") and all(isinstance(word, str)
                                                                                 for word in vico.words)
    assert 1 <= vico.size <= 16_384 and vico.text_width > 0
    for tensors in vico.blocks.values():
        _are_numbers(tensors.values())
        assert tensors["attn1.to_q.weight"].shape == (len(tensors["norm1.weight"]),) * 2


def _is_ip_adapter(adapter) -> None:
    seen = (1, adapter.vision_width) if adapter.kind == BASE else (1, 3, adapter.vision_width)
    tokens = adapter.tokens(torch.zeros(seen))
    assert tokens.ndim == 3 and tokens.shape[-1] == adapter.token_width and adapter.keys_values
    _are_numbers([*adapter.projection.values(), *(part for pair in adapter.keys_values for part in pair)])
    assert adapter.vision_name


def _is_elite(pair) -> None:
    states = [torch.zeros(1, 4, pair.of_word.vision_width)] * 5
    assert pair.word(states).shape == (1, 1, pair.of_word.token_width)
    assert pair.patches(states, torch.ones(1, 3)).shape == (1, 3, pair.of_patches.token_width)
    for mapper in (pair.of_word, pair.of_patches):
        _are_numbers([*mapper.network.values(), *(part for both in mapper.keys_values.values() for part in both)])


def _is_blip(encoder) -> None:
    tokens = encoder.see(torch.zeros(1, 3, encoder.side, encoder.side), "red dog backpacks")
    assert tokens.shape == (1, encoder.weights["query_tokens"].shape[1], 16)
    assert all(isinstance(number, (int, float)) for number in (*encoder.mean, *encoder.std)) and min(encoder.std) > 0


def _is_prompt_set(prompts: PromptSet) -> None:
    assert len(prompts.prompts) <= 10_000 and all(template.count(SLOT) == 1 for template in prompts.templates)
    assert all(isinstance(kind, str) and kind for kind in prompts.kinds)


def _is_word_list(words) -> None:
    ids = words.ids("a red teddy bear, zebra's")
    assert ids[0] == 101 and len(ids) <= 12 and all(type(number) is int and 0 <= number < 113 for number in ids)


def _is_state(state) -> None:
    if state is not None:
        tensors, step, history = state
        assert 0 <= step <= 5 and all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
        assert all(record["step"] >= 0 and isinstance(record["parts"], dict) for record in history)


def _is_report(report: dict) -> None:
    assert report["run"] == RUN and isinstance(report["message"], str)
    assert all(isinstance(record["parts"], dict) for record in report["history"])
    assert all(isinstance(path, str) for saved in report["saved"] for path in saved["files"])
    assert all(isinstance(preview["image"], dict) for preview in report["previews"])


def _is_picture(pixels) -> None:
    assert pixels.channels.ndim == 3 and bool(pixels.channels.isfinite().all())


# ------------------------------------------------------------------------------------------------ all of them
def loaders(tmp: Path, run_folder: Path) -> dict[str, Loader]:
    """Name → loader. tmp: an empty folder to write in. run_folder: where ComfyUI keeps what the run RUN has written."""
    base, plus, full = (ip_adapter.state_dict(kind, 12, 8, [16, 8]) for kind in ip_adapter.KINDS)
    mapper = elite.state_dict(dict.fromkeys(elite.PLACES.values(), 4), 6, 4)
    blocks = official_tensors({4: 8, 6: 4})
    about = {"format": "vico", "variant": "paper", "words": '["<my-dog>"]', "size": "64", "text_width": "32"}
    hugging, lavis = (_blip_folder(tmp / layout, layout)
                      for layout in (blip_diffusion.HUGGING_FACE, blip_diffusion.LAVIS))
    prompts = b"# mine\n[action]\na {} runs\n\na {} at school\r\n[style]\na painting of {}\n"
    folder = RunFolder.__new__(RunFolder)
    folder.run, folder.path, folder.key = RUN, run_folder, KEY
    found = {
        "embedding": Loader(_embeddings(), load_embedding, _is_embedding,
                            names=("clip_l", "clip_g", "emb_params", "string_to_param", "*", "<dog>", "<dog>_1",
                                   "x_v0")),
        "concept": Loader(_embeddings(), load_concept, _is_concept, names=("clip_l", "string_to_param", "*")),
        "vico": Loader(every_way(blocks, blocks, about), read_vico, _is_vico, names=tuple(blocks)),
        "ip_adapter": Loader({".bin": [pickled(kind) for kind in (base, plus, full)],
                              ".safetensors": [packed(ip_adapter.flat(kind)) for kind in (base, plus, full)]},
                             read_ip_adapter, _is_ip_adapter,
                             names=("image_proj", "ip_adapter", *base["image_proj"], *base["ip_adapter"])),
        "elite": Loader(every_way(mapper, mapper), lambda path: read_elite(path, path), _is_elite,
                        names=tuple(mapper)),
        "word_list": Loader({".txt": ["\n".join(blip_diffusion.WORDS).encode()]},
                            lambda path: read_word_list([path.parent], 113, 12), _is_word_list, place="vocab.txt"),
        "tokenizer": Loader({".json": [WORDS.encode()]}, lambda path: read_word_list([path.parent], 113, 12),
                            _is_word_list, place="tokenizer.json", names=("model", "vocab", "type", "added_tokens")),
        "prompts": Loader({".txt": [prompts, prompts.decode().encode("utf-16")]}, read_prompts, _is_prompt_set),
        "caption": Loader({".txt": [b"a photo of {} in a garden", b"\xef\xbb\xbf<my-dog> runs\n"]}, read_caption,
                          lambda text: _is_text(text)),
        "state": Loader({".safetensors": [_state()]}, lambda path: folder.state(5), _is_state,
                        place=str(run_folder / "state-000003.safetensors")),
        "report": Loader({".json": [_report()]}, lambda path: saved_report(RUN), _is_report,
                         place=str(run_folder / REPORT), names=("run", "history", "saved", "previews", "message")),
        "picture": Loader({".png": [_picture("PNG")], ".jpg": [_picture("JPEG")], ".webp": [_picture("WEBP")],
                           ".tif": [_picture("TIFF")]}, lambda path: read_picture(path, 32), _is_picture,
                          bounded=False)}
    for layout, files in (("hugging_face", hugging), ("lavis", lavis)):
        for place, data in files.items():
            beside = {other: content for other, content in files.items() if other != place}
            root = place.count("/")
            found[f"blip_{layout}_{Path(place).stem}"] = Loader(
                {Path(place).suffix: [data]}, lambda path, root=root: read_blip_diffusion(path.parents[root]), _is_blip,
                beside, place, names=("vision_config", "num_attention_heads", "hidden_act", "layer_norm_eps", "mean",
                                      "std"))
    return found


def _is_text(text: Any) -> None:
    assert isinstance(text, str) and "\n" not in text
