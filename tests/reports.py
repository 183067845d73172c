"""Reads the reports of experiments, for tests."""

import json


def read_report(workdir):
    """The whole report."""
    return json.loads((workdir / "report.json").read_text())


def read_figures(workdir):
    """`{network: {metric: figure}}` of the main table."""
    return {e["name"]: e["figures"] for e in read_report(workdir)["tables"][0]["entries"]}


def values(workdir, metric):
    """The values of a metric, by network."""
    figures = read_figures(workdir)
    return {name: own[metric]["value"] for name, own in figures.items() if metric in own}


COST = {"parameters", "macs", "memory", "latency", "per_image"}
"""The columns of the cost."""
