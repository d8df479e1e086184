"""Qwen2.5-3B with the paper's settings; the argument is METHOD or METHOD,TASK.

    python -m experiments.train --config=configs/qwen25_3b.py:bridge --workdir=runs/qwen25_3b_bridge

Hardware: not run by us yet; 16 chips of a TPU v5e slice (mesh.fsdp=-1), or 8 GPUs of 80 GB.
The paper: 6.9 h for BRIDGE, 6.1 h for RL-zero.
Published (not ours): average pass@1 over MATH500, Minerva, OlympiadBench, AIME24, AMC23:
base 14.4, SFT 27.9, RL-zero 32.2, BRIDGE 36.0 %.
"""

from ml_collections import ConfigDict

from configs import paper

ARCH = dict(
    model_type="qwen2",
    hidden_size=2048,
    num_hidden_layers=36,
    num_attention_heads=16,
    num_key_value_heads=2,
    intermediate_size=11008,
    vocab_size=151936,
    rope_theta=1000000.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    max_position_embeddings=32768,
    eos_token_id=151643,
)


def get_config(method: str = "bridge") -> ConfigDict:
    """500 steps on Qwen2.5-3B."""
    return paper.get_config(method, "Qwen/Qwen2.5-3B", ARCH)
