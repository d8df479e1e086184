"""A path that is meant from the project's folder is recognised from elsewhere."""

from __future__ import annotations

import pytest

from bridge_jax.filesystem import hf_folder, project


def test_the_root_has_the_readme():
    """It is where README.md and configs/ are."""
    assert (project.ROOT / "README.md").is_file() and (project.ROOT / "configs").is_dir()


def test_a_path_of_the_project_from_elsewhere(tmp_path, monkeypatch):
    """Both folders are named; a path that is here, absolute or nowhere is no such case."""
    monkeypatch.chdir(tmp_path)
    message = project.wrong_folder("configs/ladder_base")
    assert str(tmp_path) in message and f"(cd {project.ROOT})" in message
    for path in ("configs/nothing", str(project.ROOT / "configs/ladder_base")):
        assert project.wrong_folder(path) == ""
    (tmp_path / "configs/ladder_base").mkdir(parents=True)
    assert project.wrong_folder("configs/ladder_base") == ""


def test_a_models_path_from_elsewhere_is_not_asked_of_the_hub(tmp_path, monkeypatch):
    """configs/ladder_base looks like a hub name, OWNER/NAME."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hf_folder, "fetch", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(ValueError, match="model folder configs/ladder_base is not in the current"):
        hf_folder.locate("configs/ladder_base")
