"""Files by the kind of folder they are in and their name there, which stay true when ComfyUI is moved."""
from __future__ import annotations

from pathlib import Path

import folder_paths

from .files import check_writable, reason
from .names import safe_name

OUTPUT = "output"


def first_folder(kind: str) -> Path:
    """The folder into which new files of a kind go: "output", or a kind of model folder such as "loras"."""
    return folders_of(kind)[0]


def folders_of(kind: str) -> list[Path]:
    """All folders in which ComfyUI looks for a kind of file; none for a kind it does not know."""
    if kind == OUTPUT:
        return [Path(folder_paths.get_output_directory())]
    return [Path(folder) for folder in folder_paths.folder_names_and_paths.get(kind, ((), ()))[0]]


def location_of(path: Path) -> dict[str, str]:
    """{"kind", "name"} of a file in one of ComfyUI's folders, the innermost if it is in several; for `path_at`.

    A file elsewhere has the kind "" and its whole path for a name.
    """
    inside = [(len(folder.parts), kind, path.relative_to(folder).as_posix())
              for kind in (OUTPUT, *folder_paths.folder_names_and_paths) for folder in folders_of(kind)
              if path.is_relative_to(folder)]
    _, kind, name = max(inside, default=(0, "", str(path)))
    return {"kind": kind, "name": name}


def path_at(location: dict[str, str]) -> Path:
    """Where the file is now, or would be if it is gone."""
    kind, name = location["kind"], location["name"]
    if not kind:
        return Path(name)
    folders = folders_of(kind) or [Path(kind)]
    return next((folder / name for folder in folders if (folder / name).exists()), folders[0] / name)


def readable_path(path: Path) -> str:
    """A path as a person knows it: within ComfyUI's folder, else by the kind of the folder it is in."""
    home = Path(folder_paths.base_path)
    if path.is_relative_to(home):
        return path.relative_to(home).as_posix()
    location = location_of(path)
    return f"{location['kind']}/{location['name']}".lstrip("/") if location["kind"] else str(path)


def check_folder(kind: str, subfolder: str = "") -> None:
    """Makes a folder for new files of a kind and tries to write there. Raises OSError with one sentence if that
    fails."""
    folder = first_folder(kind) / subfolder
    try:
        check_writable(folder)
    except OSError as error:
        remedy = ("start ComfyUI with another --output-directory" if kind == OUTPUT else
                  f"name another {kind} folder first in extra_model_paths.yaml")
        raise OSError(
            f"ComfyUI cannot write into {folder}, where results go: {reason(error)}; make it writable, make room "
            f"there, or {remedy}."
        ) from error


def check_name(path: Path, remedy: str) -> None:
    """Raises OSError with one sentence that ends with `remedy` if the disk of its folder, which is there, does not take
    the name of `path`."""
    try:
        path.lstat()
    except FileNotFoundError as error:
        if getattr(error, "winerror", 2) != 2:  # Windows says so of a path that is too long
            raise _too_long(path, error, remedy) from error
    except OSError as error:
        raise _too_long(path, error, remedy) from error


def saving_problem(kind: str, name: str, what: str, room: int = 0) -> str | None:
    """Why a new file of that name could not be saved in the first folder of a kind, in one sentence; None if it could,
    or if a file of the name is there, which may be the same. what, room: as for `safe_name`."""
    try:
        path = first_folder(kind) / safe_name(name, what, room)
        if not any(path.parent.glob(f"{path.name}*")):
            check_folder(kind)
            check_name(path.with_name(f"{path.name}.safetensors"), "write a shorter one")
    except (ValueError, OSError) as error:
        return str(error)
    return None


def kinds() -> list[str]:
    """All kinds of model folder that ComfyUI knows."""
    return list(folder_paths.folder_names_and_paths)


def _too_long(path: Path, error: OSError, remedy: str) -> OSError:
    name = path.name if len(path.name) < 60 else f"{path.name[:40]}…{path.name[-20:]}"
    return OSError(f"The file name {name} of {len(path.name)} characters cannot be saved in {path.parent}: "
                   f"{reason(error)}; {remedy}.")
