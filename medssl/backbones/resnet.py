"""ResNet, with the stem in its name, because at small images the stem decides more than the depth.

    resnet/18-7x7   7x7 convolution of stride 2, then max-pool: ImageNet's, and the paper's at 64 px
    resnet/18-3x3   3x3 convolution of stride 1, no pool: 16 times the resolution and the work
    resnet/10-3x3   the same with one block per stage: half the work again, for a laptop

The last norm of a block starts at 1, as torchvision's does; timm's default of 0 makes an untrained
ResNet a stem with shortcuts, whose probe is 0.04 AUROC worse on PneumoniaMNIST: a soft opponent.
He et al. 2016, https://arxiv.org/abs/1512.03385; the 3x3 stem as in Chen et al. 2020, appendix B.9
"""

from medssl import registry

VARIANTS = ("10-3x3", "18-3x3", "18-7x7", "50-3x3", "50-7x7")


def check(variant: str, image_size: int) -> list[str]:
    if variant in VARIANTS:
        return []
    known = [f"resnet/{v}" for v in VARIANTS]
    return [f"no resnet/{variant}: {registry.choose(f'resnet/{variant}', known)}"]


def build(variant: str, image_size: int):
    import timm
    from torch import nn

    if problems := check(variant, image_size):
        raise ValueError(problems[0])
    depth, stem = variant.split("-")
    blocks = {"layers": (1, 1, 1, 1)} if depth == "10" else {}
    model = timm.create_model(
        f"resnet{'18' if blocks else depth}", num_classes=0, zero_init_last=False, **blocks
    )
    if stem == "3x3":
        model.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    model.dim = model.num_features
    return model
