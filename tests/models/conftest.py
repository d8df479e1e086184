"""Eight CPU devices, and tiny models built once per session."""
from __future__ import annotations

import os

import pytest

DEVICES = "--xla_force_host_platform_device_count"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):  # read when the first array is made, which is after collection
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()


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
