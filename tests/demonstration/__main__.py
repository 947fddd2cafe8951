"""Runs the demonstration; started by tests/demo.py with the Python that runs ComfyUI."""
from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from environment.report import say
from support.failures import PromptFailed
from support.paths import CACHE
from support.server import ComfyServer, ServerRun
from support.workflows import to_prompt, with_values

from .options import PACK, parse
from .setting import Setting, prepare
from .story import Story

WORKFLOW = PACK / "workflows" / "train_embedding_core.json"
PAGE_PACK = "demonstration"  # a pack whose only content is the template that --serve opens
LONGEST = 24 * 3600


def main() -> int:
    """Train, draw, say where everything is."""
    options = parse()
    base = CACHE / "demo" / time.strftime("%Y-%m-%d-%H%M%S")
    base.mkdir(parents=True)
    setting = prepare(options, base)
    if setting.notice:
        say(setting.notice)
    (base / PAGE_PACK).mkdir()
    (base / PAGE_PACK / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    (base / PAGE_PACK / "workflows").mkdir()
    say("starting ComfyUI")
    has_accelerator = torch.cuda.is_available() or torch.backends.mps.is_available()
    server = ComfyServer(base, {**setting.packs, PAGE_PACK: base / PAGE_PACK},
                         () if setting.modest or has_accelerator else ("--cpu",), setting.modest)
    try:
        _demonstrate(server, setting)
        if options.serve:
            _serve(server)
    except PromptFailed as problem:
        print(f"\n{problem}\nWhat ComfyUI said is in {server.log_file}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 130
    finally:
        server.stop()
    return 0


def _demonstrate(server: ComfyServer, setting: Setting) -> None:
    definitions = server.get("/object_info")
    values = {"CheckpointLoaderSimple": {"ckpt_name": setting.checkpoint}, **setting.values}
    document = with_values(json.loads(WORKFLOW.read_text(encoding="utf-8")), definitions, values)
    (server.base / PAGE_PACK / "workflows" / "demo.json").write_text(json.dumps(document))
    prompt = to_prompt(document, definitions)
    say(f"running {WORKFLOW.name}")
    story = Story(prompt, definitions, server.base / "output")
    run = server.run(prompt, LONGEST, story.tell)
    report = next(output["personalize_training"][0] for output in run.outputs.values() if "personalize_training" in output)
    embedding = report["saved"][-1]["embeddings"][0]
    say("drawing with stock nodes alone, by the saved file and by the class word")
    pictures = {text: _draw(server, prompt, text) for text in (f"a photo of {embedding}", f"a photo of a {_class(prompt)}")}
    _summary(server, run, report, pictures)


def _draw(server: ComfyServer, trained: dict, text: str) -> Path:
    """The picture that stock nodes draw for `text`, with the workflow's own sampler settings."""
    by_type = {node["class_type"]: node["inputs"] for node in trained.values()}
    sampler = {**by_type["KSampler"], "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": by_type["CheckpointLoaderSimple"]},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": text}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "4": {"class_type": "EmptyLatentImage", "inputs": by_type["EmptyLatentImage"]},
        "5": {"class_type": "KSampler", "inputs": sampler},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "stock-nodes"}}}
    file = server.run(prompt, LONGEST).outputs["7"]["images"][0]
    return server.base / "output" / file["subfolder"] / file["filename"]


def _class(prompt: dict) -> str:
    return next(node["inputs"]["class_words"] for node in prompt.values() if node["class_type"] == "PersonalizeConcept")


def _summary(server: ComfyServer, run: ServerRun, report: dict, pictures: dict[str, Path]) -> None:
    folder = server.base / "output" / "personalize" / report["run"]
    lines = [("embedding", report["saved"][-1]["files"][0])]
    lines += [("in a prompt", report["saved"][-1]["embeddings"][0])]
    for output in run.outputs.values():
        for file in output.get("images", []):
            if file["type"] == "temp":  # the loss graph: ComfyUI empties its temporary folder
                (folder / "loss_graph.png").write_bytes(server.view(file))
                lines += [("loss chart", folder / "loss_graph.png")]
            else:
                lines += [("picture", server.base / "output" / file["subfolder"] / file["filename"])]
    lines += [("losses", folder / "losses.csv"), ("previews", folder)]
    lines += [(f"stock: {text}", path) for text, path in pictures.items()]
    say("done")
    width = max(len(name) for name, _ in lines)
    print("\n".join(f"  {name:{width}}  {where}" for name, where in lines), flush=True)


def _serve(server: ComfyServer) -> None:
    print(f"\nThe page is open at {server.url}/?template=demo&source={PAGE_PACK}   (Ctrl+C ends it)", flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    sys.exit(main())
