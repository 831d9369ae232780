"""What the inputs and outputs of exported graphs are called: prefixes of a parameter's name.

`backends/onnx_training_module.py` runs where nothing of ours is, and has them once more; a test compares.
"""

STATE, NEW_STATE, GRADIENT = "state.", "new_state.", "gradient."
TRAINED, STATISTIC = "trained.", "statistic."
"""Prefixes of the two kinds of parameters that go into a checkpoint of onnxruntime-training."""
