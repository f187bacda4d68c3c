"""Names say what changes numbers, and a wrong one is a sentence before torch is imported."""

import pytest
import torch

from medssl import backbones, registry

BUILT = [("resnet/18-3x3", 28, 512), ("resnet/18-7x7", 64, 512), ("resnet/50-7x7", 28, 2048)]
BUILT += [("resnet/10-3x3", 28, 512)]
BUILT += [("vit/tiny-14", 28, 192), ("vit/small-16", 64, 384), ("vit/tiny-7", 28, 192)]


@pytest.mark.parametrize(("name", "size", "dim"), BUILT)
def test_features_are_dim_wide(name, size, dim):
    encoder = backbones.build(name, size).eval()
    assert encoder.dim == dim
    with torch.no_grad():
        assert encoder(torch.zeros(2, 3, size, size)).shape == (2, dim)


def test_the_stem_is_the_one_in_the_name():
    small, large = (backbones.build(f"resnet/18-{stem}", 28) for stem in ("3x3", "7x7"))
    assert small.conv1.kernel_size == (3, 3)
    assert small.conv1.stride == (1, 1)
    assert isinstance(small.maxpool, torch.nn.Identity)
    assert large.conv1.kernel_size == (7, 7)
    assert isinstance(large.maxpool, torch.nn.MaxPool2d)


@pytest.mark.parametrize("name", ["resnet/10-3x3", "resnet/18-7x7", "resnet/50-7x7"])
def test_an_untrained_resnet_is_torchvisions_not_a_stem_with_shortcuts(name):
    """timm starts the last norm of each block at 0, which halves what `none` is worth."""
    for block in backbones.build(name, 28).layer1:
        last = block.bn3 if hasattr(block, "bn3") else block.bn2
        assert (last.weight == 1).all()


def test_the_patch_is_the_one_in_the_name():
    assert backbones.build("vit/small-16", 64).pos_embed.shape == (1, 17, 384)
    assert backbones.build("vit/small-8", 64).pos_embed.shape == (1, 65, 384)


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [
        ("resnet/18", 28, "no resnet/18: choose from resnet/10-3x3, resnet/18-3x3"),
        ("vit/small-16", 28, "cannot cut 28 px: choose vit/small-4 or vit/small-7 or vit/small-14"),
        ("vit/huge-14", 28, "no vit/huge-14: choose from vit/tiny-4"),
    ],
)
def test_a_wrong_name_is_a_sentence(name, size, sentence):
    family, variant = name.split("/")
    (told,) = registry.load("backbones", family).check(variant, size)
    assert sentence in told
    with pytest.raises(ValueError, match="choose"):
        backbones.build(name, size)
