"""Metrics of generators as functions of features or images, and the feature extractors."""
