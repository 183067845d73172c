"""Experiments: scripts and configurations, each with the command that runs it."""
