"""Makes the pack's folder importable as `personalize`, whatever the folder is called."""
from __future__ import annotations

import importlib.abc
import importlib.util
import sys

from .paths import PACK

NAME = "personalize"


class _PackFinder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname != NAME:
            return None
        return importlib.util.spec_from_file_location(NAME, PACK / "__init__.py",
                                                      submodule_search_locations=[str(PACK)])


def make_importable() -> None:
    """`import personalize` then runs the pack's __init__.py, as ComfyUI does under a name of its own."""
    sys.meta_path.insert(0, _PackFinder())
