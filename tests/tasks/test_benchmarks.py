"""The tasks that read data: on the real files where they stand beside the project, on small made-up
files everywhere.
"""

from __future__ import annotations

import json
import pathlib

import pytest

from bridge_jax import tasks
from bridge_jax.data import contamination, tokenizers
from bridge_jax.grading.extract import last_boxed, lenient_answer
from bridge_jax.grading.outcome import DeferredComparison, Outcome, Rule
from bridge_jax.grading.pool import Pool
from bridge_jax.tasks import knights_knaves
from tests import errors

SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
SIZES = {
    "math500": 500,
    "minerva_math": 272,
    "olympiadbench": 675,
    "aime24": 30,
    "aime25": 30,
    "amc23": 40,
    "amc83": 83,
}
TRAINING = {
    "gsm8k": (7473, {"gsm8k": 1319}),
    "math": (5584, {"math500": 500}),
    "limr": (
        1389,
        {
            name: SIZES[name]
            for name in ("math500", "minerva_math", "olympiadbench", "aime24", "amc23")
        },
    ),
}
real = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real data do not stand beside the project"
)


def make(name: str, data_dir=SHARED, **given):
    module = tasks.load(name)
    return module.make(module.Config(data_dir=str(data_dir), **given))


@real
@pytest.mark.parametrize("name", SIZES)
def test_benchmarks_are_complete_and_right_answers_grade_right(name):
    """As many rows as published (content hashes are checked by the loader); every gold answer
    equals itself.
    """
    task = make(name)
    rows = task.splits[name]
    assert len(rows) == SIZES[name] and not task.train and not task.demos
    found = [task.compare(row, row.answer) for row in rows]
    deferred = [outcome for outcome in found if isinstance(outcome, DeferredComparison)]
    with Pool() as pool:
        judged = dict(zip(deferred, pool.grade(deferred)))
    outcomes = [judged.get(outcome, outcome) for outcome in found]
    assert all(outcome == Outcome.correct for outcome in outcomes), [
        (row.answer, outcome) for row, outcome in zip(rows, outcomes) if outcome != Outcome.correct
    ]


@pytest.mark.slow
@real
@pytest.mark.parametrize("name", TRAINING)
def test_training_sets(name):
    """Training sets have their sizes and splits, right demonstrations and no overlap."""
    size, held_out = TRAINING[name]
    task = make(name, demo_size=50)
    assert len({row.id for row in task.train}) == len(task.train) == size
    assert {split: len(rows) for split, rows in task.splits.items()} == held_out
    assert len(task.demos) == 50 and not any(row.solution for row in task.train)
    with Pool() as pool:
        for row in task.demos:
            outcome = task.compare(row, last_boxed(row.solution))
            assert (
                pool.grade([outcome])[0] if isinstance(outcome, DeferredComparison) else outcome
            ) == Outcome.correct
    assert (
        contamination.overlap_report((*task.train, *task.demos), task.splits).count("\n")
        == len(held_out) - 1
    )


@real
def test_rules_of_olympiadbench_and_minerva():
    """Several answers, tolerances and units come from the data's own fields."""
    rules = [row.rule for row in make("olympiadbench").splits["olympiadbench"]]
    source = [
        json.loads(line)
        for line in (SHARED / "benchmarks" / "olympiadbench.jsonl").read_text().splitlines()
    ]
    assert (
        sum(rule.parts for rule in rules)
        == sum(bool(row["is_multiple_answer"]) for row in source)
        > 50
    )
    assert sum(rule.absolute > 0 for rule in rules) == sum(bool(row["error"]) for row in source) > 0
    assert sum(bool(rule.unit) for rule in rules) == sum(bool(row["unit"]) for row in source) == 8
    assert {row.rule for row in make("minerva_math").splits["minerva_math"]} == {
        Rule(relative=1e-4)
    }


@real
@pytest.mark.parametrize(
    "folder, marks",
    [("qwen3", ("<|im_start|>",)), ("llama3_1", ("<|start_header_id|>", "<|begin_of_text|>"))],
)
def test_real_tokenizers_render_both_prompts(folder, marks):
    """The paper's template stands in the model's own turns; the plain one holds no mark of a
    turn.
    """
    tokenizer, row = (
        tokenizers.HFTokenizer(str(SHARED / "tokenizers" / folder)),
        make("aime24").splits["aime24"][0],
    )
    shown = {
        prompt: tokenizer.inner.decode(tokenizer.render(tasks.PROMPTS[prompt](row)))
        for prompt in tasks.PROMPTS
    }
    for text in shown.values():
        assert row.question in text and text.count("within \\boxed{}.") == 1
    assert (
        all(mark in shown["boxed"] for mark in marks)
        and "You are a helpful assistant." in shown["boxed"]
    )
    assert marks[0] not in shown["plain"] and shown["plain"].endswith("\nAnswer:")
    assert (
        shown["boxed"].count("<|begin_of_text|>")
        == shown["plain"].count("<|begin_of_text|>")
        == (folder == "llama3_1")
    )


# ---- made-up files


MADE = [
    {
        "id": f"p{i}",
        "problem": f"What is {i} times {i}?",
        "answer": str(i * i),
        "level": 3 + i % 3,
        "solution": f"It is \\boxed{{{i * i}}}.",
    }
    for i in range(6)
]
HELD = [{"id": "h0", "problem": "What is 100 times 100?", "answer": "10000"}]


@pytest.fixture
def made(tmp_path):
    """A data folder whose files hold these rows; their counts and hashes are not the declared
    ones.
    """
    for name, rows in {
        "train/math_train": MADE,
        "benchmarks/math500": HELD,
        "train/limr": MADE,
    }.items():
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_made_up_data_need_leave(made):
    """Data of another size than declared are refused unless they are allowed."""
    with errors.raises(ValueError, "math_train.jsonl", "6 rows", "7498"):
        make("math", made)
    task = make("math", made, allow_changed_data=True)
    assert len(task.train) == len(task.demos) == 6 and list(task.splits) == ["math500"]
    assert task.train == tuple(sorted(task.train, key=lambda row: row.id))
    assert len(make("math", made, allow_changed_data=True, levels=(3,)).train) == 2
    assert len(make("math", made, allow_changed_data=True, train_size=2, demo_size=1).train) == 2


def test_expert_traces_replace_solutions(made, tmp_path, caplog):
    """A trace for a problem, one that is wrong, one of another problem; problems without a trace
    are no demonstrations.
    """
    path = tmp_path / "traces.jsonl"
    rows = [
        {
            "problem": " What is 2\ttimes 2? ",
            "solution": r"<think>Hm.</think> So \boxed{4}.",
            "answer": "4",
        },
        {"problem": "What is 3 times 3?", "solution": r"So \boxed{10}.", "answer": "9"},
        {"problem": "Something else?", "solution": r"\boxed{1}", "answer": "1"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = make("limr", made, allow_changed_data=True, held_out=("math500",), traces=str(path))
    assert [row.solution for row in task.demos] == [rows[0]["solution"]] and len(task.train) == 6
    assert "left out: 4 without a solution, 1 whose own answer is not correct" in caplog.text
    counts = {key: value for key, value in task.demo_counts.items() if value}
    assert counts == dict(problems=6, matched=2, rows=3, used=1, wrong=1, unmatched=1)


@pytest.mark.slow
def test_of_several_traces_the_first_right_one_is_taken(made, tmp_path):
    """In whatever order they stand; one of them needs algebra, one is no answer, one has no box."""
    texts = [
        r"\boxed{5}",
        "four",
        r"\boxed{\frac{8}{2}}",
        r"\boxed{4}",
        r"\boxed{\sqrt{16}\sin^2x+4\cos^2x}",
    ]
    path = tmp_path / "traces.jsonl"
    for order in (texts, texts[::-1]):
        rows = [{"problem": MADE[2]["problem"], "solution": text, "answer": "4"} for text in order]
        rows += [{"problem": MADE[1]["problem"], "solution": r"\boxed{1}", "answer": "1"}]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = dict(allow_changed_data=True, held_out=("math500",), traces=str(path))
        task = make("limr", made, **given)
        right = [text for text in order if text in texts[2:]]
        found = {row.question: row for row in task.demos}
        assert len(found) == 2 and found[MADE[2]["problem"]].solution == right[0]
        assert task.other_solutions == {found[MADE[2]["problem"]].id: tuple(right[1:])}
        assert task.demo_counts["wrong"] == 2 and task.demo_counts["repeated"] == 2
        few = make("limr", made, **given, demo_size=1)
        assert few.demos == task.demos[:1]
        assert (few.demo_counts["used"], few.demo_counts["beyond_demo_size"]) == (1, 1)


def test_solutions_that_are_null_or_no_text(made):
    """Null is no solution; a list is named, not joined or skipped."""
    rows = [dict(MADE[0], solution=None), *MADE[1:]]
    for name in ("train/math_train", "train/limr", "train/gsm8k_train", "train/gsm8k_test"):
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("math", "limr", "gsm8k"):
        given = dict(held_out=("math500",), allow_changed_data=True)
        assert len(make(name, made, **given).demos) == 5
    rows[2] = dict(MADE[2], solution=["a", "b"])
    (made / "train/limr.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with errors.raises(ValueError, "limr", "'p2'", "solution", "['a', 'b']"):
        make("limr", made, **given)


@pytest.mark.parametrize("prompt, stop", [("boxed", ()), ("user", ()), ("plain", ("\nQuestion:",))])
def test_each_template_has_its_stop_strings(made, prompt, stop):
    """The mark of a next question stands in the template it belongs to."""
    training = make("math", made, allow_changed_data=True, prompt=prompt)
    held = make("math500", made, allow_changed_data=True, prompt=prompt)
    puzzles = knights_knaves.make(
        knights_knaves.Config(
            levels=(3,), hard_levels=(), train_size=1, demo_size=1, eval_size=1, prompt=prompt
        )
    )
    for task in (training, held, puzzles):
        assert task.stop == stop
        (split,) = task.splits.values()
        text = "".join(message["content"] for message in task.messages(split[0]))
        assert all(("\n" + text).startswith(mark) for mark in stop)
        assert tasks.with_stop(task, ("a", "b", *stop), True).stop == (*stop, "a", "b")
        assert tasks.with_stop(task, ("a",), False).stop == ("a",)


def test_a_prompt_without_a_system_message():
    """For templates that refuse one: otherwise the words of the boxed prompt."""
    problem = tasks.problem_from_row({"problem": "q", "answer": "1"})
    boxed, user = (tasks.PROMPTS[name](problem) for name in ("boxed", "user"))
    assert [message["role"] for message in boxed] == ["system", "user"] and user == boxed[1:]


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(held_out=("math50",)), ("'math50'", "'math500'")),
        (
            dict(held_out=("gsm8k",)),
            ("task.held_out=('gsm8k',)", "aime24", "math500"),
        ),
        (dict(held_out=()), "task.held_out"),
        (dict(prompt="chat"), ("task.prompt='chat'", "boxed, plain")),
        (dict(levels=(6,)), "task.levels=(6,)"),
        (dict(traces="nowhere.jsonl"), "nowhere.jsonl"),
    ],
)
def test_bad_settings(made, given, message):
    """An invalid setting is an error that names it and what is allowed."""
    with errors.raises((ValueError, OSError), message):
        make("math", made, **dict(allow_changed_data=True) | given)


def test_plain_tolerance_reaches_the_comparison():
    """A relative tolerance decides the comparison, and the last number is read leniently."""
    problem = tasks.problem_from_row({"problem": "q", "answer": "1000.0"}, Rule(relative=1e-4))
    assert (
        tasks.compare_by_rule(problem, "1000.09") == Outcome.correct
        and tasks.compare_by_rule(problem, "1000.2") == Outcome.wrong
    )
    assert lenient_answer("so the answer is 12.") == "12"
