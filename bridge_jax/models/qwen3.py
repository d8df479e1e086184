"""Qwen3 (dense): llama's shape with an RMS norm on every query and key head before the rotation."""

from __future__ import annotations

import dataclasses

from bridge_jax.models import layers


@dataclasses.dataclass(frozen=True)
class Config(layers.Config):
    """A Qwen3 model."""

    @classmethod
    def from_hf(cls, hf: dict) -> Config:
        """From HF's config.json; ValueError for biases, sliding windows and rope scaling."""
        if hf.get("attention_bias") or hf.get("use_sliding_window"):
            raise ValueError(
                "qwen3 with attention_bias or use_sliding_window is not supported; allowed: both "
                "false"
            )
        # HF's default head_dim of this family is 128, not width / heads.
        numbers = layers.hf_numbers({"head_dim": 128} | hf)
        if numbers["rope_scaling"]:
            raise ValueError(
                f"qwen3 rope_scaling={dict(numbers['rope_scaling'])} is not supported; allowed: "
                "none"
            )
        return cls(family="qwen3", **numbers)

    def tensors(self) -> dict[str, layers.Tensor]:
        """The base tensors and the two head norms."""
        block = "model.layers.{layer}.self_attn."
        return layers.base_tensors(self) | {
            "layers/q_norm": layers.Tensor(
                (self.head_dim,), ("head_dim",), block + "q_norm.weight", init="ones"
            ),
            "layers/k_norm": layers.Tensor(
                (self.head_dim,), ("head_dim",), block + "k_norm.weight", init="ones"
            ),
        }

    def qkv(self, p, x_BTD):
        """Projections, queries and keys normed per head."""
        q, k, v = super().qkv(p, x_BTD)
        return self.norm(q, p["q_norm"]), self.norm(k, p["k_norm"]), v
