"""Parts on their own, where every method leans on them."""

import torch

from medssl.methods._parts import in_float32


def test_a_loss_in_float32_is_exact_whatever_the_autocast_type_around_it():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 64, generator=g) for _ in range(2))
    product = in_float32(lambda a, b: a @ b)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ b).dtype == torch.bfloat16
        torch.testing.assert_close(product(a, b), product(a, b).float(), rtol=0, atol=0)
        inside = product(a, b)
        halved = product(a.bfloat16(), b)
    torch.testing.assert_close(inside, a @ b)
    assert inside.dtype == halved.dtype == torch.float32
    torch.testing.assert_close(halved, a.bfloat16().float() @ b)
