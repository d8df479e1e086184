"""A run trains on demonstrations of task.demos by their weights, and is refused where many are
lost.
"""

from __future__ import annotations

import collections
import json
import string

import jax
import pytest

from bridge_jax.data import tokenizers
from bridge_jax.training import build, programs, trainer
from configs import tasks as task_groups
from tests import errors, tiny_runs

LETTERS = "".join(c for c in string.printable if c not in "<>\r\x0b\x0c")
ROWS = [
    {"problem": f"What is {i} + {i}?", "answer": str(2 * i), "solution": f"\\boxed{{{2 * i}}}"}
    for i in range(30)
]
slow = pytest.mark.slow
PADDING = "one and one and one and one and one and one. "


def built(folder, method="sft", demos="{}", lost=0, rows=ROWS, **given):
    """A run on the rows, with ten demonstrations of other problems; `lost` of them are too long."""
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    others = [
        {
            "problem": f"What is {i} times 1?",
            "answer": str(i),
            "solution": PADDING * (i < lost) + f"\\boxed{{{i}}}",
        }
        for i in range(10)
    ]
    path = folder / "demos.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in others))
    if not (folder / "tokenizer").exists():
        tokenizers.CharTokenizer(LETTERS).save(folder / "tokenizer")
    task = {key[6:]: given.pop(key) for key in list(given) if key.startswith("task__")}
    config = tiny_runs.config(method, data__tokenizer=str(folder / "tokenizer"), **given)
    config.task = task_groups.group(
        "custom",
        train=str(folder / "train.jsonl"),
        test_share=0.2,
        demos=demos.format(path),
        **task,
    )
    config.model.arch.vocab_size = 128
    config.model.arch.max_position_embeddings = 1024
    config.data.buckets, config.rollout.max_new = (256,), 40
    return build.build(config, jax.devices()[:1])


def test_weights_are_how_often_a_demonstration_comes_in_an_epoch(tmp_path, capsys):
    """Prompts are the task's own; the summary counts the rows."""
    setup, data = built(tmp_path, demos="{}:3", lost=2)
    times = collections.Counter(problem.question for problem in data.demos.problems)
    assert len(times) == 8 and set(times.values()) == {3}
    assert len(data.demos.tokens) == len(data.demos.completions) == 24
    for problem, row in zip(data.demos.problems, data.demos.completions):
        assert data.tokenizer.decode(row) == problem.solution
    assert all("+" in problem.question for problem in data.prompts.problems)
    trainer.print_summary(setup, data, {"step": 0}, 1)
    assert "10 solutions for 10 of 10 problems: 8 used, " in capsys.readouterr().out
    _, once = built(tmp_path, lost=2)
    assert {p.id for p in once.demos.problems} == {p.id for p in data.demos.problems}
    assert build.fingerprints(data)["rows"]["demos"] != build.fingerprints(once)["rows"]["demos"]


def test_more_than_a_fifth_that_is_lost_is_refused(tmp_path):
    """With the reasons and the way out; a fifth is not."""
    with errors.raises(ValueError, "3 of 10 rows", "3 too long", "task.allow_dropped=True"):
        built(tmp_path, lost=3)
    assert len(built(tmp_path, lost=3, task__allow_dropped=True)[1].demos.problems) == 7
    # a method that reads none does not look at them
    assert not built(tmp_path, "grpo", lost=3)[1].demos.problems


def test_demos_that_are_all_wrong(tmp_path):
    """The message counts them."""
    (tmp_path / "bad.jsonl").write_text(
        json.dumps({"problem": "1?", "answer": "1", "solution": "\\boxed{2}"}) + "\n"
    )
    with errors.raises(ValueError, "task.demos", "no row can be used", "1 wrong"):
        built(tmp_path, demos=str(tmp_path / "bad.jsonl"))
    bad = [row | {"solution": "\\boxed{-1}"} for row in ROWS]
    with errors.raises(ValueError, "its own solutions", "no row can be used", " wrong"):
        built(tmp_path, demos="", rows=bad)


def test_own_solutions_that_are_mostly_wrong(tmp_path):
    """Refused like task.demos where the method reads them, unless allowed; RL alone does not."""
    bad = [row | {"solution": "\\boxed{-1}"} for row in ROWS[:15]] + ROWS[15:]
    with errors.raises(ValueError, "task.train", " wrong", "task.allow_dropped"):
        built(tmp_path, demos="", rows=bad)
    assert built(tmp_path, demos="", rows=bad, task__allow_dropped=True)[1].demos.problems
    assert built(tmp_path, "grpo", demos="", rows=bad)[1].prompts.problems


def test_a_method_that_pairs_needs_solutions_of_the_prompts(tmp_path):
    """Demonstrations of other problems are none for it."""
    with pytest.raises(ValueError, match="needs demonstrations of the prompts themselves"):
        built(tmp_path, "luffy")


def test_a_length_of_their_own(tmp_path):
    """data.max_demo admits longer solutions than samples may be; a step's shapes follow it."""
    setup, data = built(tmp_path, "bridge", lost=3, data__max_demo=400)
    assert len(data.demos.problems) == 10
    assert max(map(len, data.demos.completions)) > setup.settings.rollout.max_new == 40
    (spec,) = setup.method.step_kinds
    batch = programs.abstract_batch(setup, 256, spec)
    assert batch.demos.tokens_BT.shape[1] == 400
    assert {rows.seqs.tokens_BT.shape[1] for rows in batch.rollouts.values()} == {40}
    with errors.raises(ValueError, "data.max_demo=900", "1156", "1024"):
        built(tmp_path, data__max_demo=900)
    with errors.raises(ValueError, "3 of 10 rows", "too long"):
        built(tmp_path, lost=3, data__max_demo=41)


@slow
@pytest.mark.parametrize(
    "method, pack",
    [("bridge", 0), ("bridge", 4), ("luffy", 0)],
)
def test_steps_with_demonstrations_that_are_longer_than_samples(method, pack, tmp_path):
    """A run trains on them; shorter ones give the same numbers as without the limit of their
    own.
    """
    seen = []
    for limit in (0, 60):
        config = tiny_runs.config(method, data__max_demo=limit, steps=2, batch__pack=pack)
        config.eval.every = 0
        trainer.train(config, str(tmp_path / f"{limit}"), devices=jax.devices()[:1])
        seen.append([row["sft/logp"] for row in rows_of(tmp_path / f"{limit}")])
    assert len(seen[0]) == 2 and seen[0] == pytest.approx(seen[1], rel=1e-5)


def rows_of(workdir) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "sft/logp" in row]
