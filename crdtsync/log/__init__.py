"""The replicated log: commits, heads, causal delivery, stability."""
