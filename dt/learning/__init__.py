"""A Decision Transformer that learns: one run, a run to go on with, many runs at once."""
