"""Seeded batches for the models that the tests of sessions train."""

import numpy as np

Batch = tuple[np.ndarray, np.ndarray]


def images(count: int, seed: int = 0) -> Batch:
    """Noise images of the classifier's shape, whose mean shifts with the label."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count, dtype=np.int32)
    noise = generator.normal(size=(count, 2, 6, 5))
    return (noise + labels[:, None, None, None]).astype(np.float32), labels


def points(count: int, seed: int = 0) -> Batch:
    """Inputs and targets of the regression."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, 5)).astype(np.float32)
    return x, np.ascontiguousarray(x[:, :2] * 2)
