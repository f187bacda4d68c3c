"""Which pretraining, for which images, with how few labels: the grid of arXiv 2412.19124, whole.

    ray job submit --working-dir . -- python sweeps/full_grid.py --store STORE --data FOLDER

`none` and the paper's eight methods x 11 MedMNIST sets at 64 px (ChestMNIST, which is multi-label,
left out as there) x ResNet-50, ViT-Small/16 x random, ImageNet x 1, 10, 100 % of the labels.
Cost: 400 epochs of every set are 352 million views for each (method, backbone, init); views/s
depends on the GPU, and each row of the table says what it had. Success: every cell has a result.
The paper searches learning rate and weight decay for each encoder (`paper.py`); here they are its
base values.
"""

from medssl import Resources, Sweep, cli

SETS = "path derma oct pneumonia retina breast blood tissue organa organc organs"


def sweep() -> Sweep:
    return Sweep(
        name="full_grid",
        method=[
            "none",
            "simclr",
            "dino",
            "byol",
            "ressl",
            "moco_v3",
            "nnclr",
            "vicreg",
            "barlow_twins",
        ],
        dataset=[f"medmnist/{name}mnist" for name in SETS.split()],
        backbone=["resnet/50-7x7", "vit/small-16"],
        init=["random", "imagenet"],
        image_size=64,  # pixels
        epochs=400,
        batch_size=256,
        learning_rate=3e-4,
        weight_decay=0.05,
        warmup_epochs=10,
        eval=["knn", "linear_probe"],
        label_fraction=[0.01, 0.1, 1.0],
        resources=Resources(cpu=4, gpu=1, concurrent=16),  # nodes that an autoscaler may add
    )


if __name__ == "__main__":
    cli.script(__file__)
