"""The sample command: completions of prompts, read and graded, of one model or of two."""

from __future__ import annotations

import json
import pathlib

import pytest

from bridge_jax import tasks
from bridge_jax.evaluation import completions, model
from bridge_jax.evaluation.completions import Completion
from bridge_jax.evaluation.lazy_pool import LazyPool
from bridge_jax.tasks import arithmetic
from bridge_jax.training import reopen
from configs import ladder
from experiments import sample as command
from experiments.sample import Request, Shown, check, problems_of, read_prompts
from tests import errors

FOLDER = str(pathlib.Path(__file__).parents[2] / ladder.BASE)
PROMPTS, GOLDS = ("12+7=", "3+4="), ("19", "")
# all with these sizes, so that one program is compiled
REQUEST = Request(problems_of(PROMPTS, GOLDS), n=2, max_new=8, task="arithmetic")


def sampled(**changes) -> list[list[Completion]]:
    """Completions of the shipped base model, on one device."""
    import jax

    with LazyPool() as pool:
        (shown,) = command.compare([FOLDER], REQUEST._replace(**changes), pool, jax.devices()[:1])
    assert shown.name == FOLDER
    return shown.rows


def test_completions_are_read_and_graded():
    """n of each prompt in its order, with the task's reading; an outcome where an answer was
    given.
    """
    found = sampled()
    assert [len(rows) for rows in found] == [2, 2] and found == sampled() != sampled(seed=1)
    task = arithmetic.make(arithmetic.Config())
    for rows, gold in zip(found, GOLDS):
        for row in rows:
            assert 0 < row.tokens <= 8 and (row.ended or row.tokens == 8)
            assert row.answer == task.extract(row.text)
            right = row.answer == gold if gold else None
            assert (row.outcome == "correct") == bool(right) and bool(row.outcome) == bool(gold)
    assert any(row.ended for rows in found for row in rows)


def test_greedy_completions_do_not_depend_on_the_batch():
    """Temperature 0 gives one text of each prompt, alone or beside others, and stop strings cut
    it.
    """
    both = sampled(temperature=0.0)
    assert all(one == other for one, other in both) and both != sampled()
    text, stop = both[0][0].text, both[0][0].text[1]
    (cut,) = sampled(temperature=0.0, problems=REQUEST.problems[:1], stop=(stop,))
    assert cut[0].text == text.partition(stop)[0] and cut[0].ended
    assert cut[0].tokens <= both[0][0].tokens
    (alone,) = sampled(temperature=0.0, problems=REQUEST.problems[:1])
    assert alone == both[0]


class Rendering:
    """A tokenizer that keeps the messages, one token for each character of their contents."""

    def render(self, messages):
        self.messages = messages
        return [1] * sum(len(message["content"]) for message in messages)


def asked(request: Request, **opened) -> list[dict]:
    """The messages in which a model is asked the first prompt; opened: fields of EvalModel."""
    tokenizer = Rendering()
    given = model.open_folder(FOLDER)._replace(**opened)
    task = command.task_of(request, given)
    completions.encode(tokenizer, request.problems[:1], task, 1000)
    return tokenizer.messages


def test_templates():
    """Text as it stands, a user's message, the instruction, a run's own task, a named task."""
    free, user = REQUEST._replace(task=""), {"role": "user", "content": PROMPTS[0]}
    assert asked(free) == asked(free._replace(template="chat")) == [user]
    assert asked(free._replace(template="raw")) == [{"role": "text", "content": PROMPTS[0]}]
    boxed = asked(free._replace(template="user"))
    assert boxed == [{"role": "user", "content": PROMPTS[0] + tasks.INSTRUCTION}]
    own = arithmetic.make(arithmetic.Config())
    assert asked(REQUEST) == own.messages(REQUEST.problems[0])
    assert asked(free, own_tasks=(own,)) == own.messages(REQUEST.problems[0])
    assert asked(free._replace(template="raw"), own_tasks=(own,))[0]["role"] == "text"
    plain = command.task_of(
        free._replace(template="plain", stop=("##",)), model.open_folder(FOLDER)
    )
    assert plain.stop == ("\nQuestion:", "##")


def test_a_model_beside_a_run_is_asked_and_read_as_the_run(monkeypatch):
    """A run's own task serves both, and --template changes how they are asked alone."""
    own = arithmetic.make(arithmetic.Config())
    base = model.open_folder(FOLDER)
    opened = {"base": base, "run": base._replace(own_tasks=(own,))}
    used = []
    monkeypatch.setattr(reopen, "open_model", lambda path, own_task: opened[path])
    monkeypatch.setattr(command, "sample", lambda path, opened, task, *rest: used.append(task))
    free = REQUEST._replace(task="")
    command.compare(["base", "run"], free, None)
    assert [(task.messages, task.extract) for task in used] == [(own.messages, own.extract)] * 2
    command.compare(["run"], free._replace(template="raw"), None)
    assert used[-1].extract == own.extract and used[-1].messages != own.messages
    command.compare(["base"], free, None)
    assert used[-1].extract != own.extract


def test_several_models_are_shown_under_each_prompt():
    """Counts, captions and texts of both."""
    rows = lambda *given: [[Completion(*row) for row in given]] * 2
    before = Shown("before", rows(("a\nb", 1, False, None, "no_answer")))
    after = Shown("after", rows(("x", 3, True, "19", "correct"), ("y", 4, True, "18", "wrong")))
    page = command.text_of(REQUEST.problems, [before, after])
    first, second = page.split("=== ")[1:]
    assert first.startswith("12+7=   [answer: 19]\n") and second.startswith("3+4=\n")
    assert "--- before: 0 of 1 right, 0 of 1 ended, 1 tokens on average\n" in first
    assert "(1) 1 token, cut at --max_new: no_answer\n    a\n    b\n" in first
    assert "--- after: 1 of 2 right, 2 of 2 ended, 4 tokens on average\n" in first
    assert "(1) 3 tokens, ended; answer 19: correct\n    x\n" in first


def test_a_file_of_prompts(tmp_path):
    """JSONL with or without answers, and plain text."""
    lines = [{"prompt": "a"}, {"problem": "b", "answer": 7}, {"question": "c", "answer": None}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_prompts(str(tmp_path / "p.jsonl")) == [("a", ""), ("b", "7"), ("c", "")]
    (tmp_path / "p.txt").write_text("one \\neq two\n\n three\n")
    assert read_prompts(str(tmp_path / "p.txt")) == [("one \\neq two", ""), (" three", "")]
    found = problems_of(["d"], ["1"], str(tmp_path / "p.jsonl"))
    assert [problem.answer for problem in found] == ["1", "", "7", ""]
    (tmp_path / "p.jsonl").write_text('{"text": "a"}\n')
    with errors.raises(ValueError, "p.jsonl", "line 1", "prompt", "text"):
        read_prompts(str(tmp_path / "p.jsonl"))


@pytest.mark.parametrize(
    "changes, names",
    [
        (dict(problems=()), ("--prompt", "--prompts")),
        (dict(n=0), ("--n=0",)),
        (dict(temperature=-1.0), ("--temperature=-1.0",)),
        (dict(temperature=0.0), ("--temperature=0", "--n=2")),
        (dict(template="chats"), ("'chats'", "chat", "raw")),
        (dict(task="math50"), ("'math50'", "'math500'")),
        (dict(stop=("",)), ("--stop=",)),
    ],
)
def test_requests_that_are_invalid(changes, names):
    """One line that names the flag and what is allowed."""
    with errors.raises(ValueError, *names):
        check(REQUEST._replace(**changes))


def test_prompts_and_models_that_do_not_fit():
    """Answers without prompts, blank prompts, long ones, long completions, a model that is
    absent.
    """
    with errors.raises(ValueError, "--answer", "--prompt"):
        problems_of(["a", "b"], ["1"])
    with errors.raises(ValueError, "blank"):
        problems_of([" "], [])
    opened = model.open_folder(FOLDER)
    positions = opened.cfg.max_positions
    long = (completions.problem_of("1" * positions, ""),)
    with errors.raises(ValueError, str(positions)):
        completions.encode(Rendering(), long, completions.free_task("raw"), positions)
    with errors.raises(ValueError, f"--max_new={positions}", "up to"):
        command.resolve(REQUEST._replace(max_new=positions), opened, 16)
    assert command.resolve(REQUEST._replace(max_new=0), opened, 16).max_new == min(
        command.MAX_NEW, positions - 16
    )
    with errors.raises(ValueError, "absent/model"):
        reopen.open_model("absent/model", own_task=False)
