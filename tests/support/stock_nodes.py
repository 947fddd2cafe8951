"""ComfyUI's own nodes, called by name."""
from __future__ import annotations


def node(name: str, **inputs):
    """What the node gives first; its defaults for inputs that are not given."""
    import nodes

    found = nodes.NODE_CLASS_MAPPINGS[name]
    if hasattr(found, "GET_SCHEMA"):
        result = found.execute(**{**defaults(found), **inputs})
    else:
        result = getattr(found(), found.FUNCTION)(**inputs)
    return getattr(result, "args", result)[0]


def defaults(found) -> dict:
    """Of a V3 node: its inputs with a default, or with options of which the first is meant; switches without one are
    off."""
    inputs, values = found.GET_SCHEMA().inputs, {}
    for each in inputs:
        if getattr(each, "default", None) is not None:
            values[each.id] = each.default
        elif getattr(each, "options", None):
            values[each.id] = each.options[0]
        elif each.io_type == "BOOLEAN":
            values[each.id] = False
    return values
