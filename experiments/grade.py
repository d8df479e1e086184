r"""Grade the answers in a file: `python -m experiments.grade --file=pairs.jsonl [--reading=boxed]`.

Needs no model and no jax. Each line of the file (- : stdin) is an object {"gold", "prediction"}. It
is written to stdout with "outcome": correct, wrong, no_answer, parse_error, timeout or
grader_error. The prediction is the text of a model, whose last \boxed{...} is graded, as in
training. --reading=lenient also takes an answer that the text states without a box; --reading=bare
takes the prediction itself. A line may have "rule", an object with some of absolute, relative,
parts and unit (grading/outcome.py). Rates of the outcomes go to stderr.

Exit codes: 0 done; 2 a line cannot be read (the lines before it are graded); 3 the grader fails its
self-test.
"""

from __future__ import annotations

import collections
import contextlib
import json
import sys
from collections.abc import Iterator

from absl import flags

from bridge_jax.filesystem import streams, textfile
from bridge_jax.grading import selftest
from bridge_jax.grading.extract import last_boxed, lenient_answer
from bridge_jax.grading.outcome import Outcome, Rule
from bridge_jax.grading.pool import Pool, PoolError
from experiments.cli import check_output, define_path, fail, fail_by, log_to_stderr, run_command

READINGS = {"boxed": last_boxed, "lenient": lenient_answer, "bare": lambda text: text}
# graded at once
ROWS = 500
EXAMPLE = "python -m experiments.grade --file=pairs.jsonl"


def rows_of(file, name: str) -> Iterator[tuple[dict, tuple[str, str, Rule]]]:
    """(object, (gold, prediction, rule)) of each line; ValueError names the line at fault."""
    for number, line in enumerate(textfile.lines(file, name), 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: no JSON ({error})") from None
        if not isinstance(row, dict) or not all(
            isinstance(row.get(key), str) for key in ("gold", "prediction")
        ):
            raise ValueError(
                f"{where}: {line.strip()[:80]!r}; it must be an object with the texts "
                '"gold" and "prediction"'
            )
        if not row["gold"].strip():
            raise ValueError(f"{where}: gold is {row['gold']!r}; nothing could equal it")
        yield row, (row["gold"], row["prediction"], read_rule(row.get("rule", {}), where))


def read_rule(given, where: str) -> Rule:
    """The rule of a line; ValueError for an invalid one."""
    kinds = {"absolute": (int, float), "relative": (int, float), "parts": bool, "unit": str}
    if not isinstance(given, dict) or any(
        key not in kinds or not isinstance(value, kinds[key]) for key, value in given.items()
    ):
        raise ValueError(
            f"{where}: rule is {given!r}; allowed: an object with some of absolute and relative "
            "(numbers), parts (true or false), unit (a text)"
        )
    return Rule(**given)


def grade_file(file, name: str, reading: str, pool: Pool, out) -> collections.Counter:
    """Grade all lines of a binary file and write them to `out`; the count of each outcome.

    ROWS lines are graded at a time. ValueError names a bad line, after those before it are graded.
    """
    counts, rows, broken = collections.Counter(), rows_of(file, name), None
    while broken is None:
        part = []
        try:
            while len(part) < ROWS:
                part.append(next(rows))
        except StopIteration:
            broken = StopIteration()
        except ValueError as error:
            # the lines before it are still graded
            broken = error
        outcomes = selftest.grade([pair for _, pair in part], pool, READINGS[reading])
        for (row, _), outcome in zip(part, outcomes, strict=True):
            out.write(json.dumps(row | {"outcome": str(outcome)}) + "\n")
        out.flush()
        counts.update(outcomes)
        if streams.output_error():
            # nothing reads the rest
            break
    if isinstance(broken, ValueError):
        raise broken
    return counts


def main(argv: list[str]) -> None:
    """Grade, and turn errors into one line and an exit code."""
    if argv[1:]:
        fail(f"unexpected arguments {argv[1:]}; the file is given as --file=pairs.jsonl")
    log_to_stderr()
    path = flags.FLAGS.file
    try:
        with contextlib.ExitStack() as stack:
            file = sys.stdin.buffer if path == "-" else stack.enter_context(open(path, "rb"))
            pool = stack.enter_context(Pool(deadline=flags.FLAGS.deadline))
            selftest.check(pool)
            counts = grade_file(
                file, "stdin" if path == "-" else path, flags.FLAGS.reading, pool, sys.stdout
            )
    except (selftest.GraderBroken, PoolError) as error:
        fail(str(error), code=3)
    except (ValueError, OSError) as error:
        fail_by(error)
    check_output()
    total = max(1, sum(counts.values()))
    print(
        f"{sum(counts.values())} graded: "
        + ", ".join(f"{kind} {counts[kind]} ({counts[kind] / total:.1%})" for kind in Outcome),
        file=sys.stderr,
    )


def define_flags() -> None:
    """The flags of this command."""
    define_path("file", None, "JSONL of gold and prediction; - for stdin", required=True)
    flags.DEFINE_enum("reading", "boxed", list(READINGS), "where in the prediction the answer is")
    flags.DEFINE_float(
        "deadline", 5.0, "seconds of processor time for one answer, after which it is a timeout"
    )


if __name__ == "__main__":
    define_flags()
    run_command(main, EXAMPLE)
