"""`python -m kd_jax COMMAND ...`: the command `kd-jax`."""

from kd_jax.cli import main

main()
