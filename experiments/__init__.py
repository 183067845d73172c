"""Runnable experiments: each module has its command, hardware and expected result on top."""
