"""The project's folder, which relative paths such as configs/ladder.py are meant from."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def wrong_folder(path: str) -> str:
    """A message for a path that is not in the current folder but in the project's; else ""."""
    given = Path(path)
    if given.is_absolute() or given.exists() or not (ROOT / given).exists():
        return ""
    return (
        f"{path} is not in the current folder, {Path.cwd()}, but in the project's, where README.md "
        f"is: run the command from there (cd {ROOT})"
    )
