"""Tiny models built once per session."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """Function from a case's name to its (cfg, phi), loaded from a folder; each is made once."""
    from bridge_jax.models import params
    from tests.models import tiny

    made = {}

    def of(name):
        if name not in made:
            folder = tiny.write_folder(tmp_path_factory.mktemp(name), tiny.CASES[name])
            cfg = params.read_config(params.hf_json(folder))
            made[name] = cfg, params.load(cfg, folder)
        return made[name]

    return of
