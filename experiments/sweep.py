"""Run a sweep: `python -m experiments.sweep --sweep=configs/sweeps/NAME.py --workdir=DIR [--launcher=local] [--dry_run]`.

A sweep file has `get_sweep()`, which returns a dict:

    config    the config file, such as "configs/ladder.py"
    set       {key: value} in all runs; keys as on the command line, "task.corrupt"
    variants  {name: {key: value}}; the key "method" is what stands behind the config's name
    grid      {key: values}: all combinations
    zip       {key: values}, of one length: first with first, second with second
    seeds     the seeds of each

Every run is a directory DIR/NAME.HASH and, when it is done, one line of results.jsonl (--results): its settings, what it spent,
its figures at each evaluation, and which held-out problems it solved. What stands there is skipped; a run that was cut off goes
on; a run that fails is told of at the end and does not stop the others. HASH is of the settings and of the weights it begins
from: a sweep whose file has changed finds neither its results nor its directories taken.
Exit codes: 0 all done, 1 some failed, 2 the sweep cannot be meant.
"""
from __future__ import annotations

import collections
import concurrent.futures
import fcntl
import functools
import hashlib
import importlib.util
import itertools
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import threading
from typing import Any, NamedTuple

from absl import app, flags

from experiments.train import fail, parse_flags

PARTS = ("config", "set", "variants", "grid", "zip", "seeds")
MEANS = ("reward/mean", "reward/outcome_correct", "grad/cos_sft_rl", "bridge/gain", "bridge/ess", "bridge/kl_hat", "sft/logp",
         "rollout/entropy", "rollout/length", "bridge/lam")  # kept as means since the evaluation before
KEPT = re.compile(r"eval/.*_accuracy|coop/(gain|gain_stderr|expert_logp)|budget/.*|time/(wall|cpu|train)_s|memory/.*")


class Run(NamedTuple):
    """One run of a sweep."""
    name: str
    variant: str
    seed: int
    config: str             # file, with :METHOD behind it
    settings: dict[str, Any]
    fingerprint: str        # of what the resolved config changes in the defaults
    weights: str = ""       # weights_of it

    @property
    def identity(self) -> tuple[str, str, str]:
        """What makes a finished run this run: another base model makes another one."""
        return self.name, self.fingerprint, self.weights

    @property
    def folder(self) -> str:
        """Its directory in the sweep's: of other settings or other weights, another one."""
        return f"{self.name}.{hashlib.sha256(repr(self.identity).encode()).hexdigest()[:6]}"


class Result(NamedTuple):
    """How a run ended."""
    run: Run
    error: str  # "" if it is done


def load(path: str) -> dict:
    """What get_sweep of the file returns, checked; ValueError with the part at fault."""
    from bridge_jax import settings
    if not os.path.exists(path):
        there = sorted(str(p) for p in pathlib.Path(path).parent.glob("*.py"))
        raise ValueError(f"--sweep={path}: no such file; there are {', '.join(there) or 'none'}")
    spec = importlib.util.spec_from_file_location("sweep_file", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        sweep = dict(module.get_sweep())
    except Exception as error:
        raise ValueError(f"{path}: get_sweep() does not return a sweep: {error!r}") from error
    for part in sweep:
        if part not in PARTS:
            raise ValueError(f"{path}: unknown part {part!r}: {settings.did_you_mean(part, PARTS)}")
    listed = {"seeds": sweep.get("seeds", ())} | {
        f"{part}[{key!r}]": values for part in ("grid", "zip") for key, values in sweep.get(part, {}).items()}
    for name, values in listed.items():
        if not isinstance(values, (list, tuple, range)):
            raise ValueError(f"{path}: {name} must be a list, got {values!r}")
    if not sweep.get("config") or not sweep.get("seeds"):
        raise ValueError(f"{path}: 'config' and 'seeds' must be given and not empty")
    if len({len(values) for values in sweep.get("zip", {}).values()}) > 1:
        raise ValueError(f"{path}: the lists of 'zip' differ in length: "
                         f"{({key: len(values) for key, values in sweep['zip'].items()})}")
    return sweep


def resolved(config: str, given: dict[str, Any]):
    """The config with the given keys set; ValueError with the nearest key for one that it does not have, or of another type."""
    from ml_collections import ConfigDict
    from bridge_jax import settings, setup
    path, _, method = config.partition(":")
    if not os.path.exists(path):
        raise ValueError(f"no config file {path!r}")
    spec = importlib.util.spec_from_file_location("config_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.get_config(*[method] * bool(method))
    for key, value in given.items():
        *groups, last = key.split(".")
        place = made
        for i, group in enumerate(groups):
            if not isinstance(place, ConfigDict) or group not in place:
                raise ValueError(f"unknown key {key!r} of {config}: {settings.did_you_mean(group, place)}")
            place = place[group]
        if last not in place:
            raise ValueError(f"unknown key {key!r} of {config}: {settings.did_you_mean(last, place)}")
        with place.ignore_type():
            place[last] = value
    setup.read(made, devices=1)
    return made


def fingerprint(config) -> str:
    """Of the keys that are not at the default of configs/base.py: one that comes later, at its default, makes no other run of it.

    So whoever changes a default there makes the finished runs of sweeps those of other settings; remove them.
    """
    from bridge_jax import settings
    from configs import base
    return settings.fingerprint({key: mine for key, (mine, _) in settings.diff(config, base.get_config()).items()})


def runs_of(sweep: dict) -> list[Run]:
    """All runs in order: seeds innermost, so that a sweep that is cut off has its seeds complete for the first variants."""
    zipped = sweep.get("zip", {})
    rows = [dict(zip(zipped, values)) for values in zip(*zipped.values())] if zipped else [{}]
    grid = sweep.get("grid", {})
    combinations = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    found, weights = [], functools.cache(weights_of)  # a folder is read once for all of its runs
    for (variant, own), row, combination, seed in itertools.product(
            sweep.get("variants", {"": {}}).items(), rows, combinations, sweep["seeds"]):
        changed = row | combination
        given = sweep.get("set", {}) | own | changed
        method = given.pop("method", "")
        config = sweep["config"] + (f":{method}" if method else "")
        made = resolved(config, given | {"seed": seed})
        parts = [variant or method or "run", *(f"{key.split('.')[-1]}={value}" for key, value in changed.items()), f"seed={seed}"]
        name = re.sub(r"[^\w.=+-]+", "_", ",".join(parts).replace(",", "__"))
        found.append(Run(name, variant or method or "run", seed, config, given, fingerprint(made), weights(made.model.path)))
    doubled = [name for name, count in collections.Counter(run.name for run in found).items() if count > 1]
    if doubled:
        raise ValueError(f"several runs are named {', '.join(doubled[:3])}: a grid names a run by the last part of each key")
    return found


def command_of(run: Run, workdir: str) -> list[str]:
    """The command of one run; running it again resumes."""
    write = lambda value: value if isinstance(value, str) else repr(value)
    given = [f"--config.{key}={write(value)}" for key, value in run.settings.items()]
    return [sys.executable, "-m", "experiments.train", f"--config={run.config}", f"--workdir={os.path.join(workdir, run.folder)}",
            f"--config.seed={run.seed}", *given]


def done(results: str) -> set[tuple[str, str, str]]:
    """Run.identity of the runs whose line stands in the results."""
    if not os.path.exists(results):
        return set()
    with open(results) as file:
        lines = [json.loads(text) for text in file if text.endswith("}\n")]
    return {(line["name"], line["fingerprint"], line["weights"]) for line in lines}


def weights_of(path: str) -> str:
    """A hash of the weights of a local model folder, from which a run begins; "" for a hub name, or "", random weights."""
    files = sorted(pathlib.Path(path or "/nowhere").glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:12] if files else ""


def summary(run: Run, workdir: str) -> dict:
    """The line of a finished run; ValueError if the run directory is not at its last step."""
    from bridge_jax import logbook
    folder = os.path.join(workdir, run.folder)
    lines = logbook.read(folder)
    with open(os.path.join(folder, "config.json")) as file:
        config = json.load(file)["config"]
    steps = config["steps"]
    if not lines or lines[-1]["step"] < steps:
        raise ValueError(f"it stands at step {lines[-1]['step'] if lines else 0} of {steps}")
    curve, since = [], []
    for line in lines:
        since.append(line)
        if any(key.startswith("eval/") for key in line) or line["step"] == steps:
            means = {key: [row[key] for row in since if row.get(key) is not None] for key in MEANS}
            point = {"step": line["step"]} | {key: sum(values) / len(values) for key, values in means.items() if values}
            point |= {key: value for key, value in line.items() if KEPT.fullmatch(key) and value is not None}
            curve.append({key: float(f"{value:.5g}") for key, value in point.items()})
            since = []
    solved = {}
    if os.path.exists(os.path.join(folder, "solved.jsonl")):
        with open(os.path.join(folder, "solved.jsonl")) as file:
            last = [json.loads(text) for text in file][-1]
        solved = {key: f"{int('1' + bits, 2):x}" for key, bits in last.items() if key in ("held_out", "dev")}
        solved |= {key: counts for key, counts in last.items() if key == "held_out_sampled"}
    return {"name": run.name, "variant": run.variant, "seed": run.seed, "config": run.config, "settings": run.settings,
            "fingerprint": run.fingerprint, "weights": weights_of(config["model"]["path"]), "steps": steps,
            "skipped": sum(line.get("update/skipped", 0) for line in lines), "curve": curve, "solved": solved}


_writing = threading.Lock()


def record(run: Run, workdir: str, results: str) -> str:
    """Append the run's line; "" or what is wrong with the run."""
    try:
        text = json.dumps(summary(run, workdir)) + "\n"
    except (ValueError, OSError) as error:
        return str(error)
    with _writing, open(results, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another sweep may share the file
        file.write(text)
    return ""


def execute(run: Run, workdir: str, results: str, cores: tuple[int, ...] = ()) -> Result:
    """Train in a process of its own, on these cores if any, its output in DIR/NAME.HASH.log; then record it."""
    try:
        return trained(run, workdir, results, cores)
    except Exception as error:  # of this run alone: the others go on, and it is told of at the end
        return Result(run, f"{type(error).__name__}: {error}")


def trained(run: Run, workdir: str, results: str, cores: tuple[int, ...]) -> Result:
    """execute, without its safety net."""
    log = os.path.join(workdir, run.folder + ".log")
    pin = (lambda: os.sched_setaffinity(0, cores)) if cores and hasattr(os, "sched_setaffinity") else None
    with open(log, "a") as file:
        code = subprocess.run(command_of(run, workdir), stdout=file, stderr=subprocess.STDOUT, preexec_fn=pin).returncode
    if code:
        with open(log, errors="replace") as file:
            told = [line for line in file.read().splitlines() if line.strip()]
        return Result(run, f"exit code {code}: {told[-1] if told else 'no output'} (see {log})")
    return Result(run, record(run, workdir, results))


def locally(runs: list[Run], workdir: str, results: str, jobs: int) -> list[Result]:
    """`jobs` runs at a time; each has its own share of the processor's cores, so that runs do not slow each other down."""
    there = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    share = max(1, len(there) // jobs)
    free = [tuple(there[i * share % len(there):i * share % len(there) + share]) for i in range(jobs)] if jobs > 1 else [()]
    ended = []

    def one(run: Run) -> Result:
        cores = free.pop()
        try:
            return execute(run, workdir, results, cores)
        finally:
            free.append(cores)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for future in concurrent.futures.as_completed([pool.submit(one, run) for run in runs]):
            ended.append(future.result())
            told = f"failed: {ended[-1].error}" if ended[-1].error else "done"
            print(f"[{len(ended)}/{len(runs)}] {ended[-1].run.name}: {told}", flush=True)
    return ended


def by_submitit(runs: list[Run], workdir: str, results: str, cluster: str, parameters: dict) -> list[Result]:
    """Each run as a job of submitit (cluster "slurm", or "local" to try); waits for all of them."""
    import submitit
    executor = submitit.AutoExecutor(folder=os.path.join(workdir, "submitit"), cluster=cluster)
    executor.update_parameters(name="bridge_jax", **parameters)
    jobs = [(run, executor.submit(execute, run, workdir, results)) for run in runs]
    ended = []
    for run, job in jobs:
        error = job.exception()
        ended.append(Result(run, str(error)) if error else job.result())
        print(f"[{len(ended)}/{len(runs)}] {run.name}: {ended[-1].error or 'done'}", flush=True)
    return ended


def tpu_commands(runs: list[Run], workdir: str) -> str:
    """One command a run for TPU pods, to be copied; $TPU and $ZONE are the reader's (docs/launch.md)."""
    shell = lambda run: "cd bridge_jax && " + shlex.join(
        [".venv/bin/python", *command_of(run, workdir)[1:], "--config.hosts.coordinator=auto"])
    return "\n".join(f"gcloud compute tpus tpu-vm ssh $TPU --zone=$ZONE --worker=all --command={shlex.quote(shell(run))}"
                     for run in runs)


def table(runs: list[Run], finished: set[tuple[str, str, str]], workdir: str) -> str:
    """The runs, what each sets, and where it stands."""
    rows = [("run directory", "state", "config", "settings")]
    for run in runs:
        began = os.path.exists(os.path.join(workdir, run.folder, "metrics.jsonl"))
        state = "done" if run.identity in finished else "cut off" if began else "to do"
        rows.append((run.folder, state, run.config, " ".join(f"{key}={value}" for key, value in run.settings.items())))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def parameters_of(text: str) -> dict:
    """What --slurm gives to submitit; ValueError unless it is a JSON object."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        found = error
    if not isinstance(found, dict):
        raise ValueError(f"--slurm={text} is no JSON object ({found}); give one such as '{{\"timeout_min\": 60}}'")
    return found


def main(argv: list[str]) -> None:
    """Plan, run what is left, say what failed."""
    given = flags.FLAGS
    if argv[1:]:
        fail(f"unexpected arguments {argv[1:]}")
    try:
        runs = runs_of(load(given.sweep))
        slurm = parameters_of(given.slurm)
    except ValueError as error:
        fail(str(error))
    results = given.results or os.path.join(given.workdir, "results.jsonl")
    finished = done(results)
    if given.dry_run or given.launcher == "tpu":  # to be read, or piped into head
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if given.dry_run:
        print(table(runs, finished, given.workdir))
        return
    left = [run for run in runs if run.identity not in finished]
    print(f"{len(runs)} runs, {len(runs) - len(left)} done, {len(left)} to do; results in {results}", flush=True)
    try:
        os.makedirs(given.workdir, exist_ok=True)
        os.makedirs(os.path.dirname(os.path.abspath(results)), exist_ok=True)
    except OSError as error:
        fail(f"the results cannot be kept: {error}; choose another --workdir or --results")
    if given.launcher == "tpu":
        print(tpu_commands(left, given.workdir))
        return
    if given.launcher == "local":
        ended = locally(left, given.workdir, results, given.jobs)
    else:
        ended = by_submitit(left, given.workdir, results, given.launcher.replace("submitit_", ""), slurm)
    failed = [result for result in ended if result.error]
    for result in failed:
        print(f"failed: {result.run.name}: {result.error}")
    print(f"{len(runs) - len(failed)} of {len(runs)} runs are done" + (f", {len(failed)} failed" if failed else ""))
    sys.exit(1 if failed else 0)


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("sweep", None, "a file of configs/sweeps/")
    flags.DEFINE_string("workdir", None, "where the runs go")
    flags.DEFINE_string("results", "", "the file of finished runs; default: results.jsonl in the workdir")
    flags.DEFINE_enum("launcher", "local", ["local", "slurm", "submitit_local", "tpu"],
                      "here; by submitit, on Slurm or here; or print commands for a TPU pod")
    flags.DEFINE_integer("jobs", 1, "local: runs at a time", lower_bound=1)
    flags.DEFINE_string("slurm", '{"timeout_min": 1440}', "parameters of submitit's executor, as JSON")
    flags.DEFINE_bool("dry_run", False, "print the table of runs alone")
    flags.mark_flags_as_required(["sweep", "workdir"])


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
