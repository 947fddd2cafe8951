"""Beside other people's packs: what they do to a CLIP and to conditionings, and whether words survive it."""
from __future__ import annotations

import pytest

import nodes


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.pack(name))
    for name in ("ComfyUI_ADV_CLIP_emb", "comfyui-prompt-control", "ComfyUI-ppm", "ComfyUI_smZNodes",
                 "ComfyUI_IPAdapter_plus", "ComfyUI-AnimateDiff-Evolved", "ComfyUI-Impact-Pack")])
def test_loads(name, beside_packs):
    """The pack itself works here; else nothing below says anything."""
    own = [cls for cls in nodes.NODE_CLASS_MAPPINGS.values()
           if getattr(cls, "RELATIVE_PYTHON_MODULE", "") == f"custom_nodes.{name}"]
    assert own
