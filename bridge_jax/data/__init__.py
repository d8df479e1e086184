"""Data: tokenizers, problems, demonstrations, batches."""
