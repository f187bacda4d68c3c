"""MAE: what is hidden is neither seen nor free, and what is kept costs nothing."""

import pytest
import torch

from medssl.methods.mae import Config, Method, distance


@pytest.fixture
def method(tiny_encoder):
    torch.manual_seed(0)
    return Method(tiny_encoder("vit"), Config(decoder_dim=32, decoder_depth=1, decoder_heads=4))


@pytest.fixture
def views():
    g = torch.Generator().manual_seed(0)
    return [torch.rand(6, 3, 32, 32, generator=g), torch.rand(6, 1, 32, 32, generator=g)]


def hidden(method, dice_B1HW) -> torch.Tensor:
    """Pixels (B, 1, H, W) of the patches that the encoder does not see."""
    dice_BL = dice_B1HW[:, 0, ::8, ::8].flatten(1)
    rank_BL = dice_BL.argsort(1).argsort(1)
    return (
        (rank_BL >= method.kept).view(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    )


def test_the_decoders_blocks_begin_different(tiny_encoder):
    deep = Method(tiny_encoder("vit"), Config(decoder_dim=32, decoder_depth=3, decoder_heads=4))
    first, second, third, _ = (next(iter(part.parameters())) for part in deep.decoder)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_three_quarters_are_hidden(method, views):
    assert method.kept == 4
    assert hidden(method, views[1]).float().mean() == 0.75


def test_the_encoder_sees_nothing_of_the_hidden_patches(method, views):
    x, dice = views
    seen = []
    method.encoder.norm.register_forward_hook(lambda *a: seen.append(a[2].detach()))
    method.step([x, dice])
    method.step([torch.where(hidden(method, dice), torch.rand_like(x), x), dice])
    torch.testing.assert_close(seen[0], seen[1])


def test_only_the_hidden_patches_are_to_be_painted(method, views):
    x, dice = views
    found = []
    method.paint.register_forward_hook(lambda *a: found.append(a[2].detach()))
    loss = method.step(views).loss.item()
    target = method.patches(x)
    error_BL = (found[0] - target).square().mean(2)
    hidden_BL = hidden(method, dice)[:, 0, ::8, ::8].flatten(1)
    assert loss == pytest.approx(error_BL[hidden_BL].mean().item(), rel=1e-5)


def test_a_perfect_painting_costs_nothing(method, views):
    target = method.patches(views[0])
    assert distance(target, target, torch.arange(16).expand(6, -1)) == 0
    torch.testing.assert_close(target.mean(2), torch.zeros(6, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(target.var(2), torch.ones(6, 16), atol=1e-3, rtol=0)


def test_a_patch_and_its_target_lie_at_the_same_place(method, views):
    """A bright patch of noise in the third column of the second row is the seventh target."""
    x = torch.zeros(1, 3, 32, 32)
    x[:, :, 8:16, 16:24] = torch.rand(1, 3, 8, 8)
    spread_L = method.patches(x)[0].abs().sum(1)
    assert spread_L.argmax() == 6
    flat = method.encoder.patch_embed(x).flatten(1, -2)
    assert (flat - method.encoder.patch_embed(torch.zeros_like(x)).flatten(1, -2)).abs().sum(
        2
    ).argmax() == 6
