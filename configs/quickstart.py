"""A small Qwen3-shaped model on the built-in arithmetic task: `make quickstart` runs it for sft, grpo and bridge."""
from ml_collections import ConfigDict

from configs import base

ARCH = dict(model_type="qwen3", vocab_size=16, hidden_size=128, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=32, intermediate_size=384, max_position_embeddings=256, rope_theta=10000.0,
            rms_norm_eps=1e-6, tie_word_embeddings=True, eos_token_id=0)


def get_config(method: str = "bridge") -> ConfigDict:
    """Two-digit sums of two terms and one-digit sums of three, character by character."""
    config = base.get_config(method)
    config.steps = 40
    config.model.arch = ConfigDict(ARCH)
    config.model.remat = "none"
    config.optim.base.learning_rate = 3e-4
    config.optim.lora.learning_rate = 3e-3
    config.task.update(dict(levels=(2, 3), train_size=1000, demo_size=200, eval_size=200))
    config.data.update(dict(tokenizer="chars", buckets=(8,)))
    config.rollout.update(dict(max_new=24))
    config.batch.update(dict(prompts_per_step=32, samples_per_prompt=8, demos_per_step=64, microbatch_rows=256))
    config.eval.update(dict(every=10, rows=200))
    config.checkpoint.every = 1000
    return config
