"""Benchmarks: how fast the library is, against what."""
