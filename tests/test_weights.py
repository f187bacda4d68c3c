"""An init is looked for in order, compared with its checksum, and named where it is absent."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from served import WRONG, served

from medssl import _files, _published, backbones, registry, trial, weights

STEMS = [  # one backbone for each name in the table of published files
    *("resnet/18-7x7", "resnet/50-7x7", "vit/tiny-16", "vit/small-8", "vit/small-16", "vit/base-8"),
    *("vit/base-16", "vit/small-16-ls", "vit/base-14-ls", "bit/50x1", "convnext/tiny"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """MEDSSL_WEIGHTS, on a machine with neither caches nor a network; files need no checksum."""
    monkeypatch.setenv("MEDSSL_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    free = {
        init: {b: replace(f, sha256="") for b, f in files.items()}
        for init, files in _published.FILES.items()
    }
    monkeypatch.setattr(_published, "FILES", free)
    return tmp_path


def put(folder, backbone, init, **options):
    """A file under the name that the init has, of its timm model with weights of its own."""
    file = _published.of(backbone, init)
    torch.manual_seed(7)
    model = timm.create_model(file.name.partition(".")[0], **options)
    for v in model.state_dict().values():
        if v.is_floating_point():
            v.uniform_(0.01, 0.1)
    save_file(model.state_dict(), folder / file.name)
    return model.eval(), folder / file.name


def test_resnet_takes_every_weight_and_its_checksum(folder):
    model, path = put(folder, "resnet/18-7x7", "imagenet")
    encoder = backbones.build("resnet/18-7x7", 28)
    loaded = weights.initialise(encoder, "resnet/18-7x7", "imagenet")
    assert (loaded.left_random, loaded.changed, loaded.unused) == ((), (), ("fc",))
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    theirs = model.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in encoder.state_dict().items())
    assert weights.check("resnet/18-7x7", "imagenet") == []
    weights.ready("resnet/18-7x7", "imagenet")


def test_a_3x3_stem_stays_random_and_says_so(folder):
    put(folder, "resnet/18-3x3", "imagenet")
    encoder = backbones.build("resnet/18-3x3", 28)
    before = encoder.conv1.weight.clone()
    assert weights.initialise(encoder, "resnet/18-3x3", "imagenet").left_random == ("conv1.weight",)
    assert torch.equal(encoder.conv1.weight, before)


def test_dinov2_at_28_px_is_what_dinov2_makes_of_28_px(folder):
    """518 px and 37 x 37 positions as published, LayerScale, patches of 14: the same features."""
    put(folder, "vit/small-14-ls", "dinov2", num_classes=0)
    backbone = "vit/small-14-ls"
    theirs = timm.create_model(
        "vit_small_patch14_dinov2", num_classes=0, dynamic_img_size=True, init_values=1.0
    )
    theirs.load_state_dict(load_file(folder / _published.of(backbone, "dinov2").name))
    encoder = backbones.build(backbone, 28)
    loaded = weights.initialise(encoder, backbone, "dinov2")
    assert (loaded.left_random, loaded.unused) == ((), ())
    assert loaded.changed == ("pos_embed 1x1370x384 to 1x5x384",)
    assert not (encoder.blocks[0].ls1.gamma == 1).any()
    x_BCHW = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.allclose(encoder.eval()(x_BCHW), theirs.eval()(x_BCHW), atol=1e-5)


def test_bit_gives_the_features_of_timms(folder):
    model, _ = put(folder, "bit/50x1", "bit", num_classes=3)
    encoder = backbones.build("bit/50x1", 28)
    loaded = weights.initialise(encoder, "bit/50x1", "bit")
    assert (loaded.left_random, loaded.changed, loaded.unused) == ((), (), ("head",))
    x_BCHW = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        want = model.forward_head(model.forward_features(x_BCHW), pre_logits=True)
        assert torch.equal(encoder.eval()(x_BCHW), want.flatten(1))


def test_random_is_left_alone():
    torch.manual_seed(0)
    encoder = backbones.build("vit/tiny-14", 28)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    assert weights.initialise(encoder, "vit/tiny-14", "random") == weights.Loaded()
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("backbone", "init", "parts"),
    [
        (
            "vit/small-16",
            "imagenet",
            [
                "timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
                "vit_small_patch16_224.augreg_in21k_ft_in1k.safetensors",
                "its SHA-256 is not known to us",
            ],
        ),
        ("resnet/50-3x3", "imagenet", ["timm/resnet50.tv_in1k", "SHA-256 5d061a3c593d795bfe682d9"]),
        ("resnet/50-3x3", "imagenet_ssl/vicreg", ["/vicreg/resnet50.pth", "vicreg_resnet50.pth"]),
        ("resnet/50-3x3", "imagenet_ssl/moco_v3-100ep", ["SHA-256 f1144efa...", "/mmselfsup/1.x/"]),
    ],
)
def test_an_absent_file_is_a_sentence_with_its_name_and_place(
    backbone, init, parts, tmp_path, monkeypatch
):
    monkeypatch.setenv("MEDSSL_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_network)
    monkeypatch.setattr(_files.urllib.request, "urlopen", no_network)
    (told,) = weights.check(backbone, init)
    for part in (*parts, f"init {init!r} of {backbone}", "set MEDSSL_WEIGHTS to its folder"):
        assert part in told
    for use in (weights.ready, lambda b, i: weights.initialise(None, b, i)):
        with pytest.raises(OSError, match="set MEDSSL_WEIGHTS to its folder") as error:
            use(backbone, init)
        assert str(error.value).startswith(told)
        assert trial.can_pass(error.value)


def no_network(*arguments, **named):
    raise OSError("Network is unreachable")


def test_a_published_file_with_another_checksum_is_refused(folder, monkeypatch):
    backbone = "resnet/18-7x7"
    _, path = put(folder, backbone, "imagenet")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    for promised in (sha256, sha256[:8]):
        pinned = {
            "imagenet": {"resnet/18": replace(_published.of(backbone, "imagenet"), sha256=promised)}
        }
        monkeypatch.setattr(_published, "FILES", pinned)
        weights.ready(backbone, "imagenet")
    path.write_bytes(path.read_bytes() + b" ")
    for use in (weights.ready, lambda b, i: weights.initialise(None, b, i)):
        with pytest.raises(
            ValueError, match=rf"is not the file that is meant.*{sha256[:8]}\.\.\.: g"
        ):
            use(backbone, "imagenet")


def test_the_hubs_cache_is_second_and_names_the_checksum_of_its_file(folder, monkeypatch):
    backbone = "resnet/18-7x7"
    _, path = put(folder, backbone, "imagenet")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "hub").mkdir()
    blob, link = folder / "hub" / sha256, folder / "hub" / "model.safetensors"
    blob.write_bytes(path.read_bytes())
    link.symlink_to(blob)
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda repo, name: (
            str(link) if (repo, name) == ("timm/resnet18.tv_in1k", link.name) else None
        ),
    )
    path.write_bytes(b"of the folder, which comes first")
    with pytest.raises(ValueError, match=r"resnet18\.tv_in1k\.safetensors cannot be read"):
        weights.initialise(None, backbone, "imagenet")
    path.unlink()
    assert weights.check(backbone, "imagenet") == []
    encoder = backbones.build(backbone, 28)
    assert weights.initialise(encoder, backbone, "imagenet").sha256 == sha256
    blob.write_bytes(b"half a download")
    with pytest.raises(ValueError, match=rf"should be {sha256}: get it again"):
        weights.ready(backbone, "imagenet")


def test_what_is_not_on_the_hub_is_fetched_once_and_compared(folder, monkeypatch):
    name, init = "resnet/50-3x3", "imagenet_ssl/swav"
    source = folder / "elsewhere.pth"
    source.write_bytes(b"weights")
    file = replace(
        _published.of(name, init),
        url=source.as_uri(),
        sha256=hashlib.sha256(b"weights").hexdigest(),
    )
    monkeypatch.setattr(_published, "FILES", {init: {"resnet/50": file}})
    assert len(weights.check(name, init)) == 1
    weights.ready(name, init)
    assert weights.check(name, init) == []
    source.unlink()
    weights.ready(name, init)
    monkeypatch.setattr(
        _published, "FILES", {init: {"resnet/50": replace(file, name="y", sha256="ab" * 32)}}
    )
    source.write_bytes(b"other weights")
    with pytest.raises(OSError, match=r"set MEDSSL_WEIGHTS to its folder \(.*should be abab"):
        weights.ready(name, init)
    assert len(weights.check(name, init)) == 1  # nothing is kept of it


@pytest.mark.parametrize(("answer", "why"), WRONG)
def test_a_download_that_stalls_or_is_cut_short_fails_and_leaves_nothing(
    answer, why, folder, monkeypatch
):
    name, init = "resnet/50-3x3", "imagenet_ssl/swav"
    monkeypatch.setattr(_files, "STALLED_S", 0.2)
    with served(answer) as address:
        file = replace(_published.of(name, init), url=address)
        monkeypatch.setattr(_published, "FILES", {init: {"resnet/50": file}})
        with pytest.raises(OSError, match=why) as told:
            weights.ready(name, init)
    assert trial.can_pass(told.value)
    assert not [p for p in folder.rglob("*") if p.is_file()]


def test_what_the_caches_have_is_put_where_all_nodes_see_it(folder, monkeypatch):
    blob = folder / "hub" / "model.safetensors"
    blob.parent.mkdir()
    blob.write_bytes(b"weights")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(blob))
    shared = folder / "shared"
    monkeypatch.setenv("MEDSSL_WEIGHTS", str(shared))
    weights.ready("resnet/18-7x7", "imagenet")
    assert [p.name for p in shared.iterdir()] == ["resnet18.tv_in1k.safetensors"]
    assert (shared / "resnet18.tv_in1k.safetensors").read_bytes() == b"weights"
    monkeypatch.setenv("MEDSSL_WEIGHTS", str(blob / "no folder"))  # nothing can be written there
    weights.ready("resnet/18-7x7", "imagenet")


def test_every_published_file_has_a_backbone_and_a_tag_that_timm_knows():
    tags = set(timm.list_pretrained())
    reached = set()
    for init in _published.FILES:
        for backbone in STEMS:
            family, _, variant = backbone.partition("/")
            size = 56 if "-14" in variant else 64
            assert registry.load("backbones", family).check(variant, size) == []
            if file := _published.of(backbone, init):
                reached.add(file)
                assert bool(file.hub) != bool(file.url)
                assert not file.hub or file.hub.removeprefix("timm/") in tags
                assert weights.wrong(backbone, init) == []
    files = [f for known in _published.FILES.values() for f in known.values()]
    assert reached == set(files)
    assert len({f.name for f in files}) == len(files)
    assert all(set(f.sha256) <= set("0123456789abcdef") for f in files)


def test_a_file_of_exactly_this_patch_comes_before_one_for_any():
    def of(backbone, init="imagenet_ssl/dino"):
        file = _published.of(backbone, init)
        return file and file.name

    assert of("vit/small-8") == of("vit/small-8-ls") == "vit_small_patch8_224.dino.safetensors"
    assert of("vit/small-4") == of("vit/small-16-ls") == "vit_small_patch16_224.dino.safetensors"
    assert of("vit/small-14-ls", "dinov2") == "vit_small_patch14_dinov2.lvd142m.safetensors"
    assert of("vit/small-14", "dinov2") is of("vit/tiny-14-ls", "dinov2") is None


@pytest.mark.parametrize(
    ("backbone", "init", "sentence"),
    [
        (
            "resnet/18-7x7",
            "imgnet",
            "no init 'imgnet': choose from random, imagenet, imagenet_ssl/d",
        ),
        (
            "resnet/18-7x7",
            "imgnet",
            "supervised:DATASET; resnet/18-7x7 has random, imagenet, file:PATH, encoder:ID",
        ),
        (
            "vit/small-16",
            "imagenet_ssl",
            "vit/small-16 has random, imagenet, imagenet_ssl/dino, fi",
        ),
        ("vit/small-16", "imagenet_ssl/moco_v3", "only for resnet/50, vit/base: vit/small-16 has"),
        ("vit/small-14", "dinov2", "for vit/small-14, only for vit/small-PATCH-ls, vit/base-PATCH"),
        ("timm/resnet34", "imagenet", "timm/resnet34 has random, file:PATH"),
        ("resnet/18-7x7", "file:", "no init 'file:'"),
    ],
)
def test_an_init_that_the_backbone_has_not_is_a_sentence_with_those_it_has(
    backbone, init, sentence
):
    for told in (weights.wrong(backbone, init), weights.check(backbone, init)):
        assert len(told) == 1
        assert sentence in told[0]
    for use in (weights.ready, lambda b, i: weights.initialise(None, b, i)):
        with pytest.raises(ValueError, match=r"no (init|weights)"):
            use(backbone, init)


def test_a_file_of_ones_own_may_lie_anywhere_or_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.pth").write_bytes(b"-")
    sha256 = hashlib.sha256(b"-").hexdigest()
    assert weights.check("resnet/10-3x3", f"file:{tmp_path}/mine.pth") == []
    for init in ("file:mine.pth", f"file:mine.pth@{sha256[:12]}"):
        (told,) = weights.check("resnet/10-3x3", init)  # workers have another current folder
        assert told.startswith("there is no mine.pth for init 'file:mine.pth")
        assert told.endswith("or put it into the folder that MEDSSL_WEIGHTS names")
        with pytest.raises(ValueError, match=r"there is no mine\.pth"):
            weights.ready("resnet/10-3x3", init)
        monkeypatch.setenv("MEDSSL_WEIGHTS", str(tmp_path))
        assert weights.check("resnet/10-3x3", init) == []
        monkeypatch.delenv("MEDSSL_WEIGHTS")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.check("resnet/10-3x3", "file:~/mine.pth") == []


def test_digits_behind_an_at_are_the_files_checksum(tmp_path):
    path = tmp_path / "a@b.pth"  # an @ of its own
    torch.save(backbones.build("resnet/10-3x3", 28).state_dict(), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    for right in (f"file:{path}", f"file:{path}@{sha256}", f"file:{path}@{sha256[:12]}"):
        assert weights.check("resnet/10-3x3", right) == []
        weights.ready("resnet/10-3x3", right)
        encoder = backbones.build("resnet/10-3x3", 28)
        assert weights.initialise(encoder, "resnet/10-3x3", right).sha256 == sha256
    wrong = f"file:{path}@{'0' * 12}"
    (told,) = weights.check("resnet/10-3x3", wrong)
    assert f"its SHA-256 is {sha256} and should be 000000000000...: get it again" in told
    for use in (weights.ready, lambda b, i: weights.initialise(None, b, i)):
        with pytest.raises(ValueError, match=r"should be 000000000000\.\.\."):
            use("resnet/10-3x3", wrong)


def test_another_file_under_a_known_name_is_told_until_its_name_has_its_checksum(tmp_path):
    path = tmp_path / "mine.pth"
    path.write_bytes(b"one")
    backbone, init = "resnet/50-7x7", f"file:{path}"
    store = {weights.pin(backbone, init): hashlib.sha256(b"one").hexdigest().encode()}
    assert next(iter(store)).startswith("inits/")
    assert weights.pin(backbone, init) != weights.pin(backbone, f"{init}x")
    assert weights.changed(backbone, init, {}.get) == []
    assert weights.changed(backbone, init, store.get) == []
    path.write_bytes(b"another")
    second = hashlib.sha256(b"another").hexdigest()
    (told,) = weights.changed(backbone, init, store.get)
    assert told.endswith(f"name this one {init}@{second[:12]}")
    assert weights.pin(backbone, f"{init}@{second[:12]}") == weights.pin(backbone, "random") == ""
    assert weights.check(backbone, f"{init}@{second[:12].upper()}") == []
    path.unlink()
    assert weights.changed(backbone, init, store.get) == []


def test_a_published_file_without_a_full_checksum_is_known_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSSL_WEIGHTS", str(tmp_path))
    backbone, init = "vit/small-16", "imagenet"
    path = tmp_path / _published.of(backbone, init).name
    path.write_bytes(b"one")
    store = {weights.pin(backbone, init): hashlib.sha256(b"one").hexdigest().encode()}
    assert weights.changed(backbone, init, store.get) == []
    path.write_bytes(b"another")
    second = hashlib.sha256(b"another").hexdigest()
    for same in (backbone, "vit/small-8-ls"):  # one file, whatever it is put into
        (told,) = weights.changed(same, init, store.get)
        assert told.endswith(f"put that one back, or name this one file:{path}@{second[:12]}")
    assert weights.pin("resnet/50-7x7", "imagenet_ssl/moco_v3-100ep")  # 8 digits are known of it
    assert weights.pin("resnet/18-7x7", "imagenet") == ""  # all 64


def test_planning_asks_without_torch():
    code = (
        "import sys; from medssl import _published, registry, weights\n"
        f"for b in {STEMS!r} + ['timm/resnet34', 'timm/nothing']:\n"
        "    family, _, variant = b.partition('/')\n"
        "    registry.load('backbones', family).check(variant, 64)\n"
        "    for i in [*_published.FILES, 'file:/nowhere', 'file:' + __file__]:\n"
        "        weights.check(b, i)\n"
        "print(sorted({'torch', 'timm', 'numpy', 'safetensors'} & set(sys.modules)))"
    )
    code = code.replace("__file__", repr(__file__))
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
