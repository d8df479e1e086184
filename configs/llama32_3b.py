"""Llama-3.2-3B with the paper's settings; the argument is METHOD or METHOD,TASK.

    python -m experiments.train --config=configs/llama32_3b.py:bridge --workdir=runs/llama32_3b

Hardware: not run by us yet; 16 chips of a TPU v5e slice (mesh.fsdp=-1), or 8 GPUs of 80 GB.
Published (not ours): the same average: LUFFY 21.9, BRIDGE 24.7 %.
"""

from ml_collections import ConfigDict

from configs import paper

ARCH = dict(
    model_type="llama",
    hidden_size=3072,
    num_hidden_layers=28,
    num_attention_heads=24,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=8192,
    vocab_size=128256,
    rope_theta=500000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    max_position_embeddings=131072,
    eos_token_id=128001,
    rope_scaling=dict(
        rope_type="llama3",
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
)


def get_config(method: str = "bridge") -> ConfigDict:
    """500 steps on Llama-3.2-3B; the base model has no chat template."""
    config = paper.get_config(method, "meta-llama/Llama-3.2-3B", ARCH)
    if "prompt" in config.task:
        config.task.prompt = "plain"
    return config
