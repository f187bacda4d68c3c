"""Only the published files are read; anything else is refused with a sentence before training."""

import hashlib
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from served import WRONG, sent, served

from medssl import _files, datasets, trial
from medssl.datasets import medmnist


def made(path, n=(30, 6, 6), size=28, channels=1, labels=None, classes=2):
    """A file in MedMNIST's form."""
    rng = np.random.default_rng(0)
    shape = (size, size) if channels == 1 else (size, size, 3)
    arrays = {}
    for split, count in zip(("train", "val", "test"), n, strict=True):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, *shape), np.uint8)
        arrays[f"{split}_labels"] = (
            labels if labels is not None else rng.integers(0, classes, (count, 1))
        )[:count].astype(np.uint8)
    np.savez_compressed(path, **arrays)
    return path


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """Calls put a small file that INFO describes, MD5 included, under the name breastmnist."""

    def put(info=None, **arguments):
        path = made(tmp_path / "breastmnist.npz", **arguments)
        counts = dict(zip(("train", "val", "test"), arguments.get("n", (30, 6, 6)), strict=True))
        known = dict(medmnist._all()["breastmnist"])
        known |= {"MD5": hashlib.md5(path.read_bytes()).hexdigest(), "n_samples": counts}
        monkeypatch.setitem(medmnist._all(), "breastmnist", known | (info or {}))
        return tmp_path

    return put


def test_the_twelve_sets_their_tasks_and_sizes_are_known():
    assert len(medmnist.names()) == 12
    tasks = {medmnist._info(name)["task"] for name in medmnist.names()}
    assert tasks == {
        "multi-class",
        "binary-class",
        "ordinal-regression",
        "multi-label, binary-class",
    }
    for name in medmnist.names():
        for size in medmnist.SIZES:
            assert len(medmnist._info(name)[medmnist._key("MD5", size)]) == 32
    assert medmnist.about("chestmnist")[:2] == (1, 78468)  # of many labels each may have all images
    assert medmnist.about("dermamnist")[:2] == (3, 7007 // 7)


@pytest.mark.data
def test_real_files_are_what_medmnist_says(data):
    train = datasets.load("medmnist/breastmnist", "train", 28, data)
    assert train.x_NHWC.shape == (546, 28, 28, 1)
    known = datasets.about("medmnist/breastmnist")
    assert (known.channels, known.rarest) == (1, 273)
    assert train.t_NK.sum(0).min() <= known.rarest
    assert train.x_NHWC.dtype == np.uint8
    assert train.t_NK.shape == (546, 2)
    assert (train.t_NK.sum(1) == 1).all()
    assert train.task == "binary-class"
    test = datasets.load("medmnist/breastmnist", "test", 64, data)
    assert test.x_NHWC.shape == (156, 64, 64, 1)
    pixels = datasets.load("medmnist/breastmnist", "train", 64, data).x_NHWC / 255
    np.testing.assert_allclose(test.mean_DC, [[pixels.mean()]], rtol=1e-6)  # of train, not of test
    np.testing.assert_allclose(test.std_DC, [[pixels.std()]], rtol=1e-6)


@pytest.mark.data
def test_the_same_numbers_as_medmnists_own_loader(data):
    import medmnist as package

    theirs = package.PneumoniaMNIST(split="val", root=str(data), size=28)
    mine = datasets.load("medmnist/pneumoniamnist", "val", 28, data)
    assert np.array_equal(mine.x_NHWC[..., 0], theirs.imgs)
    assert np.array_equal(mine.t_NK.argmax(1), theirs.labels[:, 0])


def test_many_labels_are_multi_hot(listed):
    labels = np.random.default_rng(1).integers(0, 2, (30, 3))
    info = {"task": "multi-label, binary-class", "label": {"0": "a", "1": "b", "2": "c"}}
    root = listed(info, labels=labels)
    images = datasets.load("medmnist/breastmnist", "train", 28, root)
    assert np.array_equal(images.t_NK, labels)
    assert images.classes == ("a", "b", "c")


def test_colour_has_three_channels_and_statistics_of_each(listed):
    root = listed({"n_channels": 3}, channels=3)
    images = datasets.load("medmnist/breastmnist", "test", 28, root)
    assert images.x_NHWC.shape == (6, 28, 28, 3)
    assert images.mean_DC.shape == images.std_DC.shape == (1, 3)


def test_a_file_is_hashed_once(listed, monkeypatch):
    root = listed()
    hashed = []
    monkeypatch.setattr(
        medmnist, "_md5", lambda path, f=medmnist._md5: hashed.append(path) or f(path)
    )
    for split in datasets.SPLITS:
        datasets.load("medmnist/breastmnist", split, 28, root)
    assert len(hashed) == 1


def test_a_file_that_changes_after_it_was_verified_is_hashed_again(listed):
    root = listed()
    datasets.load("medmnist/breastmnist", "train", 28, root)
    made(root / "breastmnist.npz", n=(31, 6, 6))
    with pytest.raises(ValueError, match="differs from the published file"):
        datasets.load("medmnist/breastmnist", "train", 28, root)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda p: p.write_bytes(b""), r"is empty \(0 bytes\)"),
        (lambda p: p.write_bytes(p.read_bytes()[:5000]), "is truncated"),
        (lambda p: p.write_bytes(p.read_bytes()[:-30] + bytes(30)), "is truncated|differs from"),
        (lambda p: made(p, n=(29, 6, 6)), "differs from the published file"),
    ],
)
def test_a_damaged_file_is_refused_with_a_remedy(listed, spoil, sentence):
    root = listed()
    spoil(root / "breastmnist.npz")
    with pytest.raises(ValueError, match=sentence) as caught:
        datasets.ready("medmnist/breastmnist", 28, root)
    assert "medssl data fetch medmnist/breastmnist --size 28" in str(caught.value)


@pytest.mark.data
def test_a_set_under_anothers_name_is_recognised(data, tmp_path):
    shutil.copy(data / "pneumoniamnist.npz", tmp_path / "breastmnist.npz")
    with pytest.raises(ValueError, match="is really pneumoniamnist at 28 px under the wrong name"):
        datasets.ready("medmnist/breastmnist", 28, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "info", "sentence"),
    [
        ({"classes": 5}, {}, r"labels are .* up to 4, where 2 classes \(binary-class\)"),
        ({"labels": np.ones((30, 2))}, {}, "labels are"),
        ({"size": 32}, {}, "train holds 30 images of"),
        ({}, {"n_samples": {"train": 99, "val": 6, "test": 6}}, "train holds 30 images .* not 99"),
        ({"labels": np.ones((20, 1))}, {}, "train has 30 images but 20 labels"),
    ],
)
def test_a_mislabelled_file_is_refused(listed, arguments, info, sentence):
    root = listed(info, **arguments)
    with pytest.raises(ValueError, match=sentence):
        datasets.ready("medmnist/breastmnist", 28, root)


def test_an_absent_file_is_one_sentence_with_name_md5_source_and_place(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(_files.urllib.request, "urlopen", unreachable)
    (told,) = datasets.check("medmnist/chestmnist", 64, tmp_path)
    with pytest.raises(OSError, match="no route to host") as caught:
        datasets.ready("medmnist/chestmnist", 64, tmp_path)
    info = medmnist._info("chestmnist")
    for part in ("chestmnist_64.npz", info["MD5_64"], info["url_64"], str(tmp_path), "--data"):
        assert part in told
        assert part in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("answer", "why"), [*WRONG, (sent(b"other"), "what came has MD5 795f3202b")]
)
def test_a_download_that_goes_wrong_may_pass_and_leaves_nothing(answer, why, listed, monkeypatch):
    root = listed()
    (root / "breastmnist.npz").unlink()
    monkeypatch.setattr(_files, "STALLED_S", 0.2)
    with served(answer) as address:
        monkeypatch.setitem(medmnist._all()["breastmnist"], "url", address)
        with pytest.raises(OSError, match=why) as told:
            datasets.ready("medmnist/breastmnist", 28, root)
    assert trial.can_pass(told.value)
    for part in ("medmnist/breastmnist at 28 px is not there", address, "--data", "try again"):
        assert part in str(told.value)
    assert not list(root.glob("*mnist*"))
    assert not list(root.glob(".*"))


def test_a_download_that_goes_right_is_the_file(listed, monkeypatch):
    root = listed()
    good = (root / "breastmnist.npz").read_bytes()
    (root / "breastmnist.npz").unlink()
    with served(sent(good)) as address:
        monkeypatch.setitem(medmnist._all()["breastmnist"], "url", address)
        assert len(datasets.load("medmnist/breastmnist", "val", 28, root)) == 6


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [
        ("medmnist/brestmnist", 28, "no 'brestmnist' in medmnist: did you mean breastmnist?"),
        ("medmnist/breastmnist", 32, "has no 32 px: choose from 28, 64, 128, 224"),
        ("medmnist", 28, "names no dataset: write medmnist/NAME"),
        ("medmnist/a+", 28, "names no dataset"),
        ("medmnist/pathmnist+phantom/cells", 28, "a union has one family, named once: medmnist/A"),
        ("pathmnist", 28, "choose from medmnist, phantom; they are named FAMILY/NAME: medmnist/pa"),
        ("mnist/x", 28, "no 'mnist' among datasets: did you mean medmnist? choose"),
    ],
)
def test_a_wrong_name_is_a_sentence(name, size, sentence):
    (told,) = datasets.check(name, size)
    assert sentence in told


def test_the_root_is_the_argument_then_the_variable_then_medmnists_own(tmp_path, monkeypatch):
    assert medmnist.folder(tmp_path) == tmp_path
    monkeypatch.setenv("MEDMNIST_ROOT", str(tmp_path / "x"))
    assert medmnist.folder() == tmp_path / "x"
    monkeypatch.delenv("MEDMNIST_ROOT")
    assert medmnist.folder().name == ".medmnist"


def unpacked():
    return sorted((_files.cache() / "unpacked").glob("*.npy"))


def in_memory(monkeypatch) -> list[str]:
    """The names of what is unpacked from here on."""
    real, names = medmnist._member, []

    def member(path, name):
        names.append(name)
        return real(path, name)

    monkeypatch.setattr(medmnist, "_member", member)
    return names


def test_images_are_unpacked_once_for_all_processes(listed, monkeypatch):
    root = listed()
    one = medmnist.load("breastmnist", "train", 28, root)
    again = in_memory(monkeypatch)
    two = medmnist.load("breastmnist", "train", 28, root)
    assert again == []
    mapped = Path("/proc/self/maps").read_text()
    assert mapped.count("-train.npy") >= 2  # not read: mapped
    with np.load(root / "breastmnist.npz") as archive:
        assert (two.x_NHWC[..., 0] == archive["train_images"]).all()
    one.x_NHWC[:] = 0  # a page of its own
    assert two.x_NHWC.any()
    assert medmnist.load("breastmnist", "train", 28, root).x_NHWC.any()
    np.testing.assert_array_equal(one.mean_DC, two.mean_DC)


def test_two_processes_that_come_at_once_unpack_once(listed, monkeypatch):
    root, began = listed(), in_memory(monkeypatch)
    slow = medmnist._member

    def member(path, name):
        time.sleep(0.2)
        return slow(path, name)

    monkeypatch.setattr(medmnist, "_member", member)
    with ThreadPoolExecutor(4) as pool:  # a lock of files holds for threads as for processes
        found = list(
            pool.map(lambda _: medmnist.load("breastmnist", "val", 28, root).md5, range(4))
        )
    assert len(set(found)) == 1
    assert sorted(began) == ["train_images", "val_images"]


@pytest.mark.parametrize("spoilt", [b"", b"\x93NUMPY", None])
def test_what_was_unpacked_and_is_cut_short_is_unpacked_again(listed, spoilt):
    root = listed()
    whole = medmnist.load("breastmnist", "val", 28, root).x_NHWC.copy()
    for path in unpacked():
        path.write_bytes(path.read_bytes()[:-5] if spoilt is None else spoilt)
    assert (medmnist.load("breastmnist", "val", 28, root).x_NHWC == whole).all()


def test_what_was_unpacked_in_another_shape_is_unpacked_again(listed):
    root = listed()
    whole = medmnist.load("breastmnist", "val", 28, root).x_NHWC.copy()
    for path in unpacked():
        np.save(path, np.zeros((2, 2), np.uint8))
    found = medmnist.load("breastmnist", "val", 28, root).x_NHWC
    assert np.array_equal(found, whole)


def test_drafts_of_a_process_that_was_killed_are_cleared(listed):
    root = listed()
    medmnist.load("breastmnist", "val", 28, root)
    for path in unpacked():
        path.rename(path.with_name(f".{path.name}.0123.draft"))
    medmnist.load("breastmnist", "val", 28, root)
    assert unpacked()
    assert not list(unpacked()[0].parent.glob("*.draft"))


def test_a_disk_that_is_nearly_full_is_left_alone(listed, monkeypatch):
    root = listed()
    monkeypatch.setattr(medmnist.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert medmnist.load("breastmnist", "val", 28, root).x_NHWC.any()
    assert not unpacked()


def test_without_room_for_it_images_are_in_memory(listed, monkeypatch):
    root = listed()
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    assert medmnist.load("breastmnist", "val", 28, root).x_NHWC.any()


def test_another_file_under_the_name_is_unpacked_anew(listed):
    root = listed()
    before = medmnist.load("breastmnist", "test", 28, root).x_NHWC.copy()
    listed(n=(31, 6, 7))
    assert len(medmnist.load("breastmnist", "test", 28, root)) == 7
    assert len(before) == 6
