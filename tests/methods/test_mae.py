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


def test_the_decoder_has_every_token_at_its_place_and_gaps_in_the_others(method, views):
    _, dice = views
    tokens, given = {}, []
    method.encoder.norm.register_forward_hook(lambda *a: tokens.update(f=a[2].detach()))
    method.decoder.register_forward_pre_hook(lambda _, t: given.append(t[0].detach()))
    method.step(views)
    place_LQ, gap_Q = method.place_LQ.detach().clone(), method.gap_Q.detach()
    with torch.no_grad():
        method.place_LQ.zero_()
    method.step(views)
    torch.testing.assert_close(given[0] - given[1], place_LQ.expand(6, -1, -1))
    narrow_BJQ = method.narrow(tokens["f"]).detach()
    rank_BL = dice[:, 0, ::8, ::8].flatten(1).argsort(1).argsort(1)
    assert gap_Q.abs().sum() > 0
    torch.testing.assert_close(given[1][:, 0], narrow_BJQ[:, 0])
    for image in range(6):
        for patch, rank in enumerate(rank_BL[image].tolist()):
            expected = narrow_BJQ[image, 1 + rank] if rank < method.kept else gap_Q
            torch.testing.assert_close(given[1][image, 1 + patch], expected)


def test_a_kept_patch_has_the_position_it_was_cut_from(method, views):
    given = []
    method.encoder.norm_pre.register_forward_pre_hook(lambda _, t: given.append(t[0].detach()))
    method.step(views)
    place_LD = method.encoder.pos_embed.detach().clone()[0]
    with torch.no_grad():
        method.encoder.pos_embed.zero_()
    method.step(views)
    kept_BJ = views[1][:, 0, ::8, ::8].flatten(1).argsort(1)[:, : method.kept]
    assert place_LD[1:].std(0).sum() > 0
    moved_BJD = given[0] - given[1]
    torch.testing.assert_close(moved_BJD[:, 0], place_LD[:1].expand(6, -1))
    torch.testing.assert_close(moved_BJD[:, 1:], place_LD[1:][kept_BJ])


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
