"""Which images keep their label, when only a share of them does.

    order(t_NK, seed) -> a permutation whose every prefix is a fair sample; 1% lies inside 10%,
    and 5 shots inside 10

Images of one label combination are spread evenly along the order, so any prefix holds each in
proportion. One image of every class goes first: a class that vanishes at 1% (the reference code's
floor loses 2 of DermaMNIST's 7) would turn a few-label question into a different one.
"""

import numpy as np

# N images, K classes


def subset(t_NK: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Indices, ascending, of round(fraction * N) images, and of every class at least one."""
    present = int((t_NK.sum(0) > 0).sum())
    keep = min(len(t_NK), max(present, int(fraction * len(t_NK) + 0.5)))
    return np.sort(order(t_NK, seed)[:keep])


def shots(t_NK: np.ndarray, each: int, seed: int) -> np.ndarray:
    """Indices, ascending, of `each` images of every class, or all it has; nested, like `subset`.

    Where an image has many labels it counts for all of them, and common labels exceed `each`; those
    without any are a class of their own, or no head would ever see a healthy image.
    """
    order_N = order(t_NK, seed)
    has_NK = t_NK[order_N] > 0
    sets = [*has_NK.T, ~has_NK.any(1)]
    chosen = [order_N[has_N][:each] for has_N in sets]
    return np.unique(np.concatenate(chosen))


def scarce(t_NK: np.ndarray, each: int) -> str:
    """The classes that have fewer than `each` images, and how many: "class 3 has 80"."""
    counts = {f"class {k}": count for k, count in enumerate((t_NK > 0).sum(0))}
    if bare := int((~(t_NK > 0).any(1)).sum()):
        counts["no label at all"] = bare
    return ", ".join(f"{name} has {count}" for name, count in counts.items() if count < each)


def sample(images: int, keep: int, seed: int) -> np.ndarray:
    """Indices, ascending, of `keep` of the images, labels unseen: to pretrain on; nested too."""
    return np.sort(np.random.default_rng(seed).permutation(images)[:keep])


def order(t_NK: np.ndarray, seed: int) -> np.ndarray:
    """A permutation of the N images: first one image of each class, rarest class first."""
    shuffled_N = np.random.default_rng(seed).permutation(len(t_NK))
    _, group_N = np.unique(t_NK[shuffled_N], axis=0, return_inverse=True)
    group_N = group_N.ravel()
    size_G = np.bincount(group_N)
    by_group_N = np.argsort(group_N, kind="stable")
    rank_N = np.empty(len(t_NK))
    rank_N[by_group_N] = np.arange(len(t_NK)) - np.repeat(np.cumsum(size_G) - size_G, size_G)
    spread_N = shuffled_N[np.argsort((rank_N + 0.5) / size_G[group_N], kind="stable")]
    first: list[int] = []
    for k in np.argsort(t_NK.sum(0), kind="stable"):
        if t_NK[:, k].any() and not t_NK[first, k].any():
            first.append(int(spread_N[np.argmax(t_NK[spread_N, k] > 0)]))
    return np.concatenate([np.array(first, int), spread_N[~np.isin(spread_N, first)]])
