"""experiments.traces as a command: files, the hub, resuming, matching, bad input, a manifest that
adds up.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import datasets
import huggingface_hub
import pytest

from bridge_jax import tasks
from bridge_jax.data import demo_file, row_source
from bridge_jax.data.demo_selection import STATES
from bridge_jax.data.tokenizers import CharTokenizer
from bridge_jax.data.traces import read_traces
from bridge_jax.evaluation.lazy_pool import LazyPool
from bridge_jax.tasks import limr
from experiments.traces import command
from tests import errors
from tests.data import demo_rows
from tests.data.demo_rows import deepmath, thought
from tests.experiments.in_process import exit_code

ROOT = pathlib.Path(__file__).resolve().parents[2]
KK_LOGIC = ROOT.parent / "shared/data/public/kk_logic_train.parquet"


@pytest.fixture
def traces(monkeypatch, capfd, tmp_path):
    """Run the command in this process: (exit code, standard output and error)."""
    monkeypatch.setattr(command, "log_to_stderr", lambda: None)

    def run(*arguments: str) -> tuple[int, str]:
        code = exit_code(command, "traces", f"--out={tmp_path / 'out.jsonl'}", *arguments)
        shown = capfd.readouterr()
        return code, shown.out + shown.err

    return run


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    """A folder with a tokenizer of one token a character."""
    folder = tmp_path_factory.mktemp("tokenizer")
    CharTokenizer("so 7\\bxed{}").save(folder)
    return str(folder)


def out(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


def manifest(tmp_path) -> dict:
    return json.loads((tmp_path / "out.jsonl.manifest.json").read_text())


def alike(count: int) -> list[dict]:
    """Rows of which every third is wrong and every fifth repeats a problem of long before."""
    return [
        deepmath(
            f"What is {n // 10 if n % 5 == 4 else n} + 1?",
            str(n),
            thought(n + (n % 3 == 0), n % 40),
        )
        for n in range(count)
    ]


def test_a_file_and_its_manifest(traces, tmp_path):
    """The states add up to the rows, the hash is the file's, and task.traces reads it."""
    path = demo_rows.write(tmp_path / "in.parquet", "deepmath", alike(300))
    code, shown = traces(f"--source={path}", "--decontaminate=none")
    assert code == 0, shown
    found, rows = manifest(tmp_path), out(tmp_path)
    assert sum(found["states"].values()) == found["rows"] == 300
    assert found["states"]["kept"] == len(rows) and found["states"]["wrong"] > 50
    assert found["states"]["repeated"] > 20
    content = (tmp_path / "out.jsonl").read_bytes()
    assert found["sha256"] == hashlib.sha256(content).hexdigest()
    (file,) = found["source"]["files"]
    assert file["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    lengths = sorted(row["tokens"] for row in rows)
    assert found["tokens"]["max"] == lengths[-1]
    assert found["tokens"]["median"] == lengths[(len(rows) - 1) // 2]
    assert len(read_traces(str(tmp_path / "out.jsonl"))) == len(rows)
    assert sorted(os.listdir(tmp_path)) == ["in.parquet", "out.jsonl", "out.jsonl.manifest.json"]
    # the same command again changes nothing, other arguments are refused
    code, shown = traces(f"--source={path}", "--decontaminate=none")
    assert code == 0 and "there already" in shown
    code, shown = traces(f"--source={path}", "--decontaminate=none", "--limit=3")
    assert code == 2 and "limit" in shown and (tmp_path / "out.jsonl").read_bytes() == content


def test_tokens_are_the_models(traces, tokenizer, tmp_path):
    """The limit counts the end-of-sequence token."""
    rows = [deepmath(f"q{n}", "7", "so " * n + "\\boxed{7}") for n in range(40)]
    path = demo_rows.write(tmp_path / "in.parquet", "deepmath", rows)
    flags = (f"--source={path}", "--decontaminate=none", f"--tokenizer={tokenizer}")
    code, shown = traces(*flags, f"--max_tokens={len(rows[2]['r1_solution_1']) + 1}")
    assert code == 0, shown
    assert [row["tokens"] for row in out(tmp_path)] == [10, 13, 16]
    assert manifest(tmp_path)["states"]["too_long"] == 37
    code, shown = traces(f"--source={path}", "--max_tokens=9", f"--out={tmp_path / 'b.jsonl'}")
    assert code == 2 and "--tokenizer" in shown


@pytest.mark.slow
def test_a_killed_command_goes_on(traces, tmp_path):
    """After SIGKILL the same command reads on, and its output is that of one that was not
    killed.
    """
    path = demo_rows.write(tmp_path / "in.parquet", "deepmath", alike(40_000), group=5000)
    done, state = tmp_path / "out.jsonl", tmp_path / "out.jsonl.state.json"
    arguments = (f"--source={path}", "--decontaminate=none")
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.traces", *arguments, f"--out={done}"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
    )
    while not state.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rows = json.loads(state.read_text())["rows"]
    assert 0 < rows < 40_000 and not done.exists(), process.stderr.read()
    # what was written after the state is written again
    with open(tmp_path / "out.jsonl.part", "a") as part:
        part.write('{"problem": "half a li')
    code, shown = traces(*arguments, "--limit=3")
    assert code == 2 and "limit" in shown
    code, shown = traces(*arguments)
    assert code == 0, shown
    code, shown = traces(*arguments, f"--out={tmp_path / 'whole.jsonl'}")
    assert code == 0, shown
    assert done.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    whole = json.loads((tmp_path / "whole.jsonl.manifest.json").read_text())
    assert whole == manifest(tmp_path)


def test_an_error_in_the_middle_loses_nothing(traces, tmp_path):
    """The rows before a bad line stay; with the line mended by its owner, the source is another."""
    lines = [json.dumps(row) for row in alike(300)]
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join([*lines, "{"]))
    arguments = (f"--source={path}", "--decontaminate=none", "--schema=deepmath")
    code, shown = traces(*arguments)
    assert code == 2 and "line 301" in shown
    part = (tmp_path / "out.jsonl.part").read_text()
    assert part.count("\n") > 50
    path.write_text("\n".join(lines))
    code, shown = traces(*arguments)
    assert code == 2 and "files" in shown
    assert (tmp_path / "out.jsonl.part").read_text() == part


def test_limit_takes_the_first(traces, tmp_path):
    """Rows behind the last one that is kept are not counted as read."""
    path = demo_rows.write(tmp_path / "in.parquet", "deepmath", alike(300))
    code, shown = traces(f"--source={path}", "--decontaminate=none", "--limit=5")
    assert code == 0, shown
    found = manifest(tmp_path)
    assert [row["row"] for row in out(tmp_path)][-1] == found["rows"] - 1
    assert found["states"]["kept"] == 5 and sum(found["states"].values()) == found["rows"] < 20


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of one repository, whose rows are streamed from a parquet by the real library."""
    path = demo_rows.write(tmp_path / "hub" / "in.parquet", "deepmath", alike(300))
    real, asked = datasets.load_dataset, []

    def info(self, name, revision=None, **how):
        if name != "zwhe99/DeepMath-103K":
            raise huggingface_hub.errors.HfHubHTTPError(f"404: no {name}", response=None)
        return huggingface_hub.hf_api.DatasetInfo(
            id=name, sha=revision or "c0ffee", private=False, downloads=0, likes=0, tags=[]
        )

    def load(name, config=None, split=None, revision=None, streaming=False):
        asked.append((name, config, split, revision))
        assert streaming
        if split != "train":
            raise ValueError(f"Bad split: {split}. Available splits: ['train']")
        return real("parquet", data_files=str(path), split="train", streaming=True)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_the_hub_at_a_pinned_revision(traces, hub, monkeypatch, tmp_path):
    """The manifest has the commit; a command that goes on reads that commit, and no other."""
    broken = row_source.hub_rows

    def until(*arguments):
        for number, row in enumerate(broken(*arguments)):
            if number == 200:
                raise ValueError("row 200 cannot be read")
            yield row

    monkeypatch.setattr(row_source, "hub_rows", until)
    code, shown = traces("--from=deepmath", "--decontaminate=none", "--revision=abc")
    assert code == 2 and "row 200" in shown
    monkeypatch.setattr(row_source, "hub_rows", broken)
    code, shown = traces("--from=zwhe99/DeepMath-103K", "--decontaminate=none")
    assert code == 0, shown
    assert hub == [("zwhe99/DeepMath-103K", None, "train", "abc")] * 2
    assert manifest(tmp_path)["source"] == dict(
        hub="zwhe99/DeepMath-103K", config="", split="train", revision="abc"
    )
    local = f"--source={tmp_path / 'hub'}"
    code, shown = traces(local, "--decontaminate=none", f"--out={tmp_path / 'b.jsonl'}")
    assert code == 0, shown
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()


@pytest.mark.parametrize(
    "arguments, names",
    [
        (["--from=zwhe99/DeepMaht"], ("DeepMaht", "--source")),
        (["--from=deepmaht"], ("deepmaht", "'deepmath'")),
        (["--from=verl"], ("verl", "--source")),
        (["--from=deepmath", "--split=test"], ("deepmath", "test", "train")),
        (["--from=deepmath", "--source=a"], ("--from", "--source")),
        ([], ("--from", "--source", "deepmath")),
        (["--from=deepmath", "--columns=problem:q"], ("--columns", "answer")),
        (["--from=deepmath", "--columns=problem:q,answer:a,solution:s"], ("final_answer", "q")),
        (["--from=deepmath", "--schema=openr1"], ("generations", "final_answer")),
        (["--from=deepmath", "--grader=limr"], ("limr", "math", "none")),
        (["--from=deepmath", "--match=math500"], ("math500", "limr")),
        (["--from=deepmath", "--decontaminate=mathh"], ("mathh", "math500")),
        (["--from=deepmath", "--limit=-1"], ("--limit",)),
    ],
)
def test_mistakes_are_one_line(arguments, names, traces, hub, tmp_path):
    """Exit code 2, what was given and what is allowed; nothing is left behind."""
    data = "--data_dir=" + str(tmp_path)
    if "--match=math500" in arguments:
        (tmp_path / "math500.jsonl").write_text('{"id": "1", "problem": "train", "answer": "2"}\n')
    code, shown = traces(*arguments, data)
    last = shown.strip().splitlines()[-1]
    assert code == 2 and last.startswith("error: "), shown
    errors.assert_names(last.lower(), *(name.lower() for name in names))
    assert not [name for name in os.listdir(tmp_path) if name.startswith("out")]


def test_a_folder_that_is_none(traces, hub, tmp_path):
    """A --data_dir that is not there would leave copies of benchmarks in; --out is a file."""
    code, shown = traces("--from=deepmath", f"--data_dir={tmp_path / 'nowhere'}")
    assert code == 2 and "error: --data_dir=" in shown and "nowhere" in shown
    code, shown = traces("--from=deepmath", "--decontaminate=none", f"--out={tmp_path}")
    assert code == 2 and f"error: {tmp_path} is a folder" in shown


def test_all_rows_dropped(traces, tmp_path):
    """The counts say why."""
    rows = [deepmath(f"q{n}", "1", thought(2)) for n in range(9)]
    path = demo_rows.write(tmp_path / "in.parquet", "deepmath", rows)
    code, shown = traces(f"--source={path}", "--decontaminate=none")
    assert code == 2 and "all 9 rows were dropped: 9 wrong" in shown
    errors.assert_names(shown, STATES["wrong"], "'1'", "'2'")
    assert os.listdir(tmp_path) == ["in.parquet"]


def test_none_may_be_allowed(traces, tmp_path):
    """Of several sources one may have no problem of the task; the same command then has no more to
    do.
    """
    rows = [deepmath(f"q{n}", "1", thought(2)) for n in range(9)]
    path = demo_rows.write(tmp_path / "in.parquet", "deepmath", rows)
    line = (f"--source={path}", "--decontaminate=none", "--allow_none")
    code, shown = traces(*line)
    assert code == 0 and "9 rows read: 9 wrong" in shown
    assert out(tmp_path) == [] and manifest(tmp_path)["states"]["kept"] == 0
    assert sorted(os.listdir(tmp_path)) == ["in.parquet", "out.jsonl", "out.jsonl.manifest.json"]
    code, shown = traces(*line)
    assert code == 0 and "there already" in shown


def test_an_answer_that_never_grades(traces, monkeypatch, tmp_path):
    """It is found long before the end of the data, and shown."""
    monkeypatch.setattr(demo_file, "HOPELESS", 200)
    rows = [deepmath(f"q{n}", "the 1", thought(2)) for n in range(2000)]
    path = demo_rows.write(tmp_path / "in.parquet", "deepmath", rows)
    code, shown = traces(f"--source={path}", "--decontaminate=none")
    assert code == 2 and "256 rows" in shown and "'the 1'" in shown and "'2'" in shown
    # nothing was kept, so that the command with the flag put right begins again
    code, shown = traces(f"--source={path}", "--decontaminate=none", "--grader=none")
    assert code == 0, shown
    assert manifest(tmp_path)["states"]["kept"] == manifest(tmp_path)["rows"] == 2000


def test_a_cell_of_another_form(traces, tmp_path):
    """A row whose columns have the right names and the wrong content."""
    (tmp_path / "in.jsonl").write_text('{"prompt": "a", "reward_model": "2"}\n')
    code, shown = traces(f"--source={tmp_path / 'in.jsonl'}", "--decontaminate=none")
    assert code == 2 and "row 0" in shown and "reward_model: str" in shown


def test_match_and_decontaminate(traces, caplog, tmp_path):
    """Problems of LIMR's file alone; a benchmark that is there is used, the others are named."""
    line = lambda id, problem, answer: (
        json.dumps(dict(id=id, problem=problem, answer=answer)) + "\n"
    )
    data = tmp_path / "data"
    data.mkdir()
    (data / "limr.jsonl").write_text(line("1", "What is 1+1?", "2") + line("2", "What is 2?", "2"))
    for name in limr.PAPER:
        (data / f"{name}.jsonl").write_text(line("1", f"Held out by {name}", "2"))
    rows = [
        deepmath("What is  1+1?", "3", thought(2)),
        deepmath("What is 3?", "3", thought(3)),
        deepmath("Held out by AIME24", "2", thought(2)),
    ]
    path = demo_rows.write(tmp_path / "in.parquet", "deepmath", rows)
    code, shown = traces(f"--source={path}", f"--data_dir={data}", "--match=limr")
    assert code == 0, shown
    found = manifest(tmp_path)
    assert found["states"]["kept"] == 1 and found["states"]["unmatched"] == 2
    assert found["task"]["problems_to_match"] == 2
    # every other benchmark there is
    every = [name for name in tasks.names() if tasks.load(name).Config is tasks.Benchmark]
    not_there = sorted(set(every) - set(limr.PAPER))
    assert "aime25" in not_there
    assert found["benchmarks"] == {
        "used": dict.fromkeys(sorted(limr.PAPER), 1),
        "not_loaded": not_there,
        "copies": {"words_in_a_row": 13, "share_of_words": 0.6},
    }
    assert out(tmp_path)[0]["problem"] == "What is 1+1?" and out(tmp_path)[0]["answer"] == "2"
    assert f"not decontaminated against {', '.join(not_there)}" in caplog.text
    code, shown = traces(f"--source={path}", f"--data_dir={data}", f"--out={tmp_path / 'b.jsonl'}")
    assert code == 0, shown
    free = json.loads((tmp_path / "b.jsonl.manifest.json").read_text())
    assert free["contaminated_by"] == {"aime24": 1}
    assert free["states"]["wrong"] == free["states"]["kept"] == 1


def test_algebra_goes_through_the_pool(traces, monkeypatch, tmp_path):
    """Answers that only algebra can compare are graded by the worker processes."""
    asked, real = [], LazyPool.grade
    monkeypatch.setattr(LazyPool, "grade", lambda *args: asked.append(args[1]) or real(*args))
    rows = [deepmath("q", "(x-1)(x+1)", thought("x+1"), thought("x^2-1"))]
    path = demo_rows.write(tmp_path / "in.parquet", "deepmath", rows)
    code, shown = traces(f"--source={path}", "--decontaminate=none")
    assert code == 0, shown
    assert len(asked) == 1 and out(tmp_path)[0]["generation"] == 1


def test_no_network(traces, monkeypatch):
    """One line with the way out."""

    def unreachable(*args, **kwargs):
        raise ConnectionError("Name or service not known\nand so on")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    code, shown = traces("--from=deepmath", "--decontaminate=none")
    assert code == 2 and len(shown.splitlines()) == 1
    errors.assert_names(shown, "DeepMath-103K", "not known", "--source")


@pytest.mark.skipif(not KK_LOGIC.exists(), reason="needs ../shared/data/public")
def test_a_real_file(traces, tmp_path):
    """Knights and knaves with expert derivations, in verl's schema, by the task's own grader."""
    arguments = (f"--source={KK_LOGIC}", "--decontaminate=none", "--limit=200")
    code, shown = traces(*arguments, "--grader=knights_knaves", "--box")
    assert code == 0, shown
    rows = out(tmp_path)
    assert len(rows) == manifest(tmp_path)["rows"] == 200
    for row in rows:
        assert row["solution"].count("<think>") == row["solution"].count("</think>") == 1
        assert row["solution"].count("\\boxed{") == 1 and "<answer>" not in row["solution"]
        assert "User:" not in row["problem"] and "island" in row["problem"]
