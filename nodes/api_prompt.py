"""What a prompt in ComfyUI's API format is made of, for those who read one without running it."""
from __future__ import annotations

from typing import Any, TypeGuard

TRAIN = "PersonalizeTrain"
VALUES = ("PrimitiveInt", "PrimitiveFloat", "PrimitiveString", "PrimitiveStringMultiline", "PrimitiveBoolean")
LARGEST_PROMPT = 2**22  # bytes of a request that holds one


def is_link(value: Any) -> TypeGuard[list]:
    """Whether an input's value is the output of another node: [node, number of its output]."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], (str, int)) and type(value[1]) is int
