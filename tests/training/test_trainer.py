"""How a run starts, resumes, is refused, and finds the record of an earlier process."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import sys

import jax
import numpy as np
import pytest

from bridge_jax.rundir import checkpoint, lock
from bridge_jax.training import build, trainer
from bridge_jax.training import rollouts as training_rollouts
from bridge_jax.training.trainer import Request
from configs import base
from tests import errors, tiny_runs
from tests.tiny_runs import STEPS, go, quick, unbroken  # noqa: F401 (fixtures)
from tests.training.faults import contents


@pytest.mark.slow
def test_a_run_lengthened_behind_its_schedule_says_so(quick, tmp_path, caplog):
    """Its rate falls to 0 within two steps: nothing is said of two, and of four it is, before they
    change nothing.
    """
    falling = dict(optim__base__schedule="linear", optim__base__warmup_steps=0)
    falling |= dict(optim__base__decay_steps=2, eval__every=0)
    go(tmp_path, "sft", steps=2, **falling)
    assert "the learning rate is 0" not in caplog.text
    before = tiny_runs.state(tmp_path, "sft", **falling)
    go(tmp_path, "sft", steps=4, **falling)
    assert "optim.base: the learning rate is 0 from step 3 on" in caplog.text
    rates = [line["lr/base"] for line in tiny_runs.lines(tmp_path)]
    assert rates == pytest.approx([0.01, 0.005, 0.0, 0.0])
    after = tiny_runs.state(tmp_path, "sft", **falling)
    theta = [key for key in after if key.startswith(".params")]
    assert all(np.array_equal(after[key], before[key]) for key in theta)


@pytest.mark.slow
def test_handlers_are_given_back(quick, tmp_path):
    """After a run SIGTERM and SIGINT have the handlers they had before it."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    go(tmp_path, "sft", stop_at=1)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_another_config_is_refused(quick, tmp_path, capsys):
    """A resumed run keeps its config unless forced; keys that change no result are free."""
    go(tmp_path, "sft", stop_at=1)
    text = (tmp_path / "config.json").read_text()
    with pytest.raises(ValueError, match="task.seed +0 +1\n") as error:
        go(tmp_path, "sft", task__seed=1)
    assert "--force_config" in str(error.value) and "steps" not in str(error.value)
    assert (tmp_path / "config.json").read_text() == text
    free = dict(steps=2, eval__every=2, checkpoint__every=1, log__rollouts_every=0)
    assert go(tmp_path, "sft", **free)["step"] == 2
    assert go(tmp_path, "sft", force=True, task__seed=1, **free | dict(steps=3))["step"] == 3
    assert "task.seed" in (tmp_path / "config.json").read_text()
    with pytest.raises(ValueError, match="rollout.calls"):
        go(tmp_path, "sft", rollout__calls=1, task__seed=1)


def test_what_is_printed_at_start(quick, tmp_path, capsys):
    """A run prints what its config changes, its rows and its steps; a finished one says so."""
    go(tmp_path, "sft", steps=1)
    printed = capsys.readouterr().out
    assert (
        re.search("optim.base.learning_rate +0.01 +5e-07\n", printed)
        and f"{tmp_path}/config.json" in printed
    )
    assert (
        re.search("rows of a step +demos", printed)
        and "steps 1 to 1" in printed
        and "seed" not in printed
    )
    end = go(tmp_path, "sft", steps=1)
    assert (
        "nothing to do: the run is at step 1 of 1" in capsys.readouterr().out and end["step"] == 1
    )


def test_a_finished_run_says_so_before_it_reads_or_compiles(quick, tmp_path, monkeypatch, capsys):
    """Neither model nor checkpoint is read; the last line of metrics comes back. More steps go on
    from there.
    """
    end = go(tmp_path, "sft", stop_at=3)
    with monkeypatch.context() as patch:
        for module, name in (
            (trainer, "compile_programs"),
            (build, "initial_theta"),
            (checkpoint.Checkpoints, "restore"),
        ):
            patch.setattr(module, name, lambda *_: pytest.fail("read or compiled"))
        capsys.readouterr()
        again = go(tmp_path, "sft", stop_at=3)
        assert "nothing to do: the run is at step 3 of" in capsys.readouterr().out
        assert again == end and go(tmp_path, "sft", steps=2) == end
        with pytest.raises(ValueError, match="task.seed"):
            go(tmp_path, "sft", stop_at=3, task__seed=1)
    assert go(tmp_path, "sft")["step"] == STEPS


@pytest.mark.slow
@pytest.mark.parametrize(
    "hurt", [pytest.param("checkpoint", marks=pytest.mark.slow), "metrics", "mark"]
)
def test_a_finished_run_that_was_damaged_is_mended(quick, unbroken, tmp_path, monkeypatch, hurt):
    """What was said to be finished is read, and trained again as far as it must be; what can be
    read is not compiled for.
    """
    go(tmp_path)
    if hurt == "checkpoint":
        for file in (tmp_path / "checkpoints" / f"step_{STEPS:06d}").rglob("*"):
            if file.is_file() and file.stat().st_size > 100:
                file.write_bytes(b"\0" * 50)
    elif hurt == "metrics":
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "metrics.jsonl").write_text("".join(lines[:-1]))
    else:
        (tmp_path / "finished.json").write_text("{")
    if hurt != "checkpoint":
        monkeypatch.setattr(trainer, "compile_programs", lambda *_: pytest.fail("compiled"))
    restored, restore = [], checkpoint.Checkpoints.restore
    monkeypatch.setattr(
        checkpoint.Checkpoints, "restore", lambda *given: restored.append(1) or restore(*given)
    )
    assert go(tmp_path)["step"] == STEPS and restored
    if hurt == "checkpoint":
        tiny_runs.assert_same_run(tmp_path, unbroken("bridge"))


def test_corrupt_newest_checkpoint(quick, unbroken, tmp_path, capsys):
    """Falls back to the one before, says so, and ends like a run that was never hurt."""
    go(tmp_path, "grpo", stop_at=4)
    newest = tmp_path / "checkpoints" / "step_000004"
    for file in newest.rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            file.write_bytes(b"\0" * 50)
    capsys.readouterr()
    go(tmp_path, "grpo")
    printed = capsys.readouterr().out
    assert (
        "warning: " in printed
        and "went back to the checkpoint of step 2" in printed
        and "steps 3 to 5" in printed
    )
    tiny_runs.assert_same_run(tmp_path, unbroken("grpo"), "grpo")
    assert len(tiny_runs.lines(tmp_path / "set_aside_1")) == 5


def remove(checkpoints) -> None:
    shutil.rmtree(checkpoints)


def empty(checkpoints) -> None:
    shutil.rmtree(checkpoints)
    checkpoints.mkdir()


def put_away(checkpoints) -> None:
    for folder in list(checkpoints.iterdir()):
        folder.rename(checkpoints / f"damaged_{folder.name}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "lose",
    [
        remove,
        pytest.param(empty, marks=pytest.mark.slow),
        pytest.param(put_away, marks=pytest.mark.slow),
    ],
)
def test_a_record_without_a_checkpoint_is_set_aside(quick, unbroken, tmp_path, capsys, lose):
    """And the run, begun again, ends like one that was never hurt."""
    go(tmp_path, stop_at=4)
    before = {
        name: text
        for name, text in contents(tmp_path).items()
        if not name.startswith(("checkpoints", ".lock")) and not name.endswith(".txt")
    }
    lose(tmp_path / "checkpoints")
    capsys.readouterr()
    assert not go(tmp_path)["stopped"]
    place = tmp_path / "set_aside_1"
    assert contents(place) == before and len(tiny_runs.lines(place)) == 5
    output = capsys.readouterr().out
    assert "but it has no checkpoint: the run begins again" in output and str(place) in output
    tiny_runs.assert_same_run(tmp_path, unbroken("bridge"))
    assert len(tiny_runs.rows(tmp_path / "solved.jsonl")) == 3
    go(tmp_path)
    assert not (tmp_path / "set_aside_2").exists()


@pytest.mark.slow
def test_a_record_whose_newest_checkpoints_are_gone_is_set_aside(quick, tmp_path):
    """More steps than a kill can cost: somebody took them away."""
    given = dict(checkpoint__every=1, eval__every=0)
    go(tmp_path, "grpo", **given)
    before = contents(tmp_path / "rollouts")
    for step in (3, 4, 5):
        shutil.rmtree(tmp_path / "checkpoints" / f"step_00000{step}")
    go(tmp_path, "grpo", **given)
    assert len(tiny_runs.lines(tmp_path / "set_aside_1")) == STEPS
    later = {f"step_00000{step}.jsonl" for step in (3, 4, 5)}
    aside = contents(tmp_path / "set_aside_1" / "rollouts")
    assert aside == {name: before[name] for name in later}
    assert contents(tmp_path / "rollouts") == before


@pytest.mark.slow
@pytest.mark.parametrize("how", [pytest.param("other", marks=pytest.mark.slow), "unknown", "same"])
def test_what_is_taken_again_under_another_config_is_set_aside(quick, tmp_path, how):
    """After a kill: it does not come out as it was, so that its lines would be lost."""
    given = dict(checkpoint__every=2, eval__every=0)
    go(tmp_path, "grpo", stop_at=3, **given)
    before = tiny_runs.lines(tmp_path), contents(tmp_path / "rollouts")
    # the save of step 3 was cut off
    shutil.rmtree(tmp_path / "checkpoints" / "step_000003")
    if how == "unknown":
        (tmp_path / "config.json").unlink()
    # other problems: the programs stay the same
    other = dict(task__seed=1) if how == "other" else {}
    go(tmp_path, "grpo", force=True, **given | other)
    place = tmp_path / "set_aside_1"
    assert place.exists() == (how != "same")
    if how != "same":
        assert tiny_runs.lines(place) == before[0]
        assert contents(place / "rollouts") == {"step_000003.jsonl": before[1]["step_000003.jsonl"]}
    assert [line["step"] for line in tiny_runs.lines(tmp_path)] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_checkpoints_none_of_which_can_be_read_are_refused(quick, tmp_path):
    """A run whose checkpoints are all broken is refused and left as it is."""
    go(tmp_path, "grpo", stop_at=4, eval__every=0)
    for folder in (tmp_path / "checkpoints").glob("step_*"):
        shutil.rmtree(folder / "state")
    before = contents(tmp_path)
    with errors.raises(ValueError, str(tmp_path / "checkpoints"), "step 2", "step 4"):
        go(tmp_path, "grpo", eval__every=0)
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_a_run_without_its_config_is_refused(quick, tmp_path):
    """Checkpoints without config.json are refused, and taken up only with force."""
    go(tmp_path, "grpo", stop_at=2, eval__every=0)
    (tmp_path / "config.json").unlink()
    before = contents(tmp_path)
    with errors.raises(ValueError, "config.json", "--force_config"):
        go(tmp_path, "grpo", eval__every=0, optim__base__learning_rate=1.0)
    assert contents(tmp_path) == before
    assert go(tmp_path, "grpo", force=True, eval__every=0)["step"] == STEPS


def test_saves_that_were_cut_off_are_removed_by_the_owner_alone(quick, tmp_path):
    """Only a process that holds the run's lock removes half a checkpoint."""
    go(tmp_path, "grpo", stop_at=2, eval__every=0)
    left = tmp_path / "checkpoints" / "step_000004.orbax-checkpoint-tmp"
    (left / "state").mkdir(parents=True)
    (left / "state" / "half").write_bytes(b"x" * 1000)
    # another process may be writing it
    with lock.run_lock(str(tmp_path)):
        with errors.raises(ValueError, str(tmp_path)):
            go(tmp_path, "grpo", eval__every=0)
        # nor does a reader touch it
        tiny_runs.state(tmp_path, "grpo", eval__every=0)
    assert left.exists()
    assert go(tmp_path, "grpo", stop_at=3, eval__every=0)["step"] == 3
    assert not left.exists()


def test_a_hole_in_the_record_is_said_at_resume(quick, tmp_path, caplog):
    """A resumed run warns of the step whose line is missing."""
    go(tmp_path, "grpo", stop_at=4, eval__every=0)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[2] + lines[3])
    go(tmp_path, "grpo", eval__every=0)
    assert "the line of step 2 is missing" in caplog.text


@pytest.mark.parametrize("lost, expected", [([1], "step 2"), ([0, 1, 2, 3, 4], "steps 1 to 5")])
def test_a_hole_in_the_record_of_a_finished_run_is_reported(
    quick, tmp_path, caplog, lost, expected
):
    """Whether it is known to be finished, or its state is read for that."""
    go(tmp_path, "grpo", eval__every=0)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for n, line in enumerate(lines) if n not in lost))
    assert go(tmp_path, "grpo", eval__every=0)["step"] == STEPS
    assert f"metrics.jsonl: the line of {expected} is missing" in caplog.text


@pytest.mark.parametrize(
    "given, message",
    [
        (
            dict(log__mirrors=("tensorbord",)),
            ("log.mirrors='tensorbord'", "'tensorboard'"),
        ),
        (dict(checkpoint__keep=0), "checkpoint.keep=0"),
    ],
)
def test_refused_before_anything_is_compiled(tmp_path, monkeypatch, given, message):
    """Bad settings of mirrors and checkpoints are refused before the first compilation."""
    monkeypatch.setattr(trainer, "compile_programs", lambda *_: pytest.fail("compiled"))
    with errors.raises(ValueError, message):
        go(tmp_path, **given)


def test_workdir_that_cannot_be_written(tmp_path):
    """The error tells the user to give another --workdir."""
    (tmp_path / "file").write_text("")
    with errors.raises(ValueError, str(tmp_path / "file" / "run"), "--workdir"):
        go(tmp_path / "file" / "run")


@pytest.mark.parametrize(
    "at", ["compile", pytest.param("first evaluation", marks=pytest.mark.slow)]
)
def test_sigterm_before_the_first_step(quick, unbroken, tmp_path, monkeypatch, at):
    """Ends at once, not after the start-up; nothing is left that could hurt the next start."""
    module, name = {
        "compile": (trainer, "compile_programs"),
        "first evaluation": (training_rollouts, "on_mesh"),
    }[at]
    with monkeypatch.context() as patch:
        patch.setattr(
            module, name, lambda *_: os.kill(os.getpid(), signal.SIGTERM) or pytest.fail("went on")
        )
        assert go(tmp_path, "grpo") == {"stopped": True}
    assert not go(tmp_path, "grpo")["stopped"]
    tiny_runs.assert_same_run(tmp_path, unbroken("grpo"), "grpo")


def test_other_data_under_the_same_config_is_refused(quick, tmp_path, monkeypatch):
    """A changed prompt, problem or reward function is told apart although no key differs."""
    go(tmp_path, "sft", stop_at=1)
    message, build_problems = (
        tiny_runs.arithmetic.plain_message,
        tiny_runs.arithmetic.build_problems,
    )
    with monkeypatch.context() as patch:
        patch.setattr(
            tiny_runs.arithmetic,
            "plain_message",
            lambda problem: [
                {"role": "user", "content": message(problem)[0]["content"].replace("=", "-")}
            ],
        )
        with pytest.raises(ValueError, match=r"fingerprints.template +\"\w{12}\" +\"\w{12}\"\n"):
            go(tmp_path, "sft")
    with monkeypatch.context() as patch:
        patch.setattr(
            tiny_runs.arithmetic,
            "build_problems",
            lambda cfg, name, rows: tuple(
                p._replace(level=p.level, solution=p.solution.replace("1", "2"))
                if name == "demos"
                else p
                for p in build_problems(cfg, name, rows)
            ),
        )
        with pytest.raises(ValueError, match=r"fingerprints.rows.demos") as error:
            go(tmp_path, "sft")
    assert "fingerprints.rows.train" not in str(error.value)
    make = tiny_runs.arithmetic.make
    with monkeypatch.context() as patch:
        coded = lambda cfg: dataclasses.replace(make(cfg), reward_code="c0ffee")
        patch.setattr(tiny_runs.arithmetic, "make", coded)
        with errors.raises(ValueError, "fingerprints.reward_code", "c0ffee", "--force_config"):
            go(tmp_path, "sft")
    assert go(tmp_path, "sft")["step"] == STEPS


def test_derived_batch_is_saved(quick, tmp_path):
    """batch.txt holds the table of the run's rows."""
    go(tmp_path, "sft", stop_at=1)
    built, _ = build.build(tiny_runs.config("sft"), jax.devices()[:1])
    assert (tmp_path / "batch.txt").read_text() == built.settings.batch.format() + "\n"


@pytest.mark.slow
def test_a_refused_force_config_changes_nothing(quick, tmp_path):
    """Another method cannot go on from the checkpoint: config.json still tells of the run that is
    there, which goes on.
    """
    go(tmp_path, "bridge", steps=2, eval__every=0)
    before = (tmp_path / "config.json").read_text()
    with errors.raises(ValueError, "model", "method", "optimizer"):
        trainer.train(
            tiny_runs.config("sft", steps=2, eval__every=0),
            str(tmp_path),
            force_config=True,
            devices=jax.devices()[:1],
        )
    assert (tmp_path / "config.json").read_text() == before
    assert go(tmp_path, "bridge", steps=3, eval__every=0)["step"] == 3


def test_the_users_changes_come_first():
    """Then what the config file changes, without the keys that the user changed again."""
    file_config = tiny_runs.config("sft")
    config = tiny_runs.config("sft", seed=7, batch__demos_per_step=4)
    request = Request(config, "runs/one", defaults=base.get_config(), file_config=file_config)
    text = trainer.format_changes(request)
    mine, _, of_file = text.partition("set by the config file:\n")
    rows = [line.split() for line in mine.splitlines()]
    assert rows == [
        ["set", "on", "the", "command", "line:"],
        ["key", "given", "in", "the", "config", "file"],
        ["batch.demos_per_step", "4", "2"],
        ["seed", "7", "0"],
    ]
    lines = [line.split() for line in of_file.splitlines()]
    assert lines[0] == ["key", "in", "the", "config", "file", "default"]
    assert ["method.name", '"sft"', '"bridge"'] in lines
    assert not {"seed", "batch.demos_per_step"} & {line[0] for line in lines}
    assert lines[-1] == ["all", "keys:", "runs/one/config.json"]
    assert set(request.overrides) == {"seed", "batch.demos_per_step"}


def test_no_change_is_no_table():
    """Without changes on the command line, and of the defaults themselves."""
    config, defaults = tiny_runs.config("sft"), base.get_config()
    alone = trainer.format_changes(Request(config, "w", defaults=defaults, file_config=config))
    assert alone.startswith("set by the config file:")
    assert trainer.format_changes(Request(config, "w", defaults=defaults)) == alone
    assert trainer.format_changes(Request(defaults, "w", defaults=defaults)) == (
        "all keys: w/config.json"
    )


def test_a_missing_mirror_ends_the_run_before_it_is_built(tmp_path, monkeypatch):
    """Model, tokenizer and data are read by build."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(build, "build", lambda *_: pytest.fail("built"))
    config = tiny_runs.config("sft", log__mirrors=("wandb",))
    with pytest.raises(ValueError, match="needs the package wandb: pip install"):
        trainer.train(config, str(tmp_path), devices=jax.devices()[:1])
    assert not list(tmp_path.iterdir())
