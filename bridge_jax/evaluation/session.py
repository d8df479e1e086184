"""One evaluation of a model: from benchmarks to transcripts, results.json and the tables.

Left out: how a model is opened (model.py, training/reopen.py), how scores are computed (scores.py)
and shown (tables.py).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from bridge_jax.config import schema
from bridge_jax.distributed import sharding
from bridge_jax.evaluation import benchmarks, scores, tables, transcripts
from bridge_jax.evaluation.benchmarks import Benchmark
from bridge_jax.evaluation.generate import Generator, generate_missing
from bridge_jax.evaluation.lazy_pool import LazyPool
from bridge_jax.evaluation.model import EvalModel
from bridge_jax.evaluation.options import Options
from bridge_jax.filesystem import files
from bridge_jax.models.precision import dtype_of
from bridge_jax.rundir.state_arrays import checksums

logger = logging.getLogger(__name__)
# share of timeouts and grader errors that is warned about
UNGRADED = 0.05
# share of rows without an answer that is warned about
UNANSWERED = 0.9


def make_mesh(
    model: EvalModel, options: Options, devices: Sequence | None = None
) -> jax.sharding.Mesh:
    """The mesh that samples; ValueError where --decode_tensor fits neither model nor devices."""
    sharding.check_heads(
        "--decode_tensor", options.decode_tensor, model.cfg.heads, model.cfg.kv_heads
    )
    return sharding.make_decode_mesh(
        sharding.MeshConfig(decode_tensor=options.decode_tensor), devices
    )


def evaluate_benchmarks(
    model: EvalModel,
    chosen: Sequence[Benchmark],
    options: Options,
    out: str,
    pool: LazyPool,
    mesh: jax.sharding.Mesh,
) -> dict:
    """Generate and grade what the folder `out` lacks; the report on everything that was asked for.

    options: resolved. The caller holds transcripts.folder_lock(out).
    """
    phi, step = model.load(mesh, dtype_of("--dtype", options.dtype))
    manifest = benchmarks.manifest(options, model, chosen)
    # of the numbers, wherever they came from
    manifest["model"]["weights"] = schema.fingerprint(checksums(phi))
    folder = transcripts.open_folder(out, manifest)
    stores = {
        benchmark.name: transcripts.Transcripts(
            folder / f"{benchmark.name.replace('/', '.')}.jsonl"
        )
        for benchmark in chosen
    }
    generate_missing(Generator(model, phi, mesh, options), chosen, stores, pool)
    parts = {
        benchmark.name: summarize(options, benchmark, stores[benchmark.name].rows)
        for benchmark in chosen
    }
    return {
        "model": model.label + step,
        "settings": dataclasses.asdict(options),
        "devices": mesh.size,
        "benchmarks": parts,
    }


def write_report(out: str, report: Mapping, published: Mapping) -> str:
    """Write results.json and the tables next to the transcripts; returns the Markdown table."""
    texts = tables.tables(report, published)
    for name, text in texts.items():
        files.replace(Path(out).expanduser() / name, text)
    return texts["table.md"]


def summarize(options: Options, benchmark: Benchmark, rows: Mapping) -> dict:
    """Scores, lengths and outcomes of one benchmark, for results.json."""
    samples = [scores.GREEDY] * options.greedy + list(range(options.sampled))
    kept = [
        rows[problem.id, sample] for problem in benchmark.prompts.problems for sample in samples
    ]
    found = {}
    for kind, per_problem in options.kinds.items():
        own = [row for row in kept if (row["sample"] == scores.GREEDY) == (kind == "greedy")]
        found[kind] = scores.lengths_and_outcomes(own, benchmark.too_long, per_problem)
        _warn_of_ungraded(benchmark.name, kind, found[kind]["outcomes"]["strict"])
        _warn_of_unanswered(benchmark.name, kind, found[kind]["outcomes"]["strict"])
    ids = [problem.id for problem in benchmark.problems]
    return {
        "n": len(ids),
        "too_long": benchmark.too_long,
        "lengths_and_outcomes": found,
        "scores": scores.scores(ids, kept, options.sampled, options.greedy),
    }


def _warn_of_ungraded(name: str, kind: str, shares: Mapping[str, float]) -> None:
    lost = shares["timeout"] + shares["grader_error"]
    if lost > UNGRADED:
        logger.warning(
            "%s, %s: the grader gave up on %.1f%% of the rows; the scores below are too low by up "
            "to that much. Look for timeout and grader_error in the transcripts",
            name,
            kind,
            100 * lost,
        )


def _warn_of_unanswered(name: str, kind: str, shares: Mapping[str, float]) -> None:
    if shares["no_answer"] > UNANSWERED:
        own = name.startswith("custom_")
        flags = "--reward and --pattern" if own else "--prompt and --max_new"
        logger.warning(
            "%s, %s: no answer was found in %.1f%% of the rows; if the transcripts hold answers, "
            "or are cut off, change %s",
            name,
            kind,
            100 * shares["no_answer"],
            flags,
        )
