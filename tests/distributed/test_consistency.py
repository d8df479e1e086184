"""What hosts must have in common: a host that differs is named, with the key."""

from __future__ import annotations

import json
import types

import jax
import pytest

from bridge_jax.distributed import consistency
from tests import errors, tiny_runs
from tests.distributed.one_of_several import as_one_of


@pytest.mark.parametrize(
    "given, message",
    [
        ([{"config.seed": 0, "file a.py": "12"}] * 3, ""),
        (
            [{"config.seed": 0}, {"config.seed": 1}],
            "  host 1 (node1): config.seed is 1, elsewhere 0",
        ),
        (
            [{"config.seed": 1}, {"config.seed": 0}, {"config.seed": 0}],
            "  host 0 (node0): config.seed is 1, elsewhere 0",
        ),
        (
            [{"file a.py": "1", "file b.py": "2"}, {"file a.py": "3"}],
            '  host 1 (node1): file a.py is "3", elsewhere "1"; file b.py is "(not set)", elsewhere "2"',
        ),
    ],
)
def test_differences_are_named(monkeypatch, given, message):
    """The host in the minority is named, with the key and both values."""
    as_one_of(monkeypatch, 0, len(given), lambda what, mine, *_: [json.dumps(one) for one in given])
    if not message:
        return consistency.check("it", given[0])
    with pytest.raises(ValueError) as error:
        consistency.check("it", given[0])
    assert str(error.value).splitlines()[1:-1] == [message]


def test_identity_is_config_code_and_versions(monkeypatch, tmp_path):
    """hosts.index alone may differ; a changed file is another identity."""
    config = tiny_runs.config()
    mine = consistency.identity(config)
    config.hosts.index = 3
    assert consistency.identity(config) == mine
    config.optim.base.learning_rate = 0.5
    changed = {key for key, value in consistency.identity(config).items() if mine[key] != value}
    assert changed == {"config.optim.base.learning_rate"}
    assert {
        "file bridge_jax/training/loop.py",
        "file experiments/train.py",
        "version of jax",
        "config.hosts.count",
    } <= set(mine)
    (tmp_path / "bridge_jax" / "training").mkdir(parents=True)
    (tmp_path / "bridge_jax" / "training" / "loop.py").write_text("other")
    monkeypatch.setattr(consistency, "ROOT", tmp_path)
    assert (
        consistency.identity(config)["file bridge_jax/training/loop.py"]
        != mine["file bridge_jax/training/loop.py"]
    )


def test_identity_knows_packages_flags_and_the_model(monkeypatch, tmp_path):
    """Of the weights their header and their end; where the compiler dumps to is a host's own
    affair.
    """
    config = tiny_runs.config()
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_dump_to=/here")
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    mine = consistency.identity(config)
    names = (
        "jax",
        "jaxlib",
        "numpy",
        "optax",
        "flax",
        "orbax-checkpoint",
        "transformers",
        "tokenizers",
        "sympy",
        "math-verify",
    )
    assert {f"version of {name}" for name in ("python", *names)} <= set(mine)
    assert (mine["variable XLA_FLAGS"], mine["variable LIBTPU_INIT_ARGS"]) == ("--xla_a=1", "")
    names = ("libtpu", "jax_cuda13_plugin", "jax-cuda12-pjrt", "jaxtyping")
    plugins = [types.SimpleNamespace(name=name, version="1") for name in names]
    monkeypatch.setattr(consistency.importlib.metadata, "distributions", lambda: plugins)
    assert {key for key in consistency.identity(config) if key.startswith("version")} == {
        "version of python",
        "version of libtpu",
        "version of jax-cuda13-plugin",
        "version of jax-cuda12-pjrt",
    }

    def changed(**files) -> set[str]:
        before = consistency.model_files(str(tmp_path))
        for name, content in files.items():
            (tmp_path / name.replace("_", ".")).write_bytes(content)
        after = consistency.model_files(str(tmp_path))
        return {name for name in after if before.get(name) != after[name]}

    header, weights = (20).to_bytes(8, "little") + b"{" + b" " * 19, bytes(1 << 17)
    assert changed(config_json=b"{}", model_safetensors=header + weights, notes_txt=b"") == {
        "config.json",
        "model.safetensors",
    }
    assert changed(config_json=b"{ }") == {"config.json"}
    for other in (
        header.replace(b"{ ", b"{}") + weights,
        header + weights[1:] + b"1",
        header + weights,
    ):
        assert changed(model_safetensors=other) == {"model.safetensors"}
    assert (
        changed(model_safetensors=header + b"1" + weights[1:]) == set()
    )  # not read: it would take minutes
    assert changed(model_safetensors=b"\xff" * 9) == {
        "model.safetensors"
    }  # damaged; loading it will tell
    with config.model.ignore_type():
        config.model.path = str(tmp_path)
    assert "model file config.json" in consistency.identity(config)
    assert consistency.model_files("") == consistency.model_files("Qwen/Qwen2.5-3B") == {}


def test_identity_knows_the_settings_of_jax():
    """Given by variables of the environment, too, they draw other numbers from the same key."""
    mine = consistency.identity(tiny_runs.config())
    with jax.default_prng_impl("rbg"), jax.default_matmul_precision("bfloat16"):
        other = consistency.identity(tiny_runs.config())
    assert {key: value for key, value in other.items() if mine[key] != value} == {
        "setting jax_default_prng_impl": "rbg",
        "setting jax_default_matmul_precision": "bfloat16",
    }


def test_a_workdir_of_each_hosts_own_is_refused(monkeypatch, tmp_path):
    """And one that all see is not, nor is anything left in it."""
    monkeypatch.setattr(consistency.time, "sleep", lambda _: None)
    for answers, blind in ((["yes", "yes"], False), (["yes", ""], True)):
        as_one_of(
            monkeypatch,
            0,
            2,
            lambda what, mine, *_: [mine, mine] if what.startswith("a file") else answers,
        )
        if blind:
            with errors.raises(ValueError, repr(str(tmp_path)), "host 1 (node1)", "--workdir"):
                consistency.check_shared(str(tmp_path))
        else:
            consistency.check_shared(str(tmp_path))
        assert list(tmp_path.iterdir()) == []
