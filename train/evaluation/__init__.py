"""Six multilingual benchmarks for `train.evaluate`: rows, prompts, scores, task files for lm-eval, and the report."""
