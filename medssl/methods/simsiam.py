"""SimSiam: BYOL without the teacher. A stopped gradient alone keeps it from collapsing.

    x -> two crops -> encoder -> head -> predictor  ~  the other view's head, gradient stopped

No negatives, no queue, no second network: the cheapest of the family and the nearest to collapse;
watch `spread`. The predictor is narrow in the middle and keeps its full learning rate, or it would
lag behind the head; the head's last norm has no scale.
Chen and He 2020, https://arxiv.org/abs/2011.10566; the loss is solo-learn's
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from medssl.methods import SSLMethod, Step
from medssl.methods._parts import bn_mlp, spread
from medssl.methods._solo import simsiam_loss
from medssl.ranges import Count

# B images, P projection


@dataclass(frozen=True)
class Config:
    version: int = 2  # raise it when a fix makes old results wrong; they are then run again
    hidden_dim: Count = 2048  # width of the head
    predictor_dim: Count = 512  # width of the predictor; a wide one predicts too well to teach
    out_dim: Count = 2048  # P


class Method(SSLMethod):
    preset = "moco_v2"
    steady = ("predictor",)

    def __init__(self, encoder: nn.Module, config: Config):
        super().__init__(encoder, config)
        hidden, out = config.hidden_dim, config.out_dim
        norm = nn.BatchNorm1d(out, affine=False)
        self.head = nn.Sequential(bn_mlp(encoder.dim, hidden, hidden, out, bias=False), norm)
        self.predictor = bn_mlp(out, config.predictor_dim, out)

    def step(self, views: Sequence[Tensor]) -> Step:
        a_BP, b_BP = (self.head(self.encoder(x)) for x in views)
        loss = simsiam_loss(self.predictor(a_BP), b_BP) + simsiam_loss(self.predictor(b_BP), a_BP)
        return Step(loss / 2, {"spread": spread(a_BP)})
