"""Names say what changes numbers, and a wrong one is a sentence before torch is imported."""

import copy
import pickle

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch.utils._python_dispatch import TorchDispatchMode

from medssl import backbones, registry
from medssl.backbones import _few_pixels
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
        ("resnet/18", 28, "no resnet/18: did you mean resnet/18-7x7?"),
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


class Narrow(TorchDispatchMode):
    """Counts what oneDNN gets wrong: convolutions with less to see than their stride."""

    found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            (x, weight), stride = args[:2], args[3]
            reach = zip(x.shape[2:], weight.shape[2:], stride, strict=True)
            self.found += any(pixels < step and kernel > 1 for pixels, kernel, step in reach)
        return func(*args, **(kwargs or {}))


SMALL = {name: size for name, size, _ in BUILT if "base" not in name}  # every family
SMALL |= {"timm/tf_efficientnet_b0": 28, "timm/pvt_v2_b0": 64, "resnet/18-7x7": 28}
LARGE = ("convnext/tiny", "timm/pvt_v2_b0")  # take no crops of 12 px


@pytest.mark.parametrize("name", SMALL)
def test_no_convolution_sees_less_than_its_stride(name):
    """At the size that a backbone is built for, and at that of SwAV's and DINO's small crops."""
    encoder = seeded(name, SMALL[name])
    for size in [SMALL[name]] + [12] * (name not in LARGE):
        with Narrow() as narrow:
            features(encoder, torch.zeros(1, 3, size, size))
        assert narrow.found == 0, size


@pytest.mark.parametrize(
    ("name", "met"),
    [
        *(("resnet/10-3x3", 0), ("resnet/18-7x7", 1), ("resnet/50-7x7", 1), ("bit/50x1", 1)),
        *(("vit/tiny-7", 0), ("timm/resnet14t", 1), ("timm/mobilenetv3_small_050", 1)),
    ],
)
def test_mended_or_not_a_small_crop_has_the_same_features_and_gradients(name, met):
    ours = seeded(name, 28).double()  # norms of few values enlarge what is rounded
    theirs, x_BCHW, passes = bare(ours), torch.randn(16, 3, 12, 12).double(), []
    assert list(theirs.state_dict()) == list(ours.state_dict())
    for encoder in (theirs, ours):
        with Narrow() as narrow:
            passes.append(encoder(x_BCHW))
        assert narrow.found == (met if encoder is theirs else 0)
        passes[-1].square().mean().backward()
    torch.testing.assert_close(*passes, rtol=1e-6, atol=1e-7)
    for (key, a), b in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        if a.grad is None:
            assert b.grad is None
        else:
            near = 1e-6 * a.grad.abs().max().item() + 1e-7
            torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=near, msg=key)


def bare(encoder):
    """A copy without the mending."""
    copied = copy.deepcopy(encoder)
    for part in copied.modules():
        part._forward_pre_hooks.clear()
        if type(part) is _few_pixels.Conv2d:
            part.__class__ = torch.nn.Conv2d
    return copied


@pytest.mark.parametrize("convolution", [torch.nn.Conv2d, timm.layers.StdConv2d])
@pytest.mark.parametrize(
    ("kernel", "stride", "groups", "pixels"),
    [
        *((3, 2, 1, (1, 1)), (3, 2, 1, (2, 2)), (3, 2, 1, (3, 1)), (3, 2, 1, (1, 3))),
        *((3, 2, 4, (1, 1)), (5, 2, 1, (1, 1)), (7, 2, 1, (1, 1)), (7, 2, 1, (4, 1))),
        *((7, 4, 1, (3, 2)), (7, 4, 1, (5, 1))),
    ],
)
def test_a_strided_convolution_has_a_gradient_also_where_it_sees_few_pixels(
    convolution, kernel, stride, groups, pixels
):
    """oneDNN's in bfloat16 is unwritten memory: on a CPU that has it, this met NaN every other time
    without the mending."""
    torch.manual_seed(0)
    theirs = convolution(64, 64, kernel, stride, kernel // 2, groups=groups, bias=False)
    ours = _few_pixels.mend(copy.deepcopy(theirs))
    x = torch.randn(32, 64, *pixels)
    y = theirs(x)
    y.square().mean().backward()
    torch.testing.assert_close(ours(x), y, rtol=1e-4, atol=1e-5)
    scale = theirs.weight.grad.abs().max().item()
    for _ in range(10):
        spoil()
        ours.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = ours(x)
        y.float().square().mean().backward()
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=0, atol=0.05 * scale)


def spoil():
    """So that memory which is not written shows."""
    junk = torch.full((2_000_000,), torch.nan)
    del junk


@pytest.mark.parametrize("name", ["resnet/18-7x7", "bit/50x1"])
def test_a_small_crops_gradient_is_finite_in_bfloat16(name):
    encoder, x_BCHW = seeded(name, 28), torch.randn(4, 3, 12, 12)
    for _ in range(4):
        spoil()
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            f_BD = encoder(x_BCHW)
        f_BD.float().square().mean().backward()
        for key, p in encoder.named_parameters():
            assert p.grad.isfinite().all(), key


def test_what_pads_by_itself_or_not_at_all_is_left_alone():
    parts = [
        timm.layers.Conv2dSame(8, 8, 3, 2, padding="same"),
        timm.layers.StdConv2dSame(8, 8, 3, 2),
        torch.nn.Conv2d(8, 8, 2, 2),  # ConvNeXt's: two pixels or an error
        torch.nn.Conv2d(8, 8, 3, 2),
        torch.nn.Conv2d(8, 8, 4, 2, 1),
        torch.nn.Conv2d(8, 8, 3, 2, 1, padding_mode="replicate"),
        torch.nn.Conv2d(8, 8, 1, 2),
        torch.nn.Conv2d(8, 8, 3, padding="same"),
        torch.nn.Conv2d(8, 8, 3, 1, 1),
    ]
    mended = _few_pixels.mend(torch.nn.Sequential(*parts))
    assert not any(part._forward_pre_hooks for part in mended)


@pytest.mark.parametrize("pixels", [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 3)])
@pytest.mark.parametrize(
    ("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 3), (7, 2), ((1, 3), 1)]
)
def test_few_pixels_are_convolved_as_torch_does(kernel, stride, pixels):
    torch.manual_seed(0)
    padding = kernel // 2 if isinstance(kernel, int) else (0, 1)
    theirs = torch.nn.Conv2d(6, 5, kernel, stride, padding).double()
    ours = _few_pixels.mend(copy.deepcopy(theirs))
    x = torch.randn(4, 6, *pixels, dtype=torch.double)
    found = []
    for convolution in (ours, theirs):
        mine = x.clone().requires_grad_()
        y = convolution(mine)
        (y * torch.arange(y.numel()).view_as(y).cos()).sum().backward()
        found.append((y, mine.grad, convolution.weight.grad, convolution.bias.grad))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_mended_is_copied_pickled_and_compiled_whole():
    torch.manual_seed(0)
    mended = _few_pixels.mend(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU()))
    assert list(mended.state_dict()) == ["0.weight", "0.bias"]
    pixel, three = torch.randn(2, 3, 1, 1), torch.randn(2, 3, 3, 3)
    for other in (copy.deepcopy(mended), pickle.loads(pickle.dumps(mended))):
        with Narrow() as narrow:
            assert torch.equal(other(pixel), mended(pixel))
        assert narrow.found == 0

    code = []

    def eager(graph, inputs):
        code.append(graph.code)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    compiled = torch.compile(mended, backend=eager, fullgraph=True)
    for x_BCHW in (pixel, three, pixel):
        torch.testing.assert_close(compiled(x_BCHW), mended(x_BCHW))
    assert ["linear(" in graph for graph in code] == [True, False]
