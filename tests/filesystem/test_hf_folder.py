"""Models in local folders and on a (mocked) hub; an incomplete folder is refused by the name of
what it lacks.
"""

from __future__ import annotations

import json

import huggingface_hub
import pytest

from bridge_jax.filesystem import hf_folder
from bridge_jax.models import params
from experiments import evaluate
from tests import errors
from tests.models import tiny

HF = tiny.CASES["llama"]


@pytest.fixture
def folder(tmp_path_factory):
    """A complete one-file folder."""
    return tiny.write_folder(tmp_path_factory.mktemp("llama") / "model", HF)


def test_locate_takes_a_local_folder_as_it_is(folder):
    """An existing folder is returned unchanged."""
    assert hf_folder.locate(str(folder)) == folder and params.locate is hf_folder.locate


def test_locate_asks_the_hub_for_little(folder, monkeypatch):
    """A hub name goes to snapshot_download with patterns that leave .bin files and sub-folders
    out.
    """
    asked = {}
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **options: asked.update(options, name=name) or str(folder),
    )
    assert hf_folder.locate("Qwen/Qwen2.5-3B") == folder and asked["name"] == "Qwen/Qwen2.5-3B"
    offered = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
        "pytorch_model.bin",
        "original/consolidated.00.pth",
        "original/params.json",
        "consolidated.safetensors",
        "README.md",
        "model.gguf",
    ]
    kept = list(
        huggingface_hub.utils.filter_repo_objects(
            offered,
            allow_patterns=asked["allow_patterns"],
            ignore_patterns=asked["ignore_patterns"],
        )
    )
    assert kept == offered[:6]


def test_a_hub_that_does_not_answer_is_one_clear_error(monkeypatch):
    """A failed download is an error that names the model and the cause."""

    def refuse(name, **_):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with errors.raises(ValueError, "'Qwen/Nothing'", "no network", "--config.model.path=FOLDER"):
        hf_folder.locate("Qwen/Nothing")


@pytest.mark.parametrize(
    "path", ["./missing", "/missing/model", "~/missing-model", "a/b/c", "runs/missing", "a name"]
)
def test_a_path_that_does_not_exist_is_not_asked_of_the_hub(path, tmp_path, monkeypatch):
    """A name that can only be a path is never looked up on the hub."""
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub")
    )
    with errors.raises(ValueError, path.strip("~.")):
        hf_folder.locate(path)


def test_folders_of_the_documentation_are_not_asked_of_the_hub(tmp_path, monkeypatch):
    """Nor where the user has none of them yet; the message says how to get the example's model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub")
    )
    with errors.raises(ValueError, "'runs/one' does not exist", "existing folder"):
        hf_folder.locate("runs/one")
    with errors.raises(ValueError, "python -m experiments.get_smollm2 --out=models_local/smollm2"):
        hf_folder.locate("models_local/smollm2")
    with errors.raises(ValueError, "'runs/one' does not exist"):
        evaluate.own_task("runs/one")


def test_incomplete_folders_are_refused_by_the_missing_file(folder, tmp_path):
    """An incomplete folder is refused with the name of the missing or broken file."""

    def refused(message):
        with errors.raises(ValueError, message):
            hf_folder.locate(tmp_path)

    refused((str(tmp_path), "config.json"))
    (tmp_path / "config.json").write_text(json.dumps(HF))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refused(
        ("model.safetensors", hf_folder.INDEX, "config.json, pytorch_model.bin", "save_pretrained")
    )
    index = tmp_path / hf_folder.INDEX
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    (tmp_path / "a.safetensors").write_bytes(b"")
    refused(("b.safetensors", "model.safetensors.index.json"))
    index.write_text("{}")
    refused((hf_folder.INDEX, "weight_map"))
    index.write_text("{")
    refused((hf_folder.INDEX, "JSON"))
    with errors.raises(ValueError, str(folder / "config.json"), "folder"):
        hf_folder.locate(folder / "config.json")
    with errors.raises(ValueError, "config.json"):
        hf_folder.hf_json(tmp_path / "nowhere")


def test_a_misspelt_folder_names_its_neighbour(tmp_path):
    """A folder with a config.json and a similar name."""
    for name in ("ladder_base", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"did you mean '{tmp_path}/ladder_base'"):
        hf_folder.locate(tmp_path / "laddr_base")
    for path in (tmp_path / "zzz", tmp_path / "none" / "ladder"):
        with pytest.raises(ValueError, match="OWNER/NAME$"):
            hf_folder.locate(path)
