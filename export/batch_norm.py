"""Batch norm as devices train it: a batch may have one value for each channel."""

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


class DeviceBatchNorm(_BatchNorm):
    """A batch norm that takes any batch in training.

    PyTorch refuses one value for each channel, whose unbiased variance is 0/0. A device takes the plain variance
    there, which is 0, so that the last batch of an epoch may have one example.
    """

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__(
            layer.num_features,
            layer.eps,
            layer.momentum,
            layer.affine,
            layer.track_running_stats,
            device="meta",
        )
        self.weight, self.bias = layer.weight, layer.bias
        self.running_mean, self.running_var = layer.running_mean, layer.running_var
        self.num_batches_tracked = layer.num_batches_tracked

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input, (batch, channels, ...); in training the statistics move."""
        if not self.training or input.numel() > self.num_features:
            return super().forward(input)
        if self.running_mean is not None and self.running_var is not None:
            assert self.momentum is not None  # capture refuses it
            self.running_mean.lerp_(input.detach().flatten(), self.momentum)
            self.running_var.mul_(1 - self.momentum)
        # Its 0 is exact, while batch_norm computes input · a - mean · a.
        centred = input - input.mean([0, *range(2, input.dim())], keepdim=True)
        return torch.batch_norm(
            *(centred, self.weight, self.bias, None, None),
            *(True, 0.0, self.eps, torch.backends.cudnn.enabled),
        )

    def _check_input_dim(self, input: Tensor) -> None:
        """The layer that it takes the place of has done with any number of dimensions."""
