"""Evaluation of generators from checkpoints and published files: samples, all metrics, cost.

The command `kd-jax evaluate` compares several generators and writes a report.
"""
