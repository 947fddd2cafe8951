"""Copies of ComfyUI's objects that can do more than their class, with the class doing it."""
from __future__ import annotations

import copy
import functools
from typing import Any


class Taught:
    """What such a copy can do beside its own class; its methods reach the class's by super().

    The class does the work, not an attribute of the object: other packs set attributes on tokenizers and delete them
    when they are done, and what the class does is then there again.
    """

    made_of: tuple[type, type]

    def __reduce__(self):
        return _blank, self.made_of, vars(self)


def made(adds: type, original: Any) -> Any:
    """A copy of `original`, its attributes shared, whose class does what `adds` says, too."""
    copied = copy.copy(original)
    if not isinstance(copied, adds):
        copied.__class__ = _class(adds, type(original))
    return copied


@functools.cache
def _class(adds: type, kind: type) -> type:
    return type(kind.__name__, (adds, kind), {"__module__": kind.__module__, "made_of": (adds, kind)})


def _blank(adds: type, kind: type):
    cls = _class(adds, kind)
    return object.__new__(cls)
