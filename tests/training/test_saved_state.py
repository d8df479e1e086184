"""Runs of the adapter alone: the checkpoint without its base, resuming, exports, state in bytes."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax.evaluation import model
from bridge_jax.models import lora, params
from bridge_jax.planner import flops
from bridge_jax.rundir import checkpoint
from bridge_jax.training import build, export_checks, reopen, saved_state
from bridge_jax.training import export as exporting
from bridge_jax.training.export import export
from tests import errors, tiny_runs, toys
from tests.tiny_runs import quick  # noqa: F401 (fixture)
from tests.training.test_export import no_torch  # noqa: F401 (fixture)

OF_W = dict(method__train="w")
# set up, and not run: a CPU compiles bfloat16 for longer
BF16 = OF_W | dict(model__dtype="bfloat16")
_runs = {}


@pytest.fixture
def run(quick, tmp_path_factory):  # noqa: F811
    """The directory of a run of GRPO of the adapter alone, made once."""
    if "grpo" not in _runs:
        made = tmp_path_factory.mktemp("adapter")
        assert tiny_runs.go(made, "grpo", **OF_W)["step"] == tiny_runs.STEPS
        _runs["grpo"] = made
    return _runs["grpo"]


def set_up(**given):
    """The Setup of the run."""
    return build.build(tiny_runs.config("grpo", **OF_W | given), jax.devices()[:1])[0]


def saved(workdir) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint by its path."""
    with checkpoint.Checkpoints(str(workdir), read_only=True) as store:
        found, _ = store.restore(saved_state.abstract(set_up()))
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.mark.slow
def test_a_checkpoint_holds_the_adapter_alone(run):
    """w and its two moments, in fp32, and of theta the fingerprint."""
    arrays, setup = saved(run), set_up()
    assert not [key for key in arrays if "theta" in key]
    of_w = {key: x for key, x in arrays.items() if x.ndim}
    w = jax.eval_shape(setup.policy.init_w, jax.random.key(0))
    assert sum(x.nbytes for x in of_w.values()) == 3 * sum(
        4 * leaf.size for leaf in jax.tree.leaves(w)
    )
    with checkpoint.Checkpoints(str(run), read_only=True) as store:
        _, meta = store.restore(saved_state.abstract(setup))
    assert meta[saved_state.BASE] == saved_state.fingerprint(build.initial_theta(setup))


@pytest.mark.slow
def test_resuming_is_exact(run, tmp_path):
    """Stopped after step 3 and resumed: the same metrics and the same bits."""
    assert tiny_runs.go(tmp_path, "grpo", stop_at=3, **OF_W)["step"] == 3
    assert tiny_runs.go(tmp_path, "grpo", **OF_W)["step"] == tiny_runs.STEPS
    assert tiny_runs.lines(tmp_path) == tiny_runs.lines(run)
    mine, theirs = saved(tmp_path), saved(run)
    assert mine.keys() == theirs.keys()
    assert [key for key in mine if mine[key].tobytes() != theirs[key].tobytes()] == []


def test_the_planner_counts_the_state():
    """Abstract bytes are those of the real state: theta in two bytes, w with two moments in
    four.
    """
    setup = set_up(**BF16)
    state = setup.method.init(build.initial_theta(setup), jax.random.key(0))
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert flops.chip_bytes(build.abstract_state(setup)) == held
    sizes = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    theta, w = sizes(state.params.theta), sizes(state.params.w)
    counters = [leaf for leaf in jax.tree.leaves((state.step, state.opt_state)) if not leaf.ndim]
    assert held == 2 * theta + 12 * w + sum(leaf.nbytes for leaf in counters)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params.theta)} == {jnp.dtype("bfloat16")}


@pytest.mark.slow
def test_another_base_is_refused(run, tmp_path, monkeypatch):
    """Where the weights are not those of the start, neither a resumed run nor a reader goes on."""
    shutil.copytree(run, tmp_path / "run")
    theta = build.initial_theta
    other = lambda setup: jax.tree.map(lambda x: x + 0.01, theta(setup))
    monkeypatch.setattr(build, "initial_theta", other)
    with errors.raises(ValueError, "frozen base", "--workdir"):
        tiny_runs.go(tmp_path / "run", "grpo", steps=tiny_runs.STEPS + 1, **OF_W)
    setup, _ = reopen.rebuild(str(run))
    with errors.raises(ValueError, "frozen base"):
        reopen.restore_params(setup, str(run))


@pytest.mark.slow
def test_exports(run, no_torch, tmp_path, capsys):  # noqa: F811
    """merged = base + adapter, each verified; the base of a random model is written beside w, that
    of a model folder is named, and the adapter's folder can be evaluated.
    """
    adapter = export(str(run), str(tmp_path / "adapter"), "adapter")
    merged = export(str(run), str(tmp_path / "merged"))
    assert "from those of base and adapter" in capsys.readouterr().out
    setup, _ = reopen.rebuild(str(run))
    parts, _ = reopen.restore_params(setup, str(run))
    assert max(np.abs(x["B"]).max() for x in parts.w.values()) > 1e-4
    base = adapter / "base"
    theta = params.load(setup.cfg, base)
    start = jax.tree.map(lambda x: x.astype(jnp.float32), build.initial_theta(set_up()))
    assert toys.same_bits(theta, start)
    wanted = jax.tree.leaves(params.load(setup.cfg, merged))
    loaded, _ = model.open_folder(str(adapter)).load(setup.decode_mesh, jnp.float32)
    for mine, theirs in zip(jax.tree.leaves(loaded), wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)
    # the same run, had it begun from a folder
    begun = as_begun_from(run, tmp_path / "run", base)
    named = export(begun, str(tmp_path / "named"), "adapter")
    assert lora.base_name(named) == str(base) and not (named / "base").exists()
    assert f"its base is {base}" in capsys.readouterr().out
    base.rename(tmp_path / "moved")
    with errors.raises(ValueError, str(named), str(base)):
        model.open_folder(str(named))


def as_begun_from(run, copy, folder) -> str:
    """A copy of a run directory whose model.path is a folder of the same weights."""
    shutil.copytree(run, copy)
    record = json.loads((copy / "config.json").read_text())
    record["config"]["model"]["path"] = str(folder)
    (copy / "config.json").write_text(json.dumps(record))
    return str(copy)


@pytest.mark.slow
def test_a_base_of_bfloat16(tmp_path):
    """A run in bfloat16 over fp32 files: w belongs to the rounded weights, which every reader and
    the export give; the files of model.path are then not named as its base.
    """
    setup, folder = set_up(**BF16), tmp_path / "model"
    wide = build.initial_theta(setup._replace(theta_dtype=jnp.float32))
    params.save(setup.cfg, wide, folder, exporting.hf_config(setup))
    (tmp_path / "run").mkdir()
    config = tiny_runs.config("grpo", **BF16, model__path=str(folder))
    (tmp_path / "run" / "config.json").write_text(json.dumps({"config": config.to_dict()}))
    state = setup.method.init(build.initial_theta(setup), jax.random.key(0))
    with checkpoint.Checkpoints(str(tmp_path / "run")) as store:
        store.save(1, *saved_state.to_save(setup, state, {"step": 1}))
    reopened, data = reopen.rebuild(str(tmp_path / "run"))
    parts, _ = reopen.restore_params(reopened, str(tmp_path / "run"))
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), wide)
    assert toys.same_bits(parts.theta, rounded)
    assert exporting.given_base(reopened, parts.theta) == ""
    merged = reopened.method.policy(parts)
    assert toys.same_bits(merged, jax.tree.map(lambda x: x.astype(jnp.float32), rounded))


@pytest.mark.slow
@pytest.mark.parity
def test_peft_loads_the_adapter(run, tmp_path):
    """PEFT gives the policy's logits from the adapter's folder, to 1e-4."""
    torch = pytest.importorskip("torch", reason="PEFT's own forward pass needs torch")
    peft = pytest.importorskip("peft", reason="the adapter is loaded by PEFT itself")
    folder = export(str(run), str(tmp_path / "out"), "adapter")
    setup, data = reopen.rebuild(str(run))
    parts, _ = reopen.restore_params(setup, str(run))
    ids = np.concatenate([data.prompts.tokens[0], np.arange(1, 15)]).astype(np.int32)
    ours = export_checks.logits(setup.cfg, setup.method.policy(parts, "theta"), ids)
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    with torch.no_grad():
        found = loaded(input_ids=torch.tensor(ids[None].astype(np.int64))).logits[0].numpy()
    np.testing.assert_allclose(found, ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize("value", ["W", "lora", ""])
def test_what_can_be_trained(value):
    """Anything else is refused with what is allowed."""
    with errors.raises(ValueError, f"method.train={value!r}", "'theta'", "'w'"):
        build.make_setup(tiny_runs.config("grpo", method__train=value), jax.devices()[:1])


def test_bridge_is_refused():
    """Before the data are read."""
    with errors.raises(ValueError, "'bridge'", "hybrid"):
        build.make_setup(tiny_runs.config("bridge", method__train="w"), jax.devices()[:1])
