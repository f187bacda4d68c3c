"""What should pretraining start from: nothing, labels of ImageNet, or someone's self-supervision?

    medssl run sweeps/inits.py --data FOLDER

`none` is the init itself; `simclr` goes on from it, as REMEDIS does. Cost: 200 epochs of three
small sets for each (backbone, init), hours on one GPU; the weights are fetched, or looked for in
MEDSSL_WEIGHTS. Success: a row per init, and every row of `none` says which file it is
(`init_sha256`). Inits that a backbone does not have are dropped, and listed.
"""

from medssl import Resources, Sweep, cli

HAVE = {
    "resnet/50-7x7": ("random", "imagenet", "imagenet_ssl/dino"),
    "vit/small-16": ("random", "imagenet", "imagenet_ssl/dino"),
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
