"""Small files of the true schemas of public data sets of demonstrations."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

TEXT, FLAGS = pa.string(), pa.list_(pa.bool_())
MESSAGES = pa.list_(pa.struct([("role", TEXT), ("content", TEXT)]))
TRUTH = pa.struct([("ground_truth", TEXT), ("style", TEXT)])


def thought(answer, words: int = 3) -> str:
    """A solution of R1's form with a boxed answer."""
    return f"<think>\n{'so ' * words}\n</think>\n\nThe answer is \\boxed{{{answer}}}."


def texts(*names: str) -> list[tuple[str, pa.DataType]]:
    return [(name, TEXT) for name in names]


COLUMNS = {
    "deepmath": [
        ("question", TEXT),
        ("final_answer", TEXT),
        ("difficulty", pa.float64()),
        *texts("topic", "r1_solution_1", "r1_solution_2", "r1_solution_3"),
    ],
    "openr1": [
        *texts("problem", "solution", "answer", "problem_type", "question_type", "source", "uuid"),
        ("is_reasoning_complete", FLAGS),
        ("generations", pa.list_(TEXT)),
        ("correctness_math_verify", FLAGS),
        ("correctness_llama", FLAGS),
        ("finish_reasons", pa.list_(TEXT)),
        ("correctness_count", pa.int64()),
    ],
    "luffy": [
        ("data_source", TEXT),
        ("prompt", MESSAGES),
        ("target", MESSAGES),
        ("ability", TEXT),
        ("reward_model", TRUTH),
        ("extra_info", pa.struct([("index", pa.int64()), ("split", TEXT)])),
    ],
    "numina": texts(
        "problem",
        "solution",
        "answer",
        "problem_type",
        "question_type",
        "problem_is_valid",
        "solution_is_valid",
        "source",
    ),
    "limo": texts("question", "solution", "answer"),
    "s1k": texts(
        "solution",
        "question",
        "cot_type",
        "source_type",
        "metadata",
        "gemini_thinking_trajectory",
        "deepseek_thinking_trajectory",
        "deepseek_attempt",
        "deepseek_grade",
    ),
    "openthoughts": texts(
        "problem",
        "deepseek_reasoning",
        "deepseek_solution",
        "ground_truth_solution",
        "domain",
        "source",
        "test_cases",
        "starter_code",
    ),
    # of GSM8K and others, as verl's own scripts write them
    "verl": [
        ("data_source", TEXT),
        ("prompt", MESSAGES),
        ("ability", TEXT),
        ("reward_model", TRUTH),
        (
            "extra_info",
            pa.struct(
                [("split", TEXT), ("index", pa.int64()), ("answer", TEXT), ("question", TEXT)]
            ),
        ),
    ],
    "traces": texts("problem", "solution", "answer"),
}


def write(path, schema: str, rows: list[dict], group: int = 1000):
    """A parquet file of the schema; columns that a row leaves out are null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = pa.schema(COLUMNS[schema])
    pq.write_table(pa.Table.from_pylist(rows, columns), path, row_group_size=group)
    return path


def said(role: str, content: str | None) -> list[dict]:
    return [{"role": role, "content": content}]


def deepmath(question="What is 1 + 1?", answer="2", *solutions) -> dict:
    first = dict(question=question, final_answer=answer, difficulty=5.0, topic="sums")
    return first | {f"r1_solution_{i}": text for i, text in enumerate(solutions, 1)}


def luffy(question="What is 1 + 1?", truth="2", target="<think>\nso\n</think>\n\n\\boxed{2}"):
    return dict(
        data_source="openr1",
        prompt=said("system", "Think first.") + said("user", question),
        target=None if target is None else said("assistant", target),
        ability="math",
        reward_model=dict(ground_truth=truth, style="rule"),
        extra_info=dict(index=0, split="train"),
    )
