"""Vision transformers, with the patch size in their name; a frozen feature is the CLS token.

    vit/small-16 at 64 px: 4 x 4 patches + CLS = 17 tokens, which is what the paper trains
    vit/small-8  at 64 px: 65 tokens, four times the work

The image size must be a multiple of the patch: at 28 px use patch 4, 7 or 14.
Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929; sizes of Touvron et al. 2021 (DeiT)
"""

SIZES = ("tiny", "small")
PATCHES = (4, 7, 8, 14, 16)  # pixels
VARIANTS = tuple(f"{size}-{patch}" for size in SIZES for patch in PATCHES)


def check(variant: str, image_size: int) -> list[str]:
    if variant not in VARIANTS:
        return [f"no vit/{variant}: choose from {', '.join(f'vit/{v}' for v in VARIANTS)}"]
    if image_size % int(variant.split("-")[1]):
        fits = [f"vit/{variant.split('-')[0]}-{p}" for p in PATCHES if image_size % p == 0]
        return [f"vit/{variant} cannot cut {image_size} px: choose {' or '.join(fits)}"]
    return []


def build(variant: str, image_size: int):
    import timm

    if problems := check(variant, image_size):
        raise ValueError(problems[0])
    size, patch = variant.split("-")
    model = timm.create_model(
        f"vit_{size}_patch16_224", num_classes=0, img_size=image_size, patch_size=int(patch)
    )
    model.dim = model.num_features
    return model
