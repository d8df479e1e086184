"""Both tokenizers encode, decode and render alike; all files that name an end are heard."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bridge_jax.data import batches, tokenizers
from bridge_jax.data.tokenizers import CharTokenizer, HFTokenizer
from bridge_jax.tasks import arithmetic
from configs import ladder
from tests import errors
from tests.data.chars import CHAR, TOKENIZERS, plain, problem, real, small_hf

# Characters


def test_char_tokenizer_by_hand():
    """Ids count from 1 and 0 ends a sequence; the user's message or plain text is rendered."""
    tokenizer = CharTokenizer("abc")
    assert tokenizer.encode("cab") == [3, 1, 2] and tokenizer.decode([3, 0, 1, 2, 0]) == "cab"
    assert (tokenizer.vocab_size, tokenizer.eos_ids) == (4, (0,))
    assert (
        tokenizer.decode(np.array([1, 4, 2])) == "a\ufffdb"
    )  # a padded vocabulary: an id that has no character
    messages = [{"role": "system", "content": "zz"}, {"role": "user", "content": "ba"}]
    assert tokenizer.render(messages) == [2, 1]
    # prompts without a chat template: plain, and raw of experiments.sample
    assert tokenizer.render([{"role": "text", "content": "ba"}]) == [2, 1]
    assert tokenizer == CharTokenizer("abc")


def test_char_tokenizer_refuses():
    """Foreign characters and alphabets that are not distinct ASCII are refused."""
    with errors.raises(ValueError, "' x'", "0123456789"):
        CHAR.encode("1 x")
    for alphabet in ("", "aa", "é"):
        with errors.raises(ValueError, repr(alphabet), "ASCII"):
            CharTokenizer(alphabet)
    with errors.raises(ValueError, "'<eos>'"):
        CharTokenizer("<>eos12")


@pytest.mark.parametrize("family", [None, "llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "alphabet", [arithmetic.ALPHABET, "ab \n\t\"\\{}<eos012'"], ids=["compact", "odd"]
)
def test_saved_characters_are_an_ordinary_hf_tokenizer(tmp_path, family, alphabet):
    """Beside any of our config.json's: AutoTokenizer goes by the model_type and may rebuild what it
    reads.
    """
    transformers = pytest.importorskip("transformers")
    tokenizer = CharTokenizer(alphabet)
    tokenizer.save(tmp_path)
    if family:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family, "vocab_size": 32}))
    plain_hf, ours = (
        transformers.AutoTokenizer.from_pretrained(str(tmp_path)),
        HFTokenizer(str(tmp_path)),
    )
    rng = np.random.default_rng(0)
    texts = ["", alphabet, alphabet[::-1], alphabet[0] * 5]
    texts += ["".join(rng.choice(list(alphabet), 30)) for _ in range(20)]
    for text in texts:
        ids = tokenizer.encode(text)
        assert plain_hf.encode(text) == plain_hf(text)["input_ids"] == ours.encode(text) == ids
        assert plain_hf.decode(ids + [0], skip_special_tokens=True) == text
        assert ours.decode(ids + [0]) == tokenizer.decode(ids + [0]) == text
        messages = [{"role": "system", "content": "zz"}, {"role": "user", "content": text}]
        assert ours.render(messages) == tokenizer.render(messages)
    assert (ours.vocab_size, ours.eos_ids) == (tokenizer.vocab_size, tokenizer.eos_ids)
    assert plain_hf.eos_token_id == plain_hf.pad_token_id == 0


# Real tokenizers


@pytest.mark.parametrize(
    "name, prompt, eos_ids",
    [
        (
            "qwen3",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi 12?<|im_end|>\n<|im_start|>assistant\n",
            (151645,),
        ),
        (
            "llama3_1",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>"
            "user<|end_header_id|>\n\nHi 12?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            (128009,),
        ),
    ],
)
def test_real_chat_prompts(name, prompt, eos_ids):
    """A chat prompt is that of the model's own template, with one begin-of-text."""
    tokenizer = real(name)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi 12?"}]
    ids = tokenizer.render(messages)
    assert (
        tokenizer.inner.decode(ids, clean_up_tokenization_spaces=False) == prompt
    )  # one begin-of-text, not two
    assert ids == list(
        tokenizer.inner.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    )
    assert tokenizer.eos_ids == eos_ids


@pytest.mark.parametrize("name", ["qwen3", "llama3_1"])
def test_real_round_trip(name):
    """Text comes back as it was; ids beyond the vocabulary become replacement characters."""
    tokenizer = real(name)
    # older transformers may "clean up" the spaces before punctuation
    text = "<think>\nSo , 12 + 7 = 19 .\n</think>\n\n The answer is \\boxed{19}."
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == tokenizer.decode([*ids, tokenizer.eos_ids[0]]) == text
    assert tokenizer.decode(np.asarray(ids, np.int32)) == text
    four, two = tokenizer.encode("4"), tokenizer.encode("2")
    beyond = tokenizer.vocab_size + 3
    assert tokenizer.decode([*four, beyond, beyond, *two]) == "4\ufffd\ufffd2"


def test_eos_is_a_set_from_all_who_name_one(tmp_path):
    """The tokenizer, generation_config.json and config.json each add their ends."""
    small_hf(
        tmp_path,
        {
            "generation_config.json": {"eos_token_id": [0, 5]},
            "config.json": {"model_type": "llama", "eos_token_id": 7},
        },
    )
    assert HFTokenizer(str(tmp_path)).eos_ids == (0, 5, 7)
    assert HFTokenizer(str(tmp_path)).decode([1, 5, 2, 7, 0]) == "<|"


def test_config_defaults_name_no_eos(tmp_path):
    """transformers' LlamaConfig would fill in id 2, which is a character here."""
    small_hf(tmp_path, {"config.json": {"model_type": "llama"}})
    assert HFTokenizer(str(tmp_path)).eos_ids == (0,)


def test_the_end_of_a_turn_ends_a_sequence(tmp_path):
    """The special token that closes a turn in the template is an end too."""
    turns = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>\n{% endfor %}"
    small_hf(tmp_path, chat_template=turns, additional_special_tokens=["<|im_end|>"])
    tokenizer = HFTokenizer(str(tmp_path))
    assert (
        tokenizer.eos_ids == (0, tokenizer.inner.convert_tokens_to_ids("<|im_end|>"))
        and tokenizer.eos_ids[1] > 0
    )


@pytest.mark.parametrize(
    "template, ends",
    [
        # what the turn is closed with may follow other marks
        ("{% for m in messages %}{{ m['content'] }}.<|im_end|>{% endfor %}", True),
        # refuses a talk without a system message
        (
            "{% if messages[0]['role'] != 'system' %}{{ raise_exception('system first') }}{% endif %}"
            "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}",
            True,
        ),
        # refuses every talk with an assistant in it: task.prompt=plain goes around it
        (
            "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ raise_exception('no') }}{% endif %}"
            "{{ m['content'] }}{% endfor %}<|im_end|>",
            False,
        ),
        # changes the words, so that nothing is known of what stands behind them
        ("{% for m in messages %}<|im_end|>{{ m['content'] | lower }}{% endfor %}", False),
    ],
)
def test_templates_that_are_hard_to_ask_for_the_end_of_a_turn(tmp_path, template, ends):
    """The end of a turn is found where the template shows it, and never guessed."""
    small_hf(tmp_path, chat_template=template, additional_special_tokens=["<|im_end|>"])
    tokenizer = HFTokenizer(str(tmp_path))
    end = tokenizer.inner.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_ids == ((0, end) if ends else (0,))


TURNS = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>\n{% endfor %}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, eos, eos_ids",
    [
        ("llama3_1", "<|end_of_text|>", (128001, 128009)),
        ("qwen3", "<|endoftext|>", (151643, 151645)),
    ],
)
def test_real_files_whose_eos_is_not_the_end_of_a_turn(tmp_path, name, eos, eos_ids):
    """Base models' files: both end a sequence, the tokenizer's own is taught;
    generation_config.json adds its list.
    """
    assert real(name)
    config = json.loads((TOKENIZERS / name / "tokenizer_config.json").read_text(encoding="utf-8"))
    # named for no purpose, so that only added_tokens_decoder knows what is special
    config = {
        k: v for k, v in config.items() if k not in ("additional_special_tokens", "pad_token")
    }
    config["eos_token"] = eos
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").symlink_to(TOKENIZERS / name / "tokenizer.json")
    assert HFTokenizer(str(tmp_path)).eos_ids == eos_ids
    more = [eos_ids[1], 128008]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": more}))
    tokenizer = HFTokenizer(str(tmp_path))
    assert tokenizer.eos_ids == (*eos_ids, 128008)
    assert tokenizer.decode([*tokenizer.encode("4"), *tokenizer.eos_ids]) == "4"


@pytest.mark.parametrize("special", [True, False])
def test_only_a_special_token_ends_a_turn(tmp_path, special):
    """As added_tokens_decoder says; other special tokens, that opening a turn too, end nothing."""
    folder = small_hf(tmp_path, chat_template=TURNS)
    path = folder / "tokenizer.json"
    saved, token = (
        json.loads(path.read_text()),
        dict(normalized=False, single_word=False, lstrip=False, rstrip=False),
    )
    names = {"<|im_start|>": True, "<|im_end|>": special, "<|other|>": True}
    saved["added_tokens"] += [
        dict(id=18 + i, content=name, special=value, **token)
        for i, (name, value) in enumerate(names.items())
    ]
    path.write_text(json.dumps(saved))
    tokenizer = HFTokenizer(str(folder))
    assert tokenizer.encode("<|im_start|><|im_end|><|other|>") == [18, 19, 20]
    assert tokenizer.eos_ids == ((0, 19) if special else (0,))


def test_files_beside_the_tokenizer_that_cannot_be_read_are_named(tmp_path):
    """A generation_config.json that is skipped would lose its stop ids."""
    small_hf(tmp_path)
    for name in ("generation_config.json", "config.json"):
        (tmp_path / name).write_text("{torn")
        with errors.raises(ValueError, str(tmp_path / name), "JSON"):
            HFTokenizer(str(tmp_path))
        (tmp_path / name).unlink()
    (tmp_path / "generation_config.json").write_bytes('{"eos_token_id": 3}'.encode("utf-8-sig"))
    assert HFTokenizer(str(tmp_path)).eos_ids == (0, 3)
    content = (tmp_path / "tokenizer_config.json").read_text()
    (tmp_path / "tokenizer_config.json").write_bytes(content.encode("utf-16"))
    with errors.raises(ValueError, "tokenizer_config.json", "iconv"):
        HFTokenizer(str(tmp_path))


REFUSES = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{{ m['content'] }}{% endfor %}"
)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_template_that_refuses_the_system_role(tmp_path, file):
    """The error names the file and the way out, which works."""
    if file == "chat_template.jinja":
        small_hf(tmp_path, chat_template=None)
        (tmp_path / file).write_text(REFUSES)
    else:
        small_hf(tmp_path, chat_template=REFUSES)
    tokenizer = HFTokenizer(str(tmp_path))
    with errors.raises(
        ValueError,
        "prompt '12'",
        file,
        "system, user",
        "TemplateError",
        "System role not supported",
        "task.prompt='user'",
    ):
        batches.prompt_ids(
            tokenizer, problem(7, "12"), lambda p: [{"role": "system", "content": "s"}, *plain(p)]
        )
    assert tokenizer.decode(batches.prompt_ids(tokenizer, problem(7, "12"), plain)) == "12"


def test_a_template_that_fails_of_itself_is_named_at_once(tmp_path):
    """A template that always fails is refused when the tokenizer is read."""
    small_hf(
        tmp_path, chat_template="{% for m in messages %}{{ m['content'] | nothing }}{% endfor %}"
    )
    with errors.raises(ValueError, "tokenizer_config.json", "user, assistant"):
        HFTokenizer(str(tmp_path))


def test_without_a_template_the_prompt_is_a_line(tmp_path):
    """A tokenizer without a template renders the question and a line's end."""
    small_hf(tmp_path, chat_template=None)
    tokenizer = HFTokenizer(str(tmp_path))
    assert tokenizer.render(plain(problem(1, "12"))) == CharTokenizer("<|im_endstarb>12\n").encode(
        "12\n"
    )


def test_without_a_template_the_begin_token_stays(tmp_path):
    """The tokenizer's begin-of-text stands before a prompt without a template."""
    tokenizer = real("llama3_1")
    config = json.loads((TOKENIZERS / "llama3_1" / "tokenizer_config.json").read_text())
    config.pop("chat_template")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_bytes(
        (TOKENIZERS / "llama3_1" / "tokenizer.json").read_bytes()
    )
    assert HFTokenizer(str(tmp_path)).render(plain(problem(1, "Hi"))) == [
        128000,
        *tokenizer.encode("Hi\n"),
    ]


def test_hf_refuses(tmp_path):
    """A folder without a tokenizer, and one without an end of sequence, are refused."""
    with errors.raises(ValueError, str(tmp_path), "tokenizer.json"):
        HFTokenizer(str(tmp_path))
    small_hf(tmp_path, eos_token=None)
    with errors.raises(ValueError, "eos_token"):
        HFTokenizer(str(tmp_path))


def test_hf_save_keeps_the_files(tmp_path):
    """A saved tokenizer has the source's files byte for byte, in its own folder too."""
    source = small_hf(tmp_path / "source")
    HFTokenizer(str(source)).save(tmp_path / "export")
    assert {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()} == {
        path.name: path.read_bytes() for path in source.iterdir()
    }
    HFTokenizer(str(source)).save(source)  # onto itself


def test_vocabulary_must_fit_the_model():
    """A tokenizer with ids beyond the model's vocabulary is refused."""
    tokenizers.check_vocabulary(CHAR, 16)
    tokenizers.check_vocabulary(CHAR, 32)
    with errors.raises(ValueError, "15", "14"):
        tokenizers.check_vocabulary(CHAR, 15)


def test_eos_ids_must_fit_the_model_too(tmp_path):
    """An end of sequence beyond the model's vocabulary is refused."""
    small_hf(tmp_path, {"generation_config.json": {"eos_token_id": 40}})
    with errors.raises(ValueError, "40", "31"):
        tokenizers.check_vocabulary(HFTokenizer(str(tmp_path)), 32)


def test_a_tokenizer_that_drops_most_of_a_text_is_refused():
    """The shipped model's on words: the share, a text, and what it knows; sums it reads."""
    tokenizer = HFTokenizer(ladder.BASE)
    words = [problem(1, "What is the sum of 12 and 7?")]
    known = "the characters '#+-0123456789;='"
    with errors.raises(ValueError, "What is the sum", "11%", known):
        batches.encode_prompts(tokenizer, words, plain, (64,))
    with errors.raises(ValueError, "prompt 'hello'", "no token", known):
        batches.encode_prompts(tokenizer, [problem(1, "hello")], plain, (64,))
    batches.encode_prompts(tokenizer, [problem(1, "12+7=")], plain, (64,))
