"""Qwen3-8B-Base with the paper's settings; the argument is METHOD or METHOD,TASK.

    python -m experiments.train --config=configs/qwen3_8b.py:bridge --workdir=runs/qwen3_8b_bridge

Hardware: not run by us yet; 64 chips of a TPU v5e or v5p slice (mesh.fsdp=-1). The paper: 33.5 h
for BRIDGE, 38.5 h for RL-zero. Published (not ours): the same average: RL 42.9, cold start 45.5,
CHORD 45.9, BRIDGE 49.9, without J_meta 40.3 %.
"""

from ml_collections import ConfigDict

from configs import paper

ARCH = dict(
    model_type="qwen3",
    hidden_size=4096,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=12288,
    vocab_size=151936,
    rope_theta=1000000.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
    max_position_embeddings=32768,
    eos_token_id=151643,
)


def get_config(method: str = "bridge") -> ConfigDict:
    """500 steps on Qwen3-8B-Base."""
    return paper.get_config(method, "Qwen/Qwen3-8B-Base", ARCH)
