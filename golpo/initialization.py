"""Models whose weights are loaded at once need no initial weights."""

import torch
import torch.nn.init as init
from torch.overrides import TorchFunctionMode


class SkipInitialization(TorchFunctionMode):
    """Inside `with SkipInitialization():` the weights of new modules keep what memory holds.

    Filling 124 million weights with random numbers takes longer than reading them from a disk. Use
    it only where every weight is loaded afterwards; the random number generator stays as it is.
    """

    FILLERS = (
        init.normal_,
        init.uniform_,
        init.kaiming_uniform_,
        torch.Tensor.normal_,
        torch.Tensor.uniform_,
    )

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.FILLERS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
