"""How many floating-point operations is a step? Counted once, and nothing is computed for it.

    a method, a batch of views -> the same on fake tensors, which have shapes alone -> operations

Products of matrices, convolutions and attention count, forward and backward, two for a multiply and
an add, as torch's FlopCounterMode has them. Not counted in a step itself: counting takes composed
operations apart, which may change the last digits of a result.
"""

import copy
from collections.abc import Sequence

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from medssl.device import autocast
from medssl.methods import SSLMethod


def of_step(method: SSLMethod, views: Sequence[Tensor]) -> float:
    """Of `method.step` on views like these, and of its backward pass; the method is left alone."""
    fake = FakeTensorMode()
    shadow = copy.deepcopy(method)
    for part in shadow.modules():
        for own in (part._parameters, part._buffers):
            own.update({k: fake.from_tensor(v) for k, v in own.items() if v is not None})
    like = [fake.from_tensor(x) for x in views]
    with fake, FlopCounterMode(display=False) as counter:
        with autocast(views[0].device):
            loss, _ = shadow.step(like)
        loss.backward()
    return counter.get_total_flops()
