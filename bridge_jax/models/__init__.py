"""Model families, one file each (`llama`, `qwen2`, `qwen3`): a Config read from HF's config.json, a tensor table."""
