"""Every family against transformers: logits, weights there and back, and the numbers of released
models.

`test_golden` needs no torch; `parity` tests compare with the live library.
"""

from __future__ import annotations

import copy
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax import models
from bridge_jax.models import layers, params
from tests import errors
from tests.models import tiny
from tests.models.make_golden import GOLDEN

CLOSE = dict(rtol=0, atol=1e-4)
SHIPPED = ("llama", "qwen2", "qwen3")  # their golden logits must be there
RELEASED = {  # from the models' config.json; the last number is how many parameters are published
    "Qwen2.5-3B": (
        dict(
            model_type="qwen2",
            vocab_size=151936,
            hidden_size=2048,
            num_hidden_layers=36,
            num_attention_heads=16,
            num_key_value_heads=2,
            intermediate_size=11008,
            rms_norm_eps=1e-6,
            tie_word_embeddings=True,
            rope_theta=1000000.0,
            use_sliding_window=False,
            sliding_window=32768,
            max_position_embeddings=32768,
            eos_token_id=151643,
            hidden_act="silu",
        ),
        3_085_938_688,
    ),
    "Llama-3.2-3B": (
        dict(
            model_type="llama",
            vocab_size=128256,
            hidden_size=3072,
            num_hidden_layers=28,
            num_attention_heads=24,
            num_key_value_heads=8,
            head_dim=128,
            intermediate_size=8192,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            rope_theta=500000.0,
            attention_bias=False,
            mlp_bias=False,
            rope_scaling=dict(
                factor=32.0,
                high_freq_factor=4.0,
                low_freq_factor=1.0,
                original_max_position_embeddings=8192,
                rope_type="llama3",
            ),
            max_position_embeddings=131072,
            eos_token_id=128001,
            hidden_act="silu",
        ),
        3_212_749_824,
    ),
    "Qwen3-8B-Base": (
        dict(
            model_type="qwen3",
            vocab_size=151936,
            hidden_size=4096,
            num_hidden_layers=36,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            intermediate_size=12288,
            rms_norm_eps=1e-6,
            tie_word_embeddings=False,
            rope_theta=1000000.0,
            attention_bias=False,
            rope_scaling=None,
            max_position_embeddings=32768,
            eos_token_id=151643,
            hidden_act="silu",
        ),
        8_190_735_360,
    ),
}


def test_the_families_that_ship_are_found():
    """Every family that ships is listed, and no other module of the room."""
    assert set(SHIPPED) <= set(params.families())
    assert not {"layers", "params", "hf_folder"} & set(params.families())


def test_one_new_file_is_one_new_family(tmp_path, monkeypatch):
    """A module with a Config of layers is a family; one with another Config is none."""
    (tmp_path / "toyfamily.py").write_text(
        "from bridge_jax.models import layers\n"
        "class Config(layers.Config):\n"
        "    @classmethod\n"
        "    def from_hf(cls, hf):\n"
        "        return cls(family='toyfamily', **layers.hf_numbers(hf))\n"
    )
    (tmp_path / "no_family.py").write_text("Config = dict\n")
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    assert set(params.families()) >= {"toyfamily", "llama"} and "no_family" not in params.families()
    assert params.read_config(tiny.TINY | dict(model_type="toyfamily")).family == "toyfamily"


@pytest.mark.parametrize("name", tiny.CASES)
def test_golden(name, build):
    """Without torch: the logits that transformers gave for the same weights and tokens."""
    with np.load(GOLDEN) as golden:
        if name not in golden:
            assert name not in {*SHIPPED, *tiny.SPECIAL}
            pytest.skip(
                f"no {name!r} in {GOLDEN.name}: python -m tests.models.make_golden adds it, "
                "where transformers has the family"
            )
        expected = golden[name]
    seqs = tiny.rows()
    mask = tiny.inside(seqs)
    assert (
        mask.sum() > 12 and np.abs(expected[mask]).std() > 0.5
    )  # a flat reference would prove nothing
    np.testing.assert_allclose(tiny.logits(*build(name), seqs)[mask], expected[mask], **CLOSE)


@pytest.mark.parametrize("name", params.families())
def test_decoding_with_a_cache_equals_forward(name, build):
    """Prefill once per prompt, then step by step with M = 2 samples behind each: the hidden states
    of forward.
    """
    cfg, phi = build(name)
    seqs = tiny.rows()
    expected = np.asarray(tiny.forward(cfg, phi, seqs))
    np.testing.assert_allclose(
        np.asarray(tiny.decoded(cfg, phi, seqs)), expected, rtol=0, atol=1e-5
    )


@pytest.mark.parity
@pytest.mark.parametrize("name", tiny.CASES)
def test_transformers_and_back(name, tmp_path):
    """A folder transformers wrote gives its logits here; what we write, transformers reads as the
    same model.
    """
    torch = pytest.importorskip("torch", reason="compares with transformers' torch models")
    import transformers

    if not tiny.in_transformers(tiny.CASES[name]):
        pytest.skip(f"transformers has no {name}")
    reference = tiny.torch_model(tiny.CASES[name])
    reference.save_pretrained(tmp_path / "theirs")
    folder = params.locate(tmp_path / "theirs")
    cfg = params.read_config(params.hf_json(folder))
    phi = params.load(cfg, folder)

    seqs = tiny.rows(seed=1)
    mask = tiny.inside(seqs)
    expected = tiny.torch_logits(reference, seqs)
    np.testing.assert_allclose(tiny.logits(cfg, phi, seqs)[mask], expected[mask], **CLOSE)
    hidden_PD, _ = tiny.prefill(cfg, phi, seqs.prompt_PS, seqs.prompt_len_P, jnp.float32)
    first_PV = np.asarray(hidden_PD @ layers.head_weights(cfg, phi).T)
    np.testing.assert_allclose(
        first_PV, expected[::2, 0], **CLOSE
    )  # M = 2: every other row starts a prompt

    params.save(cfg, phi, tmp_path / "ours", params.hf_json(folder), max_shard_bytes=10_000)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert type(back) is type(reference) and back.dtype == torch.float32
    ours, theirs = back.state_dict(), reference.state_dict()
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[key], theirs[key]) for key in theirs
    )


@pytest.mark.parity
def test_llama3_scaling_at_long_positions():
    """Logits 400 tokens in, where the tiny model was "trained" on 64; and the real model's
    frequencies.
    """
    torch = pytest.importorskip("torch", reason="compares with transformers' torch models")
    import transformers
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    hf = tiny.CASES["llama-tied-scaled"]
    cfg = params.read_config(hf)
    phi = params.nest({path: stack(cfg, path, tensor) for path, tensor in cfg.tensors().items()})
    seqs = tiny.rows(seed=2, P=1, M=1, S=400, T=4)
    expected = tiny.torch_logits(tiny.torch_model(hf), seqs)
    np.testing.assert_allclose(tiny.logits(cfg, phi, seqs), expected, **CLOSE)

    real = RELEASED["Llama-3.2-3B"][0]
    theirs = LlamaRotaryEmbedding(transformers.AutoConfig.for_model(**copy.deepcopy(real))).inv_freq
    theirs = theirs.to(torch.float64).numpy()
    np.testing.assert_allclose(params.read_config(real).inverse_frequencies(), theirs, rtol=1e-6)


def stack(cfg, path, tensor):
    """A parameter in our layout from tiny.weight, written out once more by hand: [out, in] -> [in,
    out].
    """

    def one(name):
        array = tiny.weight(name, params.hf_shape(tensor))
        return (array.T if tensor.inputs else array).reshape(tensor.shape)

    names = params.hf_names(cfg, path, tensor)
    return np.stack([one(name) for name in names]) if path.startswith("layers/") else one(names[0])


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_have_their_published_size(name):
    """Released models have their published size, RoPE base and end of sequence."""
    hf, published = RELEASED[name]
    cfg = params.read_config(hf)
    sizes = [
        math.prod(params.full_shape(cfg, path, tensor)) for path, tensor in cfg.tensors().items()
    ]
    assert sum(sizes) == published
    assert (
        cfg.rope_theta == hf["rope_theta"]
        and cfg.eos_ids == (hf["eos_token_id"],)
        and cfg.head_dim == 128
    )


def test_llama3_frequencies_against_the_formula():
    """Wavelengths beyond 8192 turn 32 times slower, below 2048 as before, between on a line in 8192
    / wavelength.
    """
    cfg = params.read_config(RELEASED["Llama-3.2-3B"][0])
    plain = 500000.0 ** (-np.arange(64) / 64)
    wave = 2 * np.pi / plain
    ramp = (8192 / wave - 1) / 3
    expected = np.where(
        wave > 8192,
        plain / 32,
        np.where(wave < 2048, plain, (1 - ramp) * plain / 32 + ramp * plain),
    )
    np.testing.assert_allclose(cfg.inverse_frequencies(), expected, rtol=1e-12)
    assert (wave > 8192).sum() > 5 and (
        (wave < 8192) & (wave > 2048)
    ).any()  # all three kinds occur


@pytest.mark.parametrize(
    "rope",
    [
        dict(rope_parameters=dict(rope_theta=5e5, **tiny.LLAMA3)),  # as transformers 5 writes it
        dict(rope_theta=5e5, rope_scaling=tiny.LLAMA3),  # as 4 did
        dict(
            rope_theta=5e5,
            rope_scaling={("type" if k == "rope_type" else k): v for k, v in tiny.LLAMA3.items()},
        ),
        dict(
            rope_theta=5e5,
            max_position_embeddings=64,
            rope_scaling={
                k: v for k, v in tiny.LLAMA3.items() if k != "original_max_position_embeddings"
            },
        ),
    ],
)
def test_every_spelling_of_rope_is_read(rope):
    """RoPE's settings are read as transformers 4 and 5 write them, defaults included."""
    bare = {k: v for k, v in tiny.TINY.items() if k != "rope_theta"}
    cfg = params.read_config(bare | dict(model_type="llama") | rope)
    assert cfg.rope_theta == 5e5 and dict(cfg.rope_scaling) == tiny.LLAMA3


def test_defaults_are_those_of_transformers():
    """Keys that config.json leaves out have the values that transformers gives them."""
    bare = {
        k: v
        for k, v in tiny.TINY.items()
        if k
        not in (
            "head_dim",
            "num_key_value_heads",
            "rope_theta",
            "eos_token_id",
            "tie_word_embeddings",
            "rms_norm_eps",
        )
    }
    cfg = params.read_config(bare | dict(model_type="llama"))
    assert (cfg.head_dim, cfg.kv_heads, cfg.rope_theta, cfg.eos_ids, cfg.tied) == (
        4,
        6,
        1e4,
        (),
        False,
    )
    assert cfg.rms_eps == 1e-6 and cfg.rope_scaling is None
    assert params.read_config(bare | dict(model_type="qwen3")).head_dim == 128
    assert params.read_config(bare | dict(model_type="llama", eos_token_id=[5, 7])).eos_ids == (
        5,
        7,
    )


@pytest.mark.parametrize(
    "family, change, message",
    [
        ("llama", dict(attention_bias=True), "attention_bias or mlp_bias is not supported"),
        ("llama", dict(mlp_bias=True), "attention_bias or mlp_bias is not supported"),
        (
            "llama",
            dict(rope_scaling=dict(rope_type="yarn", factor=4.0)),
            ("rope_type='yarn'", "'llama3'"),
        ),
        (
            "llama",
            dict(rope_scaling=dict(type="linear", factor=4.0)),
            "rope_type='linear' is not supported",
        ),
        (
            "llama",
            dict(rope_scaling=dict(rope_type="llama3", factor=4.0)),
            "low_freq_factor, high_freq_factor",
        ),
        ("llama", dict(hidden_act="gelu"), ("hidden_act='gelu'", "'silu'")),
        ("llama", dict(partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
        (
            "llama",
            dict(num_key_value_heads=4),
            ("num_attention_heads=6", "num_key_value_heads=4"),
        ),
        ("qwen2", dict(use_sliding_window=True), "use_sliding_window=true"),
        (
            "qwen2",
            dict(rope_scaling=dict(type="yarn", factor=4.0)),
            ("qwen2", "rope_scaling", "yarn"),
        ),
        ("qwen3", dict(use_sliding_window=True), "use_sliding_window"),
        (
            "qwen3",
            dict(attention_bias=True),
            "attention_bias",
        ),
        (
            "qwen3",
            dict(rope_scaling=dict(rope_type="yarn", factor=4.0)),
            ("qwen3", "rope_scaling", "yarn"),
        ),
        ("mamba", {}, ("model_type='mamba'", "llama", "qwen2", "qwen3")),
        (None, {}, "model_type=None"),
    ],
)
def test_what_we_do_not_compute_is_refused(family, change, message):
    """A config.json that asks for what is not computed is refused by the key's name."""
    with errors.raises(ValueError, message):
        params.read_config(tiny.TINY | dict(model_type=family) | change)


def test_missing_numbers_are_named():
    """The error names the numbers that config.json lacks."""
    with errors.raises(ValueError, "config.json", "hidden_size, intermediate_size"):
        params.read_config(
            {k: v for k, v in tiny.TINY.items() if k not in ("hidden_size", "intermediate_size")}
            | dict(model_type="llama")
        )


@pytest.mark.parity
@pytest.mark.slow
def test_smollm2_on_chat_prompts(tmp_path_factory):
    """The real SmolLM2-135M-Instruct: chat prompts and its own greedy answers, fp32, every
    completion position.
    """
    torch = pytest.importorskip("torch", reason="compares with transformers' torch models")
    import transformers

    folder = os.environ.get("BRIDGE_SMOLLM2")
    if not folder:
        from experiments import get_smollm2

        folder = tmp_path_factory.mktemp("smollm2") / "model"
        get_smollm2.get(str(folder))
    folder = params.locate(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    ).eval()
    questions = (
        "What is the capital of France?",
        "Natalia sold 48 clips in April and half as many in May. How many "
        "in all? Please reason step by step.",
        "Hi!",
    )
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for question in questions
    ]
    T = 24
    answers = []
    for prompt in prompts:
        made = reference.generate(torch.tensor([prompt]), max_new_tokens=T, do_sample=False)
        answers.append(made[0, len(prompt) :].tolist())
    pad = lambda lists, size: np.array([ids + [0] * (size - len(ids)) for ids in lists], np.int32)
    seqs = tiny.Sequences(
        pad(prompts, max(map(len, prompts))),
        np.array([len(p) for p in prompts], np.int32),
        pad(answers, T),
        np.array([len(a) for a in answers], np.int32),
    )

    cfg = params.read_config(params.hf_json(folder))
    phi = params.load(cfg, folder)
    mask, apart = tiny.inside(seqs), lambda a, b: np.abs(a - b)[tiny.inside(seqs)].max()
    ours, theirs = tiny.logits(cfg, phi, seqs), tiny.torch_logits(reference, seqs)
    assert (ours.argmax(-1) == seqs.tokens_BT)[mask].all()  # the greedy answer, token for token
    exact = tiny.torch_logits(reference.double(), seqs)
    with jax.enable_x64(
        True
    ):  # the same fp32 weights, multiplied in double: what remains is a difference of the function
        double = tiny.logits(
            cfg, jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), phi), seqs
        )
    print(
        f"\nSmolLM2, {mask.sum()} positions, largest logit {np.abs(exact[mask]).max():.1f}. "
        f"Largest differences: double {apart(double, exact):.1e}, fp32 {apart(ours, theirs):.1e}; transformers' own "
        f"fp32 from double {apart(theirs, exact):.1e}; first answer: {tokenizer.decode(answers[0])!r}"
    )
    assert apart(double, exact) < 1e-4
    # two roundings of fp32 stand between these two: as far apart as transformers is from itself, on
    # either side
    assert apart(ours, theirs) < 3 * apart(theirs, exact)
