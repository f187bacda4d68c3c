"""Vision transformers, with the patch size in their name; a frozen feature is the CLS token.

    vit/small-16 at 64 px: 4 x 4 patches + CLS = 17 tokens, which is what the paper trains
    vit/small-8  at 64 px: 65 tokens, four times the work
    vit/base-14-ls         with LayerScale, which the weights of init="dinov2" need

The image size must be a multiple of the patch: at 28 px use patch 4, 7 or 14. Images of another
size, the local crops of multi-crop, go through the same encoder: their position embeddings are
resampled in each forward pass and their edge is padded with zeros to whole patches. At its own
size it is timm's ViT to the last bit.

LayerScale starts at 1, where it changes nothing: without weights for it, vit/small-14-ls computes
what vit/small-14 does, so that one backbone can be compared over random, imagenet and dinov2.
(DINOv2's own code starts it at 1e-5, where an untrained network is nearly the identity: `none`
would be a soft opponent.)
Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929; sizes of Touvron et al. 2021 (DeiT);
LayerScale: Touvron et al. 2021, https://arxiv.org/abs/2103.17239
"""

from medssl import registry

SIZES = ("tiny", "small", "base")
PATCHES = (4, 7, 8, 14, 16)  # pixels
VARIANTS = tuple(f"{s}-{p}{ls}" for ls in ("", "-ls") for s in SIZES for p in PATCHES)


def check(variant: str, image_size: int) -> list[str]:
    if variant not in VARIANTS:
        return [
            f"no vit/{variant}: {registry.near(variant, VARIANTS)}choose from vit/SIZE-PATCH, or "
            f"vit/SIZE-PATCH-ls with LayerScale; SIZE {', '.join(SIZES)}; "
            f"PATCH {', '.join(map(str, PATCHES))}"
        ]
    size, patch, *ls = variant.split("-")
    if image_size % int(patch):
        fits = ["-".join((f"vit/{size}", str(p), *ls)) for p in PATCHES if image_size % p == 0]
        return [f"vit/{variant} cannot cut {image_size} px: choose {' or '.join(fits)}"]
    return []


def build(variant: str, image_size: int):
    import timm

    if problems := check(variant, image_size):
        raise ValueError(problems[0])
    size, patch, *ls = variant.split("-")
    model = timm.create_model(
        f"vit_{size}_patch16_224",
        num_classes=0,
        img_size=image_size,
        patch_size=int(patch),
        init_values=1.0 if ls else None,
        dynamic_img_size=True,
        dynamic_img_pad=True,
    )
    model.dim = model.num_features
    return model
