"""Eight CPU devices, quick compilation, and tiny models built once per session."""
from __future__ import annotations

import os

import pytest

# Read when the first array is made, which is after collection. The last two spare LLVM its work: a gradient of a tiny
# model compiles in a fifth of the time.
WANTED = ("--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0",
          "--xla_cpu_use_fusion_emitters=false")
given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([given, *(flag for flag in WANTED if flag.split("=")[0] not in given)]).strip()


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
