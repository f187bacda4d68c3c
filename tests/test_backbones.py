"""Names say what changes numbers, and a wrong one is a sentence before torch is imported."""

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

from medssl import backbones, registry
from medssl.backbones import _one_pixel
from medssl.backbones import timm as others

BUILT = [("resnet/18-3x3", 28, 512), ("resnet/18-7x7", 64, 512), ("resnet/50-7x7", 28, 2048)]
BUILT += [("resnet/10-3x3", 28, 512), ("bit/50x1", 28, 2048), ("convnext/tiny", 32, 768)]
BUILT += [("vit/tiny-14", 28, 192), ("vit/small-16", 64, 384), ("vit/tiny-7", 28, 192)]
BUILT += [("vit/base-14", 28, 768), ("vit/tiny-14-ls", 28, 192), ("timm/resnet14t", 28, 2048)]
BUILT += [("timm/deit_tiny_patch16_224", 32, 192), ("timm/mobilenetv3_small_050", 64, 1024)]


def features(encoder, x_BCHW):
    with torch.no_grad():
        return encoder.eval()(x_BCHW)


def seeded(name, size):
    torch.manual_seed(3)
    return backbones.build(name, size)


@pytest.mark.parametrize(("name", "size", "dim"), BUILT)
def test_features_are_dim_wide(name, size, dim):
    encoder = backbones.build(name, size)
    assert encoder.training
    assert encoder.dim == dim
    assert features(encoder, torch.zeros(2, 3, size, size)).shape == (2, dim)


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


@pytest.mark.parametrize(("patch", "size"), [(14, 28), (7, 28), (16, 64)])
def test_at_its_own_size_a_vit_is_timms_to_the_last_bit(patch, size):
    ours = seeded(f"vit/tiny-{patch}", size)
    torch.manual_seed(3)
    plain = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=size, patch_size=patch
    )
    assert all(torch.equal(v, ours.state_dict()[k]) for k, v in plain.state_dict().items())
    x_BCHW = torch.randn(3, 3, size, size)
    for x in (x_BCHW, x_BCHW.to(memory_format=torch.channels_last)):
        assert torch.equal(features(ours, x), features(plain, x))


@pytest.mark.parametrize("px", [14, 13])
def test_a_vit_takes_smaller_images_as_one_of_their_size_would(px):
    """Resampled positions, and zeros to whole patches: multi-crop's local crops."""
    large, small = backbones.build("vit/tiny-7", 28), backbones.build("vit/tiny-7", 14)
    state = large.state_dict()
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [2, 2], [4, 4])
    small.load_state_dict(state)
    x_BCHW = torch.randn(2, 3, px, px)
    padded = torch.nn.functional.pad(x_BCHW, (0, 14 - px, 0, 14 - px))
    assert torch.allclose(features(large, x_BCHW), features(small, padded), atol=1e-5)


def test_layer_scale_starts_where_it_changes_nothing():
    plain, scaled = seeded("vit/tiny-14", 28), seeded("vit/tiny-14-ls", 28)
    assert sum(k.endswith("gamma") for k in scaled.state_dict()) == 24
    x_BCHW = torch.randn(2, 3, 28, 28)
    assert torch.equal(features(plain, x_BCHW), features(scaled, x_BCHW))


def test_bit_has_no_batch_norm_and_untrained_branches_that_count():
    encoder = backbones.build("bit/50x1", 28).train()
    x_BCHW = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        assert torch.allclose(encoder(x_BCHW)[:1], encoder(x_BCHW[:1]), atol=1e-4)
    assert encoder.stages[0].blocks[0].conv3.weight.std() > 0


def test_the_names_read_from_timms_files_are_those_that_timm_knows():
    assert others.names() == set(timm.list_models())


def test_an_architecture_that_cannot_work_at_this_size_is_a_sentence():
    with pytest.raises(
        ValueError, match=r"timm/densenet121 does not work at 28 px \(Runtime.*choose"
    ):
        backbones.build("timm/densenet121", 28)


def test_features_that_are_not_one_vector_per_image_are_refused(monkeypatch):
    monkeypatch.setattr(others, "_features", lambda model, size: torch.zeros(1, 8, 2, 2))
    with pytest.raises(ValueError, match=r"of shape \(8, 2, 2\), not one vector per image"):
        backbones.build("timm/resnet14t", 28)


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [
        ("resnet/18", 28, "no resnet/18: choose from resnet/10-3x3, resnet/18-3x3"),
        ("vit/small-16", 28, "cannot cut 28 px: choose vit/small-4 or vit/small-7 or vit/small-14"),
        ("vit/small-16-ls", 28, "cannot cut 28 px: choose vit/small-4-ls or vit/small-7-ls or vit"),
        ("vit/huge-14", 28, "no vit/huge-14: choose from vit/SIZE-PATCH, or vit/SIZE-PATCH-ls wi"),
        ("bit/101x1", 28, "no bit/101x1: choose bit/50x1"),
        ("convnext/base", 64, "no convnext/base: choose convnext/tiny"),
        ("convnext/tiny", 28, "convnext/tiny halves 28 px to nothing: use image_size=32 or more"),
        ("timm/resnet5O", 28, "no timm/resnet5O: choose for example timm/resnet50, timm/resnet5"),
        ("timm/resnet50.a1_in1k", 28, "names weights too: use timm/resnet50 and choose weights as"),
    ],
)
def test_a_wrong_name_is_a_sentence(name, size, sentence):
    family, variant = name.split("/")
    (told,) = registry.load("backbones", family).check(variant, size)
    assert sentence in told
    with pytest.raises(ValueError, match="choose"):
        backbones.build(name, size)


@pytest.mark.parametrize("pixels", [(1, 1), (2, 2), (3, 1)])
def test_a_convolution_of_stride_2_has_a_gradient_also_where_it_sees_one_pixel(pixels):
    """oneDNN's in bfloat16 is unwritten memory: on a CPU that has it, this met NaN every other time
    without the mending."""
    torch.manual_seed(0)
    theirs = torch.nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False)
    ours = _one_pixel.mend(torch.nn.Sequential(torch.nn.Conv2d(64, 64, 3, 2, 1, bias=False)))[0]
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(32, 64, *pixels)
    theirs(x).square().mean().backward()
    for _ in range(20):
        junk = torch.full((2_000_000,), torch.nan)
        del junk  # so that what is unwritten shows
        ours.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = ours(x)
        y.float().square().mean().backward()
        scale = theirs.weight.grad.abs().max().item()
        torch.testing.assert_close(
            ours.weight.grad, theirs.weight.grad, rtol=0, atol=0.03 * scale, msg=str(pixels)
        )


def test_the_mended_convolutions_of_a_resnet_are_those_of_stride_2():
    encoder = backbones.build("resnet/18-7x7", 28)
    mended = [name for name, part in encoder.named_modules() if type(part) is _one_pixel.Conv]
    assert mended == ["layer2.0.conv1", "layer3.0.conv1", "layer4.0.conv1"]
