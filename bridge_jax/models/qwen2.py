"""Qwen2 and Qwen2.5: llama's shape with biases on the q, k and v projections."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from bridge_jax.models import layers


@dataclasses.dataclass(frozen=True)
class Config(layers.Config):
    """A Qwen2 model."""

    @classmethod
    def from_hf(cls, hf: dict) -> Config:
        """From HF's config.json; ValueError for sliding windows and rope scaling."""
        if hf.get("use_sliding_window"):
            raise ValueError("qwen2 with use_sliding_window=true is not supported; allowed: false")
        numbers = layers.hf_numbers(hf)
        if numbers["rope_scaling"]:
            raise ValueError(
                f"qwen2 rope_scaling={dict(numbers['rope_scaling'])} is not supported; allowed: "
                "none"
            )
        return cls(family="qwen2", **numbers)

    def tensors(self) -> dict[str, layers.Tensor]:
        """The base tensors and three biases."""
        block, K, H = "model.layers.{layer}.self_attn.", self.kv_heads, self.head_dim
        return layers.base_tensors(self) | {
            "layers/q_bias": layers.Tensor(
                (self.heads, H), ("heads", "head_dim"), block + "q_proj.bias", init="zeros"
            ),
            "layers/k_bias": layers.Tensor(
                (K, H), ("kv_heads", "head_dim"), block + "k_proj.bias", init="zeros"
            ),
            "layers/v_bias": layers.Tensor(
                (K, H), ("kv_heads", "head_dim"), block + "v_proj.bias", init="zeros"
            ),
        }

    def qkv(self, p, x_BTD):
        """Projections with bias."""
        # Added in fp32, so that the gradient of a bias is summed over positions in fp32.
        plus = lambda x, bias: (x + bias.astype(jnp.float32)).astype(x.dtype)
        q, k, v = super().qkv(p, x_BTD)
        return plus(q, p["q_bias"]), plus(k, p["k_bias"]), plus(v, p["v_bias"])
