"""Files as others write them: every tensor arrives, or is told of; a wrong file is refused."""

import argparse
import copy
import functools
import os

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed

from medssl import backbones, weights

RESNET, VIT = "resnet/10-3x3", "vit/tiny-14"
CHILDREN = ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4")


built = functools.cache(backbones.build)  # it takes longer than all that is tested here


def encoder(name, seed, size=28):
    """Has in no tensor what another one has, which would hide that it did not arrive."""
    torch.manual_seed(seed)
    made = copy.deepcopy(built(name, size))
    for v in made.state_dict().values():
        if v.is_floating_point():
            v.uniform_(0.1, 1)
    return made


def under(prefix, state):
    return {prefix + k: v for k, v in state.items()}


def other(state):
    """What must not be taken: a momentum encoder, a student."""
    return {k: v + 1 for k, v in state.items()}


def numbered(state):
    split = [k.partition(".") for k in state]
    return {f"{CHILDREN.index(a)}.{rest}": state[f"{a}.{rest}"] for a, _, rest in split}


ONE = torch.ones(1)
LAYOUTS = {  # name -> (what torch.save is given, modules that stay unused)
    "plain": lambda s: (s | {"fc.weight": ONE, "fc.bias": ONE}, ["fc"]),
    "in a model": lambda s: ({"epoch": 3, "model": s, "optimizer": {"lr": 1}}, []),
    "solo-learn": lambda s: (
        {
            "epoch": 3,
            "hyper_parameters": {"lr": 0.1},
            "state_dict": under("momentum_backbone.", other(s))
            | under("backbone.", s)
            | {"classifier.weight": ONE, "projector.0.weight": ONE, "backbone.fc.weight": ONE},
        },
        ["backbone.fc", "classifier", "momentum_backbone", "projector"],
    ),
    "solo-learn of old": lambda s: ({"state_dict": under("encoder.", s)}, []),
    "lightly, BYOL": lambda s: (
        {"state_dict": under("teacher_backbone.", other(s)) | under("backbone.", s)},
        ["teacher_backbone"],
    ),
    "MoCo v2": lambda s: (
        {
            "arch": "resnet",
            "state_dict": under("module.encoder_q.", s | {"fc.0.weight": ONE})
            | under("module.encoder_k.", other(s))
            | {"module.queue": ONE},
        },
        ["module.encoder_k", "module.encoder_q.fc", "module.queue"],
    ),
    "MoCo v3": lambda s: (
        {
            "state_dict": under("module.momentum_encoder.", other(s))
            | under("module.base_encoder.", s)
            | {"module.predictor.0.weight": ONE}
        },
        ["module.momentum_encoder", "module.predictor"],
    ),
    "MoCo v3, the average alone": lambda s: (
        {"state_dict": under("module.momentum_encoder.", s)},
        [],
    ),
    "DINO": lambda s: (
        {
            "student": under("module.backbone.", other(s)),
            "teacher": under("backbone.", s) | {"head.last_layer.weight": ONE},
            "optimizer": {"state": {}},
            "args": argparse.Namespace(arch="vit"),
        },
        ["head"],
    ),
    "DINO's student": lambda s: (under("module.backbone.", s), []),
    "SwAV": lambda s: (
        under("module.", s) | {"module.prototypes.weight": ONE},
        ["module.prototypes"],
    ),
}


@pytest.mark.parametrize(
    ("layout", "backbone"),
    [(layout, RESNET) for layout in LAYOUTS] + [(layout, VIT) for layout in ("MoCo v3", "DINO")],
)
def test_every_tensor_of_every_layout_arrives(layout, backbone, tmp_path):
    theirs, ours = encoder(backbone, 1).state_dict(), encoder(backbone, 2)
    content, unused = LAYOUTS[layout](theirs)
    torch.save(content, tmp_path / "x.pth")
    loaded = weights.initialise(ours, backbone, f"file:{tmp_path}/x.pth")
    assert all(torch.equal(v, theirs[k]) for k, v in ours.state_dict().items())
    assert (loaded.left_random, loaded.changed, loaded.unused) == ((), (), tuple(unused))


def test_lightlys_numbered_resnet_arrives(tmp_path):
    theirs, ours = encoder(RESNET, 1).state_dict(), encoder(RESNET, 2)
    state = under("backbone.", numbered(theirs)) | {"projection_head.layers.0.weight": ONE}
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    loaded = weights.initialise(ours, RESNET, f"file:{tmp_path}/x.ckpt")
    assert all(torch.equal(v, theirs[k]) for k, v in ours.state_dict().items())
    assert (loaded.left_random, loaded.unused) == ((), ("projection_head",))


def test_numbers_are_those_of_a_sequential():
    """Which `nn.Sequential(*resnet.children())` gives its parts, written down in two places."""
    names = [name for name, _ in built(RESNET, 28).named_children()]
    assert tuple(names[: len(CHILDREN)]) == CHILDREN


@pytest.mark.parametrize("backbone", [RESNET, VIT, "timm/convnext_atto"])
def test_medssls_own_encoders_and_timms_safetensors_arrive(backbone, tmp_path):
    theirs, ours = encoder(backbone, 1, 56).state_dict(), encoder(backbone, 2, 56)
    path = tmp_path / "x.safetensors"
    save_file(theirs | {"head.fc.weight": ONE}, path, {"medssl": "{}"})
    loaded = weights.initialise(ours, backbone, f"file:{path}")
    assert all(torch.equal(v, theirs[k]) for k, v in ours.state_dict().items())
    assert (loaded.left_random, loaded.unused) == ((), ("head",))


def test_a_missing_tensor_is_named_and_stays_and_the_others_arrive(tmp_path):
    theirs, ours = encoder(RESNET, 1).state_dict(), encoder(RESNET, 2)
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    name = "layer3.0.bn1.running_mean"
    torch.save({k: v for k, v in theirs.items() if k != name}, tmp_path / "x.pth")
    assert weights.initialise(ours, RESNET, f"file:{tmp_path}/x.pth").left_random == (name,)
    for k, v in ours.state_dict().items():
        assert torch.equal(v, before[k] if k == name else theirs[k])


def test_a_stem_that_does_not_fit_stays_and_is_told_of_both_sides(tmp_path):
    ours = encoder("resnet/18-3x3", 2)
    before = ours.conv1.weight.clone()
    torch.save(encoder("resnet/18-7x7", 1).state_dict(), tmp_path / "x.pth")
    loaded = weights.initialise(ours, "resnet/18-3x3", f"file:{tmp_path}/x.pth")
    assert (loaded.left_random, loaded.unused) == (("conv1.weight",), ("conv1",))
    assert torch.equal(ours.conv1.weight, before)


def test_a_stem_of_one_channel_answers_grey_images_as_it_did(tmp_path):
    torch.manual_seed(1)
    grey = timm.create_model("vit_tiny_patch16_224", num_classes=0, in_chans=1, img_size=32).eval()
    torch.save(grey.state_dict(), tmp_path / "x.pth")
    ours = encoder("vit/tiny-16", 2, 32).eval()
    loaded = weights.initialise(ours, "vit/tiny-16", f"file:{tmp_path}/x.pth")
    assert loaded.changed == ("patch_embed.proj.weight 192x1x16x16 to 192x3x16x16",)
    x_BCHW = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.allclose(ours(x_BCHW.expand(-1, 3, -1, -1)), grey(x_BCHW), atol=1e-5)


def test_embeddings_are_resampled_from_224_to_28_px_and_from_patch_16_to_7(tmp_path):
    theirs, ours = encoder("vit/tiny-16", 1, 224).state_dict(), encoder("vit/tiny-7", 2)
    torch.save(theirs, tmp_path / "x.pth")
    loaded = weights.initialise(ours, "vit/tiny-7", f"file:{tmp_path}/x.pth")
    assert loaded.left_random == loaded.unused == ()
    assert loaded.changed == (
        "pos_embed 1x197x192 to 1x17x192",
        "patch_embed.proj.weight 192x3x16x16 to 192x3x7x7",
    )
    state = ours.state_dict()
    want = resample_abs_pos_embed(theirs["pos_embed"], [4, 4])
    assert torch.allclose(state.pop("pos_embed"), want, atol=1e-6)
    want = resample_patch_embed(theirs["patch_embed.proj.weight"], [7, 7])
    assert torch.allclose(state.pop("patch_embed.proj.weight"), want, atol=1e-6)
    assert all(torch.equal(v, theirs[k]) for k, v in state.items())


def test_layer_scale_goes_where_it_has_a_place_and_nowhere_else(tmp_path):
    scaled, plain = encoder(f"{VIT}-ls", 1), encoder(VIT, 1)
    for name, made in (("scaled", scaled), ("plain", plain)):
        torch.save(made.state_dict(), tmp_path / f"{name}.pth")
    ours = encoder(f"{VIT}-ls", 2)
    assert weights.initialise(ours, f"{VIT}-ls", f"file:{tmp_path}/scaled.pth").changed == ()
    assert torch.equal(ours.blocks[3].ls2.gamma, scaled.blocks[3].ls2.gamma)
    fresh = copy.deepcopy(built(f"{VIT}-ls", 28))
    loaded = weights.initialise(fresh, f"{VIT}-ls", f"file:{tmp_path}/plain.pth")
    assert loaded.left_random == ()
    assert loaded.changed == ("24 LayerScales stay at 1, where they change nothing",)
    x_BCHW = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(fresh.eval()(x_BCHW), plain.eval()(x_BCHW))
    with pytest.raises(ValueError, match=r"24 of its tensors have no place.*blocks\.0\.ls1\.gamma"):
        weights.initialise(encoder(VIT, 2), VIT, f"file:{tmp_path}/scaled.pth")


@pytest.mark.parametrize(
    ("theirs", "ours", "sentence"),
    [
        ("resnet/18-3x3", RESNET, r"have no place in the encoder \(as layer1\.1\.conv1\.weight\)"),
        (
            RESNET,
            "resnet/18-3x3",
            r"find nothing in it \(as layer1\.1\.conv1\.weight, 64x64x3x3: it",
        ),
        (VIT, RESNET, r"find nothing in it \(as conv1\.weight, 64x3x3x3: it has n"),
        (
            RESNET,
            VIT,
            r"\(as cls_token, 1x1x192: it has none\)\. It holds 72 tensors, from conv1\.we",
        ),
        ("vit/small-14", VIT, r"\(as cls_token, 1x1x192: it has 1x1x384\)"),
    ],
)
def test_a_file_of_another_architecture_is_a_sentence_and_changes_nothing(
    theirs, ours, sentence, tmp_path
):
    torch.save(encoder(theirs, 1).state_dict(), tmp_path / "x.pth")
    encoder_ = encoder(ours, 2)
    before = {k: v.clone() for k, v in encoder_.state_dict().items()}
    with pytest.raises(ValueError, match=sentence) as told:
        weights.initialise(encoder_, ours, f"file:{tmp_path}/x.pth")
    assert f"of {ours}: {tmp_path}/x.pth does not fit: " in str(told.value)
    assert "choose the backbone that it was trained as" in str(told.value)
    assert all(torch.equal(v, before[k]) for k, v in encoder_.state_dict().items())


@pytest.mark.parametrize(
    ("variant", "without", "sentence"),
    [
        ({"pre_norm": True}, (), r"have no place in the encoder \(as norm_pre\.weight\)"),
        ({"global_pool": "avg"}, (), r"have no place in the encoder \(as fc_norm\.weight\)"),
        ({"reg_tokens": 4}, (), r"have no place in the encoder \(as reg_token\)"),
        ({"reg_tokens": 4}, ("reg_token",), r"1 of .* tensors find nothing in it \(as pos_embed"),
    ],
)
def test_a_vit_with_parts_that_ours_has_not_is_refused(variant, without, sentence, tmp_path):
    sized = {"img_size": 28, "patch_size": 14, "num_classes": 0}
    state = timm.create_model("vit_tiny_patch16_224", **sized, **variant).state_dict()
    torch.save({k: v for k, v in state.items() if k not in without}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=sentence):
        weights.initialise(encoder(VIT, 2), VIT, f"file:{tmp_path}/x.pth")


def test_moco_v3s_vit_small_is_refused_because_its_heads_are_not_ours(tmp_path):
    state = under("module.base_encoder.", encoder("vit/small-14", 1).state_dict())
    torch.save({"state_dict": state}, tmp_path / "x.pth.tar")
    with pytest.raises(ValueError, match="12 attention heads where ours has 6"):
        weights.initialise(encoder("vit/small-14", 2), "vit/small-14", f"file:{tmp_path}/x.pth.tar")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(zipped, tmp_path):
    content = {"state_dict": encoder(RESNET, 1).state_dict(), "x": Evil(tmp_path / "ran")}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"x\.pth holds more than tensors: it asks for posix\.mkdir"
    ):
        weights.initialise(encoder(RESNET, 2), RESNET, f"file:{tmp_path}/x.pth")
    assert not (tmp_path / "ran").exists()


def truncated(path, save):
    save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "write", "sentence"),
    [
        ("x.pth", lambda p, s: truncated(p, lambda p: torch.save(s, p)), "cannot be read .Runti"),
        ("x.safetensors", lambda p, s: truncated(p, lambda p: save_file(s, p)), "cannot be read"),
        ("x.pth", lambda p, s: p.write_bytes(b""), "cannot be read .EOFError.*Get it again"),
        ("x.pth", lambda p, s: p.write_text("404: Not Found"), "cannot be read"),
        (
            "x.safetensors",
            lambda p, s: torch.save(s, p),
            "cannot be read .*neither safetensors .named .safetensors.",
        ),
        (
            "x.pth",
            lambda p, s: torch.save({"epoch": 3}, p),
            "holds no tensors by name: save a state",
        ),
        ("x.pth", lambda p, s: torch.save(list(s.values()), p), "holds no tensors by name"),
        ("x.pth", lambda p, s: torch.save(dict(enumerate(s.values())), p), "holds no tensors by n"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_a_sentence(name, write, sentence, tmp_path):
    write(tmp_path / name, encoder(RESNET, 1).state_dict())
    with pytest.raises(ValueError, match=rf"init 'file:.*{name} {sentence}"):
        weights.initialise(encoder(RESNET, 2), RESNET, f"file:{tmp_path}/{name}")
