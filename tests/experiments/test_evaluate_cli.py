"""The evaluate command: training's numbers, any layout, interruptions, full disks, bad input."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import pytest

from bridge_jax import tasks
from bridge_jax.data import tokenizers
from bridge_jax.evaluation import lazy_pool, session, transcripts
from bridge_jax.evaluation.options import Options
from bridge_jax.grading.outcome import DeferredComparison, Outcome
from bridge_jax.models import params
from bridge_jax.sampling import refill
from bridge_jax.tasks import arithmetic
from bridge_jax.training import programs, reopen
from experiments import evaluate as command
from experiments.evaluate import evaluate_model
from tests import errors, tiny_runs
from tests.filesystem import full_disk
from tests.filesystem.full_disk import disk_for
from tests.tiny_runs import quick, unbroken  # noqa: F401 (fixtures)

ROOT = pathlib.Path(__file__).resolve().parents[2]
ARCH = dict(
    model_type="qwen3",
    vocab_size=16,
    **tiny_runs.TINY,
    max_position_embeddings=64,
    rope_theta=10000.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    eos_token_id=0,
    initializer_range=0.4,
)
OPTIONS = Options(tasks=("arithmetic",), samples=2, max_new=12, limit=7, buckets=(6, 8), rows=4)
FILES = {"manifest.json", "results.json", "table.md", "table.csv", "table.tex"}


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    """An HF folder with random weights, sharp enough that its completions differ."""
    folder, cfg = tmp_path_factory.mktemp("model"), params.read_config(ARCH)
    tokenizers.CharTokenizer(arithmetic.ALPHABET).save(folder / "extra")
    params.save(
        cfg,
        params.init(cfg, jax.random.key(1)),
        folder / "tiny",
        ARCH,
        extra_files=tuple((folder / "extra").iterdir()),
    )
    return str(folder / "tiny")


@pytest.fixture
def lively(monkeypatch):
    """Half of the completions are right, by their length."""
    monkeypatch.setattr(arithmetic, "compare", tiny_runs.parity)
    monkeypatch.setattr(arithmetic, "after_mark", tiny_runs.whole)


def run(model: str, out, devices=1, **changes) -> dict:
    """evaluate_model of OPTIONS with changes, on the first devices."""
    return evaluate_model(
        model, str(out), dataclasses.replace(OPTIONS, **changes), jax.devices()[:devices]
    )


def rows(out, name: str = "arithmetic") -> dict:
    """Transcripts by (id, sample)."""
    return {
        (row["id"], row["sample"]): row
        for row in tiny_runs.rows(pathlib.Path(out) / f"{name}.jsonl")
    }


def texts(out) -> dict[str, str]:
    """The files that come of an evaluation."""
    return {name: (pathlib.Path(out) / name).read_text() for name in FILES}


@pytest.mark.slow
@pytest.mark.parametrize("method", [pytest.param("bridge", marks=pytest.mark.slow), "sft"])
def test_a_run_is_evaluated_as_in_its_training(unbroken, tmp_path, method, capsys):
    """Greedy numbers of the newest checkpoint: those that training logged, to the last digit."""
    folder = unbroken(method)
    report = evaluate_model(str(folder), str(tmp_path / "out"), Options())
    logged = tiny_runs.lines(folder)[-1]
    part = report["benchmarks"]["arithmetic"]
    strict, lengths = (
        part["scores"]["strict"]["greedy pass@1"],
        part["lengths_and_outcomes"]["greedy"],
    )
    assert logged["step"] == tiny_runs.STEPS and part["n"] == logged["eval/held_out_n"] == 8
    assert strict.value == logged["eval/held_out_accuracy"]
    assert (
        lengths["tokens"] == logged["eval/held_out_tokens"]
        and 1 - lengths["truncated"] == logged["eval/held_out_stopped"]
    )
    assert strict.stderr == pytest.approx(logged["eval/held_out_stderr"])
    assert (
        f"step {tiny_runs.STEPS}" in report["model"] and "greedy pass@1" in capsys.readouterr().out
    )


@pytest.mark.slow
def test_a_trained_run_is_no_random_model(unbroken, tmp_path):
    """What the test above compares depends on the weights: two methods' transcripts differ."""
    made = [
        rows(
            evaluate_model(str(unbroken(name)), str(tmp_path / name), Options()) and tmp_path / name
        )
        for name in ("bridge", "sft")
    ]
    assert made[0].keys() == made[1].keys() and [row["text"] for row in made[0].values()] != [
        row["text"] for row in made[1].values()
    ]


@pytest.mark.slow
def test_batches_change_nothing(model, lively, tmp_path):
    """--rows 2 and --rows 5: the same transcripts, greedy and sampled; two seeds: other samples."""
    tables = [run(model, tmp_path / f"rows{n}", rows=n)["benchmarks"] for n in (2, 5)]
    two, five = rows(tmp_path / "rows2"), rows(tmp_path / "rows5")
    assert two == five and tables[0] == tables[1]
    assert len(two) == 7 * 3 and len({row["text"] for row in two.values()}) > 7
    assert any(two[id, 0]["text"] != two[id, 1]["text"] for id, _ in two)
    run(model, tmp_path / "seed", seed=1)
    other = rows(tmp_path / "seed")
    same = [key for key in two if two[key]["text"] == other[key]["text"]]
    assert {key for key in two if key[1] == "greedy"} <= set(same) and len(same) < len(two)


@pytest.mark.slow
def test_programs_are_compiled_once(model, lively, monkeypatch, tmp_path):
    """One program for each bucket; another task on the same buckets compiles none. With one slot:
    of more, the last ones are decoded in halves, of which an evaluation may meet other sizes.
    """
    fake_task(monkeypatch)
    run(model, tmp_path / "one", max_new=11, rows=1)
    before = programs.compile_count()
    run(
        model,
        tmp_path / "two",
        max_new=11,
        rows=1,
        tasks=("arithmetic", "math500"),
        seed=7,
        temperature=1.5,
    )
    assert programs.compile_count() == before


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 2])
def test_eight_devices_give_what_one_gives(model, lively, tmp_path, tensor):
    """Eight devices give the same rows and scores as one."""
    one = run(model, tmp_path / "one", rows=8)
    eight = run(model, tmp_path / "eight", devices=8, rows=8, decode_tensor=tensor)
    assert rows(tmp_path / "one") == rows(tmp_path / "eight")
    assert one["benchmarks"] == eight["benchmarks"] and (one["devices"], eight["devices"]) == (1, 8)


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_an_interrupted_evaluation_goes_on(model, lively, tmp_path, monkeypatch, killed_at):
    """Killed in the middle of a line, at the n-th append: only missing rows are generated."""
    run(model, tmp_path / "whole")
    append, calls, generated = transcripts.Transcripts.append, [], []

    def killed(self, new):
        calls.append(1)
        if len(calls) == killed_at:
            with open(self.path, "a") as file:
                file.write('{"id": 5, "sam')
            raise KeyboardInterrupt
        append(self, new)

    with monkeypatch.context() as patch:
        patch.setattr(transcripts.Transcripts, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            run(model, tmp_path / "out")
    assert not (tmp_path / "out" / "results.json").exists()
    before = (tmp_path / "out" / "arithmetic.jsonl").read_text().rpartition("\n")[0]
    done = {(row["id"], row["sample"]) for row in map(json.loads, before.splitlines())}
    every = set(rows(tmp_path / "whole"))
    assert done < every and bool(done) == (killed_at > 1)

    class Watched(refill.Waiting):
        def __init__(self, prompts, requests, *rest):
            sample = lambda request: request.sample if request.temperature else "greedy"
            generated.extend((prompts.problems[r.prompt].id, sample(r)) for r in requests)
            super().__init__(prompts, requests, *rest)

    monkeypatch.setattr(refill, "Waiting", Watched)
    run(model, tmp_path / "out")
    assert set(generated) == every - done and len(generated) == len(every - done)
    assert rows(tmp_path / "out") == rows(tmp_path / "whole") and texts(tmp_path / "out") == texts(
        tmp_path / "whole"
    )
    assert (tmp_path / "out" / "arithmetic.jsonl").read_text().startswith(before)
    generated.clear()
    run(model, tmp_path / "out")
    assert not generated and texts(tmp_path / "out") == texts(tmp_path / "whole")


@pytest.mark.slow
def test_a_folder_grows(model, lively, tmp_path):
    """More problems, and samples in addition to greedy completions, are added to the rows."""
    run(model, tmp_path / "whole")
    run(model, tmp_path / "out", limit=3, samples=1)
    first = (tmp_path / "out" / "arithmetic.jsonl").read_text()
    run(model, tmp_path / "out")
    assert (tmp_path / "out" / "arithmetic.jsonl").read_text().startswith(first)
    assert texts(tmp_path / "out") == texts(tmp_path / "whole")
    smaller = run(model, tmp_path / "out", limit=3, samples=1)["benchmarks"]["arithmetic"]
    assert (
        smaller["n"] == 3
        and list(smaller["lengths_and_outcomes"]) == ["greedy"]
        and smaller["lengths_and_outcomes"]["greedy"]["rows"] == 3
    )


@pytest.mark.parametrize(
    "change, key",
    [
        (dict(max_new=11), "generation.max_new +11 +12"),
        pytest.param(dict(temperature=0.5), "sampled.temperature", marks=pytest.mark.slow),
        pytest.param(dict(samples=4), "sampled.samples +4 +2", marks=pytest.mark.slow),
        pytest.param(dict(seed=5), "sampled.seed", marks=pytest.mark.slow),
        pytest.param(dict(dtype="bfloat16"), "generation.dtype", marks=pytest.mark.slow),
    ],
)
def test_rows_of_another_evaluation_are_not_mixed_in(model, tmp_path, change, key):
    """A folder of other settings is refused with what differs."""
    run(model, tmp_path / "out", limit=2)
    with pytest.raises(ValueError, match=key):
        run(model, tmp_path / "out", limit=2, **change)


@pytest.mark.slow
def test_rows_of_other_weights_are_not_mixed_in(model, tmp_path):
    """A folder of the model before it was trained further."""
    run(model, tmp_path / "out", limit=2)
    other, cfg = tmp_path / "other", params.read_config(ARCH)
    params.save(
        cfg,
        params.init(cfg, jax.random.key(2)),
        other,
        ARCH,
        extra_files=tuple(file for file in pathlib.Path(model).iterdir() if "token" in file.name),
    )
    with pytest.raises(ValueError, match="model.weights"):
        run(str(other), tmp_path / "out", limit=2)


def fake_task(monkeypatch, **parts) -> list:
    """A task "math500" with questions of two lengths and data_dir; returns the Configs it got."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        data_dir: str = ""

    base, configs = arithmetic.make(arithmetic.Config(levels=(1, 2), eval_size=8)), []
    fields = {key: value for key, value in parts.items() if key != "DEFERS_COMPARISONS"}
    task = dataclasses.replace(
        base, **{"name": "math500", "splits": {"test": base.splits["held_out"]}} | fields
    )
    module = types.SimpleNamespace(
        Config=Config,
        make=lambda cfg: configs.append(cfg) or task,
        DEFERS_COMPARISONS=parts.get("DEFERS_COMPARISONS", False),
    )
    load = tasks.load
    monkeypatch.setattr(tasks, "load", lambda name: module if name == "math500" else load(name))
    return configs


@pytest.mark.slow
def test_too_long_prompts_stay_in_the_denominator(model, monkeypatch, tmp_path, capsys):
    """Prompts that are too long count as not correct."""
    configs = fake_task(
        monkeypatch, compare=lambda problem, answer: Outcome.correct, lenient=lambda text: text
    )
    part = run(
        model, tmp_path / "out", tasks=("math500",), data_dir="there", buckets=(5,), limit=0
    )["benchmarks"]["math500"]
    assert configs[-1].data_dir == "there" and (part["n"], part["too_long"]) == (8, 4)
    assert part["scores"]["lenient"]["greedy pass@1"].value == 0.5  # right wherever the prompt fits
    assert part["scores"]["lenient"]["pass@2"].value == 0.5
    for kind, made in (("greedy", 4), ("sampled", 8)):
        outcomes = part["lengths_and_outcomes"][kind]["outcomes"]["lenient"]
        assert (
            part["lengths_and_outcomes"][kind]["rows"] == made
            and outcomes["too_long"] == outcomes["correct"] == 0.5
        )
    assert "math500: 4 of 8 prompts are longer than 5 tokens" in capsys.readouterr().out


def test_published_rows_are_added_to_ours(model, lively, monkeypatch, tmp_path):
    """The table has the published rows beside ours."""
    fake_task(monkeypatch)
    report = run(model, tmp_path / "out", tasks=("math500", "arithmetic"), limit=2, samples=1)
    assert list(report["benchmarks"]) == ["math500", "arithmetic"]
    table = (tmp_path / "out" / "table.md").read_text()
    assert (
        "| published: Qwen2.5-3B BRIDGE | 66.2 |  |  |" in table and "arXiv 2509.06948 v3" in table
    )
    assert (tmp_path / "out" / "math500.jsonl").exists() and (
        tmp_path / "out" / "arithmetic.jsonl"
    ).exists()


def test_splits_of_one_task_are_benchmarks_of_their_own(model, monkeypatch, tmp_path):
    """Each split of a task is evaluated into a file of its own."""
    splits = arithmetic.make(arithmetic.Config(levels=(1,), hard_levels=(2,), eval_size=3)).splits
    fake_task(monkeypatch, splits=splits)
    report = run(model, tmp_path / "out", tasks=("math500",), samples=1)
    assert list(report["benchmarks"]) == ["math500/held_out", "math500/hard"]
    assert len(rows(tmp_path / "out", "math500.hard")) == 3


class FakePool:
    """Stands for grading.pool.Pool; finds every claim right."""

    events: list = []

    def start(pool):
        FakePool.events.append("start")
        pool.pool = FakePool()

    def grade(self, claims):
        FakePool.events.append("grade")
        return [Outcome.correct] * len(claims)

    def close(self):
        FakePool.events.append("close")


@pytest.mark.parametrize("says_so", [True, False])
def test_the_pool_is_started_first_or_with_the_first_claim(model, monkeypatch, tmp_path, says_so):
    """The workers of a task that declares DEFERS_COMPARISONS are started before the model is
    opened.
    """
    fake_task(
        monkeypatch,
        compare=lambda problem, answer: DeferredComparison(problem.answer, answer),
        lenient=lambda text: text,
        DEFERS_COMPARISONS=says_so,
    )
    FakePool.events, opened = [], reopen.open_model
    monkeypatch.setattr(lazy_pool.LazyPool, "start", FakePool.start)
    monkeypatch.setattr(
        reopen,
        "open_model",
        lambda *given, **named: FakePool.events.append("open") or opened(*given, **named),
    )
    report = run(model, tmp_path / "out", tasks=("math500",), limit=3, samples=1)
    assert report["benchmarks"]["math500"]["scores"]["lenient"]["greedy pass@1"].value == 1
    assert FakePool.events == (
        ["start", "open", "grade", "close"] if says_so else ["open", "start", "grade", "close"]
    )


@pytest.mark.slow
def test_a_full_disk(model, lively, tmp_path, monkeypatch, capsys):
    """Exit code 2, a message that says what to do, and nothing that was written is lost."""
    run(model, tmp_path / "whole")
    monkeypatch.setattr(
        command.flags,
        "FLAGS",
        types.SimpleNamespace(
            model=model,
            out=str(tmp_path / "out"),
            **dataclasses.asdict(OPTIONS) | {"tasks": ["arithmetic"], "buckets": ["6", "8"]},
        ),
    )
    monkeypatch.setattr(command, "use_compilation_cache", lambda: None)
    monkeypatch.setattr(command, "log_to_stderr", lambda: None)
    with disk_for(2200), pytest.raises(SystemExit) as ended:
        command.main(["evaluate"])
    error = capsys.readouterr().err
    assert (
        ended.value.code == 2
        and error.startswith("error: ")
        and "rows written before are complete; make room" in error
    )
    found = rows(tmp_path / "out")
    assert (
        0 < len(found) < len(rows(tmp_path / "whole"))
        and found.items() <= rows(tmp_path / "whole").items()
    )
    command.main(["evaluate"])
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")


@pytest.mark.parametrize(
    "raised,code,message",
    [
        (KeyboardInterrupt(), 130, "stopped; every completion that was graded is on disk"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: 9 GB"),
            2,
            "lower --rows or --max_new, or raise --decode_tensor (RESOURCE_EXHAUSTED: 9 GB)",
        ),
        (RuntimeError("self-test failed"), 2, "error: self-test failed"),
    ],
)
def test_ends_that_are_no_fault_of_the_input(monkeypatch, capsys, raised, code, message):
    """Interruption, lack of memory and a broken grader have exit code and message."""

    def fails(*given):
        raise raised

    flags = types.SimpleNamespace(model="", out="", **dataclasses.asdict(OPTIONS))
    for name, value in (
        ("use_compilation_cache", lambda: None),
        ("log_to_stderr", lambda: None),
        ("evaluate_model", fails),
    ):
        monkeypatch.setattr(command, name, value)
    monkeypatch.setattr(command.flags, "FLAGS", flags)
    with pytest.raises(SystemExit) as ended:
        command.main(["evaluate"])
    assert ended.value.code == code and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes,message",
    [
        (
            dict(tasks=("arithmetics",)),
            ("'arithmetics'", "'arithmetic'"),
        ),
        (dict(tasks=()), ("--tasks", "--model")),
        (dict(max_new=57), ("--max_new=57", "65 positions")),
        (dict(samples=0), ("--samples=0", "at least 1")),
        (dict(decode_tensor=3), "--decode_tensor=3"),
        (
            dict(decode_tensor=2),
            ("mesh.decode_tensor=2", "1 devices"),
        ),
        (dict(prompt="plain"), ("--prompt=plain", "'arithmetic'")),
    ],
)
def test_bad_input(model, tmp_path, changes, message):
    """Invalid options are refused before any row is written."""
    with errors.raises(ValueError, message):
        run(model, tmp_path / "out", **changes)
    assert not (tmp_path / "out" / "arithmetic.jsonl").exists()


def test_stop_strings_cut_what_is_read_and_are_part_of_the_manifest(model, lively, tmp_path):
    """Texts are cut at the first stop string; rows with other stop strings are not mixed in."""
    run(model, tmp_path / "free")
    run(model, tmp_path / "cut", stop=("=", "-7"))
    free, cut = rows(tmp_path / "free"), rows(tmp_path / "cut")
    ends = {key: min((free[key]["text"] + end).find(end) for end in ("=", "-7")) for key in free}
    assert {key: row["text"] for key, row in cut.items()} == {
        key: row["text"][: ends[key]] for key, row in free.items()
    }
    shorter = [key for key in free if ends[key] < len(free[key]["text"])]
    assert shorter and all(cut[key]["tokens"] <= free[key]["tokens"] for key in shorter)
    assert all(cut[key]["stopped"] for key in shorter)
    run(model, tmp_path / "cut", stop=("=", "-7"))
    for folder, stop in (("cut", ()), ("free", ("=",)), ("cut", ("=",))):
        with pytest.raises(ValueError, match="task arithmetic.stop"):
            run(model, tmp_path / folder, stop=stop)


def test_the_tasks_own_stop_strings_and_those_of_the_flags(model, monkeypatch, tmp_path):
    """Stop strings of the task and the flags are combined as asked."""
    fake_task(monkeypatch, stop=("##",))
    given = dict(tasks=("math500",), samples=1, limit=1)
    for name, changes, stop in (
        ("own", {}, ["##"]),
        ("both", dict(stop=("=",)), ["##", "="]),
        ("flag", dict(stop=("=",), task_stop=False), ["="]),
    ):
        run(model, tmp_path / name, **given, **changes)
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        assert manifest["task math500"]["stop"] == stop
    run(model, tmp_path / "none", **given, task_stop=False)
    assert (
        "stop" not in json.loads((tmp_path / "none" / "manifest.json").read_text())["task math500"]
    )


def test_newlines_of_the_stop_flag(monkeypatch):
    """An escaped newline in --stop is a newline."""
    given = {"buckets": ["6", "8"], "stop": [r"\nQuestion:", "User:"]}
    flags = types.SimpleNamespace(**dataclasses.asdict(OPTIONS) | given)
    monkeypatch.setattr(command.flags, "FLAGS", flags)
    assert command.read_flags().stop == ("\nQuestion:", "User:")


def test_a_second_evaluation_of_a_folder_is_refused(model, tmp_path, monkeypatch):
    """While the first is under way, and before the second has read any weights."""
    out, generate_missing, second = tmp_path / "out", session.generate_missing, []

    def at_the_same_time(*given):
        if not second:
            with monkeypatch.context() as patch:
                patch.setattr(params, "load", lambda *_: pytest.fail("read the weights"))
                with errors.raises(ValueError, "--out=") as no:
                    run(model, out)
            second.append(str(no.value))
        return generate_missing(*given)

    monkeypatch.setattr(session, "generate_missing", at_the_same_time)
    run(model, out)
    assert len(second) == 1 and {path.name for path in out.iterdir()} == FILES | {
        "arithmetic.jsonl"
    }
    run(model, out)


def test_a_full_disk_has_an_exit_code_of_its_own(model, tmp_path, monkeypatch, capsys):
    """The rows written before are complete; with room, the same command finishes as usual."""
    whole = run(model, tmp_path / "whole", rows=2)
    with full_disk.small(tmp_path / "disk", 32) as disk:
        (disk / "ballast").write_bytes(b"x" * 16384)
        full_disk.fill(disk, leave=6000)
        given = types.SimpleNamespace(
            model=model, out=str(disk / "out"), **dataclasses.asdict(OPTIONS) | {"rows": 2}
        )
        monkeypatch.setattr(command.flags, "FLAGS", given)
        for name in ("use_compilation_cache", "log_to_stderr"):
            monkeypatch.setattr(command, name, lambda: None)
        with pytest.raises(SystemExit) as ended:
            command.main(["evaluate"])
        assert ended.value.code == 5
        assert "No space left on device" in (error := capsys.readouterr().err)
        assert str(disk / "out") in error and "make room" in error
        (disk / "filler").unlink()
        (disk / "ballast").unlink()
        report = run(model, disk / "out", rows=2)
        assert rows(disk / "out") == rows(tmp_path / "whole")
    assert report["benchmarks"] == whole["benchmarks"]


@pytest.mark.slow
def test_bad_folders(model, tmp_path, unbroken):
    """A missing model and a run without a checkpoint are clear errors."""
    with errors.raises(ValueError, str(tmp_path / "absent")):
        run(str(tmp_path / "absent"), tmp_path / "out")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((unbroken("sft") / "config.json").read_bytes())
    with errors.raises(ValueError, str(bare), "checkpoint"):
        run(str(bare), tmp_path / "out")


def test_defaults_follow_the_model(model, tmp_path, capsys):
    """max_new is the room behind the largest bucket, and the command prints that."""
    report = evaluate_model(
        model, str(tmp_path / "out"), Options(tasks=("arithmetic",), limit=2), jax.devices()[:1]
    )
    settings = report["settings"]
    assert (settings["buckets"], settings["max_new"], settings["dtype"], settings["rows"]) == (
        (32,),
        32,
        "float32",
        0,
    )
    assert "--max_new=32: 5000 is usual, but the model has 64 positions" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command(model, tmp_path):
    """As a user starts it: twice, and with mistakes."""
    environment = os.environ | dict(
        JAX_PLATFORMS="cpu",
        PYTHONPATH=str(ROOT),
        JAX_COMPILATION_CACHE_DIR="",
        XLA_FLAGS="--xla_backend_optimization_level=0",
    )
    line = [
        sys.executable,
        "-m",
        "experiments.evaluate",
        f"--model={model}",
        f"--out={tmp_path / 'out'}",
    ]

    def start(*given):
        return subprocess.run(
            [*line, *given], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
        )

    given = ("--tasks=arithmetic", "--limit=3", "--samples=2", "--max_new=8", "--buckets=6,8")
    first = start(*given)
    assert first.returncode == 0, first.stderr
    assert "| tiny, greedy pass@1 | " in first.stdout and "3 of 3 problems" in first.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {"arithmetic.jsonl"}
    assert len(rows(tmp_path / "out")) == 9
    second = start(*given)
    assert (
        second.returncode == 0 and second.stdout == first.stdout and "problems" not in second.stderr
    )
    wrong = start("--tasks=arithmetic", "--buckets=six")
    assert (
        wrong.returncode == 2
        and wrong.stderr.splitlines()[-1]
        == ("error: --buckets=six; allowed: whole numbers, such as 128,256")
        and "Traceback" not in wrong.stderr
    )
    empty = start("--tasks=arithmetic", "--stop=#", "--stop=")
    assert empty.returncode == 2 and "error: --stop= is empty" in empty.stderr
