"""The trial of a reward function before a run says in one line what is wrong with it."""

from __future__ import annotations

from bridge_jax.grading import trial
from tests import errors

FUNCTIONS = """
def score(question, text, gold):
    if text == "raises":
        raise KeyError(question)
    if text == "words":
        return "yes"
    return gold in text

def imports_jax(question, text, gold):
    import jax
"""


def test_the_trial_before_a_run(tmp_path, monkeypatch):
    """One line says what is wrong, and where."""
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    assert trial.try_out("mine:score", "q", "7", "7") == ""
    assert trial.try_out(f"{tmp_path}/mine.py:score", "q", "7", "7") == ""
    for name, text, words in (
        ("nowhere:score", "7", ("imported", "nowhere")),
        ("mine:scores", "7", ("imported", "scores")),
        ("mine:score", "raises", ("KeyError", "mine.py", "line 4")),
        ("mine:score", "words", ("'yes'", "number")),
        ("mine:imports_jax", "7", ("jax",)),
    ):
        message = trial.try_out(name, "q", text, "7")
        errors.assert_names(message, *words)
        assert "\n" not in message
