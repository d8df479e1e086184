"""Sandwich norms, a sliding window on every other layer, a scaled embedding, gelu.

A family for the tests alone: tests/models/test_new_family.py and tests/test_dropin.py drop it in.
"""

import dataclasses

import jax
import numpy as np

from bridge_jax.models import layers

HF_EXAMPLE = {"hidden_act": "gelu_pytorch_tanh", "sliding_window": 3}


@dataclasses.dataclass(frozen=True)
class Config(layers.Config):
    """A sandwich model."""

    window: int = 0

    @classmethod
    def from_hf(cls, hf):
        """From the keys of HF's config.json."""
        numbers = layers.hf_numbers(hf, activations=("gelu_pytorch_tanh",))
        return cls(family="sandwich", window=hf["sliding_window"], **numbers)

    def tensors(self):
        """The base tensors and the norms behind attention and mlp."""
        norm = lambda name: layers.Tensor(
            (self.width,), ("embed",), "model.layers.{layer}." + name + ".weight", init="ones"
        )
        return layers.base_tensors(self) | {
            "layers/attn_out_norm": norm("attention_output_norm"),
            "layers/mlp_out_norm": norm("mlp_output_norm"),
        }

    def layer_constants(self):
        """A window on layers 0, 2, ...; the others see all."""
        whole = np.arange(self.layers) % 2 == 1
        return {"window": np.where(whole, 2**30, self.window).astype(np.int32)}

    def scale_embedding(self, x_BTD):
        """By the root of the width."""
        return x_BTD * self.width**0.5

    def activation(self, gate_BTF):
        """gelu, by tanh."""
        return jax.nn.gelu(gate_BTF)

    def block(self, p, x_BTD, cos_sin, attend):
        """A norm before and after each of the two."""
        h, cache = layers.self_attention(self, p, self.norm(x_BTD, p["attn_norm"]), cos_sin, attend)
        x_BTD = x_BTD + self.norm(h, p["attn_out_norm"])
        h = self.mlp_of(p, self.norm(x_BTD, p["mlp_norm"]))
        return x_BTD + self.norm(h, p["mlp_out_norm"]), cache
