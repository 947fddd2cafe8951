"""The pages for people who work on the pack name only what is there."""
from __future__ import annotations

import re

import pytest

from support.archive import archived_files
from support.paths import PACK

PAGES = ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "README.md", "tests/README.md",
         "tests/lab/bench/README.md",
         "tests/lab/miniature/README.md")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")
IN_CODE = re.compile(r"`((?:nodes|js|tests|workflows|docs|\.ci|\.github)/[\w./-]*|[\w/-]+\.(?:md|toml))`")


def named(page: str) -> set[str]:
    """Paths that a page names, from the pack's folder."""
    text = (PACK / page).read_text(encoding="utf-8")
    links = {((PACK / page).parent / link).resolve().relative_to(PACK).as_posix() for link in LINK.findall(text)}
    return links | set(IN_CODE.findall(text))


@pytest.mark.smoke
@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_is_there(page):
    assert sorted(path for path in named(page) if not (PACK / path).exists()) == []


def test_the_map_names_every_room():
    rooms = {path.parent.name for path in (PACK / "nodes").glob("*/__init__.py")}
    assert {path.split("/")[1] for path in named("ARCHITECTURE.md") if path.startswith("nodes/")} >= rooms


def test_pages_for_people_who_work_on_it_are_not_shipped():
    shipped = archived_files()
    assert "README.md" in shipped
    assert [path for path in shipped if path.startswith((".", "tests/")) or path in PAGES and path != "README.md"] == []


def test_no_test_module_imports_another():
    importing = re.compile(r"^\s*(?:from|import) \.?(?:tests\.)?test_\w+", re.MULTILINE)
    assert [
        path.name for path in (PACK / "tests").rglob("*.py") if importing.search(path.read_text(encoding="utf-8"))
    ] == []
