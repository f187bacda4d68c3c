"""ConvNeXt-Tiny: a convolutional network with a transformer's habits, and layer norm.

    convnext/tiny   4x4 patches, then three halvings: 32 px is the smallest image

Its residual branches start at 1e-6, as published, so an untrained one is little more than its stem.
Liu et al. 2022, https://arxiv.org/abs/2201.03545
"""

VARIANTS = ("tiny",)
SMALLEST = 32  # pixels


def check(variant: str, image_size: int) -> list[str]:
    if variant not in VARIANTS:
        return [f"no convnext/{variant}: choose convnext/tiny"]
    if image_size < SMALLEST:
        return [
            f"convnext/tiny halves {image_size} px to nothing: use image_size={SMALLEST} or more, "
            f"or choose resnet/50-3x3"
        ]
    return []


def build(variant: str, image_size: int):
    import timm

    if problems := check(variant, image_size):
        raise ValueError(problems[0])
    model = timm.create_model("convnext_tiny", num_classes=0)
    model.dim = model.num_features
    return model
