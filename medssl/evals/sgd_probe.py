"""SGD probe: arXiv 2412.19124's linear evaluation, so that numbers can stand beside the paper's.

    features, raw -> linear heads by SGD, 9 settings x 5 seeds -> the setting that is best on
    validation -> its 5 heads, each at its best epoch -> test, once

Not `linear_probe`, whose optimum is one: rate, epochs and dice leave their mark here, and features
of another scale are another result. A metric is the mean over heads, which differ in first weights
and order of images; `auroc:head 0` is one head's, `auroc_t95` half the width of the mean's 95 %
t-interval: the paper's, and blind to which images had labels and to the encoder's seed. `scores`
are head 0's, `scores_head_1` the next one's: their mean would be an ensemble, better than a head.
As there, accuracy chooses setting and epoch; equals fall to the larger rate, the weaker decay, the
earlier epoch. Unlike there, no seed is the clock's, and all heads choose the setting, not one.
https://arxiv.org/abs/2412.19124
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev

from scipy.special import stdtrit
from torch import Tensor

from medssl.evals import Features, Subject, _heads, judge
from medssl.ranges import Count, Positive, Weight, Whole

TOLD = ("auroc", "accuracy", "balanced_accuracy")  # of every head

# N images, D features


@dataclass(frozen=True)
class Config:
    version: int = 1  # raise it when a fix makes old results wrong; they are then run again
    learning_rate: Positive = 0.1  # the grid's largest; a tenth and a hundredth are tried too
    weight_decay: Weight = 0.1  # the grid's largest; a tenth and none are tried too
    epochs: Count = 100  # passes over the labelled images; the rate falls to 1/10 at 60 and 80 %
    batch_size: Count = 256  # images; a smaller set is one batch
    heads: Count = 5  # seeds, of which the mean is told; one has no interval
    standardise: bool = False  # features by the training split's mean and spread; unlike the paper
    seed: Whole = 0  # with the encoder's, of the heads' first weights and order of images


def evaluate(subject: Subject, config: Config) -> Iterator:
    return together([subject], config)[0]


def together(subjects: Sequence[Subject], config: Config) -> list[Iterator]:
    """What `evaluate` says of each of the subjects, which differ in their labelled images alone."""
    one, many = subjects[0], subjects[0].task.startswith("multi-label")
    mean_D, spread_D = 0.0, 1.0
    if config.standardise:
        seen_ND = one.features("unlabeled").x_ND
        mean_D, spread_D = seen_ND.mean(0), seen_ND.std(0).clamp(min=1e-6)

    def ready(x_ND: Tensor) -> Tensor:
        return ((x_ND - mean_D) / spread_D).to(one.device)

    def features(subject: Subject, split: str) -> Features:
        x_ND, t_NK = subject.features(split)
        return Features(ready(x_ND), t_NK.to(one.device))

    rates = [config.learning_rate / by for by in (1, 10, 100)]
    decays = dict.fromkeys((0.0, config.weight_decay / 10, config.weight_decay))
    settings = [_heads.Setting(rate, decay) for rate in rates for decay in decays]
    dice = _heads.seeds(config.seed, one.seed, config.heads)
    sets, val = [features(subject, "train") for subject in subjects], features(one, "val")
    found = _heads.train(sets, val, dice, settings, many, config.epochs, config.batch_size)

    def said(subject: Subject, heads: _heads.Heads) -> Iterator:
        best = heads.chosen()
        yield from settings[best]._asdict().items()
        yield "best_epoch", heads.epoch_SG[:, best].double().mean().item()
        predict = [partial(_heads.scores, w_LD, many=many) for w_LD in heads.w_SGLD[:, best]]
        judged = [dict(judge(subject, lambda x_ND, of=of: of(ready(x_ND)))) for of in predict]
        for head, of_head in enumerate(judged):
            yield "scores" + f"_head_{head}" * (head > 0), of_head.pop("scores")
        for name in [n for n in judged[0] if all(n in of_head for of_head in judged)]:
            values = [of_head[name] for of_head in judged]
            yield name, fmean(values)
            if name in TOLD:
                yield from ((f"{name}:head {head}", value) for head, value in enumerate(values))
                if (n := len(values)) > 1:
                    yield f"{name}_t95", float(stdtrit(n - 1, 0.975)) * stdev(values) / n**0.5

    return [said(*of) for of in zip(subjects, found, strict=True)]
