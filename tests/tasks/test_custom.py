"""The task custom: splits, rewards, instructions, demonstrations, and what it refuses."""

from __future__ import annotations

import pathlib

import pytest

from bridge_jax.data import row_source
from bridge_jax.grading.outcome import DeferredComparison, Outcome
from bridge_jax.tasks import INSTRUCTION, custom, own_demos, parse_demos
from bridge_jax.types import Problem
from tests import errors
from tests.data.problems import write

KK = pathlib.Path(__file__).resolve().parents[3] / "shared/data/public"
ROWS = [
    {"problem": f"What is {i} + {i}?", "answer": str(2 * i), "solution": f"\\boxed{{{2 * i}}}"}
    for i in range(200)
]


@pytest.fixture
def file(tmp_path):
    """A path with ROWS in it."""
    return str(write(tmp_path, ROWS) / "some.jsonl")


def make(**given):
    return custom.make(custom.Config(**given))


def graded(task, text: str, row=None) -> Outcome | None:
    """The strict reading of a completion."""
    answer = task.extract(text)
    row = row or task.splits[task.name][0]
    return None if answer is None else task.compare(row, answer)


def test_a_share_is_held_out_by_the_question_alone(file, tmp_path):
    """The same problems whatever the other rows, their order and white space; none in both."""
    task = make(train=file)
    held_out = {row.question for row in task.splits["test"]}
    assert len(task.train) + len(held_out) == len(ROWS) and 2 <= len(held_out) <= 20
    assert not held_out & {row.question for row in (*task.train, *task.demos)}
    assert len(task.demos) == len(task.train) and not any(row.solution for row in task.train)
    some = [row | {"problem": f" {row['problem']}\n"} for row in ROWS[99::-1]]
    fewer = make(train=str(write(tmp_path / "few", some) / "some.jsonl"))
    asked = {row["problem"].strip() for row in some}
    assert {row.question.strip() for row in fewer.splits["test"]} == held_out & asked
    larger = {row.question for row in make(train=file, test_share=0.2).splits["test"]}
    assert held_out < larger


def test_a_file_that_is_held_out(file, tmp_path):
    """Everything of train is trained on."""
    test = write(tmp_path / "t", [{"question": "What is 1000 + 1?", "answer": 1001}])
    task = make(train=file, test=str(test / "some.jsonl"), train_size=5, demo_size=3)
    assert [row.answer for row in task.splits["test"]] == ["1001"]
    assert (len(task.train), len(task.demos)) == (5, 3)


def test_for_evaluation_alone(file):
    """Without train; named after its file, so that several fit into one table."""
    task = make(test=file)
    assert task.name == "custom_some" and not task.train and not task.demos
    assert len(task.splits["custom_some"]) == len(ROWS)
    assert custom.benchmark_name("a/b c.parquet") == "custom_b_c"
    assert custom.benchmark_name("who/what-1.5") == "custom_what-1.5"


def benchmark(tmp_path, answer: str, **given):
    """A task for evaluation with one problem."""
    return make(
        test=str(write(tmp_path, [{"problem": "P?", "answer": answer}]) / "some.jsonl"), **given
    )


def test_math(tmp_path):
    """The box, compared mathematically; harder pairs go to the workers."""
    task = benchmark(tmp_path, "1/2")
    assert graded(task, r"So \boxed{0.5}.") == "correct"
    assert graded(task, r"So \boxed{2}.") == "wrong" and graded(task, "So 0.5") is None
    assert task.lenient("So the answer is 0.5.") == "0.5"
    task = benchmark(tmp_path, "x+1")
    assert isinstance(graded(task, r"\boxed{\frac{x^2+x}{x}}"), DeferredComparison)


def test_exact(tmp_path):
    """Text, but for white space; nothing of mathematics."""
    task = benchmark(tmp_path, "the  red\nfox", reward="exact")
    assert graded(task, r"\boxed{the red fox }") == "correct"
    assert graded(task, r"\boxed{The red fox}") == "wrong"
    task = benchmark(tmp_path, "1/2", reward="exact")
    assert graded(task, r"\boxed{0.5}") == "wrong"


@pytest.mark.parametrize("gold", ["B", "(b)", "B. seven", r"\text{(B)}"])
def test_choice(gold, tmp_path):
    """A letter, with or without brackets and the text of the choice."""
    task = benchmark(tmp_path, gold, reward="choice")
    for answer in ("B", "b", "(B)", r"\text{B}", r"\textbf{(B)} 7", "B: seven"):
        assert graded(task, rf"\boxed{{{answer}}}") == "correct", answer
    assert graded(task, r"\boxed{C}") == "wrong"
    assert graded(task, r"\boxed{seven}") == graded(task, r"\boxed{A dog}") == "parse_error"
    assert graded(task, "The answer is (B).") is None
    assert task.lenient("The answer is (C). No, the answer is **B**.") == "B"
    assert "letter" in task.messages(task.splits[task.name][0])[-1]["content"]


def test_pattern(tmp_path):
    """The last match, over lines; with other rewards too."""
    tag = "<answer>(.*?)</answer>"
    task = benchmark(tmp_path, "(1) A\n(2) B", reward="regex", pattern=tag)
    assert graded(task, "<answer>no</answer> <answer> (1) A (2)\nB </answer>.") == "correct"
    assert graded(task, "<answer>(1) A</answer>") == "wrong"
    assert graded(task, r"\boxed{(1) A (2) B}") is graded(task, "<answer> </answer>") is None
    assert task.messages(task.splits[task.name][0])[-1]["content"] == "P?"
    task = benchmark(tmp_path, "1/2", pattern=tag)
    assert graded(task, "<answer>0.5</answer>") == "correct"


def test_a_pattern_that_backtracks_without_end_is_a_timeout(tmp_path, monkeypatch):
    """(a+)+$ takes 2^40 steps on forty letters: the sample is a timeout, and the run goes on."""
    task = benchmark(tmp_path, "7", reward="regex", pattern=r"((?:a|aa)+)$")
    assert graded(task, "aaa") == "wrong"
    monkeypatch.setattr(custom, "PATTERN_S", 0.2)
    # without a limit it takes hours
    assert graded(task, "a" * 60 + "!") == "timeout"


def test_a_pattern_that_is_often_cut_off_ends_the_run(tmp_path, monkeypatch):
    """With one line that names it; so many among far more samples do not."""
    monkeypatch.setattr(custom, "RECENT", 30)

    def findall(pattern, text, flags, timeout):
        if "slow" in text:
            raise TimeoutError
        return ["7"]

    monkeypatch.setattr(custom.regex, "findall", findall)
    task = benchmark(tmp_path, "7", reward="regex", pattern="odd(.)")
    for _ in range(3 * custom.MOST_CUT_OFF):
        assert [graded(task, text) for text in ("slow", "a", "b", "c")] == [
            "timeout",
            *["correct"] * 3,
        ]
    task = benchmark(tmp_path, "7", reward="regex", pattern="odd(.)")
    for _ in range(custom.MOST_CUT_OFF - 1):
        assert [graded(task, text) for text in ("slow", "a")] == ["timeout", "correct"]
    with errors.raises(ValueError, "task.pattern='odd(.)'", "10 of the last 19", "backtrack"):
        task.extract("slow")


def test_knights_knaves(tmp_path):
    """Persons in any order, by the comparison of the task of that name, in verl's schema."""
    gold = "(1) Ann is a knight\n(2) Bob is a knave"
    row = {
        "prompt": [{"role": "user", "content": "Who is who?"}],
        "reward_model": {"ground_truth": {"solution_text_format": gold}, "style": "rule"},
        "answer": f"Ann cannot lie. <answer> {gold} </answer>",
    }
    rows = [row | {"prompt": f"Who is who, {i}?"} for i in range(30)]
    path = str(write(tmp_path, rows) / "some.jsonl")
    tag = "<answer>(.*?)</answer>"
    task = make(train=path, reward="knights_knaves", pattern=tag, test_share=0.2)
    assert len(task.demos) == len(task.train) == task.demo_counts["used"] > 0
    (problem,) = make(test=str(write(tmp_path / "one", [row]) / "some.jsonl")).splits["custom_some"]
    judged = lambda text: graded(task, f"<answer>{text}</answer>", problem)
    assert judged(gold) == judged("Bob is a knave, and Ann is a knight.") == "correct"
    assert judged("Ann is a knave, Bob is a knight") == judged("Ann is a knight") == "wrong"
    assert judged("Ann is a knight or a knave") == "parse_error"
    # without a pattern, the box that is asked for
    task = make(test=path, reward="knights_knaves")
    assert graded(task, r"\boxed{Bob: knave, Ann: knight}", problem) == "correct"
    assert task.lenient("So:\nBob is a knave, Ann is a knight") == "Bob is a knave, Ann is a knight"
    assert task.messages(problem)[-1]["content"] == f"Who is who?{INSTRUCTION}"
    with errors.raises(ValueError, "task.reward=knights_knaves", "'7'", "nobody"):
        benchmark(tmp_path, "7", reward="knights_knaves")


def test_function(tmp_path, monkeypatch):
    """It gets the whole text, or what the pattern finds, in a worker."""
    (tmp_path / "mine.py").write_text("def score(question, text, gold):\n    return gold in text\n")
    monkeypatch.chdir(tmp_path)
    task = benchmark(tmp_path, "7", reward="mine:score")
    assert graded(task, "It is 7.") == DeferredComparison(
        "7", "It is 7.", function="mine:score", question="P?"
    )
    assert graded(task, " \n") is None and task.reward_code
    assert not benchmark(tmp_path, "7", reward="exact").reward_code
    task = benchmark(tmp_path, "7", reward="mine:score", pattern="is (.)")
    assert graded(task, "It is 7.").answer == "7"
    rows = [row | {"solution": "So " + row["answer"]} for row in ROWS[:30]]
    rows[0]["solution"] = "no"
    path = str(write(tmp_path, rows) / "some.jsonl")
    task = make(train=path, reward="mine:score", test_share=0.2)
    assert task.demo_counts["wrong"] == (rows[0]["problem"] in {p.question for p in task.train})
    assert task.demo_counts["used"] == len(task.train) - task.demo_counts["wrong"]
    (tmp_path / "mine.py").write_text("def score(question, text, gold):\n    return 1 / 0\n")
    with errors.raises(ValueError, "task.reward=mine:score", "ZeroDivisionError", "line 2"):
        make(train=path, reward="mine:score")
    with errors.raises(ValueError, "task.reward=mine:other", "imported"):
        make(train=path, reward="mine:other")


def test_instructions(file):
    """By the reward, as given, or none; with every prompt template."""
    row = Problem(1, "Q?", "1", "", 0)
    said = lambda **given: make(test=file, **given).messages(row)[-1]["content"]
    assert said() == f"Q?{INSTRUCTION}"
    assert said(prompt="plain") == f"Question: Q?{INSTRUCTION}\nAnswer:"
    assert said(instruction="Be\\nbrief.", prompt="user") == "Q?\nBe\nbrief."
    assert said(instruction=" Be brief.") == "Q? Be brief."
    assert said(instruction="none") == "Q?"
    assert len(make(test=file).messages(row)) == 2
    with errors.raises(ValueError, "task.prompt='odd'"):
        make(test=file, prompt="odd")


def test_settings_that_are_invalid(file, tmp_path):
    """One line each, with what is allowed."""
    for given, names in (
        ({}, ("task.train=FILE", "custom:FILE")),
        (dict(train=file, reward="maths"), ("task.reward='maths'", "math", "MODULE:FUNCTION")),
        (dict(train=file, reward="regex"), ("task.pattern",)),
        (dict(train=file, pattern="("), ("task.pattern='('",)),
        (dict(train=file, pattern="a(b)(c)"), ("2 groups",)),
        (dict(train=file, test_share=1.0), ("task.test_share=1.0",)),
        (dict(train=file, test_share=1e-9), ("200 to train on and 0 held out", "task.test=FILE")),
        (dict(train=file, test_share=0.0), ("task.held_out",)),
        (dict(train=file, reward="choice"), ("letter", "What is")),
        (dict(train=file, traces="a", demos="b"), ("task.traces", "task.demos")),
    ):
        with errors.raises(ValueError, *names):
            make(**given)
    rows = [*ROWS[:70], *({"problem": "no answer?", "answer": None} for _ in range(30))]
    path = str(write(tmp_path, rows) / "some.jsonl")
    with errors.raises(ValueError, "30 of 100 rows", "without answer", "task.allow_dropped=True"):
        make(train=path)
    task = make(train=path, allow_dropped=True)
    assert len(task.train) + len(task.splits["test"]) == 70


def test_demos_of_several_files(tmp_path):
    """Weights, the reasons for what is not used, and right solutions of repeated problems."""
    first = [*ROWS[:4], ROWS[4] | {"solution": "\\boxed{9}"}, ROWS[5] | {"solution": None}]
    second = [*ROWS[2:7], {"problem": "no answer?", "answer": "", "solution": "so"}]
    paths = [
        str(write(tmp_path / name, rows) / "some.jsonl")
        for name, rows in (("a", first), ("b", second))
    ]
    right = lambda demos: [f"{{{row.answer}}}" in row.solution for row in demos]
    found, weights = own_demos(f"{paths[0]}:3,{paths[1]}", right)
    assert {row.question for row in found.demos} == {row["problem"] for row in ROWS[:7]}
    of = {row.question: weights.get(row.id, 1) for row in found.demos}
    assert [of[row["problem"]] for row in ROWS[:7]] == [3, 3, 3, 3, 3, 1, 1]
    counts = {key: value for key, value in found.counts.items() if value}
    assert counts == dict(problems=7, matched=7, rows=12, used=7, repeated=2, wrong=1, incomplete=2)


def test_how_demos_are_written():
    """FILE:WEIGHT with commas between them."""
    assert parse_demos("a.jsonl:2, b/c.jsonl,who/what:3") == [
        ("a.jsonl", 2),
        ("b/c.jsonl", 1),
        ("who/what", 3),
    ]
    for wrong in ("a.jsonl:0", "a.jsonl:0.5", "a.jsonl:x"):
        with errors.raises(ValueError, "task.demos", "whole number", "a.jsonl"):
            parse_demos(wrong)
    for empty in (",", " , "):
        with errors.raises(ValueError, f"task.demos={empty!r}", "no file"):
            parse_demos(empty)


def test_demos_of_a_split_of_the_hub(monkeypatch):
    """NAME#SPLIT:WEIGHT; else the split train."""
    asked = []

    def open_hub(name, config, split, revision):
        asked.append(split)
        rows = ROWS[:2] if split == "dev" else ROWS[2:3]
        return row_source.RowSource("x", {}, tuple(rows[0]), len(rows), lambda: iter(rows))

    monkeypatch.setattr(row_source, "open_hub", open_hub)
    found, weights = own_demos("who/what#dev:2,who/other", lambda demos: [True] * len(demos))
    assert asked == ["dev", "train"] and len(found.demos) == 3
    assert list(weights.values()) == [2, 2]


def test_demos_need_not_be_solutions_of_the_prompts(file, tmp_path):
    """The prompts stay those of train."""
    other = [
        {"problem": f"{i} times 1?", "answer": i, "solution": f"\\boxed{{{i}}}"} for i in range(9)
    ]
    demos = str(write(tmp_path / "d", other) / "some.jsonl")
    task = make(train=file, demos=f"{demos}:2", demo_size=5)
    assert len(task.demos) == 5 and all("times" in row.question for row in task.demos)
    assert all("+" in row.question for row in task.train)
    assert task.demo_counts["beyond_demo_size"] == 4
    assert {task.demo_weights[row.id] for row in task.demos} == {2}


@pytest.mark.skipif(not KK.is_dir(), reason="the real data do not stand beside the project")
def test_the_real_file_of_knights_and_knaves():
    """verl's schema in parquet: its expert derivations all grade right by the answer's tags."""
    path = str(KK / "kk_logic_test.parquet")
    task = make(train=path, reward="knights_knaves", pattern="<answer>(.*?)</answer>")
    assert len(task.train) + len(task.splits["test"]) == 500
    assert len(task.demos) == len(task.train) == task.demo_counts["used"]
    assert task.messages(task.train[0])[-1]["content"].endswith("</answer>.")
