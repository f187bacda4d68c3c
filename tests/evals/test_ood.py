"""Scores are the papers', by slow formulas and by pytorch-ood; what must not matter does not."""

import re
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from medssl.evals import Features, _scores, linear_probe, ood
from medssl.features import Judged
from medssl.metrics import detection

M, N, D, K = 900, 120, 24, 4

SCORES = {
    *("mahalanobis", "relative_mahalanobis", "ssd", "knn", "residual"),
    *("msp", "max_logit", "energy", "vim"),
}
LABEL_FREE = {"ssd", "knn"}
METRICS = {"auroc", "aupr_in", "aupr_out", "fpr95_ood_accepted", "fpr95_id_flagged"}


def features(n: int, seed: int, d: int = D, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """float32 features of four classes, correlated, of unlike spread, off centre; the classes."""
    world = np.random.default_rng(0)
    mean_KD, mix_DD = world.normal(0, 1, (K, d)), world.normal(0, 1, (d, d)) / d**0.5
    rng = np.random.default_rng(seed)
    y_N = rng.permutation(np.arange(n) % K)
    x_ND = 3 + mean_KD[y_N] + rng.normal(size=(n, d)) @ (mix_DD * np.linspace(0.2, 2, d))
    return torch.from_numpy(np.float32(x_ND + shift)), torch.from_numpy(y_N)


X_MD, Y_M = features(M, 1)
Q_ND = torch.cat([features(N // 2, 2)[0], features(N // 2, 3, shift=4.0)[0]])


def head(d: int = D) -> tuple[Tensor, Tensor]:
    """Weights and biases of rank K - 1, as a softmax head's are."""
    g = torch.Generator().manual_seed(5)
    w_DK, b_K = torch.randn(d, K, generator=g).double(), torch.randn(K, generator=g).double()
    return w_DK - w_DK.mean(1, keepdim=True), b_K - b_K.mean()


def equal(mine: Tensor, theirs, rtol: float = 1e-9, atol: float = 0) -> None:
    assert mine.dtype == torch.float64
    np.testing.assert_allclose(mine.numpy(), np.asarray(theirs), rtol=rtol, atol=atol)


# the scores beside the papers' formulas


def slow(x_MD, y_M, q_ND, n: int, classes: int, ridge: float = 1e-6) -> np.ndarray:
    """Squared distances (N, C): class by class, an inverse, a quadratic form for each image."""
    x_MD, q_ND = np.float64(x_MD), np.float64(q_ND)
    scatter_DD, means = np.zeros((x_MD.shape[1],) * 2), []
    for c in range(classes):
        of_class = x_MD[np.asarray(y_M) == c]
        means.append(of_class.mean(0))
        scatter_DD += (of_class - means[-1]).T @ (of_class - means[-1])
    inverse_DD = np.linalg.inv(scatter_DD / n + ridge * np.eye(len(scatter_DD)))
    return np.array([[(q - m) @ inverse_DD @ (q - m) for m in means] for q in q_ND])


def test_mahalanobis_is_the_references():
    distance_NC = slow(X_MD, Y_M, Q_ND, M - K, K)
    equal(_scores.mahalanobis(X_MD, Y_M)(Q_ND), (-distance_NC).max(1))


def test_relative_mahalanobis_is_the_papers():
    of_class = slow(X_MD, Y_M, Q_ND, M, K)
    background = slow(X_MD, 0 * Y_M, Q_ND, M, 1)
    equal(_scores.relative_mahalanobis(X_MD, Y_M)(Q_ND), -(of_class - background).min(1), atol=1e-9)


def test_ssd_is_the_authors_where_every_direction_has_images():
    unit_MD, unit_ND = (x.double().numpy() for x in (X_MD, Q_ND))
    unit_MD, unit_ND = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (unit_MD, unit_ND))
    mean_D, spread_D = unit_MD.mean(0), unit_MD.std(0)
    z_MD, z_ND = (unit_MD - mean_D) / spread_D, (unit_ND - mean_D) / spread_D
    equal(_scores.ssd(X_MD)(Q_ND), -slow(z_MD, 0 * Y_M, z_ND, M, 1)[:, 0])
    pinv_DD = np.linalg.pinv(np.cov(z_MD.T, bias=True))
    theirs = ((z_ND - z_MD.mean(0)) @ pinv_DD * (z_ND - z_MD.mean(0))).sum(1)
    equal(_scores.ssd(X_MD)(Q_ND), -theirs, rtol=1e-4)  # the ridge


@pytest.mark.parametrize(("asked", "images", "used"), [(3, M, 3), (50, M, 9), (1, 40, 1)])
def test_knn_is_scikit_learns(asked, images, used):
    def unit(x):
        return x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True)

    theirs = NearestNeighbors(n_neighbors=used, algorithm="brute").fit(unit(X_MD[:images]))
    distance_NJ, _ = theirs.kneighbors(unit(Q_ND))
    equal(_scores.knn(X_MD[:images], asked)(Q_ND), -distance_NJ[:, -1])


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_residual_and_vim_are_the_papers(share):
    w_DK, b_K = head()
    x_MD, q_ND = X_MD.double().numpy(), Q_ND.double().numpy()
    origin_D = -np.linalg.pinv(w_DK.numpy().T) @ b_K.numpy()
    covariance = EmpiricalCovariance(assume_centered=True).fit(x_MD - origin_D).covariance_
    value_D, vector_DD = np.linalg.eig(covariance)
    kept = min(D - 1, round(share * D))
    rest = vector_DD[:, np.argsort(-value_D)[kept:]]
    left_M, left_N = (np.linalg.norm((x - origin_D) @ rest, axis=1) for x in (x_MD, q_ND))
    logit_MK, logit_NK = x_MD @ w_DK.numpy() + b_K.numpy(), q_ND @ w_DK.numpy() + b_K.numpy()
    alpha = logit_MK.max(1).mean() / left_M.mean()

    def logits(x_ND):
        return x_ND.double() @ w_DK + b_K

    left = _scores.residual(X_MD, w_DK, b_K, share)
    equal(left(Q_ND), -left_N, rtol=1e-8)
    virtual = np.log(np.exp(logit_NK).sum(1)) - alpha * left_N
    equal(_scores.vim(X_MD, logits, left)(Q_ND), virtual, rtol=1e-8)


def test_the_principal_space_is_a_share_of_the_directions_that_there_are():
    """With as many dead units as others, half of all of them would leave no residual."""
    (w_DK, b_K), none = head(), torch.zeros(1, D)
    asleep_MD, asleep_ND = (torch.cat([x, none.expand(len(x), D)], 1) for x in (X_MD, Q_ND))
    both = _scores.residual(asleep_MD, torch.cat([w_DK, 0 * w_DK]), b_K, 0.5)
    equal(both(asleep_ND), _scores.residual(X_MD, w_DK, b_K, 0.5)(Q_ND), rtol=1e-6)
    few = _scores.residual(X_MD[:10], w_DK, b_K, 0.5)
    assert few(X_MD[:10]).max() < -1e-3


def test_scores_of_logits_are_the_papers():
    z_NK = Q_ND[:, :K].double()
    probability_NK = (z_NK.exp() / z_NK.exp().sum(1, keepdim=True)).numpy()
    equal(_scores.msp(z_NK, False).sigmoid(), probability_NK.max(1))
    equal(_scores.max_logit(z_NK, False), z_NK.numpy().max(1))
    equal(_scores.energy(z_NK, False), np.log(np.exp(z_NK.numpy()).sum(1)))


def test_scores_of_logits_of_labels_that_do_not_exclude_each_other():
    z_NK = Q_ND[:, :K].double() - 3
    equal(_scores.msp(z_NK, True).sigmoid(), (1 / (1 + np.exp(-z_NK.numpy()))).max(1))
    equal(_scores.energy(z_NK, True), np.log1p(np.exp(z_NK.numpy())).sum(1))


def test_msp_tells_apart_what_rounds_to_one():
    z_NK = torch.tensor([[900.0, 0, 0], [60, 0, 0], [60, 0, 30], [40, 0, 0]], dtype=torch.float64)
    assert (z_NK.softmax(1).amax(1)[[0, 1, 3]] == 1).all()
    assert _scores.msp(z_NK, True).float().argsort().tolist() in ([3, 1, 2, 0], [3, 2, 1, 0])
    assert _scores.msp(z_NK, False).float().argsort().tolist() == [2, 3, 1, 0]


def test_pytorch_ood_agrees():
    """In float32; its Gaussians have the scatter itself plus the ridge: distances are M times
    shorter, and equal on features with no direction so short that the ridge is seen."""
    detector = pytest.importorskip("pytorch_ood.detector")
    g = torch.Generator().manual_seed(6)
    x_MD, q_ND = (x + torch.randn(x.shape, generator=g) for x in (X_MD, Q_ND))
    w_DK, b_K = head()

    def theirs(found):
        return -found.fit_features(x_MD, Y_M).predict_features(q_ND).double().numpy()

    def logits(x_ND):
        return x_ND.double() @ w_DK + b_K

    left = _scores.residual(x_MD, w_DK, b_K, 0.5)
    vim = detector.ViM(None, d=D // 2, w=w_DK.T, b=b_K)
    equal(_scores.vim(x_MD, logits, left)(q_ND), theirs(vim), rtol=1e-4, atol=1e-3)
    equal(_scores.knn(x_MD, 5)(q_ND), theirs(detector.KNN(None, k=5)), rtol=1e-5)
    nearest = _scores.mahalanobis(x_MD, Y_M)(q_ND) / 2 / (M - K)
    equal(nearest, theirs(detector.Mahalanobis(None)), rtol=1e-3)
    relative = _scores.relative_mahalanobis(x_MD, Y_M)(q_ND) / M
    np.testing.assert_allclose(relative, theirs(detector.RMD(None)), rtol=1e-3, atol=1e-6)
    z_NK = logits(q_ND)
    equal(_scores.energy(z_NK, False), -detector.EnergyBased.score(z_NK))
    equal(_scores.max_logit(z_NK, False), -detector.MaxLogit.score(z_NK))
    equal(_scores.msp(z_NK, False).sigmoid(), -detector.MaxSoftmax.score(z_NK))


# few images, many features


def exact(x_MD: Tensor, y_M: Tensor, q_ND: Tensor, n: int) -> list[float]:
    """Squared distances to the nearest class in rational numbers, by Woodbury's identity."""
    ridge = Fraction(1, 10**6)

    def rational(rows):
        return [[Fraction(float(v)) for v in row] for row in rows]

    def dot(a, b):
        return sum(u * v for u, v in zip(a, b, strict=True))

    x, y = rational(x_MD), y_M.tolist()
    members = {c: [row for row, k in zip(x, y, strict=True) if k == c] for c in sorted(set(y))}
    means = {
        c: [sum(v) / len(rows) for v in zip(*rows, strict=True)] for c, rows in members.items()
    }
    z = [[a - b for a, b in zip(row, means[k], strict=True)] for row, k in zip(x, y, strict=True)]
    inner = [
        [dot(a, b) + (n * ridge if i == j else 0) for j, b in enumerate(z)] for i, a in enumerate(z)
    ]

    def solve(right):  # Gauss
        rows = [[*row, r] for row, r in zip(inner, right, strict=True)]
        for i in range(len(rows)):
            for j in range(len(rows)):
                if j != i:
                    by = rows[j][i] / rows[i][i]
                    rows[j] = [a - by * b for a, b in zip(rows[j], rows[i], strict=True)]
        return [row[-1] / row[i] for i, row in enumerate(rows)]

    found = []
    for q in rational(q_ND):
        off = [[a - b for a, b in zip(q, mean, strict=True)] for mean in means.values()]
        through = [[dot(row, o) for row in z] for o in off]
        found.append(
            min((dot(o, o) - dot(t, solve(t))) / ridge for o, t in zip(off, through, strict=True))
        )
    return [float(value) for value in found]


def test_five_labels_of_512_features_have_the_distances_of_exact_arithmetic():
    """546 images at 1 %: the covariance has rank 3, and the ridge is what is left of it."""
    x_MD, q_ND = features(5, 7, d=512)[0], features(3, 8, d=512)[0]
    y_M = torch.tensor([0, 0, 0, 1, 1])
    equal(_scores.mahalanobis(x_MD, y_M)(q_ND), np.negative(exact(x_MD, y_M, q_ND, 3)))
    within = x_MD[:1] * 0.3 + x_MD[1:2] * 0.7  # where an image of the class has its distance
    equal(_scores.mahalanobis(x_MD, y_M)(within), np.negative(exact(x_MD, y_M, within, 3)), 1e-6)
    own, background = exact(x_MD, y_M, q_ND, 5), exact(x_MD, 0 * y_M, q_ND, 5)
    equal(_scores.relative_mahalanobis(x_MD, y_M)(q_ND), np.subtract(background, own), rtol=1e-6)


def test_with_one_image_of_every_class_only_the_ridge_is_left():
    x_MD, q_ND = features(4, 7, d=512)[0], features(9, 8, d=512)[0]
    nearest_N = (q_ND[:, None].double() - x_MD.double()).square().sum(2).amin(1)
    equal(_scores.mahalanobis(x_MD, torch.arange(4))(q_ND), -nearest_N / 1e-6)


def test_the_feature_scores_do_not_ask_how_images_are_cut(monkeypatch):
    whole = _scores.knn(X_MD, 5)(Q_ND)
    monkeypatch.setattr(_scores, "AT_ONCE", 7 * M)
    equal(_scores.knn(X_MD, 5)(Q_ND), whole, rtol=1e-12)
    a = found_of(world())
    monkeypatch.setattr(ood, "CHUNK", 13)
    b = found_of(world())
    assert all(np.allclose(a[k], b[k], rtol=1e-5, atol=1e-6) for k in SCORES)


# the evaluation


def one_hot(y_N: Tensor, classes: int = K) -> Tensor:
    return torch.eye(classes)[y_N]


def world(**changes) -> dict:
    """(dataset, split) -> features: the target a/1; b/same like it; b/moved far from it."""
    held = {}
    for split, n, seed in (("train", 800, 1), ("val", 300, 2), ("test", 700, 3)):
        x_ND, y_N = features(n, seed)
        held["a/1", split] = Features(x_ND, one_hot(y_N))
    unknown = torch.full((1, 3), torch.nan)  # their labels are nobody's business
    for name, shift in (("b/same", 0.0), ("b/moved", 40.0)):
        for split, n, seed in (("train", 90, 11), ("val", 70, 12), ("test", 600, 13)):
            x_ND = features(n, seed)[0] + shift * torch.eye(D)[0]
            held[name, split] = Features(x_ND, unknown.expand(n, 3))
    return held | changes


def subject_of(held: dict, task: str = "multi-class", fraction: float = 1.0) -> Judged:
    load = lambda dataset, split, target=None: held[dataset, split]  # noqa: E731
    return Judged(lambda: None, load, "a/1", task, fraction)


def found_of(held: dict, task: str = "multi-class", fraction: float = 1.0, **settings) -> dict:
    config = ood.Config(**{"near": ("b/same",), "far": ("b/moved",)} | settings)
    return dict(ood.evaluate(subject_of(held, task, fraction), config))


@pytest.fixture(scope="module")
def found() -> dict:
    return found_of(world())


def test_every_score_has_every_metric_of_every_set_and_group(found):
    numbers = {k for k, v in found.items() if isinstance(v, float)}
    ends = ("", ":b/same", ":b/moved", ":near", ":far")
    assert numbers == {f"{s}/{m}{end}" for s in SCORES for m in METRICS for end in ends} | {"auroc"}
    assert all(0 <= found[name] <= 1 for name in numbers)
    assert all(re.fullmatch(r"[\w\-. :/]+", name) for name in numbers)  # as MLflow wants them


def test_the_same_is_chance_and_the_far_is_found(found):
    assert all(0.45 < found[f"{s}/auroc:b/same"] < 0.55 for s in SCORES)
    geometric = SCORES - {"msp", "max_logit", "energy"}  # a line is sure of what is far from it
    assert {s: found[f"{s}/auroc:b/moved"] > 0.99 for s in geometric} == dict.fromkeys(
        geometric, True
    )


def test_means_are_over_sets_and_the_headline_is_mahalanobis(found):
    assert found["auroc"] == found["mahalanobis/auroc"]
    for s in SCORES:
        same, moved = found[f"{s}/auroc:b/same"], found[f"{s}/auroc:b/moved"]
        assert (found[f"{s}/auroc:near"], found[f"{s}/auroc:far"]) == (same, moved)
        assert found[f"{s}/auroc"] == pytest.approx((same + moved) / 2)
    both = found_of(world(), near=("b/same", "b/moved"), far=())
    assert both["ssd/aupr_in:near"] == both["ssd/aupr_in"]
    assert "ssd/aupr_in:far" not in both


def test_scores_of_every_image_are_kept_and_make_the_same_metrics(found):
    for s in SCORES:
        assert found[s].shape == (700,)
        assert found[s].dtype == np.float32
        for name in ("b/same", "b/moved"):
            assert found[f"{s}:{name}"].shape == (600,)
            for metric, value in detection(found[s], found[f"{s}:{name}"]):
                assert found[f"{s}/{metric}:{name}"] == value


def test_all_images_of_other_sets_and_all_labels_of_theirs_whatever_the_fraction():
    every = found_of(world(), ood_pool="all", fraction=0.05)
    assert every["knn"].shape == (700,)
    assert every["knn:b/same"].shape == (90 + 70 + 600,)


def test_the_target_is_left_out_and_without_another_set_there_is_no_question(found):
    named = found_of(world(), near=("b/same", "a/1"), far=("a/1", "b/moved"))
    assert named.keys() == found.keys()
    for settings in ({"near": (), "far": ()}, {"near": ("a/1",), "far": ()}):
        with pytest.raises(ValueError, match="nothing to tell from a/1: name sets in near or far"):
            found_of(world(), **settings)


def test_a_set_that_shares_a_member_with_the_target_is_no_stranger():
    held = {(name.replace("a/1", "a/1+2"), split): of for (name, split), of in world().items()}
    held |= {("a/1", split): of for (_, split), of in world().items()}
    load = lambda dataset, split, target=None: held[dataset, split]  # noqa: E731
    subject = Judged(lambda: None, load, "a/1+2", "multi-class")
    config = ood.Config(near=("a/1", "b/same", "a/2+3"), far=("a/1+2",))
    sets = {name.partition(":")[2] for name in dict(ood.evaluate(subject, config))}
    assert sets == {"", "b/same", "near"}


def test_what_holds_the_source_is_no_stranger_either():
    held = world()
    held |= {("c/1", split): held["a/1", split] for split in ("train", "val")}
    load = lambda dataset, split, source: held[dataset, split]  # noqa: E731
    subject = Judged(lambda: None, load, "a/1", "multi-class", source="c/1")
    config = ood.Config(near=("c/1+2", "b/same"), far=("c/1", "a/1+2"))
    sets = {name.partition(":")[2] for name in dict(ood.evaluate(subject, config))}
    assert sets == {"", "b/same", "near"}


def test_scores_without_labels_do_not_change_with_them(found):
    held = world()
    x_ND, t_NK = held["a/1", "train"]
    other = found_of(held | {("a/1", "train"): Features(x_ND, t_NK.roll(1, 0))})
    few = found_of(held, fraction=0.05)
    for s in SCORES:
        for changed in (other, few):
            assert np.array_equal(changed[s], found[s]) == (s in LABEL_FREE), s


def test_the_order_of_images_does_not_matter(found):
    held = world()
    turn = torch.randperm(800, generator=torch.Generator().manual_seed(0))
    x_ND, t_NK = held["a/1", "train"]
    turned = found_of(held | {("a/1", "train"): Features(x_ND[turn], t_NK[turn])})
    exactly = SCORES - {"msp", "max_logit", "energy", "vim", "residual"}
    for s in SCORES:  # the head is fitted to a tolerance
        tolerance = 1e-6 if s in exactly else 1e-2
        np.testing.assert_allclose(turned[s], found[s], rtol=tolerance, atol=tolerance)
    x_ND, t_NK = held["a/1", "test"]
    back = found_of(held | {("a/1", "test"): Features(x_ND.flip(0), t_NK.flip(0))})
    for s in SCORES:
        np.testing.assert_allclose(back[s][::-1], found[s], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fraction", [0.005, 0.02])
def test_few_labels_are_enough_for_a_number(fraction):
    """At half a per cent one image of each of the four classes is left."""
    few = found_of(world(), fraction=fraction)
    assert all(np.isfinite(v).all() for v in few.values())
    assert few["mahalanobis/auroc:b/moved"] > 0.99


def test_a_class_without_a_labelled_image_has_no_mean():
    held = world()
    x_ND, t_NK = held["a/1", "train"]
    seen = t_NK[:, 2] == 0
    without = found_of(held | {("a/1", "train"): Features(x_ND[seen], t_NK[seen])})
    assert all(np.isfinite(v).all() for v in without.values())
    class_N = t_NK[seen].argmax(1)
    class_N[class_N == 3] = 2
    distance_NC = slow(x_ND[seen], class_N, held["a/1", "test"].x_ND, int(seen.sum()) - 3, 3)
    np.testing.assert_allclose(without["mahalanobis"], -distance_NC.min(1), rtol=1e-5)


@pytest.mark.parametrize("dead", [5, D])
def test_dead_units_are_no_trouble(dead):
    """Five that wake up for an image of another set, or all: features that are one point."""
    held = world()
    for key, (x_ND, t_NK) in held.items():
        asleep = 0.01 if key == ("b/moved", "test") else 0.0
        kept = torch.cat([torch.full_like(x_ND[:, :dead], asleep), x_ND[:, dead:]], 1)
        held[key] = Features(kept, t_NK)
    odd = found_of(held)
    assert all(np.isfinite(v).all() for v in odd.values())
    assert odd["mahalanobis/auroc:b/moved"] > 0.99
    if dead == D:
        assert all(odd[f"{s}/auroc:b/same"] == 0.5 for s in SCORES)


def test_a_dead_unit_that_wakes_is_no_distance_to_ssd():
    """Its authors' pseudo-inverse leaves it out; divided by its spread it would be all there is."""
    asleep_MD = torch.cat([X_MD, torch.zeros(M, 3)], 1)
    awake_ND = torch.cat([Q_ND, torch.full((N, 3), 1e-3)], 1)
    equal(_scores.ssd(asleep_MD)(awake_ND), _scores.ssd(X_MD)(Q_ND), rtol=1e-4)


def test_more_neighbours_than_images_are_as_many_as_there_are():
    most = found_of(world(), neighbours=10**6)
    eight = found_of(world(), neighbours=8)
    assert np.array_equal(most["knn"], eight["knn"])


def test_of_labels_that_do_not_exclude_each_other_a_class_is_a_combination():
    held = world()
    for split in ("train", "val", "test"):
        x_ND, t_NK = held["a/1", split]
        y_N = t_NK.argmax(1)  # of neither, the first, the second, both
        held["a/1", split] = Features(x_ND, torch.stack([y_N % 2, y_N // 2], 1).float())
    many = found_of(held, task="multi-label, binary-class")
    assert not any(name.startswith("vim") for name in many)
    assert {name.partition("/")[0] for name in many if "/auroc:near" in name} == SCORES - {"vim"}
    np.testing.assert_allclose(many["mahalanobis"], found_of(world())["mahalanobis"], rtol=1e-6)
    line = linear_probe.drawn(subject_of(held, "multi-label, binary-class"), linear_probe.Config())
    z_NK = line.logits(held["a/1", "test"].x_ND)
    np.testing.assert_allclose(many["energy"], np.log1p(np.exp(z_NK.numpy())).sum(1), rtol=1e-5)
    np.testing.assert_allclose(1 / (1 + np.exp(-many["msp"])), z_NK.sigmoid().amax(1), rtol=1e-5)
    assert 0.45 < many["energy/auroc:b/same"] < 0.55


def test_scores_of_the_head_are_of_the_probe(found):
    line = linear_probe.drawn(subject_of(world()), linear_probe.Config())
    x_ND = world()["a/1", "test"].x_ND
    np.testing.assert_allclose(found["max_logit"], line.logits(x_ND).amax(1), rtol=1e-5)
    np.testing.assert_allclose(
        1 / (1 + np.exp(-found["msp"])), line.scores(x_ND).amax(1), rtol=1e-5
    )


def test_the_principal_space_is_of_all_training_images_however_few_have_labels():
    few, held = found_of(world(), fraction=0.05), world()
    line = linear_probe.drawn(subject_of(held, fraction=0.05), linear_probe.Config())
    left = _scores.residual(held["a/1", "train"].x_ND, *line.raw(), 0.5)
    np.testing.assert_allclose(few["residual"], left(held["a/1", "test"].x_ND), rtol=1e-5)
    virtual = _scores.vim(held["a/1", "train"].x_ND, line.logits, left)
    np.testing.assert_allclose(few["vim"], virtual(held["a/1", "test"].x_ND), rtol=1e-5)


def test_the_head_is_that_of_this_version():
    """msp, max_logit, energy, residual and vim are of the probe, whose settings are in no id of
    ours: where one changes, raise ood.Config.version."""
    assert ood.Config().version == 2
    assert str(linear_probe.Config()) == (
        "Config(version=1, strongest=1.0, weakest=-6.0, steps=15, patience=4, iterations=300)"
    )


def test_settings_reach_their_scores(found):
    for setting, scores in (
        ({"neighbours": 2}, {"knn"}),
        ({"principal": 0.2}, {"vim", "residual"}),
    ):
        other = found_of(world(), **setting)
        changed = {s for s in SCORES if not np.array_equal(other[s], found[s])}
        assert changed == scores


def test_the_config_is_frozen():
    with pytest.raises(AttributeError):
        ood.Config().near = ("b/1",)
    assert replace(ood.Config(), near=("b/1",)).near == ("b/1",)
