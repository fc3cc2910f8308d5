"""What the Comfy registry serves: the project's files without those that `.comfyignore` names."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def project_files() -> list[str]:
    """Every file of the project, with forward slashes: what git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    except OSError:
        listed = None
    if listed is None or listed.returncode:  # not a checkout, or no git
        return sorted(_walked(ROOT))
    return sorted({name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()})


def _walked(folder: Path) -> Iterable[str]:
    for path in folder.iterdir():
        if path.is_dir() and path.name not in ("__pycache__", "demo-output") and path.name[0] != ".":
            yield from _walked(path)
        elif path.is_file():
            yield path.relative_to(ROOT).as_posix()


def packed_files() -> list[str]:
    """Those of them that are in the archive. The patterns mean what they mean to git."""
    import pathspec

    ignored = pathspec.GitIgnoreSpec.from_lines((ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines())
    return [name for name in project_files() if not ignored.match_file(name)]


def unpack(folder: Path) -> None:
    """Puts the archive's files into a folder, as an installer does."""
    for name in packed_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
