"""The demonstrations of all sources of --demos as one file: of a problem, the first source's.

Each source has a file of experiments.traces, with its manifest. The file of all is written once
there are enough, so that no training begins with a handful by mistake.
"""

from __future__ import annotations

import collections
import hashlib
import json
from pathlib import Path

from bridge_jax.data import traces
from bridge_jax.data.demo_file import token_summary
from bridge_jax.filesystem import files
from experiments.reproduce import jobs, results
from experiments.reproduce.request import Request

# share of the problems that must have a demonstration
FLOOR = 0.5


def manifest_of(path: str | Path) -> dict:
    """The manifest of a file of demonstrations; {} where there is none."""
    return results.read_json(Path(f"{path}.manifest.json"))


def write(request: Request) -> str:
    """Write the file of all sources unless it is there, and say what it holds.

    ValueError for a source that is not made and for too few, unless --allow_few_demos.
    """
    path = Path(request.traces_file)
    if path.exists():
        return summary(manifest_of(path))
    made = {job.name: job.out for job in jobs.demos_jobs(request) if manifest_of(job.out)}
    lacking = [job.name for job in jobs.demos_jobs(request) if job.name not in made]
    if not made or lacking and not request.allow_few_demos:
        raise ValueError(
            f"no demonstrations of {', '.join(lacking)} yet: see its log, or leave it out of "
            "--demos"
        )
    lines, manifest = join(made)
    check_count(request, manifest)
    text = "".join(lines)
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    # the file itself last, since it says that all is done
    files.replace(Path(f"{path}.manifest.json"), json.dumps(manifest, indent=2) + "\n")
    files.replace(path, text)
    return summary(manifest)


def join(made: dict[str, Path]) -> tuple[list[str], dict]:
    """(lines of the file, its manifest without the hash); made: source -> its file."""
    first: dict[str, str] = {}
    lengths: collections.Counter[int] = collections.Counter()
    sources = {}
    for name, path in made.items():
        before, given = len(first), manifest_of(path)
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            demo = json.loads(line)
            key = traces.text_key(demo["problem"])
            if key not in first:
                first[key] = line
                lengths[demo["tokens"]] += 1
        counts = {"rows": given["rows"], "kept": given["states"]["kept"]}
        sources[name] = counts | {"used": len(first) - before, "source": given["source"]}
    problems = max(manifest_of(path)["task"]["problems_to_match"] for path in made.values())
    tokens = token_summary(lengths) if lengths else {}
    manifest = {"problems": problems, "used": len(first), "tokens": tokens, "sources": sources}
    return list(first.values()), manifest


def check_count(request: Request, manifest: dict) -> None:
    """ValueError where fewer problems have a demonstration than FLOOR says."""
    used, asked = manifest["used"], min(manifest["problems"], request.sizes.demos or float("inf"))
    if used and (used >= FLOOR * asked or request.allow_few_demos):
        return
    allow = ", or --allow_few_demos takes them as they are" if used else ""
    raise ValueError(
        f"{summary(manifest)}; at least {FLOOR:.0%} of {asked} are wanted: name further sources in "
        f"--demos=A,B,... (docs/data.md), give your own by --traces=FILE{allow}"
    )


def summary(manifest: dict) -> str:
    """How many there are, for how many problems, and from where."""
    sources = manifest["sources"]
    kept = sum(one["kept"] for one in sources.values())
    used = ", ".join(f"{one['used']} of {name}" for name, one in sources.items())
    return (
        f"kept {kept:,} demonstrations for {manifest['used']:,} of the {manifest['problems']:,} "
        f"problems ({used})"
    )
