"""Benchmarks of the library against other implementations."""
