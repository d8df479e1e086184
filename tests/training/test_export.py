"""A tiny run as HF folders: they hold the trained weights, and transformers agrees."""

from __future__ import annotations

import importlib.util
import json
import os

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save

from bridge_jax.models import params
from bridge_jax.rundir import checkpoint
from bridge_jax.training import build, export_checks, trainer
from bridge_jax.training import export as exporting
from bridge_jax.training.export import export
from tests import errors, tiny_runs
from tests.rundir.run_records import open_run
from tests.tiny_runs import quick, unbroken  # noqa: F401 (fixtures)

CLOSE = dict(rtol=0, atol=1e-4)


def trained(workdir, method: str = "bridge"):
    """The run of a directory and its newest state."""
    setup, data = build.build(tiny_runs.config(method), jax.devices()[:1])
    with checkpoint.Checkpoints(str(workdir), read_only=True) as store:
        return setup, data, store.restore(build.abstract_state(setup))[0]


def weights(folder) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


@pytest.fixture
def no_torch(monkeypatch):
    """As on a machine without torch, whatever is installed here."""
    import transformers

    # transformers looks once and remembers: it must not remember what this fixture pretends
    transformers.utils.is_torch_available()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "torch" else find(name, *rest),
    )


def test_merged_and_base(unbroken, no_torch, tmp_path, capsys):
    """theta + w or theta, a tokenizer that renders the same prompts, and the ids that end a row."""
    setup, data, state = trained(unbroken("bridge"))
    for what, w in (("merged", state.params.w), ("base", None)):
        folder = export(str(unbroken("bridge")), str(tmp_path / what), what)
        printed = capsys.readouterr().out
        assert "read back bit for bit" in printed and "torch is not installed" in printed
        hf = json.loads((folder / "config.json").read_text())
        assert (
            hf["architectures"] == ["Qwen3ForCausalLM"]
            and hf["eos_token_id"] == 0
            and hf["dtype"] == "float32"
        )
        assert json.loads((folder / "generation_config.json").read_text()) == {
            "eos_token_id": 0,
            "pad_token_id": 0,
        }
        back, phi = (
            params.load(params.read_config(hf), folder),
            setup.policy.merge(state.params.theta, w),
        )
        for ours, theirs in zip(jax.tree.leaves(phi), jax.tree.leaves(back), strict=True):
            # the export merges on all devices, this test on one: A B may round differently
            np.testing.assert_allclose(
                theirs, ours, rtol=0 if w is None else 1e-5, atol=0 if w is None else 1e-7
            )
    assert not np.array_equal(
        *(
            weights(tmp_path / what)["model.layers.0.mlp.up_proj.weight"]
            for what in ("merged", "base")
        )
    )

    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    messages = data.task.messages(data.prompts.problems[0])
    rendered = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert rendered == data.prompts.tokens[0].tolist()


@pytest.mark.slow
def test_adapter_on_its_base_is_the_merged_model(unbroken, no_torch, tmp_path):
    """W + (alpha / r) B A, as PEFT applies it, over every matrix of the base export."""
    folders = {
        what: export(str(unbroken("bridge")), str(tmp_path / what), what)
        for what in exporting.KINDS
    }
    adapter = load_file(folders["adapter"] / "adapter_model.safetensors")
    settings = json.loads((folders["adapter"] / "adapter_config.json").read_text())
    base, merged = weights(folders["base"]), weights(folders["merged"])
    touched = set()
    for key, A in adapter.items():
        if key.endswith(".lora_A.weight"):
            B = adapter[key.replace("lora_A", "lora_B")]
            name = key.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
            base[name] = base[name] + settings["lora_alpha"] / settings["r"] * B @ A
            touched.add(name)
            assert name.split(".")[-2] in settings["target_modules"] and B.any()
    assert len(touched) == 7 * 2 and base.keys() == merged.keys()
    for name in merged:
        np.testing.assert_allclose(
            base[name], merged[name], rtol=0, atol=1e-6 if name in touched else 0
        )
    assert settings["base_model_name_or_path"] == str(folders["adapter"] / "base")
    own = folders["adapter"] / "base"
    assert sorted(file.name for file in own.iterdir()) == sorted(
        file.name for file in folders["base"].iterdir()
    )
    for file in own.iterdir():
        assert file.read_bytes() == (folders["base"] / file.name).read_bytes()
    assert (folders["adapter"] / "tokenizer.json").exists()
    assert os.stat(folders["adapter"] / "adapter_model.safetensors").st_mode & 0o044 == 0o044


@pytest.mark.slow
def test_an_adapter_is_verified_on_its_base(unbroken, no_torch, tmp_path, capsys):
    """From the files alone: another base, scale, matrix, target or name is found by its logits."""
    folder = export(str(unbroken("bridge")), str(tmp_path / "out"), "adapter")
    assert "from those of base and adapter" in capsys.readouterr().out
    setup, data, state = trained(unbroken("bridge"))
    check = lambda: export_checks.verify_adapter(
        setup, data, state.params, folder, str(folder / "base"), folder / "base"
    )
    check()
    config, tensors = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    weights_file = folder / "base" / "model.safetensors"
    before = {file: file.read_bytes() for file in (config, tensors, weights_file)}
    settings = json.loads(before[config])

    def tampered(error, names, file, content):
        file.write_bytes(content)
        with errors.raises(error, names):
            check()
        for name, old in before.items():
            name.write_bytes(old)

    # the model that the run began with, as it was named before
    params.save(
        setup.cfg, build.initial_theta(setup), tmp_path / "begun", exporting.hf_config(setup)
    )
    begun = (tmp_path / "begun" / "model.safetensors").read_bytes()
    tampered(RuntimeError, ("logits", "base and adapter"), weights_file, begun)
    changed = lambda **given: json.dumps(settings | given).encode()
    tampered(
        RuntimeError,
        ("logits", "base and adapter"),
        config,
        changed(lora_alpha=settings["lora_alpha"] * 2),
    )
    tampered(RuntimeError, ("logits", "base and adapter"), config, changed(r=settings["r"] * 2))
    modules = settings["target_modules"]
    tampered(ValueError, "no module of", config, changed(target_modules=modules[1:]))
    other = changed(base_model_name_or_path=str(tmp_path / "begun"))
    tampered(RuntimeError, str(tmp_path / "begun"), config, other)
    arrays = load_file(tensors)
    name = next(name for name in arrays if "lora_B" in name)
    moved = save(arrays | {name: arrays[name] + 1e-3}, {"format": "pt"})
    tampered(RuntimeError, "adapter", tensors, moved)
    check()


def test_a_model_folder_keeps_what_its_files_say(unbroken, no_torch, tmp_path):
    """Unknown fields of config.json and generation_config.json of model.path are exported."""
    source = export(str(unbroken("bridge")), str(tmp_path / "source"))
    for name, extra in (
        ("config.json", {"field_of_theirs": [1]}),
        ("generation_config.json", {"temperature": 0.6}),
    ):
        (source / name).write_text(json.dumps(json.loads((source / name).read_text()) | extra))
    workdir = tmp_path / "run"
    config = tiny_runs.config("sft", model__path=str(source), data__tokenizer="")
    setup, _ = build.build(config, jax.devices()[:1])
    open_run(str(workdir), config.to_dict(), {})
    with checkpoint.Checkpoints(str(workdir)) as store:
        state, meta = trainer.restore_or_init(setup, store)
        store.save(1, state, meta | {"step": 1})
    folder = export(str(workdir), str(tmp_path / "again"))
    assert json.loads((folder / "config.json").read_text()) == json.loads(
        (source / "config.json").read_text()
    )
    assert json.loads((folder / "generation_config.json").read_text()) == {
        "eos_token_id": 0,
        "pad_token_id": 0,
        "temperature": 0.6,
    }
    assert weights(folder).keys() == weights(source).keys()
    assert all(
        np.array_equal(weights(folder)[name], array) for name, array in weights(source).items()
    )
    assert (folder / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_a_run_of_many_devices_is_exported_on_fewer(unbroken, no_torch, tmp_path):
    """Mesh and batch of training do not have to fit the machine that exports."""
    copy = tmp_path / "run"
    copy.mkdir()
    record = json.loads((unbroken("sft") / "config.json").read_text())
    record["config"]["mesh"] = {"data": 4, "fsdp": 16, "tensor": 8}
    record["config"]["batch"]["microbatch_rows"] = 5
    (copy / "config.json").write_text(json.dumps(record))
    (copy / "checkpoints").symlink_to(unbroken("sft") / "checkpoints")
    folder = export(str(copy), str(tmp_path / "out"))
    assert np.array_equal(
        weights(folder)["model.embed_tokens.weight"],
        trained(unbroken("sft"), "sft")[-1].params.theta["embed"],
    )


def test_errors(unbroken, no_torch, tmp_path):
    """What cannot be exported is refused, and nothing is written or lost."""
    run = str(unbroken("sft"))
    with errors.raises(ValueError, str(tmp_path), "config.json"):
        export(str(tmp_path), str(tmp_path / "out"))
    with errors.raises(ValueError, "'sft'", "adapter", "merged or base"):
        export(run, str(tmp_path / "out"), "adapter")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with errors.raises(ValueError, str(tmp_path / "full")):
        export(run, str(tmp_path / "full"))
    assert (tmp_path / "full" / "file").read_text() == "mine"
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((unbroken("sft") / "config.json").read_bytes())
    with errors.raises(ValueError, str(bare), "checkpoint"):
        export(str(bare), str(tmp_path / "out"))
    (bare / "config.json").write_text("{}")
    with errors.raises(ValueError, str(bare / "config.json")):
        export(str(bare), str(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "full"]


def test_what_fails_verification_never_gets_its_name(unbroken, monkeypatch, tmp_path):
    """An export with other weights or other logits is refused and leaves no folder."""
    run, load = str(unbroken("sft")), params.load
    with monkeypatch.context() as patch:
        patch.setattr(
            params, "load", lambda *given: jax.tree.map(lambda x: x.at[0].add(1e-6), load(*given))
        )
        with errors.raises(RuntimeError, "numbers", "embed"):
            export(run, str(tmp_path / "out"))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: name == "torch" or find(name, *rest)
    )
    for shift in (1e-3, float("nan")):
        monkeypatch.setattr(
            export_checks, "transformers_logits", lambda folder, ids: np.full((len(ids), 16), shift)
        )
        monkeypatch.setattr(export_checks, "logits", lambda cfg, phi, ids: np.zeros((len(ids), 16)))
        with errors.raises(RuntimeError, "logits", "transformers"):
            export(run, str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("method", ["bridge", "sft"])
def test_transformers_gives_our_logits(unbroken, tmp_path, capsys, method):
    """Those of the trained policy, on a prompt and a completion, to 1e-4; the command prints it."""
    pytest.importorskip("torch", reason="compares with transformers' torch models")
    folder = export(str(unbroken(method)), str(tmp_path / "out"))
    assert "from those of transformers" in capsys.readouterr().out
    setup, data, state = trained(unbroken(method), method)
    phi = setup.method.policy(state.params, "theta")
    ids = np.concatenate([data.prompts.tokens[0], np.arange(1, 15)]).astype(np.int32)
    ours, theirs = (
        export_checks.logits(setup.cfg, phi, ids),
        export_checks.transformers_logits(folder, ids),
    )
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, **CLOSE)


@pytest.mark.slow
@pytest.mark.parity
def test_peft_loads_the_adapter_with_its_base(unbroken, tmp_path):
    """From the adapter's folder alone, PEFT and transformers give the policy's logits, to 1e-4."""
    torch = pytest.importorskip("torch", reason="PEFT's own forward pass needs torch")
    peft = pytest.importorskip("peft", reason="the adapter is loaded by PEFT itself")
    import transformers

    folder = export(str(unbroken("bridge")), str(tmp_path / "out"), "adapter")
    setup, data, state = trained(unbroken("bridge"))
    ids = np.concatenate([data.prompts.tokens[0], np.arange(1, 15)]).astype(np.int32)
    ours = export_checks.logits(setup.cfg, setup.method.policy(state.params, "theta"), ids)
    start = export_checks.logits(setup.cfg, build.initial_theta(setup), ids)
    assert np.abs(ours - start).max() > 0.01
    for auto in (peft.AutoPeftModelForCausalLM, transformers.AutoModelForCausalLM):
        model = auto.from_pretrained(str(folder), dtype=torch.float32).eval()
        with torch.no_grad():
            found = model(input_ids=torch.tensor(ids[None].astype(np.int64))).logits[0].numpy()
        np.testing.assert_allclose(found, ours, **CLOSE)
