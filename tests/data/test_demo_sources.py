"""Public data sets of demonstrations: the schemas, the files, and which rows are chosen, with their
reasons.
"""

from __future__ import annotations

import collections

import pytest

from bridge_jax import tasks
from bridge_jax.data import demo_file, demo_schemas, demo_selection, row_source
from bridge_jax.data.contamination import HeldOut
from bridge_jax.data.demo_selection import Criteria, Grader
from bridge_jax.grading.extract import last_boxed
from bridge_jax.grading.outcome import DeferredComparison, Outcome
from tests import errors
from tests.data import demo_rows, problems
from tests.data.demo_rows import said, thought

MATH = Grader(last_boxed, tasks.compare_by_rule)


def criteria(**how) -> Criteria:
    """Lengths in characters; nothing here needs algebra."""
    judge = lambda deferred: pytest.fail(f"{deferred} was not decided cheaply")
    lengths = lambda texts: [len(text) for text in texts]
    return Criteria(how.pop("grader", MATH), judge, lengths, **how)


def open_files(path) -> row_source.RowSource:
    return row_source.open_any(str(path), f"--source={path}")


def decide(schema: str, rows, tmp_path, **how):
    """Decisions on rows that were written to a file and recognised by their columns."""
    path = demo_rows.write(tmp_path / "data" / "train.parquet", schema, rows)
    source = open_files(path.parent)
    found = demo_schemas.recognised(source.columns)
    assert found.name == schema
    read = list(source.read(0, found.columns_of(source.columns)))
    return demo_selection.select([found.read(row) for row in read], criteria(**how), set())


def states(decisions) -> list[str]:
    return [decision.state for decision in decisions]


# --- one small file of its true schema for each source


def test_deepmath_takes_the_shortest_right_solution_that_fits(tmp_path):
    """The opening tag may be missing; solutions may be null."""
    question = demo_rows.deepmath
    rows = [
        question("a", "2", thought(2, 90), thought(3, 1), thought(2, 9).removeprefix("<think>\n")),
        question("b", "2", None, thought(3)),
        question("c", "2", thought(2, 400)),
        question("d", "2"),
        question("e", None, thought(2)),
        question(None, "2", thought(2)),
        question("a ", "2", thought(2)),
        question("f", "2", thought(2) + "<think>", "<think>\nso", "so</think>  "),
        question("g", "2", "<think>\nso\n</think>\n\nIt is 2."),
    ]
    found = decide("deepmath", rows, tmp_path, max_tokens=1000)
    assert states(found) == [
        "kept",
        "wrong",
        "too_long",
        "no_solution",
        "no_answer",
        "no_problem",
        "repeated",
        "malformed",
        "no_box",
    ]
    demo = found[0].demo
    assert demo["generation"] == 2 and demo["solution"] == (
        f"<think>\n{('so ' * 9).strip()}\n</think>\n\nThe answer is \\boxed{{2}}."
    )
    assert demo["tokens"] == len(demo["solution"])


@pytest.mark.parametrize(
    "verify, llama, complete, kept",
    [
        ([False, True, True], None, [True, False, True], 2),
        # the flags of Math-Verify confirm nothing: the judge's decide
        ([False, False, False], [False, True, False], [True, True, True], 1),
        (None, [True], [True, True, True], 0),
        # flags shorter than the generations, or null within the list
        ([True], None, [True], 0),
        ([None, None, True], [None], [True, True, True], 2),
        ([True, True, True], [], [], "flagged"),
        (None, None, None, "flagged"),
        ([], [], [True, True, True], "flagged"),
    ],
)
def test_openr1_reads_flags_as_lists(verify, llama, complete, kept, tmp_path):
    """Each generation has its own flags; one that is missing confirms nothing."""
    row = dict(problem="a", answer="2", generations=[thought(2, n) for n in (3, 2, 1)])
    row |= dict(
        correctness_math_verify=verify, correctness_llama=llama, is_reasoning_complete=complete
    )
    (found,) = decide("openr1", [row], tmp_path)
    assert (found.demo["generation"] if found.demo else found.state) == kept


def test_flags_are_true_or_1():
    """JSON of some writers has numbers; texts, null and what is missing confirm nothing."""
    given = [True, 1, False, 0, None, "true", 2]
    assert [demo_schemas.flagged(given, i) for i in range(8)] == [True, True] + [False] * 6


def test_openr1_does_not_trust_flags_alone(tmp_path):
    """A generation that the flags accept is graded; null generations are no solution."""
    flags = dict(correctness_math_verify=[True, True], is_reasoning_complete=[True, True])
    rows = [
        dict(problem="a", answer="2", generations=[thought(3), "<think>\nso"]) | flags,
        dict(problem="b", answer="2", generations=[None, thought(2)]) | flags,
        dict(problem="c", answer="2", generations=None) | flags,
        dict(problem="d", answer="2", generations=[]) | flags,
    ]
    found = decide("openr1", rows, tmp_path)
    assert states(found) == ["wrong", "kept", "no_solution", "no_solution"]
    assert found[1].demo["generation"] == 1


def test_luffy_takes_the_assistants_message(tmp_path):
    """The target may be null, empty, or hold null."""
    rows = [
        demo_rows.luffy("a"),
        demo_rows.luffy("b", target=None),
        demo_rows.luffy("c") | {"target": []},
        demo_rows.luffy("d") | {"target": said("assistant", None)},
        demo_rows.luffy("e", truth=None),
        demo_rows.luffy("f") | {"reward_model": None},
        demo_rows.luffy("g") | {"prompt": None},
    ]
    found = decide("luffy", rows, tmp_path)
    assert states(found) == ["kept", *["no_solution"] * 3, *["no_answer"] * 2, "no_problem"]
    assert found[0].demo["problem"] == "a" and found[0].demo["answer"] == "2"


def test_numina_leaves_out_proofs_and_invalid_problems(tmp_path):
    """Valid problems with an answer; human solutions have no reasoning tags and stay as they
    are.
    """
    valid = dict(
        answer="2",
        solution="It is \\boxed{2}.",
        problem_is_valid="Yes",
        solution_is_valid="Yes",
        question_type="math-word-problem",
    )
    rows = [
        dict(problem="a") | valid,
        dict(problem="b") | valid | {"question_type": "proof"},
        dict(problem="c") | valid | {"answer": "proof"},
        dict(problem="d") | valid | {"answer": "notfound"},
        dict(problem="e") | valid | {"answer": None},
        dict(problem="f") | valid | {"problem_is_valid": "Incomplete"},
        dict(problem="g") | valid | {"solution_is_valid": None},
    ]
    found = decide("numina", rows, tmp_path)
    assert states(found) == ["kept", "excluded", *["no_answer"] * 3, "excluded", "excluded"]
    assert found[0].demo["solution"] == "It is \\boxed{2}."


def test_limo_is_taken_as_it_is(tmp_path):
    """One solution a row."""
    rows = [dict(question="a", solution="So \\boxed{2}", answer="2"), dict(question="b")]
    assert states(decide("limo", rows, tmp_path)) == ["kept", "no_answer"]


def test_s1k_joins_reasoning_and_attempt(tmp_path):
    """Mathematics that was graded Yes; the answer is the box of `solution`, or all of it."""
    good = dict(
        cot_type="math",
        deepseek_grade="Yes",
        deepseek_thinking_trajectory="so\n",
        deepseek_attempt="\\boxed{2}",
        solution="2",
    )
    rows = [
        dict(question="a") | good,
        dict(question="b") | good | {"solution": "It follows that it is \\boxed{2}"},
        dict(question="c") | good | {"deepseek_grade": "No"},
        dict(question="d") | good | {"deepseek_grade": None},
        dict(question="e") | good | {"cot_type": "crossword"},
        dict(question="f") | good | {"deepseek_attempt": None},
        dict(question="g") | good | {"deepseek_thinking_trajectory": "a </think> b"},
    ]
    found = decide("s1k", rows, tmp_path)
    assert states(found) == [
        *["kept"] * 2,
        *["flagged"] * 2,
        "excluded",
        "no_solution",
        "malformed",
    ]
    assert found[1].demo["solution"] == "<think>\nso\n</think>\n\n\\boxed{2}"


def test_openthoughts_is_graded_by_the_last_box(tmp_path):
    """Mathematics alone; a ground truth without a box is no answer."""
    good = dict(
        domain="math",
        deepseek_reasoning="so",
        deepseek_solution="\\boxed{2}",
        ground_truth_solution="First \\boxed{1}, then \\boxed{2}",
    )
    rows = [
        dict(problem="a") | good,
        dict(problem="b") | good | {"ground_truth_solution": "2"},
        dict(problem="c") | good | {"ground_truth_solution": None},
        dict(problem="d") | good | {"domain": "code"},
        dict(problem="e") | good | {"deepseek_solution": "\\boxed{1}"},
    ]
    found = decide("openthoughts", rows, tmp_path)
    assert states(found) == ["kept", "no_answer", "no_answer", "excluded", "wrong"]


def test_verl_is_recognised_by_its_columns(tmp_path):
    """Without `target` the worked solution is in extra_info; a bare answer is no solution."""
    row = lambda question, worked: dict(
        prompt=said("user", question),
        reward_model=dict(ground_truth="2", style="rule"),
        extra_info=dict(split="train", index=0, answer=worked, question=question),
    )
    rows = [
        row("a", "It is \\boxed{2}"),
        row("b", "2"),
        row("c", None),
        row("d", "\\boxed{2}") | {"extra_info": None},
        row("A chat. User: Why?\nAssistant: Let me think.\n<think>", "so</think>\n\\boxed{2}"),
    ]
    found = decide("verl", rows, tmp_path)
    assert states(found) == ["kept", "no_solution", "no_solution", "no_solution", "kept"]
    assert found[-1].demo["problem"] == "Why?"


# --- columns by name


def test_a_row_of_another_form_is_named():
    """With its number, its columns, and the way out."""
    verl = demo_schemas.named("verl")
    with errors.raises(ValueError, "row 7", "verl", "reward_model: str", "--columns", "remove"):
        demo_file.read_row(verl, {"prompt": said("user", "One?"), "reward_model": "1"}, 7)


def test_columns_by_name():
    """Cells may be texts, numbers, lists or messages, and fields of fields."""
    schema = demo_schemas.by_columns("problem:q,solution:s,solution:t.u,answer:m.truth")
    assert schema.columns_of("qstm") == ["q", "s", "t", "m"]
    row = {"q": said("user", "Why?"), "s": ["x", None], "t": {"u": said("assistant", "y")}}
    found = schema.read(row | {"m": {"truth": 7}})
    assert found == ("Why?", "7", ((0, "x"), (2, "y")), 2, False)
    assert schema.read({"q": "Why?"}) == ("Why?", "", (), 0, False)


@pytest.mark.parametrize(
    "flag, names",
    [
        ("problem", ("problem", "COLUMN")),
        ("problem:a,solution:b", ("one answer",)),
        ("problem:a,solution:b,answer:c,anwser:d", ("anwser",)),
        ("problem:a,problem:b,solution:b,answer:c", ("one problem",)),
    ],
)
def test_invalid_columns(flag, names):
    """The message says what is allowed."""
    with errors.raises(ValueError, *names):
        demo_schemas.by_columns(flag)


def test_columns_that_do_not_fit():
    """The message names the columns that are there, and the way out."""
    with errors.raises(ValueError, "generations", "prompt", "completion", "--columns"):
        demo_schemas.named("openr1").columns_of(["problem", "prompt", "completion"])
    with errors.raises(ValueError, "prompt", "completion", "--columns"):
        demo_schemas.recognised(["prompt", "completion"])
    with errors.raises(ValueError, "deepmaht", "'deepmath'"):
        demo_schemas.named("deepmaht")


def test_names_of_the_hub():
    """A schema is found by its short name and by its repository."""
    assert demo_schemas.named("GAIR/LIMO") is demo_schemas.named("limo")
    assert demo_schemas.named("openthoughts").config == "metadata"


# --- the choice


def row(problem="a", answer="2", solution="\\boxed{2}") -> demo_schemas.Row:
    return demo_schemas.plain(problem, answer, solution)


@pytest.mark.parametrize(
    "given, wanted",
    [
        ("<think>\na\n</think>\n\nb", "<think>\na\n</think>\n\nb"),
        (" <think>a</think>b ", "<think>\na\n</think>\n\nb"),
        ("a</think>b", "<think>\na\n</think>\n\nb"),
        ("a", "a"),
        ("<think>a", "unfinished"),
        ("<think>a</think> ", "unfinished"),
        ("b<think>a</think>b", "malformed"),
        ("<think><think>a</think>b", "malformed"),
        ("<think>a</think>b</think>c", "malformed"),
        ("a</think><think>b", "unfinished"),
    ],
)
def test_the_reasoning_is_tagged_once(given, wanted):
    """A missing opening tag is put on; what cannot be mended has a state."""
    text, fault = demo_selection.one_reasoning(given)
    assert (fault or text) == wanted
    assert fault or text.count("<think>") == text.count("</think>") <= 1


def test_states_do_not_depend_on_the_groups():
    """Rows that are decided together or one by one have the same states."""
    rows = [row(), row(), row(solution="\\boxed{3}"), row("b", solution="\\boxed{3}"), row("b")]
    together = demo_selection.select(rows, criteria(), set())
    kept: set[int] = set()
    alone = [demo_selection.select([one], criteria(), kept)[0] for one in rows]
    assert together == alone
    assert states(alone) == ["kept", "repeated", "repeated", "wrong", "kept"]


def test_outcomes_of_the_pool_are_states():
    """Deferred comparisons of a group are judged in one call."""
    calls = []

    def judge(deferred):
        calls.append(deferred)
        given = {"x-x+1": Outcome.correct, "x^9-2": Outcome.timeout, "y+1-1": Outcome.grader_error}
        return [given[one.answer] for one in deferred]

    defers = Grader(last_boxed, lambda problem, answer: DeferredComparison(problem.answer, answer))
    rows = [row(answer, "1", f"\\boxed{{{answer}}}") for answer in ("x-x+1", "x^9-2", "y+1-1")]
    lengths = lambda texts: [1] * len(texts)
    found = demo_selection.select(rows, Criteria(defers, judge, lengths), set())
    assert states(found) == ["kept", "timeout", "grader_error"] and len(calls) == 1


def test_match_takes_the_tasks_own_answer():
    """The source's answer is not asked, and the text is the task's."""
    task = {"a b": problems.of(7, "a  b", answer="2")}
    rows = [row("a b", "17"), row("c"), row("a\nb", "", "\\boxed{17}")]
    found = demo_selection.select(rows, criteria(match=task), set())
    assert states(found) == ["kept", "unmatched", "repeated"]
    assert found[0].demo["problem"] == "a  b" and found[0].demo["answer"] == "2"


def test_benchmarks_are_kept_out():
    """Equal problems, and those that share 13 words; but no phrase that many of them have."""
    phrase = "where m and n are relatively prime positive integers find the value of m plus n"
    one = "A train leaves town at noon and goes at sixty miles an hour for three hours"
    held = {
        "first": [problems.of(n, f"Case {'x' * n} {phrase}") for n in range(3)],
        "second": [problems.of(9, one), problems.of(10, "2 + 3?")],
        # its words are all phrasing, but it is a problem nevertheless
        "third": [problems.of(11, one), problems.of(12, phrase)],
    }
    asked = ["Hm. " + one.upper() + ".", "2 + 3?", phrase, f"Another {phrase}", "2 - 3?"]
    found = demo_selection.select(
        [row(question) for question in asked], criteria(held_out=HeldOut(held)), set()
    )
    assert states(found) == [*["contaminated"] * 3, "kept", "kept"]
    assert [one.benchmark for one in found[:3]] == ["second", "second", "third"]


def test_a_box_is_put_on():
    """In place of <answer>, or as a last line; a box that is there stays."""
    box = demo_selection.with_box
    assert box("a <answer> (1) x\n(2) y </answer>", "z") == "a \\boxed{(1) x, (2) y}"
    assert box("a", "2") == "a\nThe answer is \\boxed{2}."
    assert box("a \\boxed{3}", "2") == "a \\boxed{3}"


# --- the file


def test_token_summary():
    """Nearest ranks."""
    counts = collections.Counter({10: 10, 20: 85, 30: 4, 99: 1})
    assert demo_file.token_summary(counts) == {"median": 20, "p95": 20, "max": 99}
    assert demo_file.token_summary(collections.Counter([5])) == dict(median=5, p95=5, max=5)
