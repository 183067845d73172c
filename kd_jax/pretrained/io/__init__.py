"""Files of PyTorch, TensorFlow and safetensors, read as plain data: no code is executed."""
