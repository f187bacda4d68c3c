"""Big Transfer's ResNet-50x1, from which REMEDIS starts: no batch norm anywhere.

    bit/50x1   pre-activation ResNet with group norm and weight-standardised convolutions

A feature of one image does not depend on the others in its batch, and there are no running
statistics, so what a method says of batch norm in the encoder does not hold here. The stem is
ImageNet's 7x7 with a pool: 28 px leave one position at the end.
Kolesnikov et al. 2020, https://arxiv.org/abs/1912.11370
"""

VARIANTS = ("50x1",)


def check(variant: str, image_size: int) -> list[str]:
    return [] if variant in VARIANTS else [f"no bit/{variant}: choose bit/50x1"]


def build(variant: str, image_size: int):
    import timm

    if problems := check(variant, image_size):
        raise ValueError(problems[0])
    model = timm.create_model("resnetv2_50x1_bit", num_classes=0)
    model.dim = model.num_features
    return model
