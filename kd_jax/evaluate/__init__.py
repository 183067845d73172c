"""Measuring generators: extractors, metrics, cost and reports.

From the command line, several networks side by side:

    python -m kd_jax.evaluate CHECKPOINT_OR_FILE ... --data digits --out DIR
"""
