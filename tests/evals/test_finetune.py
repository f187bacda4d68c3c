"""The supervised loop: whom it sees, how fast it learns, which look it keeps."""

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_every_eval import Encoder, patterns, subject_of
from torch import nn

from medssl._work import Checkpoint
from medssl.evals import _training, finetune
from medssl.plan import load
from medssl.spec import settings

QUICK = finetune.Config(epochs=2, updates=1, batch_size=4, smallest_crop=1.0, flip=0.0)


def test_every_image_is_seen_as_often_as_there_are_epochs_though_no_batch_is_short(monkeypatch):
    splits = patterns(2, many=False, shuffled=False)
    few = splits["train"]
    few = replace(few, x_NHWC=few.x_NHWC[:10], t_NK=few.t_NK[:10], domain_N=few.domain_N[:10])
    seen, real = [], _training.look

    def look(view, x_BCHW, *rest):
        seen.append(x_BCHW)
        return real(view, x_BCHW, *rest)

    monkeypatch.setattr(_training, "look", look)
    _training.fit(subject_of(splits | {"train": few}, "binary-class"), QUICK)
    assert [len(x) for x in seen] == [4] * 5
    counted = Counter(x.numpy().tobytes() for x in torch.cat(seen))
    assert set(counted.values()) == {2}
    assert len(counted) == 10


def test_there_are_as_many_looks_as_were_asked_for_and_the_last_is_one():
    for steps in (1, 7, 19, 20, 21, 39, 40, 300, 427):
        for looks in (1, 2, 20, 100):
            seen = [s for s in range(1, steps + 1) if _training.due(s, steps, looks)]
            assert len(seen) == min(looks, steps), (steps, looks)
            assert seen[-1] == steps
            apart = [b - a for a, b in itertools.pairwise([0, *seen])]
            assert max(apart) - min(apart) <= 1


def test_the_loop_looks_when_it_is_due(monkeypatch):
    splits, seen = patterns(2, many=False, shuffled=False), []
    subject = subject_of(splits, "binary-class")
    real = subject.outputs
    monkeypatch.setattr(subject, "outputs", lambda *a: seen.append(a) or real(*a))
    few = replace(QUICK, updates=39, epochs=1, batch_size=len(splits["train"]))
    _training.fit(subject, few)
    assert len(seen) == 20


def test_the_rate_falls_by_steps_or_by_a_cosine():
    steps = [_training.rate(p, "steps") for p in (0, 0.49, 0.5, 0.74, 0.75, 0.99)]
    assert steps == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    cosine = [_training.rate(p, "cosine") for p in (0, 0.5, 1)]
    assert cosine == pytest.approx([1, 0.5, 0])


@pytest.mark.parametrize(("choose", "kept"), [("log_loss", 2), ("auroc", 1)])
def test_validation_chooses_by_what_it_is_told_to(choose, kept, monkeypatch):
    """The first look ranks perfectly and is far too sure of the wrong side; the second is timid."""
    splits = patterns(2, many=False, shuffled=False)
    subject = subject_of(splits, "binary-class")
    t_V = torch.from_numpy(splits["val"].t_NK[:, 1])
    last = torch.zeros(len(t_V))
    last[:5] = 0.1  # ranks nearly nothing
    looks = iter([t_V + 9, last])
    monkeypatch.setattr(subject, "outputs", lambda *_: torch.stack([-(z := next(looks)), z], 1))
    one_epoch = replace(QUICK, epochs=1, batch_size=250, looks=2, choose=choose)
    assert _training.fit(subject, one_epoch)[1] == kept


def test_a_validation_of_one_class_cannot_choose_by_auroc():
    splits = patterns(2, many=False, shuffled=False)
    one = replace(splits["val"], t_NK=splits["val"].t_NK * 0 + np.float32([1, 0]))
    subject = subject_of(splits | {"val": one}, "binary-class")
    with pytest.raises(ValueError, match="choose='log_loss' does without"):
        _training.fit(subject, replace(QUICK, choose="auroc"))
    assert _training.fit(subject, QUICK)[1]


@pytest.mark.parametrize("images", [1, 3])
def test_no_batch_is_of_one_image(images, monkeypatch):
    splits, seen = patterns(2, many=False, shuffled=False), []
    few = splits["train"].part(np.arange(images))
    real = _training.look
    monkeypatch.setattr(_training, "look", lambda v, x, *r: seen.append(len(x)) or real(v, x, *r))
    subject = subject_of(splits | {"train": few}, "binary-class")
    _training.fit(subject, replace(QUICK, batch_size=1))
    assert set(seen) == {2}
    with pytest.raises(ValueError, match="finetune batch_size=1: it must be 2 or more"):
        settings("evals", ("finetune", {"batch_size": 1}))


class Killed(BaseException):
    """As sudden as a signal."""


def kept_while_fitted(fitted, kills) -> tuple[int, int]:
    """How often `fitted`, of a checkpoint, saved, and which update was best; after a kill at any
    save of `kills` it ends bitwise as without."""
    held: list = [None]

    def seeded(checkpoint):
        torch.manual_seed(len(held))  # another process has another global state
        return fitted(checkpoint)

    calm, best = seeded(None)
    seeded(Checkpoint(lambda: None, held.append, 0))
    saves = len(held) - 1
    for kill in kills:
        held[:] = [None]

        def save(state, kill=kill):
            held.append(state)
            if len(held) > kill:
                raise Killed

        with pytest.raises(Killed):
            seeded(Checkpoint(lambda: None, save, 0))
        model, again = seeded(Checkpoint(lambda: held[-1], held.append, 0))
        assert again == best
        assert alike(calm, model)
    return saves, best


def alike(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("frozen", [0.0, 0.4])
def test_a_fit_that_is_killed_anywhere_ends_bitwise_as_one_that_is_not(frozen):
    """Frozen at first, an encoder has no moments yet when the state is kept."""
    splits = patterns(2, many=False, shuffled=False)
    config = replace(QUICK, batch_size=100, frozen=frozen, looks=3, weight_decay=0.05)

    def fitted(checkpoint):
        subject = subject_of(splits, "binary-class")
        subject.checkpoint = checkpoint
        return _training.fit(subject, config)

    saves, _ = kept_while_fitted(fitted, kills=(1, 4, 7, 9))
    assert saves == 9  # after each update but the last


def test_a_look_that_was_best_before_the_kill_stays_the_best():
    """The more is learned, the worse are wrong labels met."""
    splits = patterns(2, many=False, shuffled=False)
    val = splits["val"]
    splits["val"] = replace(val, t_NK=val.t_NK[:, ::-1].copy())

    def fitted(checkpoint):
        subject = subject_of(splits, "binary-class")
        subject.checkpoint = checkpoint
        return _training.fit(subject, replace(QUICK, batch_size=100, looks=5))

    _, best = kept_while_fitted(fitted, kills=(2, 3, 6))
    assert best == 2


class Dropping(Encoder):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x_BCHW):
        return self.drop(super().forward(x_BCHW))


def dropped(checkpoint=None) -> tuple[nn.Module, int]:
    subject = subject_of(patterns(2, many=False, shuffled=False), "binary-class")
    subject.encoder, subject.checkpoint = Dropping, checkpoint
    return _training.fit(subject, replace(QUICK, batch_size=100))


def test_dropout_is_the_same_after_a_kill():
    kept_while_fitted(dropped, kills=(1, 6))


def test_dice_of_a_fit_are_its_seeds_and_no_one_elses_are_moved():
    found, after = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(dropped()[0])
        after.append(torch.equal(torch.get_rng_state(), before))
    assert alike(*found)
    assert after == [True, True]


def test_the_published_recipe_is_a_sweep():
    """MedMNIST v2's: Adam 1e-3, batches of 128, a tenth at half and at 3/4, best AUROC of 100."""
    cells = load(Path(__file__).parents[2] / "sweeps" / "medmnist_v2.py").cells()
    (said,) = {cell.settings for cell in cells}
    config = finetune.Config(**dict(said))
    assert (config.learning_rate, config.weight_decay, config.batch_size) == (1e-3, 0, 128)
    assert (config.epochs, config.updates, config.looks) == (100, 1, 100)
    assert (config.schedule, config.choose) == ("steps", "auroc")
    assert (config.smallest_crop, config.flip, config.frozen) == (1, 0, 0)
    assert {(c.encoder.backbone, c.encoder.init, c.labels) for c in cells} == {
        ("resnet/18-3x3", "random", "100%")
    }
