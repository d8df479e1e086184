"""The evaluator on real weights and real questions: its greedy texts are those of transformers."""

from __future__ import annotations

import json
import os
import pathlib

import pytest

from bridge_jax import tasks
from bridge_jax.tasks import gsm8k

DATA = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
PROBLEMS, NEW = 20, 48


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="no real data next to the project")
def test_greedy_texts_of_smollm2_on_gsm8k(tmp_path):
    """At least 19 of 20 are equal; where fp32 rounds two logits to a tie, either may be taken."""
    torch = pytest.importorskip("torch", reason="compares with transformers' torch models")
    import transformers

    from bridge_jax.evaluation.options import Options
    from experiments import get_smollm2
    from experiments.evaluate import evaluate_model

    folder = os.environ.get("BRIDGE_SMOLLM2") or str(tmp_path / "model")
    if not pathlib.Path(folder).exists():
        get_smollm2.get(folder)
    evaluate_model(
        folder,
        str(tmp_path / "out"),
        Options(("gsm8k",), str(DATA), max_new=NEW, limit=PROBLEMS, rows=PROBLEMS),
    )
    ours = {
        row["question"]: row["text"]
        for row in map(json.loads, (tmp_path / "out" / "gsm8k.jsonl").open())
    }
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    asked = gsm8k.make(gsm8k.Config(data_dir=str(DATA), demo_size=1)).splits["gsm8k"][:PROBLEMS]
    different = []
    for problem in asked:
        prompt = tokenizer.apply_chat_template(
            [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": problem.question + tasks.INSTRUCTION},
            ],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        made = model.generate(**prompt, max_new_tokens=NEW, do_sample=False)[
            0, prompt["input_ids"].shape[1] :
        ]
        text = tokenizer.decode(made, skip_special_tokens=True)
        if text != ours[problem.question]:
            different.append((text, ours[problem.question]))
    print(
        f"\n{PROBLEMS - len(different)} of {PROBLEMS} texts are identical; the others: {different}"
    )
    assert len(ours) == PROBLEMS and len(different) <= 1
