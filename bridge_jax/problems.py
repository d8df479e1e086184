"""Rows of benchmarks and training sets: from the hub, or from JSONL files, checked against what they must be.

Both ways end in the same rows {"id", "problem", "answer", "solution", ...} and the same checks: no field is missing, no answer
empty, no id twice, the number of rows and a hash of problems and answers are those that the task's file declares. Also here:
expert solutions, which belong to a problem by its exact text, and the overlap of training problems with benchmarks by word
n-grams. Left out: tokenising (data.py).
"""

from __future__ import annotations

import collections
import hashlib
import json
import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bridge_jax import textfile
from bridge_jax.types import Problem

logger = logging.getLogger(__name__)
THINK, THINK_END = "<think>", "</think>"
INVISIBLE = dict.fromkeys(
    map(ord, "\ufeff\u200b\u2060")
)  # a byte-order mark and spaces of no width
# what can become of a row with a solution; stopped: it holds a stop string
FATES = (
    "used",
    "repeated",
    "wrong",
    "unfinished",
    "too_long",
    "stopped",
    "beyond_demo_size",
    "unmatched",
)
NGRAM = 13  # words
# a number, a character of a script that puts no spaces between words, or a run of other letters
CHARACTER = r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
WORD = re.compile(rf"[0-9]+|(?P<character>{CHARACTER})|(?:(?!{CHARACTER})[^\W\d_])+")
PHRASING = 0.05  # runs of words in a larger share of the training problems are how such problems are put, not what they are


class Source(NamedTuple):
    """Where rows come from, and what they must be."""

    file: str  # JSONL under data_dir, such as "benchmarks/math500.jsonl"; found without its folder too
    hub: tuple[str, ...]  # repository, and configuration where it has several
    split: str  # of the hub's data set
    rows: int  # how many there are
    digest: str  # content_hash of them
    fields: dict[str, Any] = {}  # ours -> the hub's: a name, or a function of the row


def read(source: Source, data_dir: str = "", allow_changed: bool = False) -> list[dict]:
    """The rows of a source, checked; ValueError names file and row, or what differs from the declared data."""
    where, rows = from_files(source, data_dir) if data_dir else from_hub(source)
    check(rows, where)
    found = len(rows), content_hash(rows)
    logger.info("%s: %d rows, content %s", where, *found)
    if found != (source.rows, source.digest):
        told = f"{where} has {found[0]} rows with content {found[1]}; declared are {source.rows} with {source.digest}"
        if not allow_changed:
            raise ValueError(
                f"{told}. Scores would not compare with those of others: get the declared data, or set "
                "task.allow_changed_data=True to use this"
            )
        logger.warning("%s; used all the same", told)
    return rows


def from_files(source: Source, data_dir: str) -> tuple[str, list[dict]]:
    """The path and rows of the JSONL file under data_dir."""
    folder, name = Path(data_dir).expanduser(), Path(source.file).name
    for path in (folder / source.file, folder / name):
        if path.is_file():
            return str(path), jsonl(path)
    raise ValueError(
        f"no {name} in {data_dir!r}, nor in its folder {Path(source.file).parent}; give the folder that holds it, "
        "or leave data_dir empty to load from the hub"
    )


def jsonl(path: Path) -> list[dict]:
    """One object a line; ValueError names the row. Cut at newlines alone: other line ends may stand inside strings."""
    rows = []
    for number, line in enumerate(textfile.read(path).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
                json.dumps(row, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"{path}, row {number}: holds a part of a character ({error}), so that it is no text; "
                    "write the row again or remove it"
                ) from None
            except ValueError as error:
                raise ValueError(f"{path}, row {number}: no JSON ({error})") from None
            if not isinstance(row, dict):
                raise ValueError(
                    f"{path}, row {number}: must be an object, is {type(row).__name__}"
                )
            rows.append(row)
    return rows


def from_hub(source: Source) -> tuple[str, list[dict]]:
    """The hub's name and rows, with our names of the fields."""
    import datasets  # slow to import

    name = "/".join((*source.hub, source.split))
    try:
        loaded = datasets.load_dataset(*source.hub, split=source.split)
    except Exception as error:  # of many kinds: no network, no such name, a changed layout
        raise ValueError(
            f"cannot load {name} from the hub ({type(error).__name__}: {error}); set data_dir to a folder with "
            f"{Path(source.file).name}"
        ) from error
    return name, [
        {"id": str(number)} | dict(row) | renamed(row, source.fields, f"{name}, row {number + 1}")
        for number, row in enumerate(loaded)
    ]


def renamed(row: Mapping, fields: Mapping[str, Any], where: str) -> dict:
    """Our names of a hub row's fields; ValueError names the row from which one cannot be taken."""
    taken = {}
    for ours, field in fields.items():
        try:
            taken[ours] = field(row) if callable(field) else row.get(field)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            raise ValueError(
                f"{where}: {ours!r} cannot be taken from {dict(row)!r:.300} ({error!r}); the hub's data has "
                "changed or is damaged: set data_dir to a folder with the declared rows"
            ) from None
    return taken


def check(rows: list[dict], where: str) -> None:
    """ValueError for the first row (from 1) without a field, with an empty answer, or with an id that came before."""
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        for field in ("id", "problem", "answer"):
            if field not in row or row[field] is None:
                raise ValueError(
                    f"{where}, row {number}: no field {field!r}; it has {', '.join(sorted(row))}"
                )
            if not isinstance(row[field], str) or not row[field].strip():
                raise ValueError(
                    f"{where}, row {number} (id {row['id']!r}): {field} is {row[field]!r}; it must be a "
                    "text that is not empty"
                )
        if row["id"] in seen:
            raise ValueError(
                f"{where}, row {number}: the id {row['id']!r} is that of row {seen[row['id']]}"
            )
        seen[row["id"]] = number
    if not rows:
        raise ValueError(f"{where} has no rows")


def content_hash(rows: Iterable[dict]) -> str:
    """12 hex digits of the SHA-256 of all problems and answers, in any order and whatever their white space."""
    plain = sorted(
        json.dumps([" ".join(row["problem"].split()), " ".join(row["answer"].split())])
        for row in rows
    )
    return hashlib.sha256("\n".join(plain).encode()).hexdigest()[:12]


def once(problems: Sequence[Problem], where: str) -> tuple[Problem, ...]:
    """The problems without later ones of the same id; what is left out is counted, by why.

    Ids come from the text: the same id is the same problem, or, once in two billion pairs, another one.
    """
    first: dict[int, Problem] = {}
    for problem in problems:
        first.setdefault(problem.id, problem)
    kept = tuple(first.values())
    others = [problem.id for problem in problems if problem.question != first[problem.id].question]
    if doubled := len(problems) - len(kept) - len(others):
        logger.warning(
            "%s: %d of %d problems left out, they stand there twice", where, doubled, len(problems)
        )
    if others:
        logger.warning(
            "%s: %d of %d problems left out, their ids %s are those of other problems",
            where,
            len(others),
            len(problems),
            others[:5],
        )
    return kept


def exact(text: str) -> str:
    """A key that is equal for equal texts: Unicode composed (NFC), white space folded, invisible marks left out.

    Everything else tells problems apart: case, signs, braces. NFC and not NFKC, which makes x² the text x2.
    """
    return " ".join(unicodedata.normalize("NFC", text.translate(INVISIBLE)).split())


def traces(path: str) -> dict[str, list[str]]:
    """Expert solutions of a JSONL file {"problem", "solution", "answer"} by the exact text of their problem, in order."""
    found: dict[str, list[str]] = {}
    for number, row in enumerate(jsonl(Path(path).expanduser()), 1):
        for field in ("problem", "solution", "answer"):
            if not isinstance(row.get(field), str) or not row[field].strip():
                raise ValueError(
                    f"{path}, row {number}: {field} is {row.get(field)!r}; it must be a text that is not empty"
                )
        found.setdefault(exact(row["problem"]), []).append(row["solution"])
    return found


def unfinished(text: str) -> bool:
    """Whether a text ends inside an open <think>: it was cut before it said anything outside of its reasoning."""
    return text.rfind(THINK) > text.rfind(THINK_END)


class Chosen(NamedTuple):
    """Demonstrations: of each problem its first right solution."""

    demos: tuple[Problem, ...]
    others: dict[int, tuple[str, ...]]  # further right solutions by the id of the problem
    counts: dict[str, int]  # of `count_rows`


def right_solutions(
    problems: Sequence[Problem], given: Mapping[str, Sequence[str]], right: Callable, where: str
) -> Chosen:
    """The problems with a solution that gives their own answer; a warning counts the others, by why.

    given: solutions by the exact text of their problem. right(list of Problem, each with one solution) -> list of bool.
    """
    different = {p.id: tuple(dict.fromkeys(given.get(exact(p.question), ()))) for p in problems}
    finished = [
        problem._replace(solution=solution)
        for problem in problems
        for solution in different[problem.id]
        if not unfinished(solution)
    ]
    accepted: dict[int, tuple[str, ...]] = {}
    for candidate, good in zip(finished, right(finished), strict=True):
        if good:
            accepted[candidate.id] = (*accepted.get(candidate.id, ()), candidate.solution)
    demos = tuple(p._replace(solution=accepted[p.id][0]) for p in problems if p.id in accepted)
    if len(demos) < len(problems):
        without = sum(not solutions for solutions in different.values())
        read = len({candidate.id for candidate in finished})
        logger.warning(
            "%s: %d demonstrations of %d problems; left out: %d without a solution, %d whose own answer is not "
            "correct, %d whose solution ends inside an open %s",
            where,
            len(demos),
            len(problems),
            without,
            read - len(demos),
            len(problems) - without - read,
            THINK,
        )
    asked = {exact(problem.question) for problem in problems}
    if strange := [text for text in given if text not in asked]:
        logger.warning(
            "%s: the problems of %d solutions are not asked, word for word; the first: %.200r",
            where,
            sum(len(given[text]) for text in strange),
            strange[0],
        )
    others = {id: solutions[1:] for id, solutions in accepted.items() if solutions[1:]}
    return Chosen(demos, others, count_rows(problems, given, accepted))


def count_rows(
    problems: Sequence[Problem],
    given: Mapping[str, Sequence[str]],
    accepted: Mapping[int, Sequence[str]],
) -> dict[str, int]:
    """How many rows there are, for how many of the problems, and how many met each of FATES, which add up to the rows.

    accepted: the right solutions by the id of the problem. repeated: a row that says the same as an earlier one, or a
    further right solution of its problem.
    """
    counts = dict.fromkeys(("problems", "matched", "rows", *FATES), 0)
    counts["problems"] = len(problems)
    counts["matched"] = sum(exact(problem.question) in given for problem in problems)
    by_text = {exact(problem.question): problem.id for problem in problems}
    for text, solutions in given.items():
        counts["rows"] += len(solutions)
        if text not in by_text:
            counts["unmatched"] += len(solutions)
            continue
        different = set(solutions)
        good, cut = len(accepted.get(by_text[text], ())), sum(map(unfinished, different))
        counts["used"] += min(good, 1)
        counts["repeated"] += len(solutions) - len(different) + max(good - 1, 0)
        counts["unfinished"] += cut
        counts["wrong"] += len(different) - good - cut
    return counts


def recount(counts: Mapping[str, int], left_out: Sequence[str]) -> dict[str, int]:
    """The counts once demonstrations are tokenised; left_out: of each that was left out, why (data.WHY)."""
    if not counts:
        return {}
    fates = {
        "prompt": "too_long",
        "trace": "too_long",
        "reasoning": "unfinished",
        "stop": "stopped",
    }
    found = dict(counts)
    for why in left_out:
        found["used"] -= 1
        found[fates[why]] += 1
    return found


def told(counts: Mapping[str, int]) -> str:
    """What became of the rows that demonstrations were chosen from, in one line."""
    fates = ", ".join(f"{counts[name]} {name.replace('_', ' ')}" for name in FATES)
    return f"{counts['rows']} solutions for {counts['matched']} of {counts['problems']} problems: {fates}"


def grams(text: str, n: int = NGRAM) -> set[tuple[str, ...]]:
    """All runs of n words, without case, marks and spacing, compatible characters taken as one (x² as x2).

    Where marks make all the difference they stay: in a run that holds formulas alone, and in a text of fewer words,
    which is one run. A character of Chinese or Japanese counts as a word.
    """
    text = unicodedata.normalize("NFKC", exact(text)).lower()
    found = list(WORD.finditer(text))
    if len(found) < n:
        return {tuple(text.split())}
    prose = [len(word[0]) > 1 and word[0].isalpha() or word["character"] for word in found]
    runs = set()
    for i in range(len(found) - n + 1):
        if any(prose[i : i + n]):
            runs.add(tuple(word[0] for word in found[i : i + n]))
        else:
            formulas = text[found[i].start() : found[i + n - 1].end()]
            runs.add(("".join(formulas.split()),))
    return runs


def overlap(
    train: Sequence[Problem], benchmark: Sequence[Problem], n: int = NGRAM
) -> list[tuple[int, int]]:
    """(id of the training problem, id of a benchmark's) for each training problem that shares a run of n words with one."""
    known = {gram: problem.id for problem in benchmark for gram in grams(problem.question, n)}
    shared = [
        (problem.id, {gram for gram in grams(problem.question, n) if gram in known})
        for problem in train
    ]
    counts = collections.Counter(gram for _, found in shared for gram in found)
    telling = lambda found: sorted(
        gram for gram in found if counts[gram] <= max(10, PHRASING * len(train))
    )
    return [(id, known[gram]) for id, found in shared for gram in telling(found)[:1]]


def overlap_report(train: Sequence[Problem], splits: dict[str, Sequence[Problem]]) -> str:
    """A line for each held-out split; ValueError where a training problem IS a held-out problem."""
    folded = lambda problem: exact(problem.question).lower()
    lines, asked = [], {folded(problem) for problem in train}
    for name, problems in splits.items():
        same = [problem.id for problem in problems if folded(problem) in asked]
        if same:
            raise ValueError(
                f"{len(same)} problems of {name} stand in the training set, word for word (ids {same[:5]}); "
                "remove them from one of the two"
            )
        shared = overlap(train, problems)
        told = ", ".join(f"{mine}~{theirs}" for mine, theirs in shared[:5])
        lines.append(
            f"{name}: {len(shared)} of {len(train)} training problems share {NGRAM} words in a row with one of its "
            f"{len(problems)}"
            + (f" (ids {told}{', ...' if len(shared) > 5 else ''})" if shared else "")
        )
    return "\n".join(lines)
