"""Options of an evaluation: what is invalid whatever the model, and what is left out."""

from __future__ import annotations

import dataclasses

import pytest

from bridge_jax.evaluation import options
from bridge_jax.evaluation.options import Defaults, Options
from tests import errors

NAMED = Options(tasks=("arithmetic",))


@pytest.mark.parametrize(
    "changes, flag, allowed",
    [
        (dict(samples=0), "--samples=0", "at least 1"),
        (dict(limit=-1), "--limit=-1", "at least 0"),
        (dict(decode_tensor=0), "--decode_tensor=0", "at least 1"),
        (dict(samples=2, temperature=0.0), "--temperature=0.0", "above 0"),
        (dict(dtype="float16"), "--dtype='float16'", "float32, bfloat16"),
        (dict(prompt="chat"), "--prompt='chat'", "boxed, plain, user"),
        (dict(stop=("#", "")), "--stop=", "flag"),
        (dict(prompt="plain", tasks=()), "--prompt=plain", "--tasks"),
        (dict(stop=("#",), tasks=()), "--stop='#'", "--tasks"),
        (dict(task_stop=False, tasks=()), "--notask_stop", "--tasks"),
    ],
)
def test_an_invalid_option_names_the_flag_and_what_is_allowed(changes, flag, allowed):
    """An invalid option is an error with its flag and what is allowed."""
    with pytest.raises(ValueError) as error:
        options.check(dataclasses.replace(NAMED, **changes))
    errors.assert_names(str(error.value), flag, allowed)


@pytest.mark.parametrize(
    "changes, kinds",
    [
        ({}, {"greedy": 1}),
        (dict(samples=4), {"greedy": 1, "sampled": 4}),
        (dict(samples=4, greedy=False), {"sampled": 4}),
        (dict(greedy=False), {"sampled": 1}),
    ],
)
def test_kinds_are_those_that_were_asked_for(changes, kinds):
    """Greedy and sampled completions are made as asked for."""
    assert dataclasses.replace(NAMED, **changes).kinds == kinds


def test_without_defaults_the_model_decides():
    """Prompts take half of the positions; max_new is what is left, and that is noted."""
    defaults = Defaults("float32")
    resolved = options.resolve_defaults(NAMED, defaults, 64)
    assert (resolved.buckets, resolved.max_new) == ((32,), 32)
    assert (resolved.prompt, resolved.dtype, resolved.rows) == ("boxed", "float32", 0)
    note = options.clipping_note(NAMED, resolved, defaults, 64)
    assert "--max_new=32" in note and "64 positions" in note
    large = options.resolve_defaults(NAMED, defaults, 40960)
    assert large.max_new == options.MAX_NEW and large.buckets == options.BUCKETS
    assert options.clipping_note(NAMED, large, defaults, 40960) == ""


def test_a_runs_defaults_give_way_to_options():
    """Options that are given win over a run's settings; the others are the run's."""
    trained = Defaults("bfloat16", "plain", ("Q:",), False, 7, (6, 8), 12)
    resolved = options.resolve_defaults(Options(), trained, 64)
    assert Defaults(*(getattr(resolved, key) for key in Defaults._fields)) == trained
    assert options.clipping_note(Options(), resolved, trained, 64) == ""
    asked = Options(("arithmetic",), dtype="float32", prompt="boxed", stop=("#",), limit=3)
    resolved = options.resolve_defaults(asked, trained, 64)
    assert (resolved.dtype, resolved.prompt, resolved.stop) == ("float32", "boxed", ("#",))
    assert (resolved.limit, resolved.buckets) == (3, (6, 8))


@pytest.mark.parametrize(
    "changes, named",
    [
        (dict(max_new=57, buckets=(6, 8)), ("--max_new=57", "8 tokens", "65 positions", "64")),
        (dict(buckets=(64,)), ("64 tokens", "has 64")),
        (dict(buckets=(8, 6)), ("(8, 6)", "rising order")),
    ],
)
def test_what_does_not_fit_the_model_is_refused(changes, named):
    """Lengths that exceed the model's positions are refused with the numbers."""
    with pytest.raises(ValueError) as error:
        options.resolve_defaults(dataclasses.replace(NAMED, **changes), Defaults("float32"), 64)
    errors.assert_names(str(error.value), named)


CUSTOM = Defaults(
    "float32", columns="problem:q", reward="regex", pattern="<a>(.*)</a>", instruction="none"
)
OWN = Options(("custom:exam.jsonl",))


@pytest.mark.parametrize(
    "given, wanted",
    [
        ({}, ("problem:q", "regex", "<a>(.*)</a>", "none")),
        (dict(columns="problem:p"), ("problem:p", "regex", "<a>(.*)</a>", "none")),
        (dict(instruction="Why?"), ("problem:q", "regex", "<a>(.*)</a>", "Why?")),
        (dict(reward="choice"), ("problem:q", "choice", "", "")),
        (dict(pattern="(.)"), ("problem:q", "", "(.)", "")),
        (dict(tasks=("math500",)), ("", "", "", "")),
    ],
)
def test_a_custom_run_reads_other_files_as_its_own(given, wanted):
    """Its columns, and its reward with what belongs to it, unless a flag says otherwise."""
    asked = dataclasses.replace(OWN, **given)
    resolved = options.resolve_defaults(asked, CUSTOM, 64)
    assert tuple(getattr(resolved, key) for key in options.OWN_BENCHMARK) == wanted
    note = options.own_benchmark_note(asked, resolved)
    taken = {key for key in options.OWN_BENCHMARK if f"--{key}=" in note}
    assert taken == {
        key for key, value in zip(options.OWN_BENCHMARK, wanted) if value and key not in given
    }
