"""Votes as scikit-learn counts them, and as the paper weighs them."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from medssl.evals import Features, knn
from medssl.features import Judged
from medssl.spec import settings


def held(n: int = 400, classes: int = 3, noise: float = 1.5) -> dict[str, Features]:
    """Noisy points about centres of very different length, so that the two distances differ."""
    g = torch.Generator().manual_seed(0)
    centre_KD = torch.randn(classes, 8, generator=g) * torch.tensor([[0.5], [1.0], [5.0]])
    found = {}
    for split in ("train", "val", "test"):
        y_N = torch.randint(classes, (n,), generator=g)
        x_ND = centre_KD[y_N] + noise * torch.randn(n, 8, generator=g)
        found[split] = Features(x_ND, F.one_hot(y_N, classes).float())
    return found


def scores(splits: dict[str, Features], **given) -> dict:
    subject = Judged(lambda: None, lambda d, s, source: splits[s], "a/1", "multi-class")
    return dict(knn.evaluate(subject, knn.Config(**given)))


@pytest.mark.parametrize("neighbours", [1, 11, 1000])
def test_one_vote_each_is_scikit_learns(neighbours):
    splits = held()
    mine = scores(splits, distance="euclidean", neighbours=neighbours)
    theirs = KNeighborsClassifier(min(neighbours, 400), algorithm="ball_tree")
    theirs.fit(splits["train"].x_ND.numpy(), splits["train"].t_NK.argmax(1).numpy())
    expected_NK = theirs.predict_proba(splits["test"].x_ND.numpy())
    np.testing.assert_allclose(mine["scores"], expected_NK, atol=1e-6)
    predicted_N = theirs.predict(splits["test"].x_ND.numpy())  # of a tie the first class
    assert mine["accuracy"] == (predicted_N == splits["test"].t_NK.argmax(1).numpy()).mean()


def test_half_of_the_votes_are_one_half():
    """In float32 ten times a twentieth is more, and the image would count as positive."""
    bank = Features(torch.zeros(20, 3), torch.eye(2).repeat(10, 1))
    few = knn.Config(distance="euclidean", neighbours=20)
    assert (knn.vote(bank, torch.ones(5, 3), few) == 0.5).all()


def test_weighted_votes_are_the_papers():
    splits = held()
    mine = scores(splits, neighbours=7, temperature=0.1)["scores"]
    x_MD, t_MK = (a.double().numpy() for a in splits["train"])
    for x_D, found_K in zip(splits["test"].x_ND.double().numpy()[:50], mine, strict=False):
        cosine_M = x_MD @ x_D / np.linalg.norm(x_MD, axis=1) / np.linalg.norm(x_D)
        near = np.argsort(-cosine_M)[:7]
        weight = np.exp(cosine_M[near] / 0.1)
        np.testing.assert_allclose(found_K, weight @ t_MK[near] / weight.sum(), atol=1e-5)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_validation_chooses_and_never_test(distance):
    splits = held()
    found = scores(splits, distance=distance, choose=True)
    assert found["neighbours"] > 5  # the noise is large: one neighbour is a bad witness
    easy = scores(held(noise=0.01), distance="euclidean", choose=True)
    assert easy["neighbours"] == 1
    other = splits | {"test": Features(splits["test"].x_ND, splits["test"].t_NK.roll(1, 1))}
    assert scores(other, distance=distance, choose=True)["neighbours"] == found["neighbours"]
    by_hand = [
        scores(splits, distance=distance, neighbours=j, temperature=t)["val_brier"]
        for j in knn.COUNTS
        for t in (knn.TEMPERATURES if distance == "cosine" else [0.07])
    ]
    chosen = {"neighbours": int(found["neighbours"]), "temperature": found["vote_temperature"]}
    assert scores(splits, distance=distance, **chosen)["val_brier"] == pytest.approx(min(by_hand))
    np.testing.assert_array_equal(
        found["scores"], scores(splits, distance=distance, **chosen)["scores"]
    )


def test_a_distance_that_is_not_known_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match="knn distance='l1': it must be one of cosine, euclidean"):
        settings("evals", ("knn", {"distance": "l1"}))
