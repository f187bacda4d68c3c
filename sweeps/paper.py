"""arXiv 2412.19124's grid with its search: every point of learning rate x weight decay, 100 epochs.

    ray job submit --working-dir . -- python sweeps/paper.py --store STORE --data FOLDER

The eight methods of the paper x 11 MedMNIST sets at 64 px x ResNet-50, ViT-Small/16 x random,
ImageNet: each of the paper's 12 points for 100 epochs, chosen by `val_accuracy` of a linear probe
with all labels, then 400 epochs with the chosen one; `Search(how="halving", ...)` does the first
part with a third of the epochs. Cost: 1,600 epochs of every set for each encoder, four times
`full_grid.py`. Success: every cell has a result, and `medssl choices` shows what each had been
chosen of; no choice needs the test split.
"""

from medssl import Resources, Search, Sweep, cli

SETS = "path derma oct pneumonia retina breast blood tissue organa organc organs"


def sweep() -> Sweep:
    return Sweep(
        name="paper",
        method=["simclr", "dino", "byol", "ressl", "moco_v3", "nnclr", "vicreg", "barlow_twins"],
        dataset=[f"medmnist/{name}mnist" for name in SETS.split()],
        backbone=["resnet/50-7x7", "vit/small-16"],
        init=["random", "imagenet"],
        image_size=64,  # pixels
        epochs=400,
        batch_size=256,
        search=Search(
            learning_rate=[0.3, 0.03, 0.003, 0.0003],
            weight_decay=[1e-3, 1e-4, 1e-5],
            epochs=100,
            seed=42,
            metric="val_accuracy",
        ),
        warmup_epochs=10,
        eval=["linear_probe", "knn"],
        label_fraction=[0.01, 0.1, 1.0],
        seed=42,
        resources=Resources(cpu=4, gpu=1, concurrent=16),
    )


if __name__ == "__main__":
    cli.script(__file__)
