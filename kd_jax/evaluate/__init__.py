"""Evaluation of generators: feature extractors, metrics, cost and reports.

To compare several networks from the command line:

    python -m kd_jax.evaluate CHECKPOINT_OR_FILE ... --data digits --out DIR
"""
