"""Sampling of completions from a policy: the sampler, drawing of tokens, and the decode plan."""
