"""The model: layers, attention, log-probabilities, LoRA, HF folders, and the model families.

A family (`llama`, `qwen2`, `qwen3`) is one file with a Config read from HF's config.json, a tensor
table, and overridden hooks (layers.Config). It is registered by its file's name.
"""
