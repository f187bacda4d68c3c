"""What should pretraining start from: nothing, labels of ImageNet, or someone's self-supervision?

    medssl run sweeps/inits.py --data FOLDER

`none` is the init itself, as DINOv2 is compared with ImageNet; `simclr` goes on from it, as REMEDIS
does. Cost: 117 pretrainings of 200 epochs on small sets, 13 (backbone, init) of three sets and
seeds, and nine encoders that learn the labels of ChestMNIST: a day or so on one GPU (estimated, not
measured). The weights are fetched, or looked for in MEDSSL_WEIGHTS. Success: a row per init, and
every row of `none` says which file it is (`init_sha256`). Inits that a backbone does not have are
dropped, and counted by `medssl plan`.
"""

from medssl import Resources, Sweep, cli

CHEST = "supervised:medmnist/chestmnist@imagenet"  # as the chest X-ray studies pretrain
HAVE = {
    "resnet/50-7x7": ("random", "imagenet", "imagenet_ssl/dino", CHEST),
    "vit/small-16-ls": ("random", "imagenet", "imagenet_ssl/dino", "dinov2", CHEST),
    "bit/50x1": ("random", "imagenet", "bit", CHEST),
}


def sweep() -> Sweep:
    return Sweep(
        name="inits",
        method=["none", "simclr"],
        dataset=[f"medmnist/{name}mnist" for name in ("breast", "pneumonia", "derma")],
        backbone=list(HAVE),
        init=list(dict.fromkeys(init for inits in HAVE.values() for init in inits)),
        image_size=64,  # pixels
        epochs=200,
        learning_rate=3e-4,
        seed=range(3),
        drop={
            "this backbone has no such weights": lambda cell: (
                cell.encoder.init not in HAVE[cell.encoder.backbone]
            )
        },
        resources=Resources(cpu=4, gpu=1, concurrent=16),
    )


if __name__ == "__main__":
    cli.script(__file__)
