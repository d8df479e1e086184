"""The trial of a reward function before a run says in one line what is wrong with it."""

from __future__ import annotations

from bridge_jax.grading import trial
from tests import errors

FUNCTIONS = """from other import imported
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
    """One line says what is wrong, and where; the code has a fingerprint."""
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    (tmp_path / "other.py").write_text("def imported(question, text, gold):\n    return True\n")
    monkeypatch.chdir(tmp_path)
    of_module = trial.try_out("mine:score", "q", "7", "7")
    of_file = trial.try_out(f"{tmp_path}/mine.py:score", "q", "7", "7")
    assert of_module == of_file and not of_module.failure and len(of_module.code) == 12
    assert trial.try_out("mine:imported", "q", "7", "7").code != of_module.code
    (tmp_path / "mine.py").write_text(FUNCTIONS + "# changed")
    assert trial.try_out("mine:score", "q", "7", "7").code != of_module.code
    for name, text, words in (
        ("nowhere:score", "7", ("imported", "nowhere")),
        ("mine:scores", "7", ("imported", "scores")),
        ("mine:score", "raises", ("KeyError", "mine.py", "line 4")),
        ("mine:score", "words", ("'yes'", "number")),
        ("mine:imports_jax", "7", ("jax",)),
    ):
        message = trial.try_out(name, "q", text, "7").failure
        errors.assert_names(message, *words)
        assert "\n" not in message
