"""Tokenizers, the one renderer, dropping without cutting, order as a pure function, padding told from lengths."""

from __future__ import annotations

import functools
import json
import logging
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_jax import tasks
from bridge_jax.data import batches, tokenizers
from bridge_jax.data.tokenizers import CharTokenizer, HFTokenizer
from bridge_jax.tasks import arithmetic
from bridge_jax.types import Problem, Sequences

TOKENIZERS = pathlib.Path(__file__).parents[3] / "shared" / "data" / "tokenizers"
CHAR = CharTokenizer(arithmetic.ALPHABET)
BUCKETS = (4, 8)


@functools.cache
def real(name: str) -> HFTokenizer:
    if not (TOKENIZERS / name / "tokenizer.json").exists():
        pytest.skip(f"needs the {name} tokenizer in ../shared/data/tokenizers")
    return HFTokenizer(str(TOKENIZERS / name))


def plain(problem: Problem):
    return [{"role": "user", "content": problem.question}]


def problem(id: int, question: str, solution: str = "#1") -> Problem:
    return Problem(id, question, "1", solution, 1)


# Characters


def test_char_tokenizer_by_hand():
    tokenizer = CharTokenizer("abc")
    assert tokenizer.encode("cab") == [3, 1, 2] and tokenizer.decode([3, 0, 1, 2, 0]) == "cab"
    assert (tokenizer.vocab_size, tokenizer.eos_ids) == (4, (0,))
    assert (
        tokenizer.decode(np.array([1, 4, 2])) == "a\ufffdb"
    )  # a padded vocabulary: an id that has no character
    messages = [{"role": "system", "content": "zz"}, {"role": "user", "content": "ba"}]
    assert tokenizer.render(messages) == [2, 1]
    assert tokenizer == CharTokenizer("abc")


def test_char_tokenizer_refuses():
    with pytest.raises(ValueError, match="lacks: ' x'.*0123456789"):
        CHAR.encode("1 x")
    for alphabet in ("", "aa", "é"):
        with pytest.raises(ValueError, match="distinct ASCII"):
            CharTokenizer(alphabet)
    with pytest.raises(ValueError, match="can spell '<eos>'"):
        CharTokenizer("<>eos12")


@pytest.mark.parametrize("family", [None, "llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "alphabet", [arithmetic.ALPHABET, "ab \n\t\"\\{}<eos012'"], ids=["compact", "odd"]
)
def test_saved_characters_are_an_ordinary_hf_tokenizer(tmp_path, family, alphabet):
    """Beside any of our config.json's: AutoTokenizer goes by the model_type and may rebuild what it reads."""
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
    tokenizer = real(name)
    # older transformers may "clean up" the spaces before punctuation
    text = "<think>\nSo , 12 + 7 = 19 .\n</think>\n\n The answer is \\boxed{19}."
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == tokenizer.decode([*ids, tokenizer.eos_ids[0]]) == text
    assert tokenizer.decode(np.asarray(ids, np.int32)) == text
    four, two = tokenizer.encode("4"), tokenizer.encode("2")
    beyond = tokenizer.vocab_size + 3
    assert tokenizer.decode([*four, beyond, beyond, *two]) == "4\ufffd\ufffd2"


def small_hf(folder, files: dict | None = None, **settings):
    """The folder of a character tokenizer with other settings and files."""
    CharTokenizer("<|im_endstarb>12\n").save(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    for name, content in (files or {}).items():
        (folder / name).write_text(json.dumps(content))
    return folder


def test_eos_is_a_set_from_all_who_name_one(tmp_path):
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
    small_hf(tmp_path, chat_template=template, additional_special_tokens=["<|im_end|>"])
    tokenizer = HFTokenizer(str(tmp_path))
    end = tokenizer.inner.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_ids == ((0, end) if ends else (0,))


TURNS = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>\n{% endfor %}"


@pytest.mark.parametrize(
    "name, eos, eos_ids",
    [
        ("llama3_1", "<|end_of_text|>", (128001, 128009)),
        ("qwen3", "<|endoftext|>", (151643, 151645)),
    ],
)
def test_real_files_whose_eos_is_not_the_end_of_a_turn(tmp_path, name, eos, eos_ids):
    """Base models' files: both end a sequence, the tokenizer's own is taught; generation_config.json adds its list."""
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
        with pytest.raises(ValueError, match=f"/{name} is not valid JSON"):
            HFTokenizer(str(tmp_path))
        (tmp_path / name).unlink()
    (tmp_path / "generation_config.json").write_bytes('{"eos_token_id": 3}'.encode("utf-8-sig"))
    assert HFTokenizer(str(tmp_path)).eos_ids == (0, 3)
    content = (tmp_path / "tokenizer_config.json").read_text()
    (tmp_path / "tokenizer_config.json").write_bytes(content.encode("utf-16"))
    with pytest.raises(ValueError, match="tokenizer_config.json is not UTF-8 text: .*iconv"):
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
    with pytest.raises(
        ValueError,
        match=f"problem 7: .*{file} refuses messages of system, user .*TemplateError.*System role not supported.*task.prompt='user'",
    ):
        batches.prompt_ids(
            tokenizer, problem(7, "12"), lambda p: [{"role": "system", "content": "s"}, *plain(p)]
        )
    assert tokenizer.decode(batches.prompt_ids(tokenizer, problem(7, "12"), plain)) == "12"


def test_a_template_that_fails_of_itself_is_named_at_once(tmp_path):
    small_hf(
        tmp_path, chat_template="{% for m in messages %}{{ m['content'] | nothing }}{% endfor %}"
    )
    with pytest.raises(
        ValueError, match="tokenizer_config.json refuses messages of user, assistant"
    ):
        HFTokenizer(str(tmp_path))


def test_without_a_template_the_prompt_is_a_line(tmp_path):
    small_hf(tmp_path, chat_template=None)
    tokenizer = HFTokenizer(str(tmp_path))
    assert tokenizer.render(plain(problem(1, "12"))) == CharTokenizer("<|im_endstarb>12\n").encode(
        "12\n"
    )


def test_without_a_template_the_begin_token_stays(tmp_path):
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
    with pytest.raises(ValueError, match="no tokenizer in .*tokenizer.json"):
        HFTokenizer(str(tmp_path))
    small_hf(tmp_path, eos_token=None)
    with pytest.raises(ValueError, match="no end-of-sequence token.*set eos_token"):
        HFTokenizer(str(tmp_path))


def test_hf_save_keeps_the_files(tmp_path):
    source = small_hf(tmp_path / "source")
    HFTokenizer(str(source)).save(tmp_path / "export")
    assert {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()} == {
        path.name: path.read_bytes() for path in source.iterdir()
    }
    HFTokenizer(str(source)).save(source)  # onto itself


def test_vocabulary_must_fit_the_model():
    tokenizers.check_vocabulary(CHAR, 16)
    tokenizers.check_vocabulary(CHAR, 32)
    with pytest.raises(ValueError, match="up to 15, the model's end at 14"):
        tokenizers.check_vocabulary(CHAR, 15)


def test_eos_ids_must_fit_the_model_too(tmp_path):
    small_hf(tmp_path, {"generation_config.json": {"eos_token_id": 40}})
    with pytest.raises(ValueError, match="up to 40"):
        tokenizers.check_vocabulary(HFTokenizer(str(tmp_path)), 32)


# Encoding


def test_what_does_not_fit_is_named_and_left_out(caplog):
    rows = [
        problem(11, "1+1="),
        problem(22, "111111+11="),
        problem(33, "1+1+1+1="),
        problem(44, "1" * 20),
    ]
    with caplog.at_level(logging.WARNING):
        kept, dropped = batches.encode_prompts(CHAR, rows, plain, BUCKETS)
    assert [p.id for p in kept.problems] == [11, 33] and [len(ids) for ids in kept.tokens] == [4, 8]
    assert dropped == ((22, "prompt", 10), (44, "prompt", 20))
    assert (
        "left out 2 of 4 problems: prompt longer than 8 tokens; id (tokens): 44 (20), 22 (10)"
        in caplog.text
    )
    assert all(CHAR.decode(ids) == p.question for p, ids in zip(kept.problems, kept.tokens))


def test_long_traces_are_dropped_not_cut(caplog):
    rows = [problem(1, "1=", "12345"), problem(2, "1=", "123456"), problem(3, "1" * 9, "1")]
    with caplog.at_level(logging.WARNING):
        kept, dropped = batches.encode_demos(CHAR, rows, plain, BUCKETS, max_new=6)
    assert dropped == (
        (2, "trace", 7),
        (3, "prompt", 9),
    )  # five characters and the end fill max_new exactly
    assert (
        kept.completions[0].tolist() == [*CHAR.encode("12345"), 0]
        and kept.completions[0].dtype == np.int32
    )
    assert "trace longer than 6 tokens; id (tokens): 2 (7)" in caplog.text
    assert "prompt longer than 8 tokens; id (tokens): 3 (9)" in caplog.text


THOUGHTS = "<think>\n12\n</think>\n\nSo 2."


@pytest.mark.parametrize(
    "opened, solution, trained",
    [
        ("", THOUGHTS, THOUGHTS),
        ("", "So 2.", "So 2."),
        ("", "12\n</think>\n\nSo 2.", THOUGHTS),  # the opening tag is missing in some data sets
        ("", " \n12</think>So 2.", "<think>\n12</think>So 2."),
        ("", THOUGHTS + "<think>2", None),
        ("", "<think>\n12", None),
        ("", "<think>\n<think>\n12</think>So 2.", None),
        ("<think>\n", "So.\n<think>12</think>So 2.", None),
        ("<think>\n", "<think>\n<think>\n12</think>So 2.", None),
        ("<think>\n", THOUGHTS, "12\n</think>\n\nSo 2."),
        ("<think>", THOUGHTS, "\n12\n</think>\n\nSo 2."),
        ("<think>\n\n", THOUGHTS, "12\n</think>\n\nSo 2."),
        ("<think>\n", "\n<think>12</think>So 2.", "12</think>So 2."),
        ("<think>\n", "12\n</think>\n\nSo 2.", "12\n</think>\n\nSo 2."),
        ("<think>\n", "So 2.", None),  # it would be said inside the reasoning, and end there
        ("<think>\n", "<think>\n12", None),
        ("<think>\n\n</think>\n\n", "So 2.", "So 2."),
        ("<think>\n\n</think>\n\n", THOUGHTS, ValueError),
        ("<think>\n\n</think>\n\n", "12</think>So 2.", ValueError),
    ],
)
def test_reasoning_is_opened_once_and_closed(tmp_path, opened, solution, trained):
    """Whether the generation prompt opens it, the trace, or neither; what stays open is no demonstration."""
    generation = f"{{% if add_generation_prompt %}}{{{{ {opened!r} }}}}{{% endif %}}"
    CharTokenizer("</think>12So.\n ").save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ messages[0]['content'] }}" + generation
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer, rows = HFTokenizer(str(tmp_path)), [problem(1, "1", solution)]
    if trained is ValueError:
        with pytest.raises(
            ValueError, match="demonstration 1: the chat template closes the reasoning"
        ):
            batches.encode_demos(tokenizer, rows, plain, (32,), 64)
    elif trained is None:
        with pytest.raises(
            ValueError,
            match="none of 1 problems remains; of 1 the solution ends inside an open <think>",
        ):
            batches.encode_demos(tokenizer, rows, plain, (32,), 64)
    else:
        demos, dropped = batches.encode_demos(tokenizer, rows, plain, (32,), 64)
        text = tokenizer.decode(demos.completions[0])
        assert text == demos.problems[0].solution == trained and not dropped
        assert tokenizer.decode(demos.tokens[0]) == "1" + opened
        assert (opened + text).count("<think>") <= 1 + opened.count("</think>")


def test_the_first_solution_that_fits_is_taken(caplog):
    """Of those that are right; where none fits, the problem is left out once."""
    rows = [problem(1, "1=", "1234567"), problem(2, "1=", "12"), problem(3, "1=", "1234567")]
    others = {1: ("123456", "12;1", "1"), 3: ("12345678",)}
    with caplog.at_level(logging.WARNING):
        demos, dropped = batches.encode_demos(CHAR, rows, plain, BUCKETS, 6, others)
    assert [(p.id, p.solution) for p in demos.problems] == [(1, "12;1"), (2, "12")]
    assert [CHAR.decode(row) for row in demos.completions] == ["12;1", "12"]
    assert dropped == ((3, "trace", 8),) and "left out 1 of 3 problems" in caplog.text


def test_a_solution_that_would_be_cut_at_a_stop_string_is_left_out(caplog):
    rows = [problem(1, "1=", "12;#3"), problem(2, "1=", "12;+")]
    with caplog.at_level(logging.WARNING):
        demos, dropped = batches.encode_demos(CHAR, rows, plain, BUCKETS, 9, {}, (";#", "++"))
    assert [p.id for p in demos.problems] == [2] and dropped == ((1, "stop", 6),)
    assert "the solution holds a stop string" in caplog.text


def test_many_left_out_are_counted_and_ten_are_named(caplog):
    rows = [problem(i, "1" * (9 + i)) for i in range(30)] + [problem(99, "1")]
    with caplog.at_level(logging.WARNING):
        batches.encode_prompts(CHAR, rows, plain, BUCKETS)
    assert (
        "left out 30 of 31" in caplog.text
        and "20 (29), ..." in caplog.text
        and "19 (28)" not in caplog.text
    )


def test_nothing_left_is_an_error():
    with pytest.raises(
        ValueError, match="none of 1 problems remains; allowed: prompt at most 8.*left out: 10"
    ):
        batches.encode_prompts(CHAR, [problem(1, "1" * 10)], plain, BUCKETS)
    with pytest.raises(ValueError, match="trace at most 2"):
        batches.encode_demos(CHAR, [problem(1, "1", "123")], plain, BUCKETS, 2)
    with pytest.raises(ValueError, match="none of 0"):
        batches.encode_prompts(CHAR, [], plain, BUCKETS)


@pytest.mark.parametrize("buckets", [(), (8, 4), (4, 4), (0, 4)])
def test_buckets_must_rise(buckets):
    with pytest.raises(ValueError, match="prompt buckets"):
        batches.encode_prompts(CHAR, [problem(1, "1")], plain, buckets)


def test_errors_name_the_problem(tmp_path):
    with pytest.raises(ValueError, match="problem 5: .*lacks: 'x'"):
        batches.encode_prompts(CHAR, [problem(5, "x")], plain, BUCKETS)
    with pytest.raises(ValueError, match="problem 5: .*no token"):
        batches.encode_prompts(CHAR, [problem(5, "")], plain, BUCKETS)
    with pytest.raises(ValueError, match="demonstration 5"):
        batches.encode_demos(CHAR, [problem(5, "1", "")], plain, BUCKETS, 4)
    tokenizer = HFTokenizer(str(small_hf(tmp_path)))
    with pytest.raises(ValueError, match="demonstration 5: .*without end-of-sequence.*<eos>"):
        batches.encode_demos(tokenizer, [problem(5, "1", "1<eos>")], plain, BUCKETS, 4)


@pytest.mark.parametrize(
    "tokenizer, style", [("char", "compact"), ("qwen3", "chat"), ("llama3_1", "chat")]
)
def test_sft_and_rl_prompts_are_the_same_ids(tokenizer, style):
    tokenizer = CHAR if tokenizer == "char" else real(tokenizer)
    task = arithmetic.make(
        arithmetic.Config(levels=(1, 3), train_size=20, demo_size=20, eval_size=5, style=style)
    )
    prompts, _ = batches.encode_prompts(tokenizer, task.train, task.messages, (128,))
    demos, dropped = batches.encode_demos(tokenizer, task.demos, task.messages, (128,), 64)
    rl = {p.id: ids.tolist() for p, ids in zip(prompts.problems, prompts.tokens)}
    assert {
        p.id: ids.tolist() for p, ids in zip(demos.problems, demos.tokens)
    } == rl and not dropped
    for p, completion in zip(demos.problems, demos.completions):
        assert completion[-1] == tokenizer.eos_ids[0] and tokenizer.decode(completion) == p.solution
        assert task.compare(p, task.extract(tokenizer.decode(completion))) == "correct"


def test_template_hash_tells_renderings_apart():
    hashes = {
        batches.template_hash(CHAR, plain),
        batches.template_hash(CHAR, plain, "1+2="),
        batches.template_hash(CharTokenizer(arithmetic.ALPHABET[::-1]), plain),
        batches.template_hash(CHAR, lambda p: plain(p) * 2),
    }
    assert len(hashes) == 4 and all(len(h) == 12 for h in hashes)
    assert batches.template_hash(CHAR, plain) == batches.template_hash(
        CharTokenizer(arithmetic.ALPHABET), plain
    )


def test_template_hash_of_an_alphabet_without_the_question():
    """A task's own characters, none of them in a sum: told apart by which they are and by their order."""
    alphabets = ("ab>#", "ba>#", "cd>#")
    found = [batches.template_hash(CharTokenizer(alphabet), plain) for alphabet in alphabets]
    assert len({*found, batches.template_hash(CHAR, plain)}) == 4
    assert found[0] == batches.template_hash(CharTokenizer("ab>#"), plain)


def test_template_hash_sees_the_system_message():
    chat = functools.partial(tasks.boxed_messages)
    assert batches.template_hash(real("qwen3"), chat) != batches.template_hash(
        real("qwen3"),
        functools.partial(tasks.boxed_messages, system="You are a helpful assistant."),
    )


# Order


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 40),
    epochs=st.integers(1, 4),
    data_=st.data(),
)
def test_every_epoch_has_each_row_once_and_cuts_do_not_matter(seed, size, epochs, data_):
    total = size * epochs
    whole = batches.order(seed, "rl", size, 0, total)
    for epoch in range(epochs):
        assert sorted(whole[epoch * size : (epoch + 1) * size]) == list(range(size))
    start = data_.draw(st.integers(0, total))
    count = data_.draw(st.integers(0, total - start))
    assert (
        batches.order(seed, "rl", size, start, count).tolist()
        == whole[start : start + count].tolist()
    )


def test_order_depends_on_seed_stream_and_epoch():
    asked = [(0, "rl", 0), (1, "rl", 0), (0, "sft", 0), (0, "rl", 1)]
    orders = {
        tuple(batches.order(seed, stream, 30, epoch * 30, 30)) for seed, stream, epoch in asked
    }
    assert len(orders) == 4 and tuple(range(30)) not in orders


def test_order_is_what_it_always_was():
    """A change would give a resumed run other rows; the figures come from the definition, worked out once apart."""
    assert batches.order(0, "rl", 8, 5, 9).tolist() == [6, 1, 0, 2, 7, 5, 6, 3, 0]


def test_order_hands_out_copies():
    first = batches.order(3, "rl", 10, 0, 10)
    kept = first.tolist()
    first[:] = 0
    assert batches.order(3, "rl", 10, 0, 10).tolist() == kept


def test_order_far_away_is_cheap_and_bad_calls_are_refused():
    assert len(batches.order(0, "rl", 7, 7 * 10**9, 5)) == 5
    for bad in (
        (-1, "rl", 5, 0, 1),
        (2**32, "rl", 5, 0, 1),
        (0, "rl", 0, 0, 1),
        (0, "rl", 5, -1, 1),
        (0, "rl", 5, 0, -1),
    ):
        with pytest.raises(ValueError, match="allowed: seed in"):
            batches.order(*bad)


# Batches


@functools.cache
def encoded():
    rows = [
        problem(2**31 - 1, "1=", "#1"),
        problem(7, "1+1=", "1+1=2;#2"),
        problem(8, "1+1+1=", "#3"),
    ]
    return batches.encode_prompts(CHAR, rows, plain, BUCKETS)[0], batches.encode_demos(
        CHAR, rows, plain, BUCKETS, 10
    )[0]


def test_prompt_batch_takes_the_smallest_bucket():
    prompts, _ = encoded()
    batch = batches.prompt_batch(prompts, np.array([1, 0]), BUCKETS)
    assert batch.prompt_PS.tolist() == [CHAR.encode("1+1="), CHAR.encode("1=") + [0, 0]]
    assert batch.prompt_len_P.tolist() == [4, 2] and batch.ids_P.tolist() == [7, 2**31 - 1]
    assert {a.dtype for a in batch} == {np.dtype(np.int32)}
    assert batches.prompt_batch(prompts, [1, 2], BUCKETS).prompt_PS.shape == (2, 8)


def test_padding_rows():
    prompts, demos = encoded()
    batch = batches.prompt_batch(prompts, [1], BUCKETS, pad_to=3)
    assert batch.prompt_PS.shape == (3, 4) and not batch.prompt_PS[1:].any()
    assert batch.prompt_len_P.tolist() == [4, 1, 1] and batch.ids_P.tolist() == [7, -1, -1]
    seqs = batches.demo_batch(demos, [1], BUCKETS, 10, pad_to=3)
    assert seqs.length_B.tolist() == [9, 0, 0] and seqs.prompt_len_P.tolist() == [4, 1, 1]
    assert batches.demo_batch(demos, [], BUCKETS, 10, pad_to=2).length_B.tolist() == [0, 0]
    for indices, pad_to in (([0, 1], 1), ([], None), ([], 0)):
        with pytest.raises(ValueError, match="cannot be padded"):
            batches.prompt_batch(prompts, indices, BUCKETS, pad_to)


def test_the_end_token_counts_although_it_is_the_pad_token():
    _, demos = encoded()
    seqs = batches.demo_batch(demos, [0, 1], BUCKETS, 12)
    assert isinstance(seqs, Sequences) and seqs.tokens_BT.shape == (2, 12)
    assert seqs.length_B.tolist() == [3, 9]
    for tokens, length, solution in zip(seqs.tokens_BT, seqs.length_B, ("#1", "1+1=2;#2")):
        assert tokens[:length].tolist() == [
            *CHAR.encode(solution),
            0,
        ]  # 0 is inside the length, and 0 follows it
        assert not tokens[length:].any()
    assert seqs.prompt_PS.tolist() == [CHAR.encode("1=") + [0, 0], CHAR.encode("1+1=")]
    assert {
        a.dtype for a in (seqs.prompt_PS, seqs.prompt_len_P, seqs.tokens_BT, seqs.length_B)
    } == {np.dtype(np.int32)}


def test_batches_refuse_other_limits_than_the_encoding_had():
    prompts, demos = encoded()
    with pytest.raises(ValueError, match="prompt of 6 tokens does not fit"):
        batches.prompt_batch(prompts, [2], (4,))
    with pytest.raises(ValueError, match="trace of 9 tokens does not fit max_new=8"):
        batches.demo_batch(demos, [1], BUCKETS, 8)
