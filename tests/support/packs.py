"""Other people's packs, from a folder with checkouts that the person has: `python3 tests/run.py --packs FOLDER`."""
from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ADV_CLIP_EMB, PROMPT_CONTROL = "ComfyUI_ADV_CLIP_emb", "comfyui-prompt-control"
PPM, SMZ, IPADAPTER = "ComfyUI-ppm", "ComfyUI_smZNodes", "ComfyUI_IPAdapter_plus"
ANIMATEDIFF, IMPACT = "ComfyUI-AnimateDiff-Evolved", "ComfyUI-Impact-Pack"
# Modules that ComfyUI does not bring. They are asked for before a pack is imported: some install them by themselves.
NEEDS: dict[str, tuple[str, ...]] = {
    SMZ: ("lark", "compel"),
    IMPACT: ("cv2", "skimage", "piexif", "segment_anything", "dill", "matplotlib", "git"),
}
# What a pack imports for other families of models and the ComfyUI under test no longer has: (module, name).
GONE: dict[str, tuple[tuple[str, str], ...]] = {
    PPM: (("comfy.ldm.cosmos.predict2", "apply_rotary_pos_emb"),),
}


def why_not(name: str, folder: Path | None) -> str | None:
    """Why tests of this pack cannot run, in one sentence; None if they can."""
    if folder is None:
        return f"{name}: give the folder that holds its checkout: python3 tests/run.py --packs FOLDER"
    if not (folder / name / "__init__.py").is_file():
        return f"{name}: {folder} holds no checkout of it"
    missing = [module for module in NEEDS.get(name, ()) if importlib.util.find_spec(module) is None]
    return f"{name}: it needs the Python modules {', '.join(missing)}" if missing else None


def load(name: str, folder: Path, base: Path, execute) -> None:
    """Links the checkout into ComfyUI's custom_nodes and loads it there, as ComfyUI does when it starts; once."""
    link = base / "custom_nodes" / name
    if not link.exists():
        link.symlink_to(folder / name, target_is_directory=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("PYTEST_CURRENT_TEST", raising=False)  # prompt-control offers no nodes to a test of its own
            for module, gone in GONE.get(name, ()):
                patch.setattr(f"{module}.{gone}", None, raising=False)
            execute.load_pack(link)
