"""Robustness: its arithmetic against known errors, and the same images for every encoder."""

from dataclasses import replace
from statistics import mean

import numpy as np
import pytest
import torch
from mlflow.utils.validation import _validate_metric_name
from torch import nn

from medssl import stats, tracking
from medssl.corruptions import BY_DATASET, SEVERITIES
from medssl.datasets import Images
from medssl.evals import Features, finetune, linear_probe, robustness
from medssl.features import Judged, extract
from medssl.spec import Sweep, settings

# N images, K classes

CPU = torch.device("cpu")


class Left(nn.Module):
    """How bright the left half is, and the right; its weight is there to be fine-tuned."""

    dim = 2

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.eye(2))

    def forward(self, x_BCHW):
        half = x_BCHW.shape[3] // 2
        halves = x_BCHW[..., :half].mean((1, 2, 3)), x_BCHW[..., half:].mean((1, 2, 3))
        return torch.stack(halves, 1) @ self.w


def lit(n: int = 100, channels: int = 1) -> dict[str, Images]:
    """Class 0 is bright on the left, class 1 on the right."""
    rng, one = np.random.default_rng(0), np.full((1, channels), 0.5, np.float32)
    splits = {}
    for split in ("train", "val", "test"):
        y_N = np.arange(n) % 2
        x_NHWC = rng.integers(40, 60, (n, 16, 16, channels), dtype=np.uint8)
        x_NHWC[y_N == 0, :, :8] += 150
        x_NHWC[y_N == 1, :, 8:] += 150
        splits[split] = Images(
            *(x_NHWC, np.eye(2, dtype=np.float32)[y_N], "", ("left", "right")),
            *(one, one, np.zeros(n, np.int64), split),
        )
    return splits


def subject_of(splits, task="multi-class", target="medmnist/octmnist", encoder=None) -> Judged:
    encoder = encoder or Left()
    features = {
        k: Features(extract(encoder, v, CPU), torch.from_numpy(v.t_NK)) for k, v in splits.items()
    }
    return Judged(
        lambda: encoder,
        lambda dataset, split, target=None: features[split],
        target,
        task,
        images=lambda _, split: splits[split],
        device=CPU,
    )


def everything(subject, **settings) -> dict[str, float | np.ndarray]:
    return dict(robustness.evaluate(subject, robustness.Config(**settings)))


def measured(subject, **settings) -> dict[str, float]:
    return {k: v for k, v in everything(subject, **settings).items() if isinstance(v, float)}


def mirrored(share: float):
    """A corruption that mirrors so much more of the images with each severity."""

    def corrupt(x_BCHW, family, severity, index_B, seed=0):
        chosen_B = index_B % 100 < 100 * share * severity
        return torch.where(chosen_B[:, None, None, None], x_BCHW.flip(3), x_BCHW)

    return corrupt


def test_errors_and_their_means_are_what_they_are_called(monkeypatch):
    """A mirrored image is wrong: a tenth at severity 1, a half at 5."""
    monkeypatch.setattr(robustness, "corrupt", mirrored(0.1))
    found = measured(subject_of(lit()), corruptions="jpeg+pixelate")
    assert found["clean_error"] == 0
    assert found["clean_auroc"] == 1
    for family in ("jpeg", "pixelate"):
        for severity in SEVERITIES:
            assert found[f"error:{family}:{severity}"] == pytest.approx(0.1 * severity)
        assert found[f"error:{family}"] == pytest.approx(0.3)
        assert found[f"added_error:{family}"] == pytest.approx(0.3)
        aurocs = [found[f"auroc:{family}:{severity}"] for severity in SEVERITIES]
        assert found[f"auroc:{family}"] == pytest.approx(mean(aurocs))
        assert aurocs == sorted(aurocs, reverse=True)
    assert found["error"] == found["added_error"] == pytest.approx(0.3)
    assert found["auroc"] == found["auroc:jpeg"]
    assert not [name for name in found if "ratio" in name], "no multiple of no error"


def test_a_headline_is_the_mean_of_corruptions_and_a_ratio_is_of_the_clean_error(monkeypatch):
    splits = lit()
    t_NK = splits["test"].t_NK.copy()
    t_NK[:10] = 1 - t_NK[:10]  # a tenth of the answers cannot be right
    splits["test"] = replace(splits["test"], t_NK=t_NK)

    def corrupt(x_BCHW, family, severity, index_B, seed=0):
        chosen_B = (index_B >= 10) & (index_B < (30 if family == "jpeg" else 10))
        return torch.where(chosen_B[:, None, None, None], x_BCHW.flip(3), x_BCHW)

    monkeypatch.setattr(robustness, "corrupt", corrupt)
    found = measured(subject_of(splits), corruptions="jpeg+pixelate")
    assert found["clean_error"] == pytest.approx(0.1)
    assert found["error:jpeg"] == pytest.approx(0.3)
    assert found["error:pixelate"] == pytest.approx(0.1)
    assert found["error"] == pytest.approx(0.2)
    assert found["added_error:jpeg"] == pytest.approx(0.2)
    assert found["added_error:pixelate"] == pytest.approx(0)
    assert found["added_error"] == pytest.approx(0.1)
    assert found["error_ratio:jpeg"] == pytest.approx(3)
    assert found["error_ratio"] == pytest.approx(2)


def test_the_error_is_balanced_over_classes(monkeypatch):
    """Of class 1 are few images, and all of them are wrong: half of the error."""
    splits = lit()
    few = np.r_[0:100:2, 1:11:2]  # fifty of class 0, five of class 1
    splits["test"] = splits["test"].part(few)

    def corrupt(x_BCHW, family, severity, index_B, seed=0):
        return torch.where((index_B >= 50)[:, None, None, None], x_BCHW.flip(3), x_BCHW)

    monkeypatch.setattr(robustness, "corrupt", corrupt)
    assert measured(subject_of(splits), corruptions="jpeg")["error"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "task", ["binary-class", "ordinal-regression", "multi-label, binary-class"]
)
def test_every_task_has_errors_that_grow(task):
    found = measured(subject_of(lit(), task), corruptions="contrast_down+gaussian_noise")
    assert found["clean_error"] == 0
    assert 0 <= found["error"] <= 0.5
    noisy = [found[f"auroc:gaussian_noise:{s}"] for s in SEVERITIES]
    assert found["clean_auroc"] >= noisy[0]
    assert noisy[0] >= noisy[-1]


@pytest.mark.parametrize("value", [0, 1])
def test_labels_that_all_test_images_have_or_none_give_no_number(value):
    splits = lit(n=20)
    one = np.full_like(splits["test"].t_NK, value)
    splits["test"] = replace(splits["test"], t_NK=one)
    assert measured(subject_of(splits, "multi-label, binary-class"), corruptions="jpeg") == {}


@pytest.mark.parametrize(
    "task", ["multi-class", "binary-class", "ordinal-regression", "multi-label, binary-class"]
)
def test_what_is_kept_gives_every_error_back(monkeypatch, task):
    """Of images of which a tenth cannot be right, and more are mirrored, other ones each time."""
    splits = lit()
    t_NK = splits["test"].t_NK.copy()
    t_NK[:10] = 1 - t_NK[:10]
    splits["test"] = replace(splits["test"], t_NK=t_NK)

    def corrupt(x_BCHW, family, severity, index_B, seed=0):
        chosen_B = (index_B * len(family) + severity) % 23 < 3 * severity
        return torch.where(chosen_B[:, None, None, None], x_BCHW.flip(3), x_BCHW)

    monkeypatch.setattr(robustness, "corrupt", corrupt)
    found = everything(subject_of(splits, task), corruptions="jpeg+pixelate")
    kept = {name: a for name, a in found.items() if isinstance(a, np.ndarray)}
    assert {name: a.shape for name, a in kept.items()} == {
        "decided": (100,),
        "decided_jpeg": (100, 5),
        "decided_pixelate": (100, 5),
    }
    assert {a.dtype for a in kept.values()} == {np.dtype(np.uint8)}
    errors = {name: value for name, value in found.items() if "error" in name}
    assert len(errors) == 1 + 3 * (1 + 2) + 2 * 5
    assert len(set(errors.values())) > 15
    itself = np.ones((100, 1), np.uint16)
    for name, value in errors.items():
        assert stats.error(*stats.of_error(name, kept), t_NK, task, itself) == pytest.approx(
            [value], abs=1e-12
        )


def test_unchanged_images_have_the_features_of_the_others(tiny_encoder):
    """To the last bit: the same chunks, normalisation and precision."""
    encoder, splits = tiny_encoder(), lit(channels=3)
    subject = subject_of(splits, encoder=encoder)
    for change in (None, lambda x_BCHW, index_B: x_BCHW):
        assert torch.equal(subject.outputs(encoder, "test", change), subject.features("test").x_ND)


def test_a_change_sees_pixels_in_0_to_1_and_each_images_place():
    splits, seen = lit(n=90), []

    def change(x_BCHW, index_B):
        seen.append((x_BCHW.clone(), index_B))
        return 0 * x_BCHW

    subject = subject_of(splits)
    black = extract(Left(), splits["test"], CPU, chunk=40, change=change)
    assert torch.equal(torch.cat([index for _, index in seen]), torch.arange(90))
    x_NHWC = torch.cat([x for x, _ in seen]).permute(0, 2, 3, 1)
    assert torch.equal(x_NHWC, torch.from_numpy(splits["test"].x_NHWC) / 255)
    assert torch.allclose(black, torch.full((90, 2), -1.0))  # (0 - mean) / std
    assert not torch.equal(subject.features("test").x_ND, black)


def test_every_encoder_sees_the_same_images_unless_the_seed_of_the_damage_is_another(tiny_encoder):
    splits, found = lit(), []
    encoder = tiny_encoder()
    for seed, drawn in ((0, 0), (1, 0), (0, 1)):
        subject = subject_of(splits, encoder=encoder)
        subject.seed, changed = seed, []
        outputs = subject.outputs

        def keep(model, split, change=None, outputs=outputs, changed=changed):
            if change:
                x_BCHW = torch.from_numpy(splits[split].x_NHWC).permute(0, 3, 1, 2) / 255
                changed.append(change(x_BCHW, torch.arange(len(x_BCHW))))
            return outputs(model, split, change)

        subject.outputs = keep
        measured(subject, corruptions="gaussian_noise", seed=drawn)
        found.append(torch.stack(changed))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_nothing_but_clean_training_and_validation_images_is_learned_from(monkeypatch):
    """The head is the probe of the same features, and no label of a test image moves it."""
    splits = lit()
    subject = subject_of(splits)
    probe = dict(linear_probe.evaluate(subject, linear_probe.Config()))
    found = measured(subject, corruptions="jpeg")
    assert found["clean_auroc"] == probe["auroc"]
    assert found["clean_error"] == 1 - probe["balanced_accuracy"]
    asked, judged = [], []
    monkeypatch.setattr(
        robustness,
        "classification",
        lambda s, t, task: judged.append(s) or [("balanced_accuracy", 1)],
    )
    for t_NK in (splits["test"].t_NK, np.roll(splits["test"].t_NK, 1, 0)):
        other = subject_of({**splits, "test": replace(splits["test"], t_NK=t_NK)})
        measured(other, corruptions="jpeg")
        asked.append(np.stack(judged))
        judged.clear()
    assert np.array_equal(*asked)


def test_a_fine_tuned_model_is_judged_with_its_own_encoder(monkeypatch):
    quick = finetune.Config(epochs=1, updates=60, learning_rate=3e-2, smallest_crop=1.0, flip=0.0)
    monkeypatch.setattr(finetune, "Config", lambda: quick)
    monkeypatch.setattr(robustness, "corrupt", mirrored(0.1))
    found = measured(subject_of(lit()), corruptions="jpeg", head="finetune")
    assert found["clean_error"] == 0
    assert found["error:jpeg:5"] == pytest.approx(0.5)
    tuned = dict(finetune.evaluate(subject_of(lit()), quick))
    assert found["clean_auroc"] == tuned["auroc"]


def test_the_heads_are_those_of_this_version():
    """Their settings are in no id of ours: where one changes, raise robustness.Config.version."""
    assert robustness.Config().version == 1
    assert repr(linear_probe.Config()) == (
        "Config(version=1, strongest=1.0, weakest=-6.0, steps=15, patience=4, iterations=300)"
    )
    assert repr(finetune.Config()) == (
        "Config(version=3, epochs=50, updates=300, batch_size=64, learning_rate=0.0003, w"
        "eight_decay=0.05, schedule='cosine', frozen=0.0, smallest_crop=0.5, flip=0.5, lo"
        "oks=20, choose='log_loss', seed=0)"
    )


def test_own_corruptions_are_the_targets():
    found = measured(subject_of(lit(n=20), target="medmnist/octmnist"))
    named = {name.split(":")[1] for name in found if name.startswith("error:")}
    assert named == set(BY_DATASET["octmnist"])
    assert len([name for name in found if name.startswith("error:")]) == 6 * 6


def test_what_changes_nothing_is_no_robustness():
    with pytest.raises(ValueError, match="saturate changes nothing on medmnist/octmnist"):
        measured(subject_of(lit(n=20)), corruptions="saturate")
    assert measured(subject_of(lit(n=20, channels=3)), corruptions="saturate")["error"] == 0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"corruptions": "jpge"}, "own, or of black_corner"),
        ({"head": "knn"}, "one of linear_probe, finetune"),
    ],
)
def test_a_plan_refuses_what_there_is_not(wrong, says):
    with pytest.raises(ValueError, match=says):
        settings("evals", ("robustness", wrong))


def test_mlflow_takes_the_names():
    named = ("robustness", {"corruptions": "jpeg+motion_blur", "head": "finetune"})
    sweep = Sweep(name="a", method="none", dataset="phantom/xray", backbone="b/1", eval=named)
    for metric in ("auroc", "error:jpeg:3", "added_error:motion_blur", "clean_error"):
        _validate_metric_name(tracking._metric(sweep.cells()[0], metric))
