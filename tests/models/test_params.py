"""Trees from the table; weights read lazily, also into shards; weights written so that a kill harms
nothing.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from bridge_jax.models import layers, params, qwen2
from tests import errors
from tests.models import tiny

HF = tiny.CASES["qwen2"]  # untied, with biases: every kind of tensor
CFG = params.read_config(HF)
TIED = tiny.CASES["qwen2-tied"]
EMBED, HEAD, UP = "model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A one-file folder of HF."""
    return tiny.write_folder(tmp_path_factory.mktemp("qwen2") / "model", HF)


def assert_trees_equal(a, b):
    """Same structure, same dtype, same bits."""
    jax.tree.map(
        lambda x, y: (
            np.testing.assert_array_equal(x, y),
            np.testing.assert_equal(x.dtype, y.dtype),
        ),
        a,
        b,
    )


# ---- trees


@pytest.mark.parametrize("name", tiny.CASES)
def test_abstract_init_and_axes_are_one_tree(name):
    """Abstract parameters, initial ones and axes agree; a tied model has no head."""
    cfg = params.read_config(tiny.CASES[name])
    shapes = params.abstract(cfg, jnp.bfloat16)
    made = jax.eval_shape(lambda key: params.init(cfg, key, jnp.bfloat16), jax.random.key(0))
    assert made == shapes and ("head" in shapes) == (not cfg.tied)
    axes = params.logical_axes(cfg)
    jax.tree.map(
        lambda struct, names: np.testing.assert_equal(len(names), struct.ndim),
        shapes,
        axes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def test_axes_and_shapes_carry_the_layers():
    """Tensors of layers are stacked along a first axis; the dtype is the one asked for."""
    shapes, axes = params.abstract(CFG, jnp.bfloat16), params.logical_axes(CFG)
    assert axes["layers"]["q"] == ("layers", "embed", "heads", "head_dim") and axes["embed"] == (
        "vocab",
        "embed",
    )
    assert (
        shapes["layers"]["o"].shape == (2, 6, 8, 24) and shapes["final_norm"].dtype == jnp.bfloat16
    )


def test_init_has_the_stated_spread_and_keys_by_path(monkeypatch):
    """Normal with init_std, norms one, biases zero; a tensor added to the table changes no
    other.
    """
    cfg = dataclasses.replace(CFG, vocab=4000, init_std=0.05)
    phi = params.init(cfg, jax.random.key(7))
    assert (
        abs(float(phi["embed"].std()) / 0.05 - 1) < 0.02 and abs(float(phi["embed"].mean())) < 1e-3
    )
    assert (phi["layers"]["attn_norm"] == 1).all() and not phi["layers"]["q_bias"].any()
    assert not jnp.array_equal(phi["layers"]["gate"], phi["layers"]["up"])
    assert not jnp.array_equal(phi["layers"]["q"][0], phi["layers"]["q"][1])

    table = {"layers/added": layers.Tensor((3, 5), ("embed", "mlp"), "added", 1)} | cfg.tensors()
    monkeypatch.setattr(qwen2.Config, "tensors", lambda self: table)
    more = params.init(cfg, jax.random.key(7))
    assert more["layers"].pop("added").shape == (2, 3, 5)
    assert_trees_equal(more, phi)


# ---- load


def test_load_puts_every_number_where_the_table_says(folder):
    """[out, in] to [in, out], heads split off the outer (q) or the inner side (o), biases split,
    norms as they are.
    """
    phi = params.load(CFG, folder)
    w = tiny.hf_weights(HF)
    block = "model.layers.1.self_attn."
    np.testing.assert_array_equal(phi["embed"], w[EMBED])
    np.testing.assert_array_equal(phi["head"], w[HEAD])
    np.testing.assert_array_equal(phi["layers"]["up"][1], w[UP].T)
    np.testing.assert_array_equal(
        phi["layers"]["q"][1][:, 2, 5], w[block + "q_proj.weight"][2 * 8 + 5]
    )
    np.testing.assert_array_equal(
        phi["layers"]["o"][1][2, 5], w[block + "o_proj.weight"][:, 2 * 8 + 5]
    )
    np.testing.assert_array_equal(phi["layers"]["k_bias"][1][1], w[block + "k_proj.bias"][8:])
    np.testing.assert_array_equal(phi["final_norm"], w["model.norm.weight"])
    assert jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), phi
    ) == params.abstract(CFG)


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float64"])
def test_other_float_types_are_converted(stored, folder, tmp_path):
    """Weights stored as float16, bfloat16 or float64 arrive in the dtype asked for."""
    half = tiny.write_folder(tmp_path, HF, dtype=stored)
    rounded = {
        name: array.astype(stored).astype(np.float32) for name, array in tiny.hf_weights(HF).items()
    }
    phi = params.load(CFG, half)
    np.testing.assert_array_equal(phi["layers"]["up"][1], rounded[UP].T)
    assert phi["embed"].dtype == jnp.float32
    as_bf16 = params.load(CFG, folder, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(as_bf16)} == {jnp.dtype(jnp.bfloat16)}


def shardings_for(cfg, **axis_of):
    """A sharding per tensor on a 4 x 2 mesh, from logical axis -> mesh axis."""
    devices = jax.devices()
    assert len(devices) >= 8, (
        "another test made an array before tests/models/conftest.py could ask for 8 devices"
    )
    mesh = Mesh(np.array(devices[:8]).reshape(4, 2), ("data", "model"))
    spec = lambda names: NamedSharding(mesh, PartitionSpec(*(axis_of.get(name) for name in names)))
    return jax.tree.map(
        spec, params.logical_axes(cfg), is_leaf=lambda node: isinstance(node, tuple)
    )


LAYOUTS = {
    "fsdp and heads": dict(embed="data", heads="model", kv_heads="model", mlp="model"),
    "inside heads": dict(head_dim="data", mlp=("data", "model")),
    "by layer": dict(layers="model"),
    "replicated": {},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_load_reads_each_shard_and_no_number_twice(layout, folder, monkeypatch):
    """Every device holds its slice of what an unsharded load gives; replicas share one reading of
    the file.
    """
    read = []

    class Counting:
        def __init__(self, inner):
            self.inner, self.get_shape, self.get_dtype = inner, inner.get_shape, inner.get_dtype

        def __getitem__(self, spans):
            block = self.inner[spans]
            read.append(block.size)
            return block

    opened = params.open_tensors
    monkeypatch.setattr(
        params,
        "open_tensors",
        lambda files: {
            name: [(file, Counting(lazy)) for file, lazy in places]
            for name, places in opened(files).items()
        },
    )
    shardings = shardings_for(CFG, **LAYOUTS[layout])
    phi = params.load(CFG, folder, shardings)
    assert_trees_equal(jax.device_get(phi), jax.device_get(params.load(CFG, folder)))
    jax.tree.map(
        lambda leaf, sharding: np.testing.assert_equal(leaf.sharding, sharding), phi, shardings
    )
    for leaf in jax.tree.leaves(phi):
        assert {shard.data.shape for shard in leaf.addressable_shards} == {
            leaf.sharding.shard_shape(leaf.shape)
        }
    if layout != "inside heads":  # there whole heads are read and cut
        assert sum(read) == 2 * sum(
            leaf.size for leaf in jax.tree.leaves(phi)
        )  # this load and the unsharded one


@pytest.mark.parametrize(
    "sharded, vocab, mlp",
    [
        (True, 1000, 512),
        *(
            pytest.param(*given, marks=pytest.mark.slow)
            for given in ((False, 1000, 512), (False, 4000, 64))
        ),
    ],
)
def test_load_holds_one_tensor_on_the_host(sharded, vocab, mlp, tmp_path, monkeypatch):
    """Allocations traced: the peak is at most the finished model, one stacked tensor, and small
    change.
    """
    hf = HF | dict(num_hidden_layers=4, hidden_size=64, intermediate_size=mlp, vocab_size=vocab)
    cfg = params.read_config(hf)
    folder = tiny.write_folder(tmp_path, hf, dtype="bfloat16")
    monkeypatch.setattr(params, "CHUNK", 4096)
    shardings = shardings_for(cfg, **LAYOUTS["fsdp and heads"]) if sharded else None
    params.load(cfg, folder, shardings)  # caches of jax and of the interpreter
    gc.collect()
    tracemalloc.start()
    phi = params.load(cfg, folder, shardings)
    gc.collect()
    left, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    sizes = sorted(leaf.nbytes for leaf in jax.tree.leaves(phi))
    assert (
        sum(sizes) > 2 * sizes[-1]
    )  # or the whole model at once could not be told from one tensor
    bookkeeping = 200_000  # open files, headers, the piece being converted
    assert peak - left < sizes[-1] + bookkeeping < 1.5 * sizes[-1], (peak, left, sizes[-1])


def test_load_converts_piece_by_piece(folder, monkeypatch):
    """The result does not depend on the size of the pieces, one row included."""
    whole = params.load(CFG, folder)
    for piece in (1, 100):
        monkeypatch.setattr(params, "CHUNK", piece)
        assert_trees_equal(params.load(CFG, folder), whole)


def test_every_fault_of_a_checkpoint_is_in_one_error(tmp_path):
    """One error lists all tensors that are missing, doubled, misshapen or unknown."""
    weights = tiny.hf_weights(HF)
    del weights[UP], weights["model.layers.0.self_attn.k_proj.bias"]
    weights["model.layers.0.mlp.down_proj.weight"] = np.zeros((40, 24), np.float32)  # [in, out]
    weights["model.layers.7.mlp.up_proj.weight"] = np.zeros((2, 3), np.float32)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    first = {name: weights.pop(name) for name in list(weights)[:5]}
    doubled = next(iter(first))
    save_file(first, tmp_path / "a.safetensors")
    save_file(weights | {doubled: first[doubled]}, tmp_path / "b.safetensors")
    weight_map = dict.fromkeys(first, "a.safetensors") | dict.fromkeys(weights, "b.safetensors")
    (tmp_path / params.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError) as caught:
        params.load(CFG, tmp_path)
    assert sorted(line.strip() for line in str(caught.value).splitlines()[1:-1]) == sorted(
        [
            f"missing: {UP}, expected [40, 24]",
            "missing: model.layers.0.self_attn.k_proj.bias, expected [16]",
            f"doubled: {doubled}, found in a.safetensors and b.safetensors",
            "misshapen: model.layers.0.mlp.down_proj.weight, expected [24, 40], found [40, 24]",
            "unknown: model.layers.7.mlp.up_proj.weight, found [2, 3]",
        ]
    )
    errors.assert_names(str(caught.value), "qwen2", "config.json")


def test_buffers_that_follow_from_the_config_are_ignored(folder, tmp_path):
    """RoPE frequencies stored beside the weights change nothing."""
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}
    assert_trees_equal(
        params.load(CFG, tiny.write_folder(tmp_path, HF, tiny.hf_weights(HF) | extra)),
        params.load(CFG, folder),
    )


def test_integer_weights_are_refused(tmp_path):
    """The error names the tensor, its type and the types that are allowed."""
    weights = tiny.hf_weights(HF)
    weights[UP] = weights[UP].astype(np.int8)
    (tmp_path / "config.json").write_text(json.dumps(HF))
    save_file(weights, tmp_path / params.SINGLE)
    with errors.raises(ValueError, UP, "F64, F32, F16, BF16", "I8"):
        params.load(CFG, tmp_path)


def test_a_file_cut_short_is_named(folder, tmp_path):
    """The error names the file and says to copy it again."""
    (tmp_path / params.SINGLE).write_bytes((folder / params.SINGLE).read_bytes()[:-100])
    with errors.raises(ValueError, "model.safetensors", "again"):
        params.load(CFG, tmp_path)


def test_a_tied_model_accepts_its_embedding_as_head_and_no_other(tmp_path, monkeypatch):
    """A head equal to the embedding is taken; one that differs anywhere is refused."""
    monkeypatch.setattr(params, "CHUNK", 24 * 10)  # compared ten rows at a time
    cfg, weights = params.read_config(TIED), tiny.hf_weights(TIED)
    plain = params.load(cfg, tiny.write_folder(tmp_path / "plain", TIED))
    same = tiny.write_folder(tmp_path / "same", TIED, weights | {HEAD: weights[EMBED]})
    assert_trees_equal(params.load(cfg, same), plain)
    other = weights[EMBED].copy()
    other[-1, -1] += 1
    with errors.raises(
        ValueError, "lm_head.weight", "model.embed_tokens.weight", "tie_word_embeddings"
    ):
        params.load(cfg, tiny.write_folder(tmp_path / "other", TIED, weights | {HEAD: other}))
    with errors.raises(ValueError, "lm_head.weight", "[61, 24]", "[60, 24]"):
        params.load(cfg, tiny.write_folder(tmp_path / "short", TIED, weights | {HEAD: other[:60]}))


# ---- save


def test_what_was_saved_is_what_was_loaded(folder, tmp_path):
    """One file, byte for byte the weights that came in, under transformers' metadata."""
    params.save(CFG, params.load(CFG, folder), tmp_path / "deep" / "out", HF)
    out = params.locate(tmp_path / "deep" / "out")
    assert sorted(file.name for file in out.iterdir()) == ["config.json", params.SINGLE]
    written, original = load_file(out / params.SINGLE), tiny.hf_weights(HF)
    assert written.keys() == original.keys()
    for name in original:
        np.testing.assert_array_equal(written[name], original[name], err_msg=name)
    with safe_open(out / params.SINGLE, framework="np") as file:
        assert file.metadata() == {"format": "pt"}
    assert [file.name for file in out.parent.iterdir()] == ["out"]  # no scratch left
    assert (out / params.SINGLE).stat().st_mode == (
        out / "config.json"
    ).stat().st_mode  # readable to whom the rest is


def test_shards_are_within_the_limit_and_indexed(folder, tmp_path):
    """Sharded parameters, written as bf16 in files of at most 8 kB of weights; read back with the
    index.
    """
    phi = params.load(CFG, folder, shardings_for(CFG, **LAYOUTS["fsdp and heads"]))
    out = tmp_path / "out"
    params.save(CFG, phi, out, HF, max_shard_bytes=8_000, dtype=jnp.bfloat16)
    index = json.loads((out / params.INDEX).read_text())
    files = sorted(file.name for file in out.glob("*.safetensors"))
    assert files == [
        f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)
    ]
    held = {file: load_file(out / file) for file in files}
    assert len(files) > 3 and all(
        sum(a.nbytes for a in part.values()) <= 8_000 for part in held.values()
    )
    assert index["weight_map"] == {name: file for file in files for name in held[file]}
    assert index["metadata"]["total_size"] == sum(
        a.nbytes for part in held.values() for a in part.values()
    )
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(ml_dtypes.bfloat16), phi)
    assert_trees_equal(jax.device_get(params.load(CFG, out, dtype=jnp.bfloat16)), rounded)


def test_a_tensor_beyond_the_limit_has_a_file_of_its_own(tmp_path, folder):
    """With a limit that every tensor exceeds, each lies in its own file."""
    params.save(CFG, params.load(CFG, folder), tmp_path / "out", HF, max_shard_bytes=1)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == len(tiny.hf_weights(HF))


@pytest.mark.parametrize(
    "given, classes",
    [
        (None, ["Qwen2ForCausalLM"]),
        (["Qwen2Model"], ["Qwen2ForCausalLM"]),
        (["OurForCausalLM"], ["OurForCausalLM"]),
    ],
)
def test_config_json_says_what_was_written(given, classes, tmp_path, folder):
    """dtype under both names, a class with a head, all else as it came, and a tied model without a
    head.
    """
    hf = TIED | dict(
        architectures=given, torch_dtype="float16", transformers_version="4.1", extra=[1]
    )
    cfg = params.read_config(hf)
    (tmp_path / "tokenizer.json").write_text("{}")
    params.save(
        cfg,
        params.init(cfg, jax.random.key(0)),
        tmp_path / "out",
        hf,
        dtype=jnp.bfloat16,
        extra_files=[tmp_path / "tokenizer.json"],
    )
    written = params.hf_json(tmp_path / "out")
    assert written == hf | dict(architectures=classes, torch_dtype="bfloat16", dtype="bfloat16")
    assert (
        params.read_config(written) == cfg
        and (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    )
    assert HEAD not in load_file(tmp_path / "out" / params.SINGLE)


def test_save_refuses_what_it_would_spoil(tmp_path, folder):
    """Wrong trees, configs and extra files are refused before anything is written."""
    phi = jax.device_get(params.load(CFG, folder))

    def refused(message, tree=phi, hf=HF, **more):
        with errors.raises(ValueError, message):
            params.save(CFG, tree, tmp_path / "out", hf, **more)
        assert not (tmp_path / "out").exists() or (tmp_path / "out" / "mine").exists()

    refused(
        ("head", "(61, 24)", "none"),
        {k: v for k, v in phi.items() if k != "head"},
    )
    refused(("lora", "none", "(3,)"), phi | {"lora": np.zeros(3)})
    refused(("embed", "(61, 24)", "(24, 61)"), phi | {"embed": phi["embed"].T})
    refused(("hf_config", "cfg"), hf=HF | dict(intermediate_size=41))
    refused(("hf_config", "cfg"), hf=HF | dict(num_hidden_layers=3))
    refused(
        ("tokenizer.json", "no such file"),
        extra_files=[tmp_path / "tokenizer.json"],
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    refused(str(tmp_path / "out"))
    (tmp_path / "out" / "mine").unlink()
    params.save(CFG, phi, tmp_path / "out", HF)  # an empty one is filled
    params.locate(tmp_path / "out")


@pytest.mark.parametrize(
    "target, at", [("save_file", 1), ("save_file", 2), ("exported_config", 1), ("os.replace", 1)]
)
def test_a_killed_save_leaves_nothing_that_loads(target, at, tmp_path, folder, monkeypatch):
    """Stopped at any write, without clean-up as after SIGKILL: no target, and the scratch is no
    model until whole.
    """

    class Killed(BaseException):
        pass

    calls = []
    owner, name = (params.os, "replace") if target == "os.replace" else (params, target)
    real = getattr(owner, name)

    def dying(*args, **kwargs):
        calls.append(args)
        if len(calls) == at:
            raise Killed
        return real(*args, **kwargs)

    phi = jax.device_get(params.load(CFG, folder))
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(owner, name, dying)
        scratch = params.tempfile.TemporaryDirectory
        patched.setattr(scratch, "__exit__", lambda self, *_: self._finalizer.detach() and None)
        params.save(CFG, phi, tmp_path / "out", HF, max_shard_bytes=20_000)
    assert not (tmp_path / "out").exists()
    leftovers = list(tmp_path.glob(".out.*/folder"))
    assert len(leftovers) == 1
    if (
        target != "os.replace"
    ):  # killed on the last line, the scratch is whole: only its name is not the one asked for
        with errors.raises(ValueError, "config.json"):
            params.locate(leftovers[0])
    params.save(CFG, phi, tmp_path / "out", HF)  # and saving again needs no tidying up
    assert_trees_equal(jax.device_get(params.load(CFG, params.locate(tmp_path / "out"))), phi)


def test_a_failed_save_tidies_up(tmp_path, folder, monkeypatch):
    """A save that runs out of disk leaves nothing behind."""
    monkeypatch.setattr(
        params, "save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        params.save(CFG, params.load(CFG, folder), tmp_path / "out", HF)
    assert not list(tmp_path.iterdir())
