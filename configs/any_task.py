"""The quickstart's small model on a task of your choice, given as METHOD,TASK.

    python -m experiments.train --config=configs/any_task.py:bridge,arithmetic --workdir=runs/any

It runs in minutes on a CPU, from random weights, to try a new task. The task's file needs an
ALPHABET, the characters of its questions and solutions; its settings are --config.task.KEY=VALUE. A
task in natural language needs a model with a tokenizer: configs/qwen25_3b.py, llama32_3b.py,
qwen3_8b.py and smollm2_arithmetic.py take METHOD,TASK too.
"""

from ml_collections import ConfigDict

from configs import base, from_scratch, tasks


def get_config(method: str = "bridge") -> ConfigDict:
    """20 steps; the task, after a comma, is arithmetic by default."""
    method, task = tasks.choose(method)
    config = base.get_config(method)
    config.steps = 20
    # 127 ASCII characters and the end-of-sequence id
    config.model.update(
        dict(arch=ConfigDict(from_scratch.ARCH | dict(vocab_size=128)), remat="none")
    )
    config.task = tasks.group(task or "arithmetic")
    config.data.update(dict(tokenizer="chars", buckets=(16, 64)))
    config.rollout.max_new = 32
    config.batch.update(
        dict(prompts_per_step=16, samples_per_prompt=8, demos_per_step=16, microbatch_rows=128)
    )
    config.optim.base.learning_rate = 1e-3
    config.optim.lora.learning_rate = 1e-2
    config.eval.update(dict(every=10, rows=64, limit=64))
    config.log.rollouts_every = 10
    return base.fit_to_steps(config)
