"""Every method on one real set, the same epochs for all: which beat the init that they began with?

    medssl run sweeps/methods.py --data FOLDER      (pneumoniamnist.npz, 28 px)

ResNet-18 with ImageNet's stem, which at 28 px costs a tenth of the small one; MAE, which needs a
ViT, has ViT-Tiny/7, and so `none` has both. Grey images, grey views; MAE has its own. Teachers that
the papers let follow over hundreds of epochs (DINO, MoCo v1 and v2) follow faster here. `finetune`
of `none` is supervised learning from random weights. Why this rate: DECISIONS 30.
Cost: an hour and a half on 2 idle cores (an epoch takes one of them 15 to 60 s). Success: at 100 %
of the labels the linear probe of at least 11 of the 13 stands above the `none` of the same
backbone, mean of 3 seeds.
"""

from medssl import Resources, Sweep, cli


def sweep() -> Sweep:
    faster = {"momentum": 0.99}
    return Sweep(
        name="methods",
        method=[
            *("none", "simclr", "byol", "simsiam", "moco_v3", "nnclr", "ressl", "swav"),
            *("barlow_twins", "vicreg", "mae"),
            *(("dino", faster), ("moco_v1", faster), ("moco_v2", faster)),
        ],
        dataset="medmnist/pneumoniamnist",
        backbone=["resnet/18-7x7", "vit/tiny-7"],
        views=["own", "grey"],
        image_size=28,  # pixels
        epochs=5,
        warmup_epochs=1,
        batch_size=64,
        learning_rate=3e-4,
        seed=range(3),
        eval=["linear_probe", ("finetune", {"learning_rate": 1e-3, "epochs": 10})],
        label_fraction=[0.01, 0.1, 1.0],
        drop={
            "the ViT is there for MAE": lambda cell: (
                cell.encoder.backbone.startswith("vit/")
                and cell.encoder.method not in ("none", "mae")
            ),
            "grey views, and MAE's own": lambda cell: (
                cell.encoder.views
                not in ("none", "mae" if cell.encoder.method == "mae" else "grey")
            ),
            "fine-tuned from random weights alone": lambda cell: (
                cell.eval == "finetune" and cell.encoder.method != "none"
            ),
        },
        resources=Resources(cpu=1),
    )


if __name__ == "__main__":
    cli.script(__file__)
