"""Rows of transcripts made by hand."""

from __future__ import annotations

from bridge_jax.evaluation import scores


def rows(id: int, sampled: str = "", greedy: str = "", lenient: str | None = None) -> list[dict]:
    """Transcripts of one problem: a letter per row, c correct, w wrong."""
    names = {"c": "correct", "w": "wrong", "n": "no_answer"}
    other = lenient or sampled + greedy
    samples = [*range(len(sampled)), *([scores.GREEDY] if greedy else [])]
    return [
        {
            "id": id,
            "sample": sample,
            "outcome": names[a],
            "outcome_lenient": names[b],
            "tokens": 10,
            "stopped": a != "n",
        }
        for sample, a, b in zip(samples, sampled + greedy, other)
    ]
