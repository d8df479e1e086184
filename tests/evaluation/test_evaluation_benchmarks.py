"""Benchmarks: every split tokenised, prompts that do not fit, and the manifest."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest

from bridge_jax.data import row_source, tokenizers
from bridge_jax.evaluation import benchmarks, lazy_pool
from bridge_jax.evaluation import options as evaluation_options
from bridge_jax.evaluation.model import EvalModel
from bridge_jax.evaluation.options import Defaults, Options
from bridge_jax.tasks import arithmetic
from tests import errors, toys

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOKENIZER = tokenizers.CharTokenizer(arithmetic.ALPHABET)
OPTIONS = Options(("arithmetic",), max_new=9, prompt="boxed", buckets=(8,), dtype="float32")


def model(tokenizer=TOKENIZER) -> EvalModel:
    """A model without weights."""
    return EvalModel("m", toys.CFG, tokenizer, None, Defaults("float32"))


def read(options: Options = OPTIONS, **config) -> list[benchmarks.Benchmark]:
    """The splits of arithmetic."""
    task = arithmetic.make(arithmetic.Config(**config))
    return benchmarks.read([task], options, TOKENIZER)


def test_splits_of_one_task_are_benchmarks_of_their_own():
    """Each split of a task is a benchmark with a name of its own."""
    (alone,) = read(levels=(1,), eval_size=3)
    assert alone.name == "arithmetic" and len(alone.problems) == 3
    both = read(levels=(1,), hard_levels=(2,), eval_size=3)
    assert [one.name for one in both] == ["arithmetic/held_out", "arithmetic/hard"]


def test_prompts_that_do_not_fit_are_counted():
    """Prompts longer than the last bucket are left out and counted."""
    (found,) = read(dataclasses.replace(OPTIONS, buckets=(5,)), levels=(1, 2), eval_size=40)
    fit = [problem for problem in found.problems if len(problem.question) <= 5]
    assert 0 < found.too_long == len(found.problems) - len(fit)
    assert list(found.prompts.problems) == fit


def test_the_manifest_has_a_group_for_each_thing_that_can_be_added():
    """The manifest has a group for the model, the generation and each task."""
    found = read(levels=(1,), eval_size=3)
    groups = benchmarks.manifest(OPTIONS, model(), found)
    assert set(groups) == {"model", "generation", "task arithmetic"}
    assert groups["generation"] == {"dtype": "float32", "max_new": 9}
    assert set(groups["task arithmetic"]) == {"template", "data"}
    sampled = Options(samples=4, seed=3, temperature=0.5, dtype="float32", max_new=9)
    groups = benchmarks.manifest(sampled, model(), found)
    assert groups["sampled"] == {"samples": 4, "temperature": 0.5, "seed": 3}
    coded = dataclasses.replace(found[0].task, reward_code="c0ffee")
    groups = benchmarks.manifest(OPTIONS, model(), [found[0]._replace(task=coded)])
    assert groups["task arithmetic"]["reward_code"] == "c0ffee"


def test_a_prompt_option_is_refused_by_a_task_without_it():
    """--prompt is refused for a task that has no such setting."""
    with errors.raises(ValueError, "--prompt=plain", "'arithmetic'"):
        benchmarks.make_tasks(Options(("arithmetic",), prompt="plain"))


def test_plain_prompts_go_around_the_chat_template():
    """With a real tokenizer, down to the tokens; another template makes other rows."""
    folder = str(ROOT.parent / "shared" / "data" / "tokenizers" / "qwen3")
    if not pathlib.Path(folder).is_dir():
        pytest.skip("no real tokenizers next to the project")
    tokenizer = tokenizers.HFTokenizer(folder)
    opened = model(tokenizer)
    made = {}
    for prompt in ("boxed", "plain"):
        options = Options(
            ("knights_knaves",), max_new=12, prompt=prompt, limit=1, buckets=(512,), dtype="float32"
        )
        benchmark = benchmarks.read(benchmarks.make_tasks(options), options, tokenizer)[0]
        text = tokenizer.inner.decode(benchmark.prompts.tokens[0])
        assert ("<|im_start|>" in text) == (prompt == "boxed") and ("Answer:" in text[-10:]) == (
            prompt == "plain"
        )
        assert benchmark.problems[0].question in text
        made[prompt] = benchmarks.manifest(options, opened, [benchmark])[
            "task knights_knaves/held_out"
        ]
    assert (
        made["boxed"]["template"] != made["plain"]["template"]
        and made["boxed"]["data"] == made["plain"]["data"]
    )


def test_a_benchmark_of_the_hub_without_a_test_split(monkeypatch):
    """custom:NAME#SPLIT, named with its split; NAME alone is its split test."""
    asked = []

    def open_hub(name, config, split, revision):
        asked.append((name, split))
        read = lambda: iter([{"problem": "One?", "answer": "1"}])
        return row_source.RowSource("x", {}, ("problem", "answer"), 1, read)

    monkeypatch.setattr(row_source, "open_hub", open_hub)
    names = ("custom:who/what#train", "custom:who/what")
    made = benchmarks.make_tasks(dataclasses.replace(OPTIONS, tasks=names))
    assert [task.name for task in made] == ["custom_what_train", "custom_what"]
    assert asked == [("who/what", "train"), ("who/what", "test")]


def test_a_benchmark_of_ones_own(tmp_path):
    """custom:FILE by the options' columns and reward; in one table with others, named by its
    file.
    """
    path = tmp_path / "exam.jsonl"
    path.write_text('{"q": "A or B?", "gold": "B"}\n')
    options = dataclasses.replace(
        OPTIONS,
        tasks=(f"custom:{path}", "arithmetic"),
        columns="problem:q,answer:gold",
        reward="choice",
    )
    made = benchmarks.make_tasks(options)
    assert [task.name for task in made] == ["custom_exam", "arithmetic"]
    (row,) = made[0].splits["custom_exam"]
    assert (row.question, made[0].compare(row, "(b)")) == ("A or B?", "correct")
    with errors.raises(ValueError, f"--tasks=custom:{path}", "--columns", "gold"):
        benchmarks.make_tasks(dataclasses.replace(options, columns="problem:q"))
    with errors.raises(ValueError, "custom_exam"):
        benchmarks.make_tasks(
            dataclasses.replace(
                options, tasks=(f"custom:{path}", f"custom:{tmp_path}/./exam.jsonl")
            )
        )
    with errors.raises(ValueError, "--tasks=math500:x", "custom:x"):
        benchmarks.make_tasks(dataclasses.replace(options, tasks=("math500:x",)))
    with errors.raises(ValueError, "--reward", "custom:FILE"):
        evaluation_options.check(dataclasses.replace(options, tasks=("math500",), columns=""))
    with errors.raises(ValueError, "--tasks=custom:nowhere.jsonl", "no such file"):
        benchmarks.make_tasks(dataclasses.replace(options, tasks=("custom:nowhere.jsonl",)))
    assert lazy_pool.needs_pool(options.tasks)
