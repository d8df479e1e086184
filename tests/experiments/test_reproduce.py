"""experiments.reproduce: its commands by their own flags, resuming, the page from small results,
bad input.
"""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

from bridge_jax.evaluation import intervals
from bridge_jax.filesystem import files
from experiments.reproduce import (
    checks,
    command,
    demonstrations,
    estimate,
    jobs,
    launch,
    marks,
    page,
    rehearsal,
    results,
    side_tables,
    tables,
    tuning,
    variants,
)
from experiments.reproduce import printed as printing
from experiments.reproduce import request as requests
from experiments.reproduce.jobs import Job
from experiments.reproduce.request import Request
from tests import errors
from tests.experiments.in_process import exit_code
from tests.test_docs import parse

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture
def reproduce(monkeypatch, capfd, tmp_path):
    """Run the command in this process: (exit code, standard output, standard error)."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(command, "interrupt_by_signals", lambda: None)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = exit_code(command, "reproduce", f"--out={tmp_path / 'out'}", *arguments)
        shown = capfd.readouterr()
        return code, shown.out, shown.err

    return run


def printed(text: str) -> list[str]:
    """The commands of a dry run, without comments."""
    return [line for line in text.splitlines() if line.startswith("python ")]


def flags_of(line: str) -> dict[str, str]:
    """The flags of a printed command."""
    return dict(word.removeprefix("--").split("=", 1) for word in line.split() if "=" in word)


# ---- the commands


@pytest.mark.parametrize(
    "arguments",
    [
        (
            "--model=qwen25_3b",
            "--tuned",
            "--ablate=noise,lam",
            "--pass_at=32",
            "--seeds=0,1",
            "--topology=v5e:4x4",
            "--methods=base,sft,grpo,bridge",
        ),
        ("--model=llama32_3b", "--demos=luffy", "--train_flags=--config.mesh.fsdp=8"),
        ("--model=smollm2", "--rehearse", "--data_dir=docs"),
        ("--model=qwen3_8b", "--data_dir=docs", "--evaluate_flags=--decode_tensor=8 --rows=64"),
    ],
)
def test_every_printed_command_is_one_of_the_commands(reproduce, monkeypatch, capfd, arguments):
    """Its flags exist, its config loads, its keys exist and fit."""
    code, shown, _ = reproduce(*arguments, "--dry_run")
    assert code == 0
    lines = printed(shown)
    assert len(lines) > 15 and len(set(lines)) == len(lines)
    # one of a kind: a training of each method, and an evaluation of each kind
    seen = set()
    for line in lines:
        _, _, module, *rest = shlex.split(line)
        kind = (module, *sorted(word.split("=")[0] for word in rest))
        if kind not in seen:
            seen.add(kind)
            parse(module, tuple(rest), monkeypatch)
    assert {kind[0].removeprefix("experiments.") for kind in seen} >= {
        "train",
        "evaluate",
        "traces",
    }


def test_the_order_and_what_each_command_reads(reproduce, tmp_path):
    """Stages in order; a method that reads demonstrations gets the file that traces writes."""
    _, shown, told = reproduce("--model=qwen25_3b", "--dry_run", "--methods=base,sft,grpo,bridge")
    lines = printed(shown)
    modules = [line.split()[2].removeprefix("experiments.") for line in lines]
    ends = ["reproduce", *["train"] * 3, *["evaluate"] * 8, "reproduce"]
    assert modules == [*["traces"] * 3, *ends]
    sources = [(flags_of(line)["from"], flags_of(line).get("subset")) for line in lines[:3]]
    assert sources == [("openthoughts", None), ("s1k", None), ("openr1", "all")]
    assert flags_of(lines[3])["stages"] == "demos"
    demos, lines = str(tmp_path / "out" / "demos.jsonl"), lines[3:]
    traces = {
        line.split(":")[1].split()[0]: flags_of(line).get("config.task.traces")
        for line in lines[1:4]
    }
    assert traces == {"sft": demos, "grpo": None, "bridge": demos}
    asked = [flags_of(line) for line in lines[4:12]]
    assert asked[0]["model"] == "Qwen/Qwen2.5-3B" and asked[0]["tasks"].count(",") == 4
    assert asked[1]["tasks"] == "aime24" and asked[1]["samples"] == "8"
    assert asked[6]["model"] == flags_of(lines[3])["workdir"]
    assert all(one["max_new"] == "5000" for one in asked)
    assert "no --topology" in told and not (tmp_path / "out").exists()


def test_the_base_model_is_asked_as_its_runs_are(reproduce):
    """Llama's base model has no chat template; its runs record how they are asked."""
    _, shown, _ = reproduce("--model=llama32_3b", "--dry_run", "--methods=base,bridge")
    evaluations = [line for line in printed(shown) if "experiments.evaluate" in line]
    assert ["--prompt=plain" in line for line in evaluations] == [True, True, False, False]


FEW = ("--model=qwen25_3b", "--methods=base,grpo,bridge", "--tasks=math500")


def test_slurm(reproduce, tmp_path):
    """A job waits for those that it needs, the page for the end of all; GPUs where they are
    used.
    """
    _, shown, _ = reproduce(*FEW, "--launcher=slurm", "--topology=h200:8")
    assert shown.startswith(f"mkdir -p {tmp_path / 'out' / 'logs'}\ncat > ")
    names, waits, devices = [], {}, {}
    for line in (line for line in shown.splitlines() if line.startswith("job")):
        variable, _, rest = line.partition("=")
        words = shlex.split(rest.removeprefix("$(").removesuffix(")"))
        given = dict(word[2:].split("=", 1) for word in words if "=" in word)
        assert words[:2] == ["sbatch", "--parsable"] and variable == f"job{len(names) + 1}"
        names.append(given["job-name"])
        kind, *after = given.get("dependency", "").split(":")
        # else it would be pending for ever, and so would the page
        assert ("--kill-on-invalid-dep=yes" in words) == bool(kind)
        assert given["signal"] == "B:USR1@1800" and "--requeue" in words
        waits[names[-1]] = (kind, [names[int(one.removeprefix("$job")) - 1] for one in after])
        devices[names[-1]] = "$SBATCH_FLAGS" in words
        script, _, dash = words[words.index(str(tmp_path / "out" / "logs" / "job.sh")) :][:3]
        assert dash == "-m" and f"cat > {script} <<" in shown and given["output"].startswith("/")
    assert waits["train.grpo__seed=0"] == waits["evaluate.base"] == ("", [])
    assert waits["train.bridge__seed=0"] == ("afterok", ["demos.demos"])
    sources = ["demos.openthoughts", "demos.s1k", "demos.openr1_all"]
    assert waits["demos.demos"] == ("afterany", sources) and waits[sources[0]] == ("", [])
    assert waits["evaluate.bridge__seed=0"] == ("afterok", ["train.bridge__seed=0"])
    assert waits["plan.bridge"] == ("afterany", ["plan.grpo"])
    assert names[-1] == "page.page" and waits["page.page"] == ("afterany", names[:-1])
    assert {name.partition(".")[0] for name, used in devices.items() if used} == {
        "train",
        "evaluate",
    }


@pytest.mark.parametrize("late, end", [(True, 0), (False, 7)])
def test_a_job_of_slurm_saves_before_its_time_limit(tmp_path, late, end):
    """The command gets SIGTERM, and the job goes back to the queue; without a signal it just
    ends.
    """
    tool = tmp_path / "scontrol"
    tool.write_text(f'#!/bin/sh\necho "$@" > {tmp_path / "requeued"}\n')
    tool.chmod(0o755)
    (tmp_path / "job.sh").write_text(printing.JOB_SCRIPT)
    code = (
        "import pathlib, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
    )
    code += "signal.pause()" if late else f"sys.exit({end})"
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "12"}
    line = ["bash", str(tmp_path / "job.sh"), sys.executable, "-c", code]
    job = subprocess.Popen(line, env=environment)
    while late and not (tmp_path / "ready").exists():
        time.sleep(0.02)
    if late:
        job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == end and (tmp_path / "requeued").exists() == late
    if late:
        assert (tmp_path / "requeued").read_text() == "requeue 12\n"


def test_the_validation_problems_come_before_tuning(reproduce):
    """Every later job of Slurm waits for them."""
    _, shown, _ = reproduce(*FEW, "--launcher=slurm", "--tuned", "--traces=README.md")
    validation, *later = [line for line in shown.splitlines() if line.startswith("job")]
    assert "--job-name=validation" in validation and "$SBATCH_CPU_FLAGS" in validation
    assert all("dependency=afterok:$job1" in line for line in later[:-1])


def test_tpu(reproduce):
    """A slice trains on all hosts; what is one process's work is a comment that says where."""
    _, shown, _ = reproduce(*FEW, "--launcher=tpu")
    lines = [line for line in shown.splitlines() if "python -m" in line]
    trainings = [line for line in lines if "experiments.train" in line]
    assert len(trainings) == 2
    assert all("--worker=all" in line and "coordinator=auto" in line for line in trainings)
    others = [line for line in lines if line not in trainings]
    assert {line.split(":")[0] for line in others if "experiments.evaluate" in line} == {
        "# on a machine with one host"
    }
    assert len(others) > 3 and all(line.startswith("# on a") for line in others)


@pytest.mark.parametrize("launcher", ["slurm", "tpu"])
def test_several_machines_share_the_folder(reproduce, launcher):
    """A relative --out would be a folder of each."""
    code, shown, told = reproduce(*FEW, f"--launcher={launcher}", "--out=runs/paper")
    assert code == 2 and shown == "" and told.count("\n") == 1
    errors.assert_names(told, "--out", "runs/paper", launcher)


@pytest.mark.parametrize(
    "model, trained",
    [
        ("llama32_3b", {*requests.METHODS, "luffy"} - {"base"}),
        ("qwen3_8b", set(requests.METHODS) - {"base"}),
        ("qwen25_3b", set(requests.METHODS) - {"base"}),
    ],
)
def test_methods_that_are_published(reproduce, model, trained):
    """All of the paper's for every model, LUFFY where it is published; others by --methods."""
    _, shown, _ = reproduce(f"--model={model}", "--dry_run", "--stages=train,evaluate")
    lines = printed(shown)
    assert {flags_of(line)["config"].partition(":")[2] for line in lines if ".train" in line} == (
        trained
    )
    # the base model is evaluated
    assert sum("experiments.evaluate" in line for line in lines) == 2 * (len(trained) + 1)


def test_estimate(reproduce):
    """Hours are steps times the plan's seconds; a method without a plan has another's as a
    bound.
    """
    _, _, told = reproduce("--model=qwen25_3b", "--dry_run", "--topology=v5e:4x4")
    cells = {
        line.split("  ")[1].strip(): line.split() for line in told.splitlines() if "  " in line
    }
    # docs/plans: 37.75 s a step; cold start has 50 steps of 2.23 s and 450 of 37.75 s
    assert cells["RL-zero"][1:6] == ["8.7", "yes", "37.7", "5.2", "6.1"]
    assert cells["Cold-start"][1:6] == ["8.7", "yes", "34.2", "4.7", "12.3"]
    # bridge's plan: 500 steps of 49.2 s
    assert cells["CHORD"][1:5] == ["<=11.2", "yes", "<=49.2", "<=6.8"]
    assert cells["SFT"][1:5] == ["<=8.7", "yes", "<=37.7", "<=5.2"]
    lines = told.splitlines()
    assert "<= at most, from the plan of RL-zero: SFT, Naive alternating" in lines
    bridge = "SFT+RL hybrid, CHORD, BRIDGE without J_meta"
    assert f"<= at most, from the plan of BRIDGE: {bridge}" in lines
    # 1,517 and 8 x 30 answers; 28.5 s for 320 samples of 3,000 tokens
    errors.assert_names(told, "evaluation: the planner has no plan of it", "1,757 answers")
    assert f"take {1757 * 5000 * 28.505 / (320 * 3000) / 60:.1f} minutes a model" in told


def plan_line(request: Request, method: str, topology: str) -> str:
    """A line of a file of plans, without the sizes."""
    plan = {"name": pathlib.Path(request.config).stem, "topology": topology, "method": method}
    return json.dumps(plan | {"changed": "", "step": {}, "phases": [{"peak": 1e9}]}) + "\n"


def test_a_bound_that_does_not_fit_says_nothing():
    """CHORD may fit where BRIDGE does not."""
    plan = {"phases": [{"fits": True}, {"fits": False}]}
    assert [estimate.verdict(plan, bound) for bound in (False, True)] == ["NO", "?"]


def test_estimates_of_topologies_without_plans(tmp_path):
    """Those that have plans are named, and taken where none is asked for; H100 before others."""
    asked = Request("qwen3_8b", str(tmp_path), topology="v5e:2x2")
    assert "v5e:8x8" in estimate.text(asked) and "--stages=plan" in estimate.text(asked)
    free = Request("qwen3_8b", str(tmp_path))
    lines = [plan_line(free, "bridge", name) for name in ("a100:8", "h100:8")]
    estimate.own_plans(free).write_text("".join(lines))
    text = estimate.text(free)
    errors.assert_names(text, "no --topology", "on h100:8")
    assert "1.0" in next(line for line in text.splitlines() if "BRIDGE  " in line)


def test_plans_that_are_made_are_not_advised_again(tmp_path):
    """A rehearsal plans two methods, and has nothing to compare with the paper's hours."""
    request = Request("qwen25_3b", str(tmp_path), rehearse=True, topology="cpu:1")
    before = estimate.text(request)
    assert "--stages=plan" in before and "paper" not in before
    lines = [plan_line(request, method, "cpu:1") for method in estimate.planned(request)]
    estimate.own_plans(request).write_text("".join(lines))
    assert len(lines) == 2 and "--stages=plan" not in estimate.text(request)
    assert all(marks.done(request, job) for job in jobs.plan_jobs(request))


# ---- resuming


def fake(tmp_path, name: str, code: str, needs: tuple[Job, ...] = ()) -> Job:
    """A job of a few lines of Python, which is done when it has written its file."""
    out = tmp_path / name
    job = Job("train", name, "-", (), out, needs)
    return type("Fake", (Job,), {"command": [sys.executable, "-c", code.format(out=str(out))]})(
        *job
    )


WRITES = "open({out!r}, 'a').write('x')"


def test_what_is_done_is_not_repeated(tmp_path, capfd):
    """A failed job is named with its log, loses no other, and is the only one begun again."""
    is_done = lambda job: job.out.exists()
    bad = fake(tmp_path, "bad", "import sys; print('error: no luck'); sys.exit(3)")
    behind = fake(tmp_path, "behind", WRITES, (bad,))
    every = [fake(tmp_path, "one", WRITES), bad, behind, fake(tmp_path, "two", WRITES)]
    failures = launch.run(every, is_done, 2, tmp_path / "logs")
    assert [(one.job.name, one.code) for one in failures] == [("bad", 3), ("behind", None)]
    assert launch.exit_code(failures) == 1
    text = launch.explain(failures[0], tmp_path / "logs")
    errors.assert_names(text, "bad", 3, "no luck", str(tmp_path / "logs" / "train.bad.log"))
    errors.assert_names(launch.explain(failures[1], tmp_path), "behind", "bad")
    every[1] = fake(tmp_path, "bad", WRITES)
    every[2] = fake(tmp_path, "behind", WRITES, (every[1],))
    capfd.readouterr()
    assert launch.run(every, is_done, 2, tmp_path / "logs") == []
    assert {name: (tmp_path / name).read_text() for name in ("one", "bad", "behind", "two")} == (
        dict.fromkeys(("one", "bad", "behind", "two"), "x")
    )
    assert "[1/2] train bad begins" in capfd.readouterr().out


def test_a_job_that_stops_early_is_not_done(tmp_path):
    """Exit code 0 after a signal: the run is saved, not finished."""
    (failure,) = launch.run([fake(tmp_path, "a", "print('saved')")], lambda job: False, 1, tmp_path)
    assert failure.code == 0 and "saved" in failure.reason and launch.exit_code([failure]) == 1


def test_a_full_disk_has_its_exit_code(tmp_path):
    """As of every command."""
    full = fake(tmp_path, "a", "raise SystemExit(5)")
    assert launch.exit_code(launch.run([full], lambda job: False, 1, tmp_path)) == 5


def test_an_interrupt_ends_the_jobs(tmp_path, monkeypatch):
    """The job under way is asked to end, and has ended when the interrupt leaves."""
    code = (
        "import pathlib, signal, sys, time; out = pathlib.Path({out!r});"
        "signal.signal(signal.SIGTERM, lambda *_: (out.with_suffix('.saved').touch(), sys.exit(0)));"
        "out.with_suffix('.ready').touch(); time.sleep(600)"
    )

    def look(under_way):
        while not (tmp_path / "a.ready").exists():
            time.sleep(0.02)
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "wait_for_one", look)
    with pytest.raises(KeyboardInterrupt):
        launch.run([fake(tmp_path, "a", code)], lambda job: False, 1, tmp_path)
    assert (tmp_path / "a.saved").exists()


def test_marks_are_what_the_commands_wrote(tmp_path):
    """Traces by their manifest, an evaluation by its benchmarks, its limit and its run's age."""
    request = Request("qwen25_3b", str(tmp_path))
    demos = jobs.demos_jobs(request)[0]
    demos.out.parent.mkdir()
    demos.out.write_text("{}\n")
    assert not marks.done(request, demos)
    pathlib.Path(f"{demos.out}.manifest.json").write_text("{}")
    assert marks.done(request, demos)
    greedy = next(job for job in jobs.evaluate_jobs(request) if job.name == "sft__seed=0")
    write_results(greedy.out, dict.fromkeys(requests.BENCHMARKS, "10"))
    assert marks.done(request, greedy)
    more = Request("qwen25_3b", str(tmp_path), tasks=(*requests.BENCHMARKS, "aime25"))
    again = next(job for job in jobs.evaluate_jobs(more) if job.name == "sft__seed=0")
    assert not marks.done(more, again)
    # other settings: the command is begun, and evaluate says what differs
    path = greedy.out / "results.json"
    report = json.loads(path.read_text())
    path.write_text(json.dumps(report | {"settings": {"limit": 0, "max_new": 100}}))
    assert not marks.done(request, greedy)
    path.write_text(json.dumps(report | {"settings": {"limit": 0, "max_new": 5000}}))
    assert marks.done(request, greedy)
    # a run that was finished after its evaluation is evaluated again
    run = variants.run_folder(request, variants.Variant("sft"), 0)
    run.mkdir(parents=True)
    (run / "finished.json").write_text("{}")
    os.utime(run / "finished.json", (time.time() + 60,) * 2)
    assert not marks.done(request, greedy)


# ---- demonstrations


@pytest.fixture
def two(tmp_path) -> Request:
    """A request whose two sources have solutions of problems 0 to 2, and of 2 and 3, of six."""
    request = Request("qwen25_3b", str(tmp_path / "out"), demos="openthoughts,openr1:all")
    for job, numbers in zip(jobs.demos_jobs(request), ((0, 1, 2), (2, 3)), strict=True):
        write_source(job, numbers, problems=6)
    return request


def write_source(job: Job, numbers: tuple[int, ...], problems: int) -> None:
    """A source's file, and of its manifest what is read."""
    rows = [
        {"problem": f"p {n}", "solution": f"{job.name} {n}", "answer": "1", "tokens": 10 + n}
        for n in numbers
    ]
    job.out.parent.mkdir(parents=True, exist_ok=True)
    job.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = {
        "rows": 100,
        "states": {"kept": len(rows)},
        "source": {"hub": f"owner/{job.name}"},
        "task": {"problems_to_match": problems},
    }
    pathlib.Path(f"{job.out}.manifest.json").write_text(json.dumps(manifest))


def test_the_first_source_of_a_problem_counts(two):
    """One demonstration of each problem, with counts of every source; made once."""
    said = demonstrations.write(two)
    assert "kept 5 demonstrations for 4 of the 6 problems" in said
    rows = [row for _, row in files.rows(two.traces_file)]
    given = [(row["problem"], row["solution"].split()[0]) for row in rows]
    assert given == [(f"p {n}", "openthoughts") for n in range(3)] + [("p 3", "openr1_all")]
    manifest = demonstrations.manifest_of(two.traces_file)
    used = {name: (one["kept"], one["used"]) for name, one in manifest["sources"].items()}
    assert used == {"openthoughts": (3, 3), "openr1_all": (2, 1)}
    assert manifest["tokens"]["max"] == 13 and manifest["problems"] == 6
    note = page.demos_note(two)
    errors.assert_names(note, "4 of the 6 problems", "1 of the 100 rows read of owner/openr1_all")
    jobs.demos_jobs(two)[0].out.write_text("")
    assert demonstrations.write(two) == said and marks.done(two, jobs.join_job(two))


def test_names_of_sources():
    """Of hub and paths, without the folders above; each is a file's name."""
    names = {"openr1:all": "openr1_all", "owner/set:a": "owner_set_a", "/a/b/c.jsonl": "b_c.jsonl"}
    assert {given: jobs.source_name(given) for given in names} == names


def test_few_demonstrations(two):
    """Fewer than half of the problems are an error with the ways out, unless they are allowed."""
    for job in jobs.demos_jobs(two):
        write_source(job, (1,), problems=3)
    with errors.raises(
        ValueError, "kept 2", "1 of the 3", "--demos", "--traces", "--allow_few_demos"
    ):
        demonstrations.write(two)
    assert not pathlib.Path(two.traces_file).exists() and not marks.done(two, jobs.join_job(two))
    allowed = Request(**two.__dict__ | {"allow_few_demos": True})
    assert "1 of the 3 problems" in demonstrations.write(allowed)


@pytest.mark.parametrize("allow", [False, True])
def test_no_demonstrations_at_all(two, allow):
    """Are never enough."""
    for job in jobs.demos_jobs(two):
        write_source(job, (), problems=3)
    request = Request(**two.__dict__ | {"allow_few_demos": allow})
    with errors.raises(ValueError, "0 of the 3", "--demos"):
        demonstrations.write(request)


def test_a_source_that_is_not_made(two):
    """Is named, so that no training goes without it by mistake."""
    pathlib.Path(f"{jobs.demos_jobs(two)[1].out}.manifest.json").unlink()
    with errors.raises(ValueError, "openr1_all", "--demos"):
        demonstrations.write(two)
    allowed = Request(**two.__dict__ | {"allow_few_demos": True})
    assert "3 of openthoughts)" in demonstrations.write(allowed)


def test_the_stage_joins_what_its_jobs_made(reproduce, two, monkeypatch):
    """After the sources' commands, of which nothing is left here; the count is printed."""
    asked = ("--model=qwen25_3b", "--stages=demos", f"--demos={two.demos}")
    code, shown, _ = reproduce(*asked)
    assert code == 0 and "demos: kept 5 demonstrations for 4 of the 6 problems" in shown
    pathlib.Path(two.traces_file).unlink()
    monkeypatch.setattr(demonstrations, "FLOOR", 0.9)
    code, shown, told = reproduce(*asked)
    assert code == 1
    errors.assert_names(told, "demos", "4 of the 6", "--allow_few_demos")


def test_own_demonstrations_need_no_stage(reproduce):
    """With --traces nothing is made or joined, and no training waits."""
    _, shown, _ = reproduce(*FEW, "--traces=README.md", "--launcher=slurm")
    assert "stages=demos" not in shown and "experiments.traces" not in shown
    assert all("--dependency" not in line for line in shown.splitlines() if ".train" in line)


# ---- the page


def write_results(folder: pathlib.Path, right: dict[str, str], kind: str = "greedy") -> None:
    """Files of an evaluation that solved the problems with a 1; the last of n was too long."""
    folder.mkdir(parents=True)
    parts = {}
    for task, bits in right.items():
        rows = [
            {"id": 100 - n, "sample": "greedy", "outcome": "correct" if bit == "1" else "wrong"}
            for n, bit in enumerate(bits)
        ]
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        score = {"value": bits.count("1") / len(bits)} | dict.fromkeys(
            ("stderr", "sampling_error", "interval", "sampling_interval")
        )
        parts[task] = {
            "n": len(bits),
            "scores": {"strict": {"avg@8": score}},
            "lengths_and_outcomes": {
                "greedy": {
                    "rows": len(bits),
                    "tokens": 20.0,
                    "truncated": 0.5,
                    "outcomes": {"strict": {"no_answer": 0.25, "timeout": 0.0}},
                }
            },
        }
    report = {"settings": {"limit": 0}, "benchmarks": parts}
    (folder / "results.json").write_text(json.dumps(report))


def write_run(folder: pathlib.Path, method: str, rewards: tuple[float, ...]) -> None:
    """Files of a finished run."""
    folder.mkdir(parents=True)
    config = {"method": {"name": method}, "steps": len(rewards), "seed": 0, "eval": {"samples": 0}}
    (folder / "config.json").write_text(
        json.dumps({"config": config, "fingerprints": {}, "diff": {}})
    )
    lines = [
        {
            "step": step,
            "reward/mean": reward,
            "rollout/length": 10.0 * step,
            "time/wall_s": 1800.0 * step,
            "memory/device_peak_gib": 40.0,
            "memory/host_peak_gib": 9.0,
            "budget/generated_tokens": 1000.0 * step,
        }
        for step, reward in enumerate(rewards, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


# 8 of 10 and 4 of 5; 5 of 10 and 2 of 5; of what both were asked bridge alone solved 5, grpo 0
BRIDGE = {"math500": "1111111100", "amc23": "11110"}
GRPO = {"math500": "1111100000", "amc23": "11000"}


@pytest.fixture
def made(tmp_path) -> Request:
    """A folder with results of the base model, RL-zero and BRIDGE, on two benchmarks."""
    request = Request(
        "qwen25_3b",
        str(tmp_path / "out"),
        methods=("base", "grpo", "bridge"),
        tasks=("math500", "amc23"),
        ablate=("noise",),
    )
    for method, right in (("grpo", GRPO), ("bridge", BRIDGE)):
        variant = variants.Variant(method)
        write_results(variants.evaluation_folder(request, variant, 0), right)
        write_run(variants.run_folder(request, variant, 0), method, (0.1, 0.2, 0.4))
    noisy = variants.ablations(request)[1]
    write_results(variants.evaluation_folder(request, noisy, 0), GRPO)
    return request


def entries(request: Request) -> dict[str, results.Entry]:
    found = results.entries(request, jobs.all_variants(request), [])
    return {entry.variant.label: entry for entry in found}


def test_main_table(made):
    """Wilson's interval of 8 of 10 and of 5 of 10; the published row stands below ours."""
    table = tables.main_table(made, list(entries(made).values()))
    assert table.head == ["%", "math500 (n=10)", "amc23 (n=5)", "average"]
    labels = [row[0] for row in table.rows]
    assert labels[:4] == ["Base", "published: Base", "RL-zero", "published: RL-zero"]
    rows = dict(zip(labels, (row[1:] for row in table.rows)))
    assert rows["Base"] == ["-", "-", "-"] and rows["published: BRIDGE"] == ["66.2", "47.5", "36.0"]
    # (p + t^2/2n -+ t sqrt(pq/n + t^2/4n^2)) / (1 + t^2/n), t = 2.262 of 9 degrees of freedom
    t, n, p = 2.2621572, 10, 0.8
    half = t * (p * (1 - p) / n + t**2 / (4 * n**2)) ** 0.5
    low, high = ((p + t**2 / (2 * n) + sign * half) / (1 + t**2 / n) for sign in (-1, 1))
    assert rows["BRIDGE"][0] == f"80.0 [{100 * low:.1f}, {100 * high:.1f}]"
    assert rows["BRIDGE"][2].startswith("80.0 [") and rows["RL-zero"][2].startswith("45.0 [")
    # methods of the paper that are not ours stand at the end
    assert labels[-1] == "published: CHORD" and "published: SFT" in labels


def test_paired_table(made):
    """Three of ten and two of five more; five wins, no loss: p = 2 / 2^5."""
    head, rows = side_tables.paired_table(made, list(entries(made).values()))
    (grpo, noisy) = rows
    assert grpo[0] == "RL-zero" and grpo[4:] == ["5 / 0", "0.0625", "0"]
    # paired differences: three of 1 and seven of 0: t s / sqrt(n), s^2 = 10/9 .3 .7
    half = 2.2621572 * (0.3 * 0.7 / 9) ** 0.5
    assert grpo[1] == f"+30.0 [{100 * (0.3 - half):+.1f}, {100 * (0.3 + half):+.1f}]"
    assert grpo[3].startswith("+35.0 [") and noisy[0] == "BRIDGE, noise 0.2"


def test_cost_ablations_and_answers(made):
    """Figures of the last step, the paper's beside them."""
    found = list(entries(made).values())
    (grpo, bridge) = side_tables.cost_table(made, found).rows
    assert bridge == ["BRIDGE", "1.5", "40", "9", "3,000", "80.0", "6.9", "59.3", "36.4"]
    assert grpo[6:] == ["6.1", "52.2", "32.2"]
    ablated = side_tables.ablation_table(made, found).rows
    assert [row[0] for row in ablated] == [
        "RL-zero",
        "BRIDGE",
        "RL-zero, noise 0.2",
        "BRIDGE, noise 0.2",
    ]
    assert ablated[2][1:] == ["-", "13.9"] and ablated[3][1].startswith("45.0 [")
    assert side_tables.answers_table(found).rows[1] == ["BRIDGE", "20", "50.0", "25.0", "0.0"]


def test_several_seeds(made):
    """The interval is over seeds and problems; the difference is of the seeds' means."""
    more = Request(**made.__dict__ | {"seeds": (0, 1)})
    for method, right in (("grpo", GRPO), ("bridge", BRIDGE)):
        write_results(variants.evaluation_folder(more, variants.Variant(method), 1), right)
    found = entries(more)
    score = results.score(found["BRIDGE"], "math500")
    assert score.value == pytest.approx(0.8) and score.interval[0] < 0.8 < score.interval[1]
    gap = results.difference(found["BRIDGE"], found["RL-zero"], "math500")
    assert isinstance(gap, intervals.Interval) and gap.mean == pytest.approx(0.3)
    # a seed on one side alone: paired over problems, by the means
    mixed = results.difference(found["BRIDGE"], entries(made)["RL-zero"], "math500")
    assert mixed.mean == pytest.approx(0.3)


def test_the_sign_test_is_of_one_seed(made):
    """The first that both have; the base model is of every seed; none in common is said."""
    request = Request(**made.__dict__ | {"seeds": (0, 1, 2)})
    write = lambda method, seed, right: write_results(
        variants.evaluation_folder(request, variants.Variant(method), seed), right
    )
    # RL-zero of seed 1 solved what BRIDGE of seed 0 did, and BRIDGE of seed 1 did not
    write("bridge", 1, GRPO)
    write("grpo", 1, BRIDGE)
    write("base", 0, GRPO)
    found = entries(request)
    del found["RL-zero"].greedy[0]
    test = lambda first, second: results.sign_test(request, found[first], found[second])
    assert test("BRIDGE", "RL-zero") == (0, 5, 0.0625, 1)
    del found["BRIDGE"].greedy[0]
    assert test("BRIDGE", "Base") == (0, 0, 1.0, 1)
    assert test("Base", "BRIDGE") == (0, 0, 1.0, 1)
    del found["BRIDGE"].greedy[1]
    found["BRIDGE"].greedy[2] = found["RL-zero"].greedy[1]
    assert test("BRIDGE", "RL-zero") is None
    table = side_tables.paired_table(request, list(found.values()))
    assert [row[-3:] for row in table.rows if row[0] == "RL-zero"] == [["-", "-", "no common one"]]


def test_a_prompt_that_was_too_long_is_not_solved(tmp_path):
    """Problems are in the order of their ids, those that were not asked count 0."""
    write_results(tmp_path / "a", {"math500": "110"})
    path = tmp_path / "a" / "results.json"
    report = json.loads(path.read_text())
    report["benchmarks"]["math500"]["n"] = 4
    path.write_text(json.dumps(report))
    assert results.greedy_scores(tmp_path / "a", "math500").tolist() == [0.0, 1.0, 1.0, 0.0]
    assert results.greedy_scores(tmp_path / "a", "amc23") is None


def test_the_page_and_its_files(made):
    """All files; what is missing is said; the HTML is whole in itself."""
    text = page.write(made)
    folder = made.folder / "page"
    names = ["dynamics.png", "page.html", "page.md", "table.csv", "table.tex"]
    assert sorted(path.name for path in folder.iterdir()) == names and "BRIDGE" in text
    written = (folder / "page.md").read_text()
    errors.assert_names(written, "missing: Base", "arXiv 2509.06948 v3", "*published: BRIDGE*")
    assert "rehearsal" not in written.lower()
    whole = (folder / "page.html").read_text()
    assert "data:image/png;base64," in whole and 'class="published"' in whole
    csv_lines = (folder / "table.csv").read_text().splitlines()
    assert "BRIDGE,0,math500,10,1,0.800000" in "\n".join(csv_lines)
    assert "BRIDGE,1,math500,,,0.662000,," in csv_lines
    latex = (folder / "table.tex").read_text()
    assert r"\textit{published: BRIDGE}" in latex and latex.count(r"\\") == 1 + len(
        tables.main_table(made, list(entries(made).values())).rows
    )


def test_a_rehearsals_page_says_so(made):
    """In the title and before every figure."""
    rehearsed = Request(**made.__dict__ | {"rehearse": True})
    written = page.write(rehearsed)
    text = (made.folder / "page" / "page.md").read_text()
    assert "proves that the parts fit together, and nothing else" in text and written
    assert text.startswith("# Rehearsal")
    latex = (made.folder / "page" / "table.tex").read_text()
    assert "and nothing else" in latex.partition(r"\caption{")[2].partition("\n")[0]


def test_no_page_without_results(tmp_path):
    """The way out is named."""
    with errors.raises(ValueError, str(tmp_path)):
        page.write(Request("qwen25_3b", str(tmp_path)))


def test_a_failed_page_is_named(reproduce, tmp_path):
    """As a command that fails, so that it loses no other failure's line."""
    code, _, told = reproduce("--model=qwen25_3b", "--stages=page")
    assert code == 1
    errors.assert_names(told, "page", str(tmp_path / "out"))


# ---- tuning


def test_the_best_rate_of_every_method(made):
    """Chosen once the whole grid is validated; of equals the lowest; the published one is no
    variant.
    """
    request = Request(**made.__dict__ | {"tuned": True, "rates": (2e-6,)})
    assert variants.rates(request) == (5e-7, 2e-6)
    right = {("grpo", 5e-7): "100", ("grpo", 2e-6): "110", ("bridge", 5e-7): "101"}
    for (method, rate), bits in right.items():
        folder = variants.evaluation_folder(
            request, variants.at_rate(request, method, rate), 0, "validation"
        )
        write_results(folder, {tuning.TASK: bits})
    assert tuning.chosen(request) == {"grpo": 2e-6}
    folder = variants.evaluation_folder(
        request, variants.at_rate(request, "bridge", 2e-6), 0, "validation"
    )
    write_results(folder, {tuning.TASK: "011"})
    assert tuning.chosen(request) == {"grpo": 2e-6, "bridge": 5e-7}
    labels = [variant.label for variant in jobs.all_variants(request)]
    assert "RL-zero, tuned (2e-06)" in labels and "BRIDGE, tuned (2e-06)" not in labels
    rows = side_tables.tuning_table(request).rows
    assert rows == [["RL-zero", "33.3", "**66.7**"], ["BRIDGE", "**66.7**", "66.7"]]


def write_diverged(folder: pathlib.Path, steps: int = 4, skipped: int = 2) -> None:
    """Files of a run whose last updates were not finite; it stops after two in a row."""
    write_run(folder, "bridge", (0.1,) * steps)
    record = json.loads((folder / "config.json").read_text())
    record["config"]["log"] = {"skipped_limit": 2}
    (folder / "config.json").write_text(json.dumps(record))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        line["update/skipped"] = int(number >= steps - skipped)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_rate_whose_run_diverged_is_done_and_loses(made):
    """Its table says so, nothing of it is begun again, and as published it is still not trained."""
    request = Request(**made.__dict__ | {"tuned": True, "rates": (2e-6, 1e-5)})
    trained = {rate: variants.at_rate(request, "bridge", rate) for rate in (5e-7, 2e-6, 1e-5)}
    for rate, right in ((5e-7, "001"), (2e-6, "011")):
        folder = variants.evaluation_folder(request, trained[rate], 0, "validation")
        write_results(folder, {tuning.TASK: right})
    assert tuning.chosen(request) == {}
    write_diverged(variants.run_folder(request, trained[1e-5], 0))
    assert tuning.chosen(request) == {"bridge": 2e-6}
    rows = side_tables.tuning_table(request).rows
    assert rows == [["BRIDGE", "33.3", "**66.7**", "diverged"]]
    of_it = [job for job in jobs.tune_jobs(request) if "learning_rate=1e-05" in job.name]
    of_it = [job for job in of_it if job.name.startswith("bridge")]
    assert [marks.done(request, job) for job in of_it] == [True, True]
    assert not marks.done(request, of_it[0]._replace(stage="train"))


def test_what_counts_as_diverged(tmp_path):
    """As many skipped updates as the limit, the last ones; no run is no divergence."""
    for name, skipped in (("one", 1), ("two", 2)):
        write_diverged(tmp_path / name, skipped=skipped)
    write_diverged(tmp_path / "short", steps=1, skipped=1)
    found = {name: results.diverged(tmp_path / name) for name in ("one", "two", "short", "none")}
    assert found == {"one": False, "two": True, "short": False, "none": False}


def test_a_diverged_run_fails_no_tuning(tmp_path, capfd):
    """Exit code 3 of a run that is known to have diverged; its validation has nothing to do."""
    lost = tmp_path / "lost"
    bad = fake(tmp_path, "bad", f"open({str(lost)!r}, 'w'); raise SystemExit(3)")
    behind = fake(tmp_path, "behind", WRITES, (fake(tmp_path, "never", WRITES),))
    is_done = lambda job: job.name != "never" and lost.exists()
    failures = launch.run([bad, behind], is_done, 1, tmp_path / "logs")
    assert failures == [] and not (tmp_path / "behind").exists()
    assert "diverged after" in capfd.readouterr().out


def test_tuned_methods_are_compared_each_at_its_best(made):
    """The best of both sides, whether it is the published rate or another; not before both are
    known.
    """
    request = Request(**made.__dict__ | {"tuned": True, "rates": (2e-6,)})
    every = lambda: results.entries(request, jobs.all_variants(request), [])
    assert side_tables.tuned_paired_table(request, every()) is None
    bits = {
        ("grpo", 5e-7): "00",
        ("grpo", 2e-6): "01",
        ("bridge", 5e-7): "11",
        ("bridge", 2e-6): "00",
    }
    for (method, rate), right in bits.items():
        variant = variants.at_rate(request, method, rate)
        folder = variants.evaluation_folder(request, variant, 0, "validation")
        write_results(folder, {tuning.TASK: right})
    tuned = variants.at_rate(request, "grpo", 2e-6)
    write_results(variants.evaluation_folder(request, tuned, 0), BRIDGE)
    head, rows = side_tables.tuned_paired_table(request, every())
    assert head[0] == "BRIDGE minus"
    # neither the published RL-zero nor the noisy BRIDGE, which the other table has
    assert [(row[0], row[-3:]) for row in rows] == [("RL-zero, tuned (2e-06)", ["0 / 0", "1", "0"])]
    page.write(request)
    assert "## Paired tests, tuned" in (request.folder / "page" / "page.md").read_text()


def test_flags_of_the_evaluations_are_on_the_page(made):
    """The temperature that was asked for, and every other flag."""
    flags = ("--temperature=1", "--decode_tensor=8")
    request = Request(**made.__dict__ | {"evaluate_flags": flags})
    assert page.temperature_of(request) == "1" and page.temperature_of(made) == "0.7"
    page.write(request)
    assert " ".join(flags) in (request.folder / "page" / "page.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not there")
def test_validation_problems(tmp_path):
    """500 of MATH that are not LIMR's, the same ones again."""
    request = Request("qwen25_3b", str(tmp_path), data_dir=str(DATA), tuned=True)
    rows = [row for _, row in files.rows(tuning.write_validation(request))]
    limr = {row["problem"] for _, row in files.rows(DATA / "train" / "limr.jsonl")}
    assert len(rows) == 500 and not limr & {row["problem"] for row in rows}


# ---- bad input


@pytest.mark.parametrize(
    "arguments, names",
    [
        (("--model=qwen25",), ("qwen25", "qwen25_3b")),
        (("--model=smollm2",), ("smollm2", "--rehearse")),
        (("--methods=base,brigde",), ("brigde", "bridge")),
        (("--methods=",), ("--methods",)),
        (("--tasks=math501",), ("math501", "math500")),
        (("--tasks=limr",), ("limr", "math500")),
        (("--ablate=nois",), ("nois", "noise")),
        (("--stages=trian",), ("trian", "train")),
        (("--seeds=0,0",), ("--seeds",)),
        (("--seeds=zero",), ("--seeds", "zero")),
        (("--pass_at=1",), ("--pass_at", 32)),
        (("--rehearse",), ("--data_dir",)),
        (("--data_dir=nowhere",), ("--data_dir", "nowhere")),
        (("--rehearse", "--data_dir=docs"), ("tokenizer.json", "--model_path")),
        (("--topology=banana", "--dry_run"), ("--topology", "banana", "h100:8")),
        (("--traces=nowhere.jsonl",), ("--traces", "nowhere.jsonl")),
        (("--demos=openthoughts,openr2",), ("--demos", "openr2", "openr1")),
        (("--demos=luffy,luffy",), ("--demos", "luffy")),
        (("--demos=",), ("--demos",)),
    ],
)
def test_bad_requests(reproduce, tmp_path, arguments, names):
    """One line that names what was given and what is allowed; nothing is written."""
    code, _, told = reproduce("--model=qwen25_3b", *arguments)
    assert code == 2 and told.count("\n") == 1
    errors.assert_names(told, *names)
    assert not (tmp_path / "out").exists()


def test_empty_demonstrations(reproduce, tmp_path):
    """A file of traces without a line."""
    (tmp_path / "empty.jsonl").write_text("\n")
    code, _, told = reproduce("--model=qwen25_3b", f"--traces={tmp_path / 'empty.jsonl'}")
    assert code == 2
    errors.assert_names(told, "empty.jsonl", "experiments.traces")


def test_a_folder_of_another_request(tmp_path):
    """Another model or other data are refused with what differs; more methods are not."""
    out = tmp_path / "out"
    first = Request("qwen25_3b", str(out))
    # nothing is made yet: a mistyped request binds nobody
    checks.claim(Request("qwen25_3b", str(out), demos="openr2"))
    checks.claim(first)
    (out / "runs").mkdir()
    # sources that had too few: no training has read them
    checks.claim(Request("qwen25_3b", str(out), demos="luffy"))
    checks.claim(first)
    (out / "demos.jsonl").touch()
    with errors.raises(ValueError, "demos", "luffy", "--out"):
        checks.claim(Request("qwen25_3b", str(out), demos="luffy"))
    checks.claim(Request("qwen25_3b", str(out), methods=("sft",), seeds=(1,), tuned=True))
    with errors.raises(ValueError, "model", "qwen25_3b", "llama32_3b", "--out"):
        checks.claim(Request("llama32_3b", str(out)))
    with errors.raises(ValueError, "train_flags", "--config.steps=3"):
        checks.claim(Request("qwen25_3b", str(out), train_flags=("--config.steps=3",)))
    (out / checks.RECORD).write_text("{")
    with errors.raises(ValueError, checks.RECORD):
        checks.claim(first)
    # commands that were started one by one made the folder; anything else is not ours
    (out / checks.RECORD).unlink()
    checks.claim(first)
    (out / checks.RECORD).unlink()
    (out / "thesis.tex").touch()
    with errors.raises(ValueError, "thesis.tex"):
        checks.claim(first)


def test_the_tiny_model_is_of_the_family():
    """Its vocabulary and family are the model's own, for all models."""
    for name, model in requests.MODELS.items():
        arch = rehearsal.architecture(name)
        assert arch["vocab_size"] > 100_000 and arch["hidden_size"] == 32
        assert arch["model_type"] in name or name == "qwen25_3b" or name == "llama32_3b"


def test_published_figures():
    """The averages of the two files agree; every name is a method's."""
    for name in requests.MODELS:
        request = Request(name, "out")
        scores = tables.published_scores(request)
        assert scores and estimate.published(request)["name"]
    full = tables.published_scores(Request("qwen25_3b", "out"))
    rows = json.loads(tables.FULL.read_text())["rows"]
    assert [full[method]["average"] for method in list(full)] == [row["average"] for row in rows]


# ---- the whole


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not there")
def test_a_small_rehearsal(environment, tmp_path):
    """Every stage by the commands, with two methods and one benchmark; then nothing is left to
    do.
    """
    line = [sys.executable, "-m", "experiments.reproduce", "--model=qwen25_3b", "--rehearse"]
    line += [f"--data_dir={DATA}", f"--out={tmp_path / 'out'}", "--methods=base,sft,bridge"]
    line += ["--tasks=amc23", "--train_flags=--config.steps=2"]
    run = lambda: subprocess.run(
        line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    first = run()
    assert first.returncode == 0, first.stdout + first.stderr
    text = (tmp_path / "out" / "page" / "page.md").read_text()
    errors.assert_names(text, "BRIDGE", "nothing else", "of 64 of the 1389 problems")
    again = run()
    assert again.returncode == 0 and "begins" not in again.stdout
