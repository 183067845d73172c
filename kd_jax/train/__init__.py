"""Running a training: the loop, checkpoints, logs, diagnostics, shutdown, many processes."""
