"""All checks in their order, each as a line; a check that raises an error is a FAIL with its
text.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator

from bridge_jax.distributed import multihost
from bridge_jax.preflight import (
    agreement,
    attention,
    machine,
    precision,
    rates,
    real,
    storage,
    versions,
)
from bridge_jax.preflight.record import FAIL, Record, one_line, worst
from bridge_jax.preflight.subject import Subject

logger = logging.getLogger(__name__)

# first the grader: its workers take the memory of their parent at their start as their own
QUICK: dict[str, Callable] = {
    "grader": machine.grader,
    "versions": versions.check,
    "hosts": machine.hosts,
    "memory": machine.memory,
    "matmul": rates.matmul,
    "copy": rates.copy,
    "collectives": rates.collectives,
    "fp32": precision.check,
    "attention": attention.check,
    "sampler, trainer": agreement.sampler_and_trainer,
    "update": agreement.updates,
    "checkpoint": storage.check,
}
REAL: dict[str, Callable] = {"real": real.check}
# words of XLA's errors -> the way out
WAYS_OUT = {
    "RESOURCE_EXHAUSTED": "lower batch.microbatch_rows; see the question on memory in docs/faq.md",
    "UNIMPLEMENTED": "these devices lack an operation of this dtype: set model.dtype=float32",
}


def run(subject: Subject, real: bool = False) -> Iterator[Record]:
    """The records of all checks, one after the other, the same on every host."""
    for name, check in (QUICK | (REAL if real else {})).items():
        yield from agreed(name, perform(name, check, subject))


def perform(name: str, check: Callable, subject: Subject) -> list[Record]:
    """The records of one check; an error in it is a FAIL, but for the loss of another host."""
    try:
        found = check(subject)
    except multihost.Lost:
        raise
    except Exception as error:
        logger.debug("where it came from", exc_info=True)
        text = one_line(f"{type(error).__name__}: {error}")
        known = (way_out for word, way_out in WAYS_OUT.items() if word in text)
        return [Record(name, FAIL, text, next(known, "--verbosity=1 shows where it came from"))]
    return [found] if isinstance(found, Record) else found


def agreed(name: str, mine: list[Record]) -> list[Record]:
    """The worst of all hosts' records of each line; those of another host name it."""
    if multihost.count() == 1:
        return mine
    found = [
        [Record(*record) for record in json.loads(text)]
        for text in multihost.gather(f"check {name}", json.dumps(mine), io_grace=True)
    ]
    lines = dict.fromkeys(record.name for records in found for record in records)
    return [
        worst(
            [
                record._replace(text=f"{multihost.name(i)}: {record.text}") if i else record
                for i, records in enumerate(found)
                for record in records
                if record.name == line
            ]
        )
        for line in lines
    ]
