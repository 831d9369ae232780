"""Federated training on the nonzeros: the umbrella package of the five folders linked beside it."""

__version__ = "0.1.0"
