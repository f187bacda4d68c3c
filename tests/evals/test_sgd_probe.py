"""A head is torch's SGD to 1e-5, alone or among others; validation chooses; every seed is told."""

import re
from statistics import fmean

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medssl import metrics
from medssl.evals import Features, _heads, sgd_probe
from medssl.evals._heads import Setting
from medssl.features import Judged
from medssl.metrics import classification

KINDS = {"four classes": (4, False), "two classes": (2, False), "many labels": (3, True)}
TASKS = {"four classes": "multi-class", "two classes": "binary-class"}
TASKS |= {"many labels": "multi-label, binary-class"}
GRID = [Setting(rate, decay) for rate in (0.1, 0.01, 0.001) for decay in (0.0, 0.01, 0.1)]
D = 12  # features


def drawn(kind: str, n: int, seed: int = 0, noise: float = 2.0) -> Features:
    """Noisy points about the classes' centres; where there are many labels, about their sum."""
    classes, many = KINDS[kind]
    centre_KD = torch.randn(classes, D, generator=torch.Generator().manual_seed(99))
    g = torch.Generator().manual_seed(seed)
    if many:
        t_NK = (torch.rand(n, classes, generator=g) < 0.4).float()
    else:
        t_NK = F.one_hot(torch.randint(classes, (n,), generator=g), classes).float()
    return Features(t_NK @ centre_KD + noise * torch.randn(n, D, generator=g) + 0.5, t_NK)


def plain(train: Features, val: Features, seed: int, setting: Setting, many: bool, **given):
    """torch's own Linear, loss, SGD and schedule: probabilities on validation after each epoch."""
    g, epochs = torch.Generator().manual_seed(seed), given["epochs"]
    line = nn.Linear(D, train.t_NK.shape[1])
    w_KD = (2 * torch.rand(len(line.bias), D + 1, generator=g) - 1) / D**0.5
    line.load_state_dict({"weight": w_KD[:, :-1], "bias": w_KD[:, -1]})
    optimizer = torch.optim.SGD(
        line.parameters(), setting.learning_rate, 0.9, weight_decay=setting.weight_decay
    )
    falls = [3 * epochs // 5, 4 * epochs // 5]  # 60 and 80 of 100
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, falls, gamma=0.1)
    loss = nn.BCEWithLogitsLoss() if many else nn.CrossEntropyLoss()
    for _ in range(epochs):
        order = torch.randperm(len(train.x_ND), generator=g)
        for picked in order.split(given["batch"]):
            optimizer.zero_grad()
            loss(line(train.x_ND[picked]), train.t_NK[picked]).backward()
            optimizer.step()
        schedule.step()
        with torch.no_grad():
            z_NK = line(val.x_ND)
            yield z_NK.sigmoid() if many else z_NK.softmax(1)


def scores_of(heads: _heads.Heads, x_ND: torch.Tensor, many: bool, seed=0, setting=0):
    return _heads.scores(heads.w_SGLD[seed, setting], x_ND, many)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", [Setting(0.1, 0.0), Setting(0.1, 0.1), Setting(0.01, 0.01)])
def test_after_the_last_epoch_a_head_is_torchs(kind, setting, monkeypatch):
    """Through both falls of the rate, with a last batch that is smaller."""
    many, given = KINDS[kind][1], {"epochs": 20, "batch": 32}
    train, val = drawn(kind, 150), drawn(kind, 80, seed=1)
    looks = iter(range(1000))  # the later the better, so the last epoch is kept
    monkeypatch.setattr(_heads, "_right", lambda w, *_: torch.full((len(w),), next(looks)))
    (heads,) = _heads.train([train], val, [5], [setting], many, **given)
    *_, theirs = plain(train, val, 5, setting, many, **given)
    torch.testing.assert_close(scores_of(heads, val.x_ND, many), theirs, atol=1e-5, rtol=0)
    assert heads.epoch_SG.item() == 20


@pytest.mark.parametrize("kind", KINDS)
def test_the_epoch_kept_is_the_first_that_is_best_on_validation(kind):
    many, given = KINDS[kind][1], {"epochs": 15, "batch": 32}
    train, val = drawn(kind, 150), drawn(kind, 80, seed=1)
    (heads,) = _heads.train([train], val, [5], GRID[1:2], many, **given)
    told = list(plain(train, val, 5, GRID[1], many, **given))
    accuracy = [
        dict(classification(p_NK.numpy(), val.t_NK.numpy(), TASKS[kind]))["accuracy"]
        for p_NK in told
    ]
    best = accuracy.index(max(accuracy))
    assert 0 < best < 14  # else the test shows little
    assert heads.epoch_SG.item() == best + 1
    counted = val.t_NK.numel() if many else len(val.t_NK)
    assert heads.right_SG.item() / counted == pytest.approx(accuracy[best])
    torch.testing.assert_close(scores_of(heads, val.x_ND, many), told[best], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_is_the_same_alone_or_among_others(kind):
    many, given = KINDS[kind][1], {"epochs": 10, "batch": 32}
    sets, val = [drawn(kind, n, seed=n) for n in (7, 40, 150)], drawn(kind, 80, seed=1)
    among = _heads.train(sets, val, [3, 8], GRID, many, **given)
    for train, heads in zip(sets, among, strict=True):
        for i, seed in enumerate((3, 8)):
            for j, setting in enumerate(GRID):
                (alone,) = _heads.train([train], val, [seed], [setting], many, **given)
                torch.testing.assert_close(alone.w_SGLD[0, 0], heads.w_SGLD[i, j])
                assert alone.right_SG.item() == heads.right_SG[i, j]
                assert alone.epoch_SG.item() == heads.epoch_SG[i, j]


def test_seeds_differ_in_first_weights_and_in_the_order_of_images(monkeypatch):
    train, val = drawn("four classes", 150), drawn("four classes", 80, seed=1)
    still = [Setting(1e-12, 0.0)]
    (first,) = _heads.train([train], val, [0, 1, 0], still, epochs=1)
    assert torch.equal(first.w_SGLD[0], first.w_SGLD[2])
    assert not torch.allclose(first.w_SGLD[0], first.w_SGLD[1])
    monkeypatch.setattr(_heads, "_first", lambda *_: torch.zeros(4, D + 1))
    (order,) = _heads.train([train], val, [0, 1, 0], GRID[:1], epochs=1, batch=32)
    assert torch.equal(order.w_SGLD[0], order.w_SGLD[2])
    assert not torch.allclose(order.w_SGLD[0], order.w_SGLD[1])


def test_first_weights_are_spread_as_torchs():
    val = Features(torch.zeros(1, 400), torch.zeros(1, 50))
    mine = _heads._first(val, False, torch.Generator().manual_seed(0))
    theirs = nn.Linear(400, 50)
    assert mine.shape == (50, 401)
    assert mine.abs().max() <= 1 / 20
    assert mine.std() == pytest.approx(theirs.weight.std().item(), rel=0.02)
    assert mine[:, -1].abs().max() > 0.8 / 20  # the intercept's too


def test_the_setting_with_most_right_is_chosen_and_the_first_of_equals():
    def chosen(*right):
        right_SG = torch.tensor(right)
        return _heads.Heads(torch.zeros(0), right_SG, right_SG).chosen()

    assert chosen([5, 9, 7], [5, 1, 7]) == 2
    assert chosen([5, 7, 7], [5, 7, 7]) == 1
    assert chosen([-1, 3], [90, 3]) == 1  # one of its heads diverged
    with pytest.raises(ValueError, match="SGD diverged in every setting: use standardise"):
        chosen([-1, 3], [90, -1])


def test_a_head_whose_logits_are_not_finite_is_right_nowhere():
    train, val = drawn("two classes", 50), drawn("two classes", 50, seed=1)
    huge = Features(train.x_ND * 1e25, train.t_NK)
    (heads,) = _heads.train([huge], Features(val.x_ND * 1e25, val.t_NK), [0], GRID, epochs=2)
    assert heads.right_SG.eq(-1).all()


def splits(kind: str, noise: float = 2.0) -> dict[str, Features]:
    sizes = {"train": 300, "val": 100, "test": 200}
    return {s: drawn(kind, n, i, noise) for i, (s, n) in enumerate(sizes.items())}


def subject(held: dict[str, Features], kind: str, fraction: float = 1.0, seed: int = 0) -> Judged:
    task = TASKS[kind]
    return Judged(lambda: None, lambda d, s, source: held[s], "a/1", task, fraction, seed=seed)


def told(held, kind="four classes", fraction=1.0, seed=0, **given) -> dict:
    config = sgd_probe.Config(**{"epochs": 20, "batch_size": 64, "heads": 3} | given)
    return dict(sgd_probe.evaluate(subject(held, kind, fraction, seed), config))


@pytest.mark.parametrize("kind", KINDS)
def test_together_says_what_evaluate_says_of_each(kind):
    held, config = splits(kind), sgd_probe.Config(epochs=20, batch_size=64, heads=3)
    subjects = [subject(held, kind, fraction) for fraction in (0.05, 0.3, 1.0)]
    for one, found in zip(subjects, sgd_probe.together(subjects, config), strict=True):
        found, alone = dict(found), dict(sgd_probe.evaluate(one, config))
        assert found.keys() == alone.keys()
        for name, value in found.items():
            np.testing.assert_allclose(value, alone[name], atol=1e-5, err_msg=name)


def test_the_setting_is_chosen_on_validation_alone():
    held = splits("four classes")
    found = told(held)
    chosen = found["learning_rate"], found["weight_decay"]
    by_hand = {}
    for setting in GRID:
        dice = _heads.seeds(0, 0, 3)
        (heads,) = _heads.train([held["train"]], held["val"], dice, [setting], False, 20, 64)
        by_hand[setting] = heads.right_SG.sum().item()
    assert chosen == max(by_hand, key=by_hand.get)
    assert len(set(by_hand.values())) > 3
    other = held | {"test": Features(held["test"].x_ND, held["test"].t_NK.roll(1, 0))}
    assert (told(other)["learning_rate"], told(other)["weight_decay"]) == chosen
    noise = held | {"val": Features(held["val"].x_ND, held["val"].t_NK.roll(1, 0))}
    assert (told(noise)["learning_rate"], told(noise)["weight_decay"]) != chosen


def test_the_papers_grid_is_the_default(monkeypatch):
    asked, held = [], splits("two classes")
    real = _heads.train
    monkeypatch.setattr(_heads, "train", lambda *a: asked.append(a) or real(*a[:5], 1, 64))
    for config in (sgd_probe.Config(), sgd_probe.Config(epochs=7, batch_size=9, weight_decay=0)):
        list(sgd_probe.evaluate(subject(held, "two classes"), config))
    (_, _, seeds, settings, many, epochs, batch), other = asked
    assert (len(seeds), settings, many, epochs, batch) == (5, GRID, False, 100, 256)
    assert other[3:] == ([Setting(rate, 0.0) for rate in (0.1, 0.01, 0.001)], False, 7, 9)


def test_every_head_is_told_and_their_mean_and_its_interval():
    held = splits("two classes")
    found = told(held, "two classes", fraction=0.05, heads=5)
    arrays = {k: v for k, v in found.items() if isinstance(v, np.ndarray)}
    assert list(arrays) == ["scores", *(f"scores_head_{head}" for head in range(1, 5))]
    t_NK = held["test"].t_NK.numpy()
    each = [dict(classification(scores_NK, t_NK, "binary-class")) for scores_NK in arrays.values()]
    for name in ("auroc", "accuracy", "balanced_accuracy"):
        values = [of[name] for of in each]
        assert values == [found[f"{name}:head {head}"] for head in range(5)]
        assert found[name] == pytest.approx(fmean(values))
        half = 2.7764451 * np.std(values, ddof=1) / 5**0.5  # t(0.975, 4), the paper's
        assert found[f"{name}_t95"] == pytest.approx(half, rel=1e-6)
    assert len({found[f"auroc:head {head}"] for head in range(5)}) > 1
    assert all(re.fullmatch(r"[\w\-. :/]+", name) for name in found)  # what MLflow takes
    alone = told(held, "two classes", heads=1)
    assert "auroc_t95" not in alone
    assert alone["auroc"] == alone["auroc:head 0"]


@pytest.mark.parametrize(("seed", "without"), [(0, 1), (15, 0)])
def test_what_one_head_has_no_number_of_is_left_out(seed, without, monkeypatch):
    """No temperature suits a head that is always right on validation."""
    kind, found, real = "many labels", [], metrics.temperature
    held = splits(kind, noise=1.0)
    held["val"] = Features(*(whole[:20] for whole in held["val"]))
    monkeypatch.setattr(metrics, "temperature", lambda *a: found.append(real(*a)) or found[-1])
    names = set(told(held, kind, fraction=0.05, seed=seed, epochs=3))
    assert [head for head, warmth in enumerate(found) if warmth is None] == [without]
    monkeypatch.setattr(metrics, "temperature", lambda *_: 2.0)
    every = set(told(held, kind, fraction=0.05, seed=seed, epochs=3))
    assert every - names == {"temperature", "ece_scaled", "brier_scaled", "log_loss_scaled"}
    assert names < every


def test_dice_are_the_seeds_and_nobody_elses():
    held = splits("four classes")
    assert np.array_equal(told(held)["scores"], told(held)["scores"])
    assert not np.array_equal(told(held)["scores"], told(held, seed=1)["scores"])
    few, more = (_heads.seeds(0, 0, n) for n in (3, 5))
    assert more[:3] == few
    assert len(set(more)) == 5


def test_features_are_raw_unless_asked():
    held = splits("four classes")
    large = {s: Features(1000 * x_ND + 7, t_NK) for s, (x_ND, t_NK) in held.items()}
    assert not np.allclose(told(held)["scores"], told(large)["scores"], atol=1e-2)
    mine, same = told(held, standardise=True), told(large, standardise=True)
    np.testing.assert_allclose(mine["scores"], same["scores"], atol=1e-4)


def test_features_that_no_rate_can_learn_are_an_error_with_a_remedy():
    large = {s: Features(1e25 * x_ND, t_NK) for s, (x_ND, t_NK) in splits("two classes").items()}
    with pytest.raises(ValueError, match="SGD diverged in every setting: use standardise"):
        told(large, "two classes")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_says_the_same(kind):
    held, config = splits(kind), sgd_probe.Config(epochs=20, batch_size=64, heads=3)
    here, there = subject(held, kind), subject(held, kind)
    there.device = torch.device("cuda")
    found = [dict(sgd_probe.evaluate(s, config)) for s in (here, there)]
    for name in ("scores", "auroc", "val_accuracy"):
        np.testing.assert_allclose(found[0][name], found[1][name], atol=2e-3)
