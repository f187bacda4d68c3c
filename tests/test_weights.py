"""An init is loaded from the offline folder, resampled where it must be, and named where absent."""

import hashlib

import pytest
import timm
import torch
from safetensors.torch import save_file

from medssl import backbones, weights


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSSL_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(weights, "_cached", lambda backbone: None)
    return tmp_path


def put(folder, backbone, **options):
    """A file of the backbone's timm model at 224 px, with weights of its own."""
    torch.manual_seed(7)
    tag = weights.TAGS[backbone.partition("-")[0]]
    model = timm.create_model(tag.partition(".")[0], **options)
    save_file(model.state_dict(), folder / f"{tag}.safetensors")
    return model, folder / f"{tag}.safetensors"


def test_resnet_takes_every_weight_and_its_checksum(folder):
    model, path = put(folder, "resnet/18-7x7")
    encoder = backbones.build("resnet/18-7x7", 28)
    loaded = weights.initialise(encoder, "resnet/18-7x7", "imagenet")
    assert loaded.left_random == ()
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert torch.equal(encoder.layer4[1].conv2.weight, model.layer4[1].conv2.weight)
    assert weights.check("resnet/18-7x7", "imagenet") == []


def test_a_3x3_stem_stays_random_and_says_so(folder):
    put(folder, "resnet/18-3x3")
    encoder = backbones.build("resnet/18-3x3", 28)
    before = encoder.conv1.weight.clone()
    assert weights.initialise(encoder, "resnet/18-3x3", "imagenet").left_random == ("conv1.weight",)
    assert torch.equal(encoder.conv1.weight, before)


def test_a_vit_is_resampled_to_its_patch_and_size(folder):
    model, _ = put(folder, "vit/tiny-8")
    encoder = backbones.build("vit/tiny-8", 64)
    loaded = weights.initialise(encoder, "vit/tiny-8", "imagenet")
    assert loaded.left_random == ()
    assert torch.equal(encoder.blocks[3].attn.qkv.weight, model.blocks[3].attn.qkv.weight)
    assert encoder.pos_embed.shape[1] == 65
    assert encoder.pos_embed.std() > 0


def test_random_is_left_alone():
    torch.manual_seed(0)
    encoder = backbones.build("vit/tiny-14", 28)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    assert weights.initialise(encoder, "vit/tiny-14", "random") == weights.Loaded()
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())


def test_an_absent_file_is_a_sentence_with_its_name_and_place(folder):
    (told,) = weights.check("vit/small-16", "imagenet")
    tag = "vit_small_patch16_224.augreg_in21k_ft_in1k"
    for part in (f"timm/{tag}", f"{tag}.safetensors", "MEDSSL_WEIGHTS"):
        assert part in told
    with pytest.raises(ValueError, match="set MEDSSL_WEIGHTS to its folder"):
        weights.ready("vit/small-16", "imagenet")


def test_a_file_of_another_model_is_refused(folder):
    _, path = put(folder, "resnet/18-7x7")
    path.rename(folder / "resnet50.tv_in1k.safetensors")
    encoder = backbones.build("resnet/50-7x7", 28)
    with pytest.raises(ValueError, match=r"is not resnet50\.tv_in1k"):
        weights.initialise(encoder, "resnet/50-7x7", "imagenet")


def test_an_unknown_init_is_a_sentence():
    assert weights.check("resnet/18-7x7", "imgnet") == [
        "no init 'imgnet': choose from random, imagenet"
    ]
