"""A sentence for whoever pressed Run, while a node is at work: in the log, and on that node in the page."""
from __future__ import annotations

import html
import logging

from comfy_execution.utils import get_executing_context

from .page import running_server

log = logging.getLogger("personalize")


def notice(sentence: str) -> None:
    """Outside a graph, and without a server, only the log gets it."""
    log.warning(sentence)
    progress_text(sentence)


def progress_text(sentence: str) -> None:
    """How far the running node is, on that node in the page alone."""
    running, server = get_executing_context(), running_server()
    if running is not None and server is not None:
        server.send_progress_text(html.escape(sentence, quote=False), running.node_id)  # the page reads it as HTML
