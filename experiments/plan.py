"""Plan a run without its devices: `python -m experiments.plan --config=FILE:METHOD
--topology=v5p:4x4x4`.

Compiles the programs of a step for the topology from shapes alone: there are no weights, no data
and no devices. For each phase it prints what the phase takes of each chip, and whether that fits;
and the same for the method --against (grpo). A topology is a TPU slice, such as v5e:4x4 or
v5p:4x4x4 (pip install libtpu; no TPU is needed), GPUs, such as h100:8 or 2 nodes of 8, h100:2x8
(pip install "jax[cuda13]"; no GPU is needed), cpu:8, or the GPUs of this machine (gpu, gpu:8).

    --fit          also search the largest batch.microbatch_rows that fits, by compiling
    --phases=a,b   only these: merge, prefill, decode, logp, update
    --no_compile   rooflines of the counted work alone, without memory and interconnect: seconds
                   instead of minutes
    --out=FILE     append each plan as a line of JSON; plans in the file are not compiled again
    --table        only draw the tables of docs/plan.md from docs/plans/*.jsonl
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from bridge_jax import methods
from bridge_jax.config import schema
from bridge_jax.filesystem import files
from bridge_jax.planner import chips
from experiments.cli import (
    check_output,
    define_path,
    fail,
    fail_by,
    file_config,
    log_to_stderr,
    run_command,
)

PHASES = ("merge", "prefill", "decode", "logp", "update")
TABLE, PLANS = Path("docs/plan.md"), Path("docs/plans")


def define_flags() -> None:
    """The flags of this command."""
    config_flags.DEFINE_config_file(
        "config", None, "a file of configs/, with :METHOD behind it", lock_config=True
    )
    flags.DEFINE_string(
        "topology", "", "what to compile for, such as v5e:4x4, v5p:4x4x4, h100:8, cpu:8, gpu"
    )
    flags.DEFINE_string("against", "grpo", "the method to compare with; empty: none")
    flags.DEFINE_bool("fit", False, "search the largest batch.microbatch_rows that fits")
    flags.DEFINE_bool(
        "no_compile", False, "counted work and its rooflines alone: no memory, no interconnect"
    )
    flags.DEFINE_list("phases", list(PHASES), "which programs")
    flags.DEFINE_float(
        "grading",
        0.0,
        "seconds of grading a step that the estimate takes as given",
        lower_bound=0.0,
    )
    define_path("out", "", "a file to which each plan is appended as a line of JSON")
    flags.DEFINE_bool(
        "table",
        False,
        f"draw the tables of {TABLE} from {PLANS}/*.jsonl, and nothing else",
    )


def write_table() -> None:
    """Draw the tables of docs/plan.md from the plans on disk; the text around them stays."""
    from bridge_jax.evaluation import markdown
    from bridge_jax.planner import table
    from bridge_jax.planner.plan import code_of_programs

    found = sorted(PLANS.glob("*.jsonl"))
    plans = [plan for path in found for _, plan in files.rows(path)]
    if not plans:
        fail(f"no plans in {PLANS}/*.jsonl; make some with --out={PLANS}/NAME.jsonl")
    try:
        files.replace(
            TABLE, markdown.fill_tables(TABLE.read_text(), table.markdown(plans).__getitem__)
        )
    except KeyError as error:
        fail(f"{TABLE} has a mark for a table {error}; allowed: plans, ratios, states")
    code = code_of_programs()
    compiled = filter(table.compiled, plans)
    older = sum(plan.get("code") != code for plan in compiled)
    print(f"{TABLE}: {len(plans)} plans; {older} of other code than today's, which is {code[:6]}")


def changes(config, method: str) -> str:
    """The keys that the command line set to other values, of those that the method reads."""
    own = (f"method.{method}.", "method.train")
    return ", ".join(
        f"{key}={mine}"
        for key, (mine, _) in schema.diff(config, file_config()).items()
        if key.startswith(own) or not key.startswith("method.")
    )


def name_of(path: str) -> str:
    """configs/qwen3_8b.py:bridge -> qwen3_8b."""
    return Path(path.split(":")[0]).stem


def main(argv: list[str]) -> None:
    """Plan, print, append; user errors end with one line and exit code 2."""
    given = flags.FLAGS
    if argv[1:]:
        fail(f"unexpected arguments {argv[1:]}; settings are given as --config.a.b=value")
    if given.table:
        return write_table()
    if given.config is None or not given.topology:
        fail(
            "--config=configs/NAME.py:METHOD and --topology=KIND:SIZE are needed, such as "
            "--topology=v5e:4x4 or cpu:8"
        )
    if given.against and given.against not in methods.names():
        fail(
            f"--against: unknown method {given.against!r}: "
            f"{schema.did_you_mean(given.against, methods.names())}"
        )
    for phase in given.phases:
        if phase not in PHASES:
            fail(f"--phases: unknown phase {phase!r}: {schema.did_you_mean(phase, PHASES)}")
    if given.no_compile and given.fit:
        fail("--fit compiles to see what fits; it does not go with --no_compile")
    log_to_stderr()
    try:
        topology = chips.parse(given.topology)
        # before jax is imported
        chips.prepare(topology)
        from bridge_jax.training import interrupt

        with interrupt.acknowledge_interrupts("ending", "plans that are complete are in --out"):
            report(topology)
    except (ValueError, OSError) as error:
        fail_by(error)


def earlier(out: str) -> list[dict]:
    """The plans in the file of --out, which is made: if it cannot be written, this fails early."""
    if not out:
        return []
    files.append(out, "")
    return [plan for _, plan in files.rows(out)]


def report(topology: chips.Topology) -> None:
    """Print a plan for each method, and the two side by side."""
    from bridge_jax.planner import phases, table
    from bridge_jax.planner.plan import fit, make

    given, config, devices = flags.FLAGS, flags.FLAGS.config, chips.devices(topology)
    if given.fit and chips.chip_of(topology, devices) is None:
        fail(
            f"--fit: the memory of {devices[0].device_kind!r} is not in the table; allowed: "
            f"{', '.join(chips.CHIPS)}"
        )
    only = lambda phase: phase.split()[0] in given.phases
    tell = lambda line: print(line, flush=True)
    plans, known, began = [], phases.compiled_programs(earlier(given.out)), time.monotonic()
    for method in dict.fromkeys([config.method.name, *[given.against] * bool(given.against)]):
        config = config.copy_and_resolve_references()
        config.method.name = method
        print(f"{method} on {topology.name}:", flush=True)
        made = {
            "name": name_of(flags.FLAGS["config"].config_filename),
            "changed": changes(config, method),
        } | make(config, topology, devices, given.grading, only, tell, known, not given.no_compile)
        plans.append(made)
        if given.out:
            files.append(given.out, json.dumps(made) + "\n")
    for made in plans:
        print(f"\n{table.text(made)}")
    if len(plans) == 2:
        print(f"\n{table.compare(*plans)}")
    if given.fit:
        rows = fit(given.config, topology, devices, tell, known)
        print(
            f"the largest batch.microbatch_rows that fits: {rows}"
            if rows
            else "no batch.microbatch_rows fits"
        )
    print(f"planned in {time.monotonic() - began:.0f} s")
    check_output()


if __name__ == "__main__":
    define_flags()
    run_command(main)
