"""Files in ComfyUI's model folders, chosen by their names on nodes."""
from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from .files import version_of
from .foreign.text import shown_name


def file_names(kind: str) -> list[str]:
    """Names of the weight files in ComfyUI's folders of this kind, relative to their folder."""
    return folder_paths.get_filename_list(kind)


def register_folder(kind: str, extensions: Collection[str]) -> None:
    """Makes models/<kind> known to ComfyUI; folders that users have named for it are kept, and so are extensions."""
    folder_paths.add_model_folder_path(kind, str(Path(folder_paths.models_dir) / kind))
    folders, known = folder_paths.folder_names_and_paths[kind]
    folder_paths.folder_names_and_paths[kind] = (folders, {*known, *extensions})


def find_file(kind: str, name: str) -> Path:
    """Path of the file that a list entry or a typed name stands for. Raises ValueError if there is none."""
    wanted = name.strip().replace("\\", "/")
    path = None if not wanted or ".." in wanted.split("/") else folder_paths.get_full_path(kind, wanted)
    if path is None:
        raise ValueError(f"There is no file '{shown_name(name)}' in {folder_of(kind)}; choose one from the list, or "
                         "put the file there and refresh the page (key R).")
    return Path(path)


def folder_of(kind: str) -> Path:
    """The first folder of this kind: where people are told to put files."""
    return Path(folder_paths.get_folder_paths(kind)[0])


def validated(find: Callable[[str], Path], *names: str | None) -> bool | str:
    """What `validate_inputs` answers: True, or the sentence with which `find` refuses the first name.

    None stands for a name that comes by a link and is not known yet.
    """
    try:
        return all(name is None or bool(find(name)) for name in names)
    except ValueError as error:
        return str(error)


@dataclass(frozen=True)
class FileChoice:
    """A list of a node's files of one kind, headed by an entry for the file that fits the node's other inputs."""

    kind: str
    fitting: str

    def entries(self) -> list[str]:
        """Of the list."""
        return [self.fitting, *file_names(self.kind)]

    def find(self, name: str) -> Path:
        """Path of a file by its entry. Raises ValueError if there is none."""
        return find_file(self.kind, name)

    def validated(self, name: str) -> bool | str:
        """What `validate_inputs` answers."""
        return name == self.fitting or validated(self.find, name)

    def versions(self, name: str) -> str:
        """What `fingerprint_inputs` answers: the fitting one may be another when any file is."""
        return versions(self.find, *(file_names(self.kind) if name == self.fitting else [name]))


def versions(find: Callable[[str], Path], *names: str | None) -> str:
    """What `fingerprint_inputs` answers: text that changes when one of the files does. None as for `validated`."""
    return str([version_of(find(name)) if name is not None and validated(find, name) is True else name
                for name in names])
