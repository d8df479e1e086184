"""Tiny runs resume bit for bit and survive signals, damage and divergence."""

from __future__ import annotations

import os
import re
import shutil
import signal

import jax
import numpy as np
import pytest

from bridge_jax import methods
from bridge_jax.data import batches
from bridge_jax.evaluation import evaluate
from bridge_jax.rundir import checkpoint, lock, logbook
from bridge_jax.training import build, divergence, loop, trainer
from bridge_jax.training import rollouts as training_rollouts
from bridge_jax.training.rollouts import StepSampler
from tests import tiny_runs
from tests.tiny_runs import STEPS, go, quick, unbroken  # noqa: F401 (fixtures)

# no samples, no demos, both; two kinds of steps, paired rows and all others are in `make test-all`
DIFFERENT = ("sft", "grpo", "bridge")
every_method = pytest.mark.parametrize(
    "method",
    [
        name if name in DIFFERENT else pytest.param(name, marks=pytest.mark.slow)
        for name in methods.names()
    ],
)
RATES = {"theta": "base", "theta_hat": "shadow", "w": "lora"}  # what is trained -> its recipe
SFT = {"sft/logp", "sft/entropy", "sft/stop_prob"}
RL = {
    "reward/mean",
    "reward/all_right",
    "reward/all_wrong",
    "rl/J",
    "rl/clip_fraction",
    "time/rollout_tokens_per_s",
    "rollout/tokens",
    "rollout/length",
    "rollout/stopped",
    "rollout/entropy",
    "rollout/logp_error",
    "rollout/logp_error_max",
    "rollout/prob_error",
    *(f"reward/outcome_{kind}" for kind in evaluate.Outcome),
}
BRIDGE = {
    "bridge/gain",
    "bridge/gain_stderr",
    "bridge/kl_hat",
    "bridge/ess",
    "bridge/lam",
    "bridge/J_hat",
    "bridge/clip_fraction",
}
COOPERATION = {
    f"{key}{group}"
    for key in ("grad/cos_sft_rl", "grad/inner_sft_rl", "grad/norm_ratio_sft_rl")
    for group in ("", "_rest", "_middle", "_late")
}  # two layers have no early third
OF_METHOD = {  # what each that ships reports beside the rest; a new one may report what it likes
    "alternate": set(),
    "bridge": BRIDGE,
    "chord": {"chord/mu"},
    "cold_start": set(),
    "dapo": {"rollout/rounds"},
    "dr_grpo": set(),
    "grpo": set(),
    "gspo": set(),
    "hpt": {"hpt/failed"},
    "hybrid": set(),
    "joint": {"bridge/lam"},
    "luffy": set(),
    "sft": set(),
    "srft": set(),
}
EVERY_STEP = {
    "step",
    "update/skipped",
    "time/update_s",
    "time/update_tokens_per_s",
    "time/grade_s",
    "time/rollout_s",
    "time/train_s",
    "time/wall_s",
    "time/cpu_s",
    "time/device_s",
    "memory/host_peak_gib",
    "compile/count",
}
EVALUATED = {
    f"eval/held_out_{key}"
    for key in ("accuracy", "stderr", "n", "tokens", "stopped", "no_answer", "lenient")
}


def signal_at(monkeypatch, step: int, number=signal.SIGTERM) -> None:
    """The process gets a signal while this step's rollouts are written."""
    write = logbook.Logbook.write_rollouts

    def write_rollouts(self, at, rows, kind="step"):
        if at == step and kind == "step":
            os.kill(os.getpid(), number)
        return write(self, at, rows, kind)

    monkeypatch.setattr(logbook.Logbook, "write_rollouts", write_rollouts)


def poison(monkeypatch, steps) -> None:
    """The rewards of these steps are NaN."""
    fetch = StepSampler.fetch

    def poisoned(self, rows, *given):
        rollouts, graded, seconds = fetch(self, rows, *given)
        bad = np.full_like(rollouts.reward_B, np.nan if rows.step + 1 in steps else 1.0)
        return rollouts.replace(reward_B=rollouts.reward_B * bad), graded, seconds

    monkeypatch.setattr(StepSampler, "fetch", poisoned)


@every_method
def test_resumed_equals_unbroken(quick, unbroken, tmp_path, method, k=1):
    """k steps, then the rest: the same metrics, transcripts, parameters and optimizer states as
    without a stop.
    """
    assert go(tmp_path, method, stop_at=k)["step"] == k
    assert tiny_runs.lines(tmp_path) == tiny_runs.lines(unbroken(method))[: k + 1]
    go(tmp_path, method)
    tiny_runs.assert_same_run(tmp_path, unbroken(method), method)


@every_method
def test_the_run_moves_what_it_trains(quick, unbroken, method):
    """Rewards vary and every part of the parameters has moved: the equalities above are not those
    of idle runs.
    """
    begun, _ = build.build(tiny_runs.config(method), jax.devices()[:1])
    theta, end = build.initial_theta(begun), tiny_runs.state(unbroken(method), method)
    for part in ("theta", "theta_hat"):
        embed = end.get(f".params.{part}['embed']")
        assert embed is None or not np.array_equal(embed, theta["embed"])
    assert all(array.any() for key, array in end.items() if key.startswith(".params.w"))
    rewards = [
        line["reward/mean"]
        for line in tiny_runs.lines(unbroken(method))[1:]
        if "reward/mean" in line
    ]
    assert any(0 < reward < 1 for reward in rewards) or not begun.method.sampling_policies


@pytest.mark.parametrize(
    "step",
    [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(STEPS, marks=pytest.mark.slow)],
)
def test_sigterm_saves_within_the_step_and_goes_on(quick, unbroken, tmp_path, monkeypatch, step):
    """At an ordinary step, at one that is due to be evaluated (3), and at the last."""
    with monkeypatch.context() as patch:
        signal_at(patch, step)
        assert go(tmp_path)["stopped"]
        assert checkpoint.Checkpoints(str(tmp_path), read_only=True).steps()[-1] == step
    assert not go(tmp_path)["stopped"]
    tiny_runs.assert_same_run(tmp_path, unbroken("bridge"))


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


@pytest.mark.parametrize("hurt", ["checkpoint", "metrics", "mark"])
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


@pytest.mark.parametrize("method", ["grpo", "bridge"])
def test_a_poisoned_step_changes_nothing(quick, tmp_path, monkeypatch, caplog, method):
    """NaN rewards at steps 2 and 3: parameters and optimizer states stay, the batches are kept, the
    run goes on.
    """
    poison(monkeypatch, {2, 3})
    given = dict(log__skipped_limit=3, checkpoint__every=1)
    (setup, _), found = build.build(tiny_runs.config(method), jax.devices()[:1]), {}
    for step, skipped in ((1, 0), (3, 2), (4, 0)):
        go(tmp_path, method, stop_at=step, **given)
        with checkpoint.Checkpoints(str(tmp_path), read_only=True) as store:
            restored, meta = store.restore(build.abstract_state(setup))
            found[step] = jax.tree.leaves((restored.params, restored.opt_state))
            assert meta["step"] == step and meta["skipped_in_row"] == skipped
    go(tmp_path, method, **given)
    skipped = [line["update/skipped"] for line in tiny_runs.lines(tmp_path)[1:]]
    assert skipped == [0, 1, 1, 0, 0] and "rl/J" in tiny_runs.lines(tmp_path)[2]["nonfinite"]
    assert sorted(os.listdir(tmp_path / "batches")) == ["step_000002.npz", "step_000003.npz"]
    batch = np.load(tmp_path / "batches" / "step_000002.npz")
    assert np.isnan(batch["rollouts/theta/reward_B"]).all() and batch[
        "rollouts/theta/seqs/tokens_BT"
    ].shape == (8, 15)
    assert [
        record.message
        for record in caplog.records
        if "step 3: gradient or objective not finite" in record.message
    ]
    same = [np.array_equal(a, b) for a, b in zip(found[1], found[3])]
    assert all(same) and not all(np.array_equal(a, b) for a, b in zip(found[3], found[4]))


def saved_steps(monkeypatch) -> list[int]:
    """Fills with the steps that are saved from here on."""
    steps, save = [], checkpoint.Checkpoints.save

    def noted(self, step, *given, **named):
        steps.append(step)
        return save(self, step, *given, **named)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", noted)
    return steps


@pytest.mark.parametrize(
    "every, skipped, saved",
    [
        (1, {2, 3}, [1, 4, 5]),
        # what was due meanwhile is saved as soon as an update was finite
        (2, {2, 3}, [4, 5]),
        (3, {3}, [4, 5]),
        # the end is saved: a run that ended is not taken up again from before
        (2, {4, 5}, [2, 5]),
        (0, {2}, [5]),
    ],
)
def test_nothing_that_is_due_is_saved_while_updates_are_skipped(
    quick, tmp_path, monkeypatch, caplog, every, skipped, saved
):
    """What falls due meanwhile is saved at the next finite update, or at the end."""
    poison(monkeypatch, skipped)
    steps = saved_steps(monkeypatch)
    given = dict(log__skipped_limit=9, eval__every=0, checkpoint__every=every)
    assert go(tmp_path, "grpo", **given)["step"] == STEPS
    assert steps == saved
    # an end in the middle of it is said, with the last good step
    told = "the state of step 5 may be ruined, and those up to step 2 are good"
    assert (told in caplog.text) == (STEPS in skipped)


def test_a_signal_while_updates_are_skipped_saves_beside_the_last_good(
    quick, tmp_path, monkeypatch
):
    """Nothing is lost by it, and what may be ruined takes nothing's place."""
    poison(monkeypatch, {3, 4})
    given = dict(log__skipped_limit=9, eval__every=0, checkpoint__every=1, checkpoint__keep=1)
    with monkeypatch.context() as patch:
        signal_at(patch, 4)
        assert go(tmp_path / "hurt", "grpo", **given)["stopped"]
    assert checkpoint.Checkpoints(str(tmp_path / "hurt"), read_only=True).steps() == [1, 4]
    go(tmp_path / "hurt", "grpo", **given)
    go(tmp_path / "whole", "grpo", **given)
    tiny_runs.assert_same_run(tmp_path / "hurt", tmp_path / "whole", "grpo")


@pytest.mark.parametrize("method", ["grpo", "sft"])
def test_divergence_stops_the_run(quick, tmp_path, monkeypatch, method):
    """Every update not finite: stops after the limit, says where the batches are; no checkpoint
    holds a NaN.
    """
    given = dict(log__skipped_limit=2, checkpoint__every=1)
    if method == "sft":  # a learning rate that throws the weights out of range in one step
        given |= dict(optim__base__learning_rate=1e38)
    else:
        poison(monkeypatch, range(2, 99))
    told = "2 updates in a row were not finite, the last at step 3.*batches"
    with pytest.raises(divergence.Diverged, match=told) as error:
        go(tmp_path, method, **given)
    assert "optim.base.learning_rate" in str(error.value) and "log.skipped_limit" in str(
        error.value
    )
    assert [line["update/skipped"] for line in tiny_runs.lines(tmp_path)[1:]] == [0, 1, 1]
    held = tiny_runs.state(tmp_path, method, **given)
    assert not any(np.isnan(array).any() for array in held.values() if array.dtype.kind == "f")


@pytest.mark.parametrize("keep", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_diverged_goes_back_to_the_last_good_checkpoint(
    quick, tmp_path, monkeypatch, keep
):
    """The newest may be ruined, although its update was finite: the message names the one before,
    and the flags.
    """
    given = dict(log__skipped_limit=2, eval__every=0, checkpoint__every=1, checkpoint__keep=keep)
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    go(whole, "grpo", **given | dict(steps=2))
    with monkeypatch.context() as patch:
        poison(patch, range(4, 99))
        with pytest.raises(divergence.Diverged) as error:
            go(hurt, "grpo", **given)
    good = hurt / "checkpoints" / "step_000002"
    assert f"The last good checkpoint is that of step 2, {good}" in str(error.value)
    for flag in ("--force_config", "--config.optim.base.learning_rate", "diverged_step_000003"):
        assert flag in str(error.value)
    assert (hurt / "checkpoints" / "diverged_step_000003").is_dir()
    held, wanted = (tiny_runs.state(workdir, "grpo", **given) for workdir in (hurt, whole))
    assert all(np.array_equal(held[key], wanted[key]) for key in wanted)
    lower = dict(optim__base__learning_rate=1e-3)
    assert go(hurt, "grpo", force=True, **given | lower)["step"] == STEPS
    assert [line["step"] for line in tiny_runs.lines(hurt)] == [1, 2, 3, 4, 5]
    # what led to it is still there to be looked at
    aside = tiny_runs.lines(hurt / "set_aside_1")
    assert [line.get("update/skipped") for line in aside] == [0, 0, 0, 1, 1]


def test_without_a_checkpoint_that_is_known_to_be_good_none_is_renamed(
    quick, tmp_path, monkeypatch
):
    """A diverged run without a good checkpoint says so and leaves its checkpoints in place."""
    poison(monkeypatch, range(2, 99))
    given = dict(log__skipped_limit=2, eval__every=0)
    for every, told in ((1, "that of step 1 may be ruined"), (0, "there is none")):
        with pytest.raises(
            divergence.Diverged, match=f"known to be good: {told}.*another --workdir"
        ):
            go(tmp_path / str(every), "grpo", checkpoint__every=every, **given)
    assert os.listdir(tmp_path / "1" / "checkpoints") == ["step_000001"]


@pytest.mark.parametrize("keep", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_last_good_checkpoint_takes_no_more_room(quick, tmp_path, monkeypatch, keep):
    """While a checkpoint is written there are as many beside it as are kept, and one of them is
    good.
    """
    there, save = [], checkpoint.ocp.CheckpointManager.save

    def noted(self, step, *given, **named):
        there.append(sorted(self.all_steps()))
        return save(self, step, *given, **named)

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "save", noted)
    go(tmp_path, "sft", eval__every=0, checkpoint__every=1, checkpoint__keep=keep)
    assert there == [list(range(max(1, step - keep), step)) for step in range(1, STEPS + 1)]
    assert checkpoint.Checkpoints(str(tmp_path), read_only=True).steps() == [4, 5]


def test_corrupt_newest_checkpoint(quick, unbroken, tmp_path, capsys):
    """Falls back to the one before, says so, and ends like a run that was never hurt."""
    go(tmp_path, stop_at=4)
    newest = tmp_path / "checkpoints" / "step_000004"
    for file in newest.rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            file.write_bytes(b"\0" * 50)
    capsys.readouterr()
    go(tmp_path)
    printed = capsys.readouterr().out
    assert (
        "warning: " in printed
        and "went back to the checkpoint of step 2" in printed
        and "steps 3 to 5" in printed
    )
    tiny_runs.assert_same_run(tmp_path, unbroken("bridge"))
    assert len(tiny_runs.lines(tmp_path / "set_aside_1")) == 5


def contents(folder) -> dict[str, bytes]:
    """Every file below the folder by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def remove(checkpoints) -> None:
    shutil.rmtree(checkpoints)


def empty(checkpoints) -> None:
    shutil.rmtree(checkpoints)
    checkpoints.mkdir()


def put_away(checkpoints) -> None:
    for folder in list(checkpoints.iterdir()):
        folder.rename(checkpoints / f"damaged_{folder.name}")


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
    told = capsys.readouterr().out
    assert "but it has no checkpoint: the run begins again" in told and str(place) in told
    tiny_runs.assert_same_run(tmp_path, unbroken("bridge"))
    assert len(tiny_runs.rows(tmp_path / "solved.jsonl")) == 3
    go(tmp_path)
    assert not (tmp_path / "set_aside_2").exists()


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


@pytest.mark.parametrize("how", ["other", "unknown", "same"])
def test_what_is_taken_again_under_another_config_is_set_aside(quick, tmp_path, how):
    """After a kill: it does not come out as it was, so that its lines would be lost."""
    given = dict(checkpoint__every=2, eval__every=0)
    go(tmp_path, "grpo", stop_at=3, **given)
    before = tiny_runs.lines(tmp_path), contents(tmp_path / "rollouts")
    # the save of step 3 was cut off
    shutil.rmtree(tmp_path / "checkpoints" / "step_000003")
    if how == "unknown":
        (tmp_path / "config.json").unlink()
    lower = dict(optim__base__learning_rate=1e-3) if how == "other" else {}
    go(tmp_path, "grpo", force=True, **given | lower)
    place = tmp_path / "set_aside_1"
    assert place.exists() == (how != "same")
    if how != "same":
        assert tiny_runs.lines(place) == before[0]
        assert contents(place / "rollouts") == {"step_000003.jsonl": before[1]["step_000003.jsonl"]}
    assert [line["step"] for line in tiny_runs.lines(tmp_path)] == [1, 2, 3, 4, 5]


def test_checkpoints_none_of_which_can_be_read_are_refused(quick, tmp_path):
    """A run whose checkpoints are all broken is refused and left as it is."""
    go(tmp_path, "grpo", stop_at=4, eval__every=0)
    for folder in (tmp_path / "checkpoints").glob("step_*"):
        shutil.rmtree(folder / "state")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="no checkpoint in .* can be read"):
        go(tmp_path, "grpo", eval__every=0)
    assert contents(tmp_path) == before


def test_a_run_without_its_config_is_refused(quick, tmp_path):
    """Checkpoints without config.json are refused, and taken up only with force."""
    go(tmp_path, "grpo", stop_at=2, eval__every=0)
    (tmp_path / "config.json").unlink()
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="but no config.json"):
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
        with pytest.raises(ValueError, match="another process trains in"):
            go(tmp_path, "grpo", eval__every=0)
        # nor does a reader touch it
        tiny_runs.state(tmp_path, "grpo", eval__every=0)
    assert left.exists()
    assert go(tmp_path, "grpo", stop_at=3, eval__every=0)["step"] == 3
    assert not left.exists()


def test_what_a_checkpoint_counts_on_is_on_disk_before_it(quick, tmp_path, monkeypatch):
    """metrics.jsonl as it is then, whole: a power cut behind the save finds the lines of its steps."""
    synced, seen = {}, []
    fsync, save = os.fsync, checkpoint.Checkpoints.save

    def noted(handle):
        fsync(handle)
        synced[os.fstat(handle).st_ino] = os.fstat(handle).st_size

    def saved(self, step, *given, **named):
        path = tmp_path / "metrics.jsonl"
        assert synced.get(path.stat().st_ino) == path.stat().st_size
        seen.append([line["step"] for line in tiny_runs.lines(tmp_path)])
        return save(self, step, *given, **named)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(checkpoint.Checkpoints, "save", saved)
    go(tmp_path, "grpo", eval__every=0)
    assert seen == [[1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5]]


def test_a_hole_in_the_record_is_said_at_resume(quick, tmp_path, caplog):
    """A resumed run warns of the step whose line is missing."""
    go(tmp_path, "grpo", stop_at=4, eval__every=0)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[2] + lines[3])
    go(tmp_path, "grpo", eval__every=0)
    assert "the line of step 2 is missing" in caplog.text


@pytest.mark.parametrize("lost, told", [([1], "step 2"), ([0, 1, 2, 3, 4], "steps 1 to 5")])
def test_a_hole_in_the_record_of_a_finished_run_is_said(quick, tmp_path, caplog, lost, told):
    """Whether it is known to be finished, or its state is read for that."""
    go(tmp_path, "grpo", eval__every=0)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for n, line in enumerate(lines) if n not in lost))
    assert go(tmp_path, "grpo", eval__every=0)["step"] == STEPS
    assert f"metrics.jsonl: the line of {told} is missing" in caplog.text


@every_method
def test_metrics_contract(quick, unbroken, method):
    """The promised keys, on every line; budgets add up; evaluation when it is due and only then."""
    found = logbook.read(str(unbroken(method)))
    assert set(found[0]) == {"step", "time/eval_s"} | EVALUATED
    setup, _ = build.build(tiny_runs.config(method), jax.devices()[:1])
    made, spent, params = setup.method, set(), build.abstract_state(setup).params
    parts = [part for part in RATES if getattr(params, part) is not None]
    assert parts == {"bridge": ["theta", "theta_hat", "w"], "joint": ["theta", "w"]}.get(
        method, parts
    )
    for line in found[1:]:
        due, spec = line["step"] in (3, STEPS), made.batch_spec(line["step"] - 1)
        spent |= {
            "gradient_tokens",
            "gradient_prompt_tokens",
            "forward_tokens",
            "flops",
            *["demo_tokens"] * spec.demos,
        }
        spent |= {"generated_tokens", "prefilled_tokens"} if spec.sampled_by else set()
        wanted = EVERY_STEP | OF_METHOD.get(method, set()) | {f"budget/{name}" for name in spent}
        wanted |= SFT if spec.demos else set()
        wanted |= RL if spec.sampled_by else set()
        wanted |= {f"grad/norm_{part}" for part in parts} | {f"lr/{RATES[part]}" for part in parts}
        wanted |= EVALUATED | {"time/eval_s"} if due else set()
        if method in OF_METHOD:
            both = spec.demos and spec.sampled_by
            assert set(line) == wanted | (COOPERATION if both else set()), line["step"]
        assert wanted <= set(line), line["step"]
        assert line.get("rollout/logp_error_max", 0) < 1e-4
        assert line["compile/count"] == found[1]["compile/count"]
        outcomes = [value for key, value in line.items() if key.startswith("reward/outcome_")]
        assert not outcomes or sum(outcomes) == pytest.approx(1)
    if method not in OF_METHOD:  # it may pass its rows as often as it likes
        return
    if (
        method == "dapo"
    ):  # what further rounds sampled is generated, and for the most part not learned from
        assert found[-1]["budget/generated_tokens"] >= sum(
            line["rollout/tokens"] for line in found[1:]
        )
        assert found[-1]["budget/gradient_tokens"] <= found[-1]["budget/generated_tokens"]
        return
    passes = lambda b: (
        b.get("budget/demo_tokens", 0)
        + (2 if method == "bridge" else 1) * b.get("budget/generated_tokens", 0)
    )
    assert all(line["budget/gradient_tokens"] == passes(line) for line in found[1:])
    if made.sampling_policies and "budget/generated_tokens" in found[-1]:
        assert found[-1]["budget/generated_tokens"] == sum(
            line.get("rollout/tokens", 0) for line in found[1:]
        )


def test_rollout_files_are_complete(quick, unbroken):
    """Every sample with its prompt, ids, behaviour log-probabilities and outcome; the mean reward
    is theirs.
    """
    _, data = build.build(tiny_runs.config(), jax.devices()[:1])
    for line in logbook.read(str(unbroken("bridge")))[1:]:
        rows = tiny_runs.rows(unbroken("bridge") / "rollouts" / f"step_{line['step']:06d}.jsonl")
        drawn = batches.order(0, "rl", len(data.prompts.problems), 2 * (line["step"] - 1), 2)
        asked = [data.prompts.problems[i].id for i in drawn]
        assert [(row["id"], row["sample"]) for row in rows] == [
            (id, sample) for id in asked for sample in range(4)
        ]
        known = {problem.id: problem for problem in data.task.train}
        for row in rows:
            problem = known[row["id"]]
            assert (row["question"], row["answer"], row["level"]) == (
                problem.question,
                problem.answer,
                problem.level,
            )
            assert (
                row["text"] == data.tokenizer.decode(row["ids"])
                and len(row["logp"]) == len(row["ids"]) > 0
            )
            assert (
                row["stopped"] == (row["ids"][-1] == 0)
                and max(row["logp"]) <= 0
                and row["policy"] == "theta"
            )
            assert row["outcome"] == tiny_runs.parity(problem, row["text"])
        assert np.mean([row["outcome"] == "correct" for row in rows]) == line["reward/mean"]
        assert sum(len(row["ids"]) for row in rows) == line["rollout/tokens"]


def test_nothing_compiles_after_warm_up(quick, tmp_path, monkeypatch):
    """Two prompt buckets, evaluations, checkpoints: the count of the first step is that of the
    last; also resumed.
    """
    used, rows = [], StepSampler.rows
    monkeypatch.setattr(StepSampler, "rows", lambda *given: used.append(rows(*given)) or used[-1])
    given = dict(data__buckets=(4, 6), eval__every=2)
    go(tmp_path, "grpo", stop_at=3, **given)
    go(tmp_path, "grpo", **given)
    counts = [line["compile/count"] for line in logbook.read(str(tmp_path))[1:]]
    assert len(set(counts[:3])) == 1 and len(set(counts[3:])) == 1, counts
    assert {rows.bucket for rows in used} == {4, 6}


@pytest.mark.slow
def test_own_shadow_rollouts_are_counted(quick, tmp_path):
    """theta_hat samples too: its tokens are generated and pass backward once, like theta's."""
    go(tmp_path, method__bridge__variant__shadow_rollouts="own", steps=2, eval__every=0)
    rows = tiny_runs.rows(tmp_path / "rollouts" / "step_000002.jsonl")
    assert [row["policy"] for row in rows] == ["theta"] * 8 + ["theta_hat"] * 8
    last = logbook.read(str(tmp_path))[-1]
    sampled = [
        sum(len(row["ids"]) for row in tiny_runs.rows(file))
        for file in (tmp_path / "rollouts").glob("step_*")
    ]
    assert last["budget/generated_tokens"] == sum(sampled)
    assert last["budget/gradient_tokens"] == sum(sampled) + last["budget/demo_tokens"]


@pytest.mark.parametrize(
    "given, message",
    [
        (
            dict(log__mirrors=("tensorbord",)),
            "unknown mirror log.mirrors='tensorbord': did you mean 'tensorboard'",
        ),
        (dict(checkpoint__keep=0), "checkpoint.keep=0"),
    ],
)
def test_refused_before_anything_is_compiled(tmp_path, monkeypatch, given, message):
    """Bad settings of mirrors and checkpoints are refused before the first compilation."""
    monkeypatch.setattr(trainer, "compile_programs", lambda *_: pytest.fail("compiled"))
    with pytest.raises(ValueError, match=message):
        go(tmp_path, **given)


def test_workdir_that_cannot_be_written(tmp_path):
    """The error tells the user to give another --workdir."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to workdir .*another --workdir"):
        go(tmp_path / "file" / "run")


def test_a_step_is_logged_behind_the_next_samples(quick, tmp_path, monkeypatch):
    """The device never waits for the log: step n is fetched when the samples of n + 1 are under
    way.
    """
    told, start, write = [], StepSampler.start, logbook.Logbook.write

    def started(self, params, rows):
        told.append(f"sample {rows.step + 1}")
        return start(self, params, rows)

    def written(self, step, metrics):
        told.append(f"log {step}")
        return write(self, step, metrics)

    monkeypatch.setattr(StepSampler, "start", started)
    monkeypatch.setattr(logbook.Logbook, "write", written)
    go(tmp_path, "grpo", steps=3, eval__every=0, checkpoint__every=0)
    assert told == ["sample 1", "sample 2", "log 1", "sample 3", "log 2", "log 3"]


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
        assert go(tmp_path) == {"stopped": True}
    assert not go(tmp_path)["stopped"]
    tiny_runs.assert_same_run(tmp_path, unbroken("bridge"))


def test_sigterm_during_an_evaluation(quick, unbroken, tmp_path, monkeypatch):
    """Ends between two batches of it; the evaluation is made up for when the run goes on, also
    after a second signal.
    """
    evaluate_split, seen = evaluate.evaluate, []

    def second_batch(*given, **named):
        if len(seen) in (1, 2):  # the one of step 3, and the owed one
            os.kill(os.getpid(), signal.SIGTERM)
        seen.append(1)
        return evaluate_split(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "evaluate", second_batch)
        assert go(tmp_path)["stopped"]
        assert [line["step"] for line in tiny_runs.lines(tmp_path)] == [0, 1, 2]
        assert checkpoint.Checkpoints(str(tmp_path), read_only=True).steps()[-1] == 3
        assert go(tmp_path) == {"stopped": True}
    assert not go(tmp_path)["stopped"]
    tiny_runs.assert_same_run(tmp_path, unbroken("bridge"))


def test_a_broken_grader_stops_the_run(quick, tmp_path, monkeypatch):
    """A step with too many ungraded samples stops the run; the limit is a setting."""

    def broken(problem, answer):
        raise RuntimeError("out of order")

    monkeypatch.setattr(tiny_runs.arithmetic, "compare", broken)
    with pytest.raises(
        loop.GraderFailed,
        match="step 1: .*timeout 0.0%, grader_error 100.0%; allowed together: 10.0%",
    ):
        go(tmp_path, "grpo", eval__every=0)
    monkeypatch.setattr(tiny_runs.arithmetic, "compare", broken)
    assert (
        go(tmp_path, "grpo", eval__every=0, log__ungraded_limit=1.0, steps=2)[
            "reward/outcome_grader_error"
        ]
        == 1
    )


def test_other_data_under_the_same_config_is_refused(quick, tmp_path, monkeypatch):
    """A changed prompt or problem is told apart although no key of the config differs."""
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
    assert go(tmp_path, "sft")["step"] == STEPS


def test_derived_batch_is_saved(quick, tmp_path):
    """batch.txt holds the table of the run's rows."""
    go(tmp_path, "sft", stop_at=1)
    built, _ = build.build(tiny_runs.config("sft"), jax.devices()[:1])
    assert (tmp_path / "batch.txt").read_text() == built.settings.batch.format() + "\n"


@pytest.mark.slow
def test_a_prompt_that_comes_twice_in_a_step_gets_other_samples(quick, tmp_path):
    """Three problems for eight prompts a step: equal prompts, different samples, whatever part of
    the step they are in.
    """
    go(tmp_path, "grpo", steps=1, eval__every=0, batch__prompts_per_step=8, task__train_size=3)
    rows = tiny_runs.rows(tmp_path / "rollouts" / "step_000001.jsonl")
    groups = [tuple(tuple(row["ids"]) for row in rows[i : i + 4]) for i in range(0, 32, 4)]
    assert len({row["id"] for row in rows}) == 3 and len(set(groups)) == 8


@pytest.mark.slow
def test_held_out_problems_are_sampled_too(quick, tmp_path):
    """eval.samples: the mean of so many samples of each held-out problem, which solved.jsonl
    counts; no training prompt has them.
    """
    go(tmp_path, "grpo", steps=2, eval__every=2, eval__samples=3)
    lines, counted = logbook.read(str(tmp_path)), tiny_runs.rows(tmp_path / "solved.jsonl")
    evaluated = [line for line in lines if "eval/held_out_accuracy" in line]
    assert [line["step"] for line in evaluated] == [0, 2] == [row["step"] for row in counted]
    for line, row in zip(evaluated, counted):
        counts = [int(digit) for digit in row["held_out_sampled"]]
        assert len(counts) == 8 and line["eval/held_out_sampled_accuracy"] == pytest.approx(
            np.mean(counts) / 3
        )
    assert any(
        0 < int(digit) < 3 for row in counted for digit in row["held_out_sampled"]
    )  # the samples differ
    assert lines[-1]["compile/count"] == lines[1]["compile/count"]


def test_a_refused_force_config_changes_nothing(quick, tmp_path):
    """Another method cannot go on from the checkpoint: config.json still tells of the run that is
    there, which goes on.
    """
    go(tmp_path, "bridge", steps=2, eval__every=0)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(ValueError, match="another model, method or optimizer"):
        trainer.train(
            tiny_runs.config("sft", steps=2, eval__every=0),
            str(tmp_path),
            force_config=True,
            devices=jax.devices()[:1],
        )
    assert (tmp_path / "config.json").read_text() == before
    assert go(tmp_path, "bridge", steps=3, eval__every=0)["step"] == 3
