"""The model: layers, attention, log-probabilities, LoRA, HF folders; families, one file each.

A family (`llama`, `qwen2`, `qwen3`) is a Config read from HF's config.json, a tensor table, and the
hooks in which it differs (layers.Config). It is found by its file's name.
"""
