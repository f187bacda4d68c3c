"""Out-of-distribution detection: does an encoder see that an image is of none of its kind?

    features of training images -> nine scores of an image -> test images of the target against
    those of the sets in `near` and `far`, each pair a binary question

Strangers are normalised as the source's images are: nobody knows where an image is from. knn and
ssd need no label; residual and those of logits ask the linear probe, whose penalty alone is chosen.
Metrics are SCORE/METRIC:SET, :near, :far, SCORE/METRIC; auroc is mahalanobis/auroc.
Bundele et al. 2024, https://arxiv.org/abs/2412.19124; OpenOOD, https://arxiv.org/abs/2306.09301
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean

import torch

from medssl.datasets import members
from medssl.evals import Subject, _scores, linear_probe
from medssl.metrics import detection
from medssl.ranges import Count, Pool, Sets, Share

CHUNK = 2048  # B; sets memory, never the answer

# N images, B at a time, M training images, D features, K classes


@dataclass(frozen=True)
class Config:
    version: int = 2  # raise it when a fix, the probe's too, makes old results wrong
    near: Sets = ()  # sets of another kind, yet alike; what has the target in it is left out
    far: Sets = ()  # sets that are nothing like it; one list can serve every target of a sweep
    ood_pool: Pool = "test"  # their test images; "all" of their images, as the reference
    neighbours: Count = 50  # knn's, at most a hundredth of the training images
    principal: Share = 0.5  # vim's and residual's share of the directions, 256 of 512


def evaluate(subject: Subject, config: Config) -> Iterator:
    """Metrics; and a float32 score of every image, "SCORE" (N,) and, of a set, "SCORE:SET"."""
    own = members(subject.source) | members(subject.target)
    groups = {k: [n for n in getattr(config, k) if not own & members(n)] for k in ("near", "far")}
    sets = list(dict.fromkeys(groups["near"] + groups["far"]))
    if not sets:
        raise ValueError(f"ood has nothing to tell from {subject.target}: name sets in near or far")
    splits = ["test"] if config.ood_pool == "test" else ["unlabeled", "val", "test"]
    scores = fitted(subject, config)
    found: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)

    def of(splits: list[str], dataset: str | None = None) -> dict:
        x_ND = torch.cat([subject.features(split, dataset).x_ND for split in splits])
        return {
            name: torch.cat([score(x_BD) for x_BD in x_ND.split(CHUNK)]).float().numpy()
            for name, score in scores.items()
        }

    inside = of(["test"])
    yield from inside.items()
    for elsewhere in sets:
        for name, s_N in of(splits, elsewhere).items():
            yield f"{name}:{elsewhere}", s_N
            for metric, value in detection(inside[name], s_N):
                yield f"{name}/{metric}:{elsewhere}", value
                found[name, metric][elsewhere] = value
    for (name, metric), by_set in found.items():
        for group in filter(groups.get, groups):
            yield f"{name}/{metric}:{group}", mean(by_set[n] for n in groups[group])
        yield f"{name}/{metric}", mean(by_set.values())
    yield "auroc", mean(found["mahalanobis", "auroc"].values())


def fitted(subject: Subject, config: Config) -> dict[str, _scores.Score]:
    """Every score that the target's task allows, by its name."""
    (x_ND, t_NK), seen_MD = subject.features("train"), subject.features("unlabeled").x_ND
    class_N = t_NK.unique(dim=0, return_inverse=True)[1]
    line = linear_probe.drawn(subject, linear_probe.Config())
    left = _scores.residual(seen_MD, *line.raw(), config.principal)
    scores = {
        "mahalanobis": _scores.mahalanobis(x_ND, class_N),
        "relative_mahalanobis": _scores.relative_mahalanobis(x_ND, class_N),
        "ssd": _scores.ssd(seen_MD),
        "knn": _scores.knn(seen_MD, config.neighbours),
        "residual": left,
    }
    for score in (_scores.msp, _scores.max_logit, _scores.energy):
        scores[score.__name__] = lambda x, score=score: score(line.logits(x), line.many)
    if not line.many:  # logits of labels may all be below 0, and a virtual one has no place there
        scores["vim"] = _scores.vim(seen_MD, line.logits, left)
    return scores
