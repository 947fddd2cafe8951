"""The folder that pictures dropped on a Subject are uploaded to has a name that every file system takes."""
from __future__ import annotations

import unicodedata

import pytest
from test_subject_page import DOGS, empty_inputs, opened, ui  # noqa: F401  fixtures


@pytest.mark.parametrize("word, folder", [("<con>", "con_"), (f"<{'w' * 300}>", "w" * 50), ("<COM1>", "COM1_"),
                                          (f"<{unicodedata.normalize('NFD', 'café')}>", "café")])
def test_a_folder_is_named_after_the_word(ui, server, word, folder):  # noqa: F811
    tray = opened(ui)
    ui.set_widget("1", "placeholder", word)
    tray.drop({"new.png": DOGS["blue.png"]})
    tray.wait_for(["new.png"])
    assert tray.widgets()["folder"] == folder
    assert [path.name for path in (server.base / "input" / folder).iterdir()] == ["new.png"]
