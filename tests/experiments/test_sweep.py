"""Sweeps: valid files; runs that are run, skipped, resumed and reported, each within a second."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import pytest

from bridge_jax.filesystem import hf_folder
from configs import ladder
from experiments.processes import WHOLE
from experiments.sweep import command, launch, plan, results
from tests import errors
from tests.filesystem import full_disk

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = {
    "model.path": "",
    "model.arch.hidden_size": 32,
    "model.arch.num_hidden_layers": 1,
    "model.arch.num_attention_heads": 2,
    "model.arch.num_key_value_heads": 1,
    "model.arch.head_dim": 16,
    "model.arch.intermediate_size": 64,
    "task.train_size": 24,
    "task.demo_size": 12,
    "task.eval_size": 8,
    "task.dev_size": 0,
    "steps": 2,
    "eval.every": 2,
    "eval.rows": 8,
    "batch.prompts_per_step": 2,
    "batch.samples_per_prompt": 2,
    "batch.demos_per_step": 2,
    "batch.microbatch_rows": 4,
}


def write(tmp_path, **parts) -> str:
    """A sweep file of these parts."""
    path = tmp_path / "some_sweep.py"
    path.write_text(
        f"def get_sweep():\n    return { ({'config': 'configs/ladder.py', 'seeds': [0], **parts})!r}\n"
    )
    return str(path)


@pytest.fixture
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def names(tmp_path, **parts) -> list[str]:
    return [run.name for run in plan.runs_of(plan.load(write(tmp_path, **parts)))]


def test_grid_zip_seeds_and_variants(at_root, tmp_path):
    """All combinations of variants, zip, grid and seeds; seeds innermost."""
    found = names(
        tmp_path,
        seeds=[0, 1],
        variants={"sft": {"method": "sft"}, "half": {"method": "bridge", "method.bridge.lam": 0.5}},
        grid={"task.demo_size": [8, 16]},
        zip={"model.lora_rank": [2, 4], "model.lora_alpha": [2.0, 8.0]},
    )
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 2
    assert found[:2] == [
        f"sft__lora_rank=2__lora_alpha=2.0__demo_size=8__seed={seed}" for seed in (0, 1)
    ]
    assert not any("lora_rank=2__lora_alpha=8.0" in name for name in found)
    runs = plan.runs_of(
        plan.load(
            write(tmp_path, variants={"half": {"method": "bridge", "method.bridge.lam": 0.5}})
        )
    )
    assert runs[0].config == "configs/ladder.py:bridge" and runs[0].settings == {
        "method.bridge.lam": 0.5
    }
    assert "--config.method.bridge.lam=0.5" in launch.command_of(
        runs[0], "D"
    ) and "--config.seed=0" in launch.command_of(runs[0], "D")


def test_a_run_is_known_by_its_config(at_root, tmp_path):
    """Other values have another fingerprint, so that their results are never mistaken."""
    prints = lambda **parts: [
        run.fingerprint for run in plan.runs_of(plan.load(write(tmp_path, **parts)))
    ]
    assert (
        prints() == prints()
        and len(set(prints(seeds=[0, 1]) + prints(set={"task.corrupt": 0.2}))) == 3
    )


def test_a_key_that_came_later_makes_no_other_run(at_root, tmp_path, monkeypatch):
    """At its default it is no part of the fingerprint; set, it is."""
    from configs import base

    (before,) = plan.runs_of(plan.load(write(tmp_path)))
    get_config = base.get_config

    def with_later_key(*args):
        config = get_config(*args)
        config.later = 1
        return config

    monkeypatch.setattr(base, "get_config", with_later_key)
    monkeypatch.setattr(plan, "all_defaults", plan.all_defaults.__wrapped__)
    assert plan.fingerprint(with_later_key()) == plan.fingerprint(with_later_key("bridge"))
    monkeypatch.setattr(
        "bridge_jax.training.settings.read", lambda *_, **__: None
    )  # which does not know the key
    assert plan.runs_of(plan.load(write(tmp_path)))[0].fingerprint == before.fingerprint
    assert (
        plan.runs_of(plan.load(write(tmp_path, set={"later": 2})))[0].fingerprint
        != before.fingerprint
    )


def test_the_weights_that_a_run_began_from(tmp_path):
    """Of a local folder: another byte, another hash; nothing of a hub name or of random weights."""
    hashes = []
    for content in (b"one", b"one", b"two"):
        (tmp_path / "model.safetensors").write_bytes(content)
        hashes.append(hf_folder.weights_hash(str(tmp_path)))
    assert hashes[0] == hashes[1] != hashes[2] and all(len(text) == 12 for text in hashes)
    assert hf_folder.weights_hash("") == hf_folder.weights_hash("org/name") == ""


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"set": {"task.corupt": 0.2}}, ("'task.corupt'", "'corrupt'")),
        ({"set": {"tusk.corrupt": 0.2}}, ("'tusk.corrupt'", "'task'")),
        (
            {"grid": {"method.bridge.lamb": [0.1]}},
            ("'method.bridge.lamb'", "'lam'"),
        ),
        ({"set": {"steps": "many"}}, "steps"),
        ({"set": {"task.corrupt": "much"}}, "corrupt"),
        ({"variants": {"x": {"method": "bridg"}}}, "'bridge'"),
        ({"seeds": []}, "'seeds'"),
        ({"sedes": [1]}, ("'sedes'", "'seeds'")),
        ({"seeds": 3}, ("seeds", "3")),
        ({"grid": {"task.corrupt": 0.2}}, ("grid", "'task.corrupt'", "list")),
        ({"zip": {"steps": [1, 2], "task.corrupt": [0.1]}}, "zip"),
        ({"config": "configs/lader.py"}, "configs/lader.py"),
        ({"set": {"seed": 7}}, ("set", "'seed'", "'seeds'")),
        ({"grid": {"seed": [1, 2]}}, ("grid", "'seed'")),
        ({"variants": {"x": {"seed": 7}}}, ("variants", "'x'", "'seed'")),
        ({"seeds": [0, 0]}, ("seeds", "distinct")),
        ({"variants": ["sft"]}, ("variants", "dict")),
        ({"variants": {"sft": None}}, ("variants", "'sft'", "dict")),
        ({"set": [("steps", 1)]}, ("set", "dict")),
        ({"grid": [("steps", [1])]}, ("grid", "dict")),
        ({"set": {1: 2}}, ("set", "dict")),
        ({"grid": {"steps": []}}, ("grid", "'steps'")),
    ],
)
def test_refused(at_root, tmp_path, parts, message):
    """An invalid sweep is an error that names the part and a remedy."""
    with errors.raises(ValueError, message):
        plan.runs_of(plan.load(write(tmp_path, **parts)))


def test_numbers_of_numpy_are_given_as_pythons(at_root, tmp_path):
    """Numbers of numpy appear as plain numbers in the command."""
    path = tmp_path / "lam.py"
    path.write_text(
        "import numpy as np\n\ndef get_sweep():\n    return {'config': 'configs/ladder.py:bridge', 'seeds': [0], "
        "'grid': {'method.bridge.lam': list(np.linspace(0.1, 0.9, 2))}}\n"
    )
    assert [launch.command_of(run, "D")[-1] for run in plan.runs_of(plan.load(str(path)))] == [
        "--config.method.bridge.lam=0.1",
        "--config.method.bridge.lam=0.9",
    ]


@pytest.mark.parametrize("text", ['{"name": "a"}\n', "torn{}\n", "[]\n"])
def test_a_file_of_another_kind_is_refused(tmp_path, text):
    """A line that is no result is refused; a torn last one is dropped."""
    path = tmp_path / "results.jsonl"
    path.write_text('{"name": "a", "fingerprint": "b", "weights": ""}\n' + text)
    with errors.raises(ValueError, "results.jsonl", "line 2"):
        results.done(str(path))
    with errors.raises(ValueError, str(tmp_path)):
        results.done(str(tmp_path))
    path.write_text('{"name": "a", "fingerprint": "b", "weights": ""}\n{"na')
    assert results.done(str(path)) == {("a", "b", "")}


@pytest.mark.parametrize(
    "sent", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_a_signal_stops_the_sweep(at_root, tmp_path, monkeypatch, sent):
    """Of three runs the first is asked to end, and the others are not begun."""
    begun = tmp_path / "begun"
    sleeper = f"open({str(begun)!r}, 'a').write('x'); import time; time.sleep(600)"
    script = (
        "from absl import app; from experiments.sweep import command, launch; import signal, sys; "
        # a shell may have it ignored in the background
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"launch.command_of = lambda *_: [sys.executable, '-c', {sleeper!r}]; "
        "command.define_flags(); app.run(command.main)"
    )
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            script,
            f"--sweep={write(tmp_path, seeds=[0, 1, 2])}",
            f"--workdir={tmp_path / 'runs'}",
        ],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not begun.exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(sent)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130 and begun.read_text() == "x"
    assert "the runs under way save and end" in err and "the same command goes on" in err


@pytest.mark.parametrize("text", ["def get_sweep(:", "x = 1", "def get_sweep():\n    return 3"])
def test_a_file_that_is_no_sweep(at_root, tmp_path, text):
    """A file without a valid get_sweep is refused."""
    path = tmp_path / "broken.py"
    path.write_text(text)
    with errors.raises(ValueError, "broken.py", "get_sweep"):
        plan.load(str(path))


def test_what_goes_wrong_around_a_run_is_its_own(at_root, tmp_path, monkeypatch):
    """An exception that is nobody's exit code ends this run, not the sweep."""

    def broken(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(launch.subprocess, "Popen", broken)
    runs = plan.runs_of(plan.load(write(tmp_path, seeds=[0, 1])))
    ended = launch.locally(runs, str(tmp_path), str(tmp_path / "results.jsonl"), [WHOLE])
    assert [result.error for result in ended] == ["OSError: no space left"] * 2


def run(environment, *args):
    """Exit code, standard output and standard error of the command."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.sweep", *args],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "given, message",
    [
        (
            "--slurm={timeout_min: 5}",
            "error: --slurm={timeout_min: 5} is no JSON object (Expecting property name",
        ),
        pytest.param(
            "--slurm=[5]",
            "error: --slurm=[5] is no JSON object ([5]); give one such as '{\"timeout_min\": 60}'",
            marks=pytest.mark.slow,
        ),
        ("--workdir=/dev/null/runs", "error: the results cannot be kept"),
        pytest.param(
            "--results=/dev/null/results.jsonl",
            "choose another --workdir or --results",
            marks=pytest.mark.slow,
        ),
        pytest.param("--jobs=0", "--jobs", marks=pytest.mark.slow),
    ],
)
def test_a_command_line_that_cannot_be_run_is_one_line(environment, tmp_path, given, message):
    """Invalid flags are an error without a traceback."""
    code, _, err = run(
        environment, f"--sweep={write(tmp_path, set=TINY)}", f"--workdir={tmp_path / 'runs'}", given
    )
    assert code == 2 and message in err and "Traceback" not in err


def finished(workdir, run) -> None:
    """The directory of a run as it is at its end."""
    folder = workdir / run.folder
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({"config": {"steps": 2, "model": {"path": ladder.BASE}}})
    )
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "eval/dev_accuracy": 0.5}\n')


@pytest.mark.parametrize("kept", [0, 1, -1])
def test_a_torn_result_swallows_no_other(at_root, tmp_path, kept):
    """After a kill in the middle of a line that run is done again, and the next line is whole."""
    path = tmp_path / "results.jsonl"
    one, two = plan.runs_of(plan.load(write(tmp_path, seeds=[0, 1])))
    finished(tmp_path, one), finished(tmp_path, two)
    assert results.record(one, str(tmp_path), str(path)) == ""
    whole = path.read_bytes()
    torn = whole[:kept] if kept >= 0 else whole[:-2]
    path.write_bytes(torn)
    assert results.done(str(path)) == set()
    assert results.record(two, str(tmp_path), str(path)) == ""
    assert results.done(str(path)) == {two.identity}
    assert results.record(one, str(tmp_path), str(path)) == ""
    assert results.done(str(path)) == {one.identity, two.identity}
    # a line that lacks its newline alone is whole
    path.write_bytes(whole[:-1])
    assert results.done(str(path)) == {one.identity}
    assert results.record(two, str(tmp_path), str(path)) == ""
    assert results.done(str(path)) == {one.identity, two.identity}


def test_a_full_disk_under_the_results_has_its_own_exit_code(at_root, tmp_path, monkeypatch):
    """The run is to do again; the sweep's own exit code says that room is wanted."""
    (run,) = plan.runs_of(plan.load(write(tmp_path)))
    monkeypatch.setattr(launch, "command_of", lambda *_: ["true"])
    with full_disk.small(tmp_path / "disk", 64) as disk:
        finished(tmp_path, run)
        filler = full_disk.fill(disk)
        path = str(disk / "results.jsonl")
        ended = launch.execute(run, str(tmp_path), path)
        assert ended.full and f"{path} could not be written (No space left" in ended.error
        filler.unlink()
        assert launch.execute(run, str(tmp_path), path) == launch.Result(run, "")
        assert results.done(path) == {run.identity}


@pytest.mark.parametrize("code, full", [(5, True), (2, False)])
def test_a_run_on_a_full_disk_gives_the_sweep_its_exit_code(
    at_root, tmp_path, monkeypatch, code, full
):
    """A full disk in a run gives the sweep exit code 5, other failures 1."""
    (run,) = plan.runs_of(plan.load(write(tmp_path)))
    monkeypatch.setattr(launch, "command_of", lambda *_: ["sh", "-c", f"echo why; exit {code}"])
    (tmp_path / (run.folder + ".log")).write_text("cut off in the middle of a li")
    ended = launch.execute(run, str(tmp_path), str(tmp_path / "results.jsonl"))
    assert (ended.full, ended.error.partition(" (")[0]) == (full, f"exit code {code}: why")
    monkeypatch.setattr(launch, "locally", lambda runs, *_: [ended])
    given = dict(sweep="s", workdir=str(tmp_path), results="", launcher="local", jobs=1, slurm="{}")
    monkeypatch.setattr(
        command, "flags", types.SimpleNamespace(FLAGS=types.SimpleNamespace(dry_run=False, **given))
    )
    monkeypatch.setattr(plan, "load", lambda _: None)
    monkeypatch.setattr(plan, "runs_of", lambda _: [run])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as left:
            command.main(["sweep"])
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert left.value.code == (5 if full else 1)


@pytest.mark.slow
def test_runs_skips_resumes_and_survives(environment, at_root, tmp_path):
    """A failed run does not stop the other; a second sweep skips, resumes, and fails again."""
    parts = dict(
        set=TINY,
        variants={
            "sft": {"method": "sft"},
            "broken": {"method": "sft", "model.path": str(tmp_path / "nowhere")},
        },
    )
    file, work = write(tmp_path, **parts), tmp_path / "runs"
    args = (f"--sweep={file}", f"--workdir={work}")
    code, out, _ = run(environment, *args, "--dry_run")
    assert code == 0 and out.count("to do") == 2 and not work.exists()
    first = plan.runs_of(plan.load(file))[0]
    assert (
        subprocess.run(
            [*launch.command_of(first, str(work)), "--stop_at=1"], cwd=ROOT, env=environment
        ).returncode
        == 0
    )
    assert run(environment, *args, "--dry_run")[1].count("cut off") == 1
    code, out, err = run(environment, *args, "--jobs=2")
    assert code == 1 and "1 of 2 runs are done, 1 failed" in out and "nowhere" in out, out + err
    assert "steps 2 to 2" in (work / f"{first.folder}.log").read_text()
    (line,) = [json.loads(text) for text in (work / "results.jsonl").read_text().splitlines()]
    assert (
        line["variant"] == "sft"
        and line["seed"] == 0
        and [point["step"] for point in line["curve"]] == [0, 2]
    )
    assert {"eval/held_out_accuracy", "budget/flops", "time/cpu_s", "sft/logp"} <= set(
        line["curve"][-1]
    )
    assert len(f"{int(line['solved']['held_out'], 16):b}") == 1 + 8
    code, out, _ = run(environment, *args)
    assert code == 1 and "2 runs, 1 done, 1 to do" in out
    # a killed sweep may not have written the line: the finished run is not trained again
    (work / "results.jsonl").unlink()
    before = (work / first.folder / "metrics.jsonl").read_text()
    code, out, _ = run(environment, *args, "--dry_run")
    assert "cut off" in out
    run(environment, *args)
    assert (work / first.folder / "metrics.jsonl").read_text() == before
    assert len((work / "results.jsonl").read_text().splitlines()) == 1


def test_runs_from_other_weights_are_to_do_again(at_root, tmp_path):
    """Results are of one base model; another one under the same path is run again."""
    base, path = tmp_path / "base", tmp_path / "results.jsonl"
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"one")
    planned = lambda: plan.runs_of(
        plan.load(write(tmp_path, set={"model.path": str(base)}, seeds=[0, 1]))
    )
    runs = planned()
    assert runs[0].weights == runs[1].weights == hf_folder.weights_hash(str(base))
    line = {"name": runs[0].name, "fingerprint": runs[0].fingerprint, "weights": runs[0].weights}
    path.write_text(json.dumps(line) + "\n")
    assert [run.identity in results.done(str(path)) for run in planned()] == [True, False]
    (base / "model.safetensors").write_bytes(b"two")
    assert [run.identity in results.done(str(path)) for run in planned()] == [False, False]


def test_other_settings_or_weights_have_a_directory_of_their_own(at_root, tmp_path):
    """A sweep whose file or base model has changed leaves its old runs alone and begins anew."""
    planned = lambda **given: plan.runs_of(
        plan.load(write(tmp_path, set={"model.path": str(tmp_path)} | given))
    )[0]
    (tmp_path / "model.safetensors").write_bytes(b"one")
    runs = [planned(), planned(), planned(**{"optim.base.learning_rate": 0.5})]
    (tmp_path / "model.safetensors").write_bytes(b"two")
    runs.append(planned())
    assert {run.name for run in runs} == {"run__seed=0"}
    assert runs[0].folder == runs[1].folder and len({run.folder for run in runs}) == 3
    assert all(
        f"--workdir={os.path.join('D', run.folder)}" in launch.command_of(run, "D") for run in runs
    )


@pytest.mark.slow
@pytest.mark.parametrize("shown", ["--dry_run", "--launcher=tpu"])
def test_a_table_may_be_cut_short_by_its_reader(environment, tmp_path, shown):
    """As `| head` does: no traceback."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "experiments.sweep",
            f"--sweep={write(tmp_path, seeds=[0, 1])}",
            f"--workdir={tmp_path / 'runs'}",
            shown,
        ],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert "BrokenPipe" not in process.stderr.read() and process.wait() == -signal.SIGPIPE


@pytest.mark.slow
def test_submitit(environment, tmp_path, monkeypatch):
    """The Slurm path by submitit's own local executor."""
    monkeypatch.chdir(ROOT)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    runs = plan.runs_of(plan.load(write(tmp_path, set=TINY, variants={"sft": {"method": "sft"}})))
    path = str(tmp_path / "results.jsonl")
    os.makedirs(tmp_path / "runs")
    ended = launch.by_submitit(runs, str(tmp_path / "runs"), path, "local", {"timeout_min": 5})
    assert [result.error for result in ended] == [""] and results.done(path) == {runs[0].identity}


def test_tpu_commands(at_root, tmp_path):
    """A line a run, which a shell reads back as the training command."""
    runs = plan.runs_of(plan.load(write(tmp_path, set={"data.buckets": (9,)}, seeds=[0, 1])))
    lines = launch.tpu_commands(runs, "gs/x").splitlines()
    assert len(lines) == 2 and all(
        "--worker=all" in line and "experiments.train" in line for line in lines
    )
    assert all("--config.hosts.coordinator=auto" in line for line in lines)
    import shlex

    inner = shlex.split(lines[1])[-1].removeprefix("--command=cd bridge_jax && ")
    assert "--config.data.buckets=(9,)" in shlex.split(inner) and "--config.seed=1" in shlex.split(
        inner
    )


def test_a_sweep_file_that_does_not_exist_lists_those_that_do(at_root):
    """The nearest first."""
    with pytest.raises(
        ValueError, match=r"no such file; there are configs/sweeps/lam\.py, "
    ) as error:
        plan.load("configs/sweeps/lamb.py")
    assert "__init__" not in str(error.value)


def test_begin_and_end_of_each_run_are_printed(at_root, tmp_path, monkeypatch, capsys):
    """At once, with its log; then how long it took, or why it failed."""
    runs = plan.runs_of(plan.load(write(tmp_path, seeds=[0, 1])))
    printed_before = []

    def execute(run, *_):
        printed_before.append(capsys.readouterr().out)
        return launch.Result(run, "exit code 2: no" if run.seed else "")

    monkeypatch.setattr(launch, "execute", execute)
    clock = iter([0.0, 192.0, 192.0, 193.0])
    monkeypatch.setattr(launch, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    ended = launch.locally(runs, "DIR", "results.jsonl", [WHOLE])
    begins = [
        f"[{number}/2] {run.name} begins; log: DIR/{run.folder}.log"
        for number, run in enumerate(runs, 1)
    ]
    ends = [
        f"[1/2] {runs[0].name}: done after 3 min 12 s",
        f"[2/2] {runs[1].name}: failed after 1 s: exit code 2: no",
    ]
    lines = "".join(printed_before).splitlines() + capsys.readouterr().out.splitlines()
    assert lines == [begins[0], ends[0], begins[1], ends[1]]
    assert printed_before[0] == begins[0] + "\n" and len(ended) == 2
