"""What is too long is dropped whole; order is a pure function; lengths tell padding."""

from __future__ import annotations

import functools
import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_jax import tasks
from bridge_jax.data import batches
from bridge_jax.data.tokenizers import CharTokenizer, HFTokenizer
from bridge_jax.tasks import arithmetic
from bridge_jax.types import Sequences
from tests import errors
from tests.data.chars import CHAR, plain, problem, real, small_hf

BUCKETS = (4, 8)


# Encoding


def test_what_does_not_fit_is_named_and_left_out(caplog):
    """Prompts longer than the largest bucket are left out and listed, longest first."""
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
    """A trace whose end does not fit in max_new is left out whole."""
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
    """Whether the generation prompt opens it, the trace, or neither; what stays open is no
    demonstration.
    """
    generation = f"{{% if add_generation_prompt %}}{{{{ {opened!r} }}}}{{% endif %}}"
    CharTokenizer("</think>12So.\n ").save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ messages[0]['content'] }}" + generation
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer, rows = HFTokenizer(str(tmp_path)), [problem(1, "1", solution)]
    if trained is ValueError:
        with errors.raises(ValueError, "demonstration 1", "template"):
            batches.encode_demos(tokenizer, rows, plain, (32,), 64)
    elif trained is None:
        with errors.raises(ValueError, "1 problems", "<think>"):
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
    """A solution that holds a stop string is no demonstration."""
    rows = [problem(1, "1=", "12;#3"), problem(2, "1=", "12;+")]
    with caplog.at_level(logging.WARNING):
        demos, dropped = batches.encode_demos(CHAR, rows, plain, BUCKETS, 9, {}, (";#", "++"))
    assert [p.id for p in demos.problems] == [2] and dropped == ((1, "stop", 6),)
    assert "the solution holds a stop string" in caplog.text


def test_many_left_out_are_counted_and_ten_are_named(caplog):
    """A warning counts all that are left out and names the ten longest."""
    rows = [problem(i, "1" * (9 + i)) for i in range(30)] + [problem(99, "1")]
    with caplog.at_level(logging.WARNING):
        batches.encode_prompts(CHAR, rows, plain, BUCKETS)
    assert (
        "left out 30 of 31" in caplog.text
        and "20 (29), ..." in caplog.text
        and "19 (28)" not in caplog.text
    )


def test_nothing_left_is_an_error():
    """An empty result is refused with the limits that left it so."""
    with errors.raises(ValueError, "1 problems", "at most 8", "10", "data.buckets"):
        batches.encode_prompts(CHAR, [problem(1, "1" * 10)], plain, BUCKETS)
    with errors.raises(ValueError, "at most 2"):
        batches.encode_demos(CHAR, [problem(1, "1", "123")], plain, BUCKETS, 2)
    with errors.raises(ValueError, "0 problems"):
        batches.encode_prompts(CHAR, [], plain, BUCKETS)


@pytest.mark.parametrize("buckets", [(), (8, 4), (4, 4), (0, 4)])
def test_buckets_must_rise(buckets):
    """Buckets that are empty, not rising or not positive are refused."""
    with errors.raises(ValueError, str(buckets), "rising"):
        batches.encode_prompts(CHAR, [problem(1, "1")], plain, buckets)


def test_errors_name_the_problem(tmp_path):
    """Errors of encoding carry the id of the problem or demonstration."""
    with errors.raises(ValueError, "prompt 'x'", repr(CHAR.alphabet)):
        batches.encode_prompts(CHAR, [problem(5, "x")], plain, BUCKETS)
    with errors.raises(ValueError, "prompt ''", "token", "characters"):
        batches.encode_prompts(CHAR, [problem(5, "")], plain, BUCKETS)
    with errors.raises(ValueError, "demonstration 5"):
        batches.encode_demos(CHAR, [problem(5, "1", "")], plain, BUCKETS, 4)
    tokenizer = HFTokenizer(str(small_hf(tmp_path)))
    with errors.raises(ValueError, "demonstration 5", "<eos>"):
        batches.encode_demos(tokenizer, [problem(5, "1", "1<eos>")], plain, BUCKETS, 4)


@pytest.mark.parametrize(
    "tokenizer, style", [("char", "compact"), ("qwen3", "chat"), ("llama3_1", "chat")]
)
def test_sft_and_rl_prompts_are_the_same_ids(tokenizer, style):
    """A problem has one prompt for both objectives; its trace decodes to the solution."""
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
    """Another question, alphabet or list of messages makes another hash; equals share it."""
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
    """A task's own characters, none of them in a sum: told apart by which they are and by their
    order.
    """
    alphabets = ("ab>#", "ba>#", "cd>#")
    found = [batches.template_hash(CharTokenizer(alphabet), plain) for alphabet in alphabets]
    assert len({*found, batches.template_hash(CHAR, plain)}) == 4
    assert found[0] == batches.template_hash(CharTokenizer("ab>#"), plain)


def test_template_hash_sees_the_system_message():
    """Another system message makes another hash."""
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
    """Each epoch is a permutation; a part of the order is the same whoever asks."""
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
    """Another seed, stream or epoch shuffles otherwise."""
    asked = [(0, "rl", 0), (1, "rl", 0), (0, "sft", 0), (0, "rl", 1)]
    orders = {
        tuple(batches.order(seed, stream, 30, epoch * 30, 30)) for seed, stream, epoch in asked
    }
    assert len(orders) == 4 and tuple(range(30)) not in orders


def test_order_is_what_it_always_was():
    """A change would give a resumed run other rows; the figures come from the definition, worked
    out once apart.
    """
    assert batches.order(0, "rl", 8, 5, 9).tolist() == [6, 1, 0, 2, 7, 5, 6, 3, 0]


def test_order_hands_out_copies():
    """A caller that writes into its order changes nobody else's."""
    first = batches.order(3, "rl", 10, 0, 10)
    kept = first.tolist()
    first[:] = 0
    assert batches.order(3, "rl", 10, 0, 10).tolist() == kept


def test_order_far_away_is_cheap_and_bad_calls_are_refused():
    """The order of epoch 10^9 needs no epochs before it; bad arguments are refused."""
    assert len(batches.order(0, "rl", 7, 7 * 10**9, 5)) == 5
    for bad in (
        (-1, "rl", 5, 0, 1),
        (2**32, "rl", 5, 0, 1),
        (0, "rl", 0, 0, 1),
        (0, "rl", 5, -1, 1),
        (0, "rl", 5, 0, -1),
    ):
        with errors.raises(ValueError, "seed"):
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
    """Prompts are padded with 0 to the smallest bucket that holds the longest."""
    prompts, _ = encoded()
    batch = batches.prompt_batch(prompts, np.array([1, 0]), BUCKETS)
    assert batch.prompt_PS.tolist() == [CHAR.encode("1+1="), CHAR.encode("1=") + [0, 0]]
    assert batch.prompt_len_P.tolist() == [4, 2] and batch.ids_P.tolist() == [7, 2**31 - 1]
    assert {a.dtype for a in batch} == {np.dtype(np.int32)}
    assert batches.prompt_batch(prompts, [1, 2], BUCKETS).prompt_PS.shape == (2, 8)


def test_padding_rows():
    """Added rows have id -1, a prompt of one token and no completion."""
    prompts, demos = encoded()
    batch = batches.prompt_batch(prompts, [1], BUCKETS, pad_to=3)
    assert batch.prompt_PS.shape == (3, 4) and not batch.prompt_PS[1:].any()
    assert batch.prompt_len_P.tolist() == [4, 1, 1] and batch.ids_P.tolist() == [7, -1, -1]
    seqs = batches.demo_batch(demos, [1], BUCKETS, 10, pad_to=3)
    assert seqs.length_B.tolist() == [9, 0, 0] and seqs.prompt_len_P.tolist() == [4, 1, 1]
    assert batches.demo_batch(demos, [], BUCKETS, 10, pad_to=2).length_B.tolist() == [0, 0]
    for indices, pad_to in (([0, 1], 1), ([], None), ([], 0)):
        with errors.raises(ValueError, str(len(indices))):
            batches.prompt_batch(prompts, indices, BUCKETS, pad_to)


def test_the_end_token_counts_although_it_is_the_pad_token():
    """A demonstration's length includes its end token, whose id is that of padding."""
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
    """Prompts or traces that no longer fit are refused."""
    prompts, demos = encoded()
    with errors.raises(ValueError, "6 tokens", "4"):
        batches.prompt_batch(prompts, [2], (4,))
    with errors.raises(ValueError, "9 tokens", "max_new=8"):
        batches.demo_batch(demos, [1], BUCKETS, 8)
