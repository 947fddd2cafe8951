"""One exception for a prompt that did not run to success, in process or on the server."""
from __future__ import annotations

Event = tuple[str, dict]


class PromptFailed(Exception):
    """The text is what the person at the graph reads.

    kind: "validation" (refused before anything ran), "error" (a node raised) or "interrupted".
    details: per node id the errors of a refused prompt, else ComfyUI's own message about the end.
    """

    def __init__(self, kind: str, message: str, node_id: str | None, details: dict):
        super().__init__(message)
        self.kind, self.message, self.node_id, self.details = kind, message, node_id, details


def refused(error: dict, node_errors: dict) -> PromptFailed:
    """From what ComfyUI's validation returns."""
    found = [(node_id, entry) for node_id, node in node_errors.items() for entry in node["errors"]]
    texts = [f"{entry['message']}: {entry['details']}"
             for _, entry in found] or [f"{error['message']}: {error['details']}"]
    return PromptFailed("validation", "\n".join(texts), found[0][0] if found else None, node_errors)


def failed(events: list[Event]) -> PromptFailed:
    """From the messages of a prompt that ended without success."""
    for name, data in reversed(events):
        if name == "execution_error":
            return PromptFailed("error", data["exception_message"].strip(), data["node_id"], data)
        if name == "execution_interrupted":
            return PromptFailed("interrupted", "interrupted", data["node_id"], data)
    raise RuntimeError(f"the prompt failed without saying why: {events[-3:]}")
