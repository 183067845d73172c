"""Networks, objectives and the training step: pure functions of pytrees."""
