"""Locating a model's files: a local Hugging Face folder, or a hub name to download.

A usable folder holds config.json, and model.safetensors or shards with
model.safetensors.index.json. An incomplete folder is an error that names the missing file. Weights
are not read here, but for their hash.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from pathlib import Path

from bridge_jax.filesystem import hub, project, textfile

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HUB_FILES = ("*.json", "*.safetensors", "tokenizer*", "merges.txt", "vocab.txt", "*.jinja")
HUB_NEVER = ("*/*", "consolidated*")  # copies of the weights in other formats
# folders of the documentation's commands, which have the form of an owner's name on the hub
LOCAL = ("models_local", "runs")
# the folder that one command of the project fills
SMOLLM2 = "models_local/smollm2"


def locate(path: str | Path) -> Path:
    """Folder of a local path, or of a hub name ("Qwen/Qwen2.5-3B") after its download.

    ValueError if the folder is incomplete.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(
                f"model {str(path)!r} is a file; give the folder that holds config.json and the "
                "weights"
            )
        if project.wrong_folder(str(path)) or looks_local(str(path)):
            raise ValueError(absent(path))
        folder = fetch(str(path))
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"model folder {str(folder)!r} lacks config.json; it has: {listing(folder)}"
        )
    weight_files(folder)
    return folder


def looks_local(path: str) -> bool:
    """Whether a path that does not exist is meant as a local one rather than as a hub name.

    True if it has not the form of a hub name, or if its first part is an existing folder or one of
    those that the documentation uses.
    """
    first = path.split("/")[0]
    is_name = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", path)
    return not is_name or first in LOCAL or Path(first).is_dir()


def absent(path: str | Path) -> str:
    """An error message for a local path at which there is nothing, with the way to get it."""
    if elsewhere := project.wrong_folder(str(path)):
        return f"model folder {elsewhere}"
    message = f"model folder {str(path)!r} does not exist; "
    if Path(path) == Path(SMOLLM2):
        return f"{message}this command fetches it: python -m experiments.get_smollm2 --out={path}"
    hint = neighbours(Path(path).expanduser())
    return f"{message}give an existing folder, or a hub name OWNER/NAME{hint}"


def neighbours(folder: Path) -> str:
    """The end of an error message: the model folders and runs where the folder was looked for."""
    there = (
        [file.parent for file in folder.parent.glob("*/config.json")]
        if folder.parent.is_dir()
        else []
    )
    near = difflib.get_close_matches(folder.name, [one.name for one in there], n=1, cutoff=0.6)
    return f"; did you mean {str(folder.parent / near[0])!r}?" if near else ""


def fetch(name: str) -> Path:
    """Downloads config, safetensors and tokenizer of a hub model; ValueError if that fails."""
    # imported here: a local folder needs no hub
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            name, allow_patterns=list(HUB_FILES), ignore_patterns=list(HUB_NEVER)
        )
    # every error of the hub's client is one of the two
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model {name!r} is not a local folder, and its download failed: "
            f"{hub.reason(error, name)}. A local folder works without the hub: "
            "--config.model.path=FOLDER in training, --model=FOLDER in evaluation"
        ) from error
    return Path(folder)


def listing(folder: Path) -> str:
    """File names of a folder, for an error message."""
    return ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: the single file, or all shards of the index.

    ValueError names missing files.
    """
    folder = Path(folder)
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise ValueError(
            f"model folder {str(folder)!r} lacks weights: neither {SINGLE} nor {INDEX} is there; "
            f"it has: {listing(folder)}. Convert .bin weights with transformers' save_pretrained."
        )
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not weight_map:
        raise ValueError(f"{folder / INDEX} has no weight_map; copy it again")
    shards = sorted(set(weight_map.values()))
    if missing := [name for name in shards if not (folder / name).is_file()]:
        raise ValueError(
            f"model folder {str(folder)!r} lacks {', '.join(missing)}, named in {INDEX}; copy them "
            "again"
        )
    return [folder / name for name in shards]


def hf_json(folder: str | Path) -> dict:
    """The content of a folder's config.json, for params.read_config; params.save writes it."""
    return read_json(Path(folder) / "config.json")


def read_json(path: Path) -> dict:
    """A JSON file as a dict; ValueError names a file that is missing, malformed or not UTF-8."""
    try:
        return json.loads(textfile.read(path))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def weights_hash(path: str) -> str:
    """A hash of the weights in a local model folder; "" for a hub name or random weights."""
    folder = Path(path or "/nowhere").expanduser()
    files = sorted(folder.glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:12] if files else ""
