"""Sampling completions from a policy: the sampler, drawing, and the plan that makes it fast."""
