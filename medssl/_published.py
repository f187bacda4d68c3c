"""Which published file an init is: tags and addresses as their owners name them.

A digest stands here where we read it at the source; without a full one, a file is compared with
the first that a store has met under its name (`weights.pin`). Its SHA-256 is in every row in any
case. What is not here: MoCo v3's ViT-Small, whose heads are not ours (see _layouts.py).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """`model.safetensors` of a repository on the Hugging Face hub, or a file at an address."""

    name: str  # what it is called in MEDSSL_WEIGHTS
    hub: str = ""
    url: str = ""
    sha256: str = ""  # or its first digits


def of(backbone: str, init: str) -> Published | None:
    """The file for exactly this backbone, else for any stem or patch of it; None: there is none."""
    files = FILES.get(init, {})
    stem, *parts = backbone.split("-")  # "vit/small", "14", "ls"
    scaled = [f"{stem}-PATCH-ls"] if parts[-1:] == ["ls"] else []
    names = [*scaled, backbone.removesuffix("-ls"), stem]
    return next((files[name] for name in names if name in files), None)


def _timm(tag: str, sha256: str = "") -> Published:
    return Published(f"{tag}.safetensors", hub=f"timm/{tag}", sha256=sha256)


def _meta(path: str, name: str = "") -> Published:
    """From the method's own authors."""
    return Published(name or path.rpartition("/")[2], url=f"https://dl.fbaipublicfiles.com/{path}")


def _lightly(method: str, run: str, step: int = 500400) -> Published:
    """Of LightlySSL's ImageNet benchmark, which the paper takes: 100 epochs at batch 256 or 128."""
    host = "https://lightly-ssl-checkpoints.s3.amazonaws.com"
    path = f"imagenet_resnet50_{run}/pretrain/version_0/checkpoints/epoch%3D99-step%3D{step}.ckpt"
    return Published(f"lightly_resnet50_{method}_100ep.ckpt", url=f"{host}/{path}")


def _mmselfsup(run: str, file: str, sha256: str) -> Published:
    """MMSelfSup ends the name of a file with the first digits of its SHA-256."""
    host = "https://download.openmmlab.com/mmselfsup/1.x"
    return Published(file, url=f"{host}/{run}/{file}", sha256=sha256)


FILES: dict[str, dict[str, Published]] = {  # init -> backbone -> file
    "imagenet": {
        # ImageNet-1k, and the weights that the paper starts from: torchvision's IMAGENET1K_V1
        "resnet/18": _timm(
            "resnet18.tv_in1k", "694f673df6520a3158624e8a89af086f59923ee4cd7436fe5bc3bc71d295ad81"
        ),
        "resnet/50": _timm(
            "resnet50.tv_in1k", "5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888"
        ),
        "convnext/tiny": _timm("convnext_tiny.fb_in1k"),
        # timm's default tags, and so the paper's: ImageNet-21k, then 1k
        "vit/tiny": _timm("vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
        "vit/small": _timm("vit_small_patch16_224.augreg_in21k_ft_in1k"),
        "vit/base": _timm("vit_base_patch16_224.augreg2_in21k_ft_in1k"),
        "bit/50x1": _timm("resnetv2_50x1_bit.goog_in21k_ft_in1k"),
    },
    "imagenet_ssl/dino": {
        "resnet/50": _meta("dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth"),
        "vit/small": _timm("vit_small_patch16_224.dino"),
        "vit/small-8": _timm(
            "vit_small_patch8_224.dino",
            "e1b79616ce6d1b8dc3cc0d5952b6d0958356a189122882493e665d28f20654a0",
        ),
        "vit/base": _timm(
            "vit_base_patch16_224.dino",
            "93181583427d6de3e18ab0e6ee4df35736cfc51a3c1bf9ae0e9b53b1316598dc",
        ),
        "vit/base-8": _timm(
            "vit_base_patch8_224.dino",
            "01be14b99784a4c0970a5703214513588daf27014e908ac7ea08967b7bd80f5f",
        ),
    },
    "imagenet_ssl/moco_v3": {
        "resnet/50": _meta("moco-v3/r-50-1000ep/r-50-1000ep.pth.tar"),
        "vit/base": _meta("moco-v3/vit-b-300ep/vit-b-300ep.pth.tar"),
    },
    "imagenet_ssl/swav": {"resnet/50": _meta("deepcluster/swav_800ep_pretrain.pth.tar")},
    "imagenet_ssl/vicreg": {"resnet/50": _meta("vicreg/resnet50.pth", "vicreg_resnet50.pth")},
    "imagenet_ssl/mae": {"vit/base": _timm("vit_base_patch16_224.mae")},
    # the paper's five, equally long
    "imagenet_ssl/simclr-100ep": {"resnet/50": _lightly("simclr", "simclr_2023-06-22_09-11-13")},
    "imagenet_ssl/byol-100ep": {"resnet/50": _lightly("byol", "byol_2024-02-14_16-10-09")},
    "imagenet_ssl/vicreg-100ep": {"resnet/50": _lightly("vicreg", "vicreg_2023-09-11_10-53-08")},
    "imagenet_ssl/dino-100ep": {"resnet/50": _lightly("dino", "dino_2023-06-06_13-59-48", 1000900)},
    "imagenet_ssl/moco_v3-100ep": {
        "resnet/50": _mmselfsup(
            "mocov3/mocov3_resnet50_8xb512-amp-coslr-100e_in1k",
            "mocov3_resnet50_8xb512-amp-coslr-100e_in1k_20220927-f1144efa.pth",
            "f1144efa",
        )
    },
    "dinov2": {
        "vit/small-PATCH-ls": _timm("vit_small_patch14_dinov2.lvd142m"),
        "vit/base-PATCH-ls": _timm(
            "vit_base_patch14_dinov2.lvd142m",
            "55cbb5d887b336d430e649c277b85a1429e724871f9d02ac16203235886d8c7b",
        ),
    },
    "bit": {"bit/50x1": _timm("resnetv2_50x1_bit.goog_in21k")},
}
