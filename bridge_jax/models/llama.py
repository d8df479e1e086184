"""Llama (1 to 3.2, and SmolLM2): plain projections, optional llama3 rope scaling."""

from __future__ import annotations

import dataclasses

import numpy as np

from bridge_jax.models import layers, rope

LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclasses.dataclass(frozen=True)
class Config(layers.Config):
    """A Llama model without biases, which no released model has."""

    @classmethod
    def from_hf(cls, hf: dict) -> Config:
        """From HF's config.json; ValueError for biases and other kinds of rope scaling."""
        if hf.get("attention_bias") or hf.get("mlp_bias"):
            raise ValueError(
                "llama with attention_bias or mlp_bias is not supported; allowed: both false"
            )
        numbers = layers.hf_numbers(hf)
        kind = dict(numbers["rope_scaling"] or {}).get("rope_type", "default")
        if kind not in ("default", "llama3"):
            raise ValueError(
                f"llama rope_type={kind!r} is not supported; allowed: 'default', 'llama3'"
            )
        if kind == "llama3":
            scaling = {"original_max_position_embeddings": numbers["max_positions"]} | dict(
                numbers["rope_scaling"]
            )
            if missing := [key for key in LLAMA3_KEYS if key not in scaling]:
                raise ValueError(
                    f"rope_scaling of type llama3 lacks {', '.join(missing)}; it has: {scaling}"
                )
            numbers["rope_scaling"] = tuple(sorted(scaling.items()))
        return cls(family="llama", **numbers)

    def inverse_frequencies(self) -> np.ndarray:
        """The frequencies, scaled where the checkpoint has rope_type llama3."""
        plain = super().inverse_frequencies()
        if self.rope_scaling is None:
            return plain
        s = dict(self.rope_scaling)
        return rope.llama3_frequencies(plain, *(s[key] for key in LLAMA3_KEYS))
