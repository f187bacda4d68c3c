"""arXiv 2412.19124's grid with its search: every point of learning rate x weight decay, 100 epochs.

    ray job submit --working-dir . -- python sweeps/paper.py --store STORE --data FOLDER

The eight methods of the paper x 11 MedMNIST sets at 64 px x ResNet-50, ViT-Small/16 x random,
ImageNet x the paper's 12 points. The choice is by `val_accuracy` of the probe at 100 %, as there;
the chosen point is then trained for 400 epochs in a sweep of one point each (`full_grid.py` has the
shape). Cost: 12 x 100 epochs of every set are three times `full_grid.py`. Success: every encoder
has a row `val_accuracy`, and no choice needs the test split.
"""

from medssl import Resources, Sweep, cli

SETS = "path derma oct pneumonia retina breast blood tissue organa organc organs"


def sweep() -> Sweep:
    return Sweep(
        name="paper_search",
        method=["simclr", "dino", "byol", "ressl", "moco_v3", "nnclr", "vicreg", "barlow_twins"],
        dataset=[f"medmnist/{name}mnist" for name in SETS.split()],
        backbone=["resnet/50-7x7", "vit/small-16"],
        init=["random", "imagenet"],
        image_size=64,  # pixels
        epochs=100,  # a quarter of the final 400
        batch_size=256,
        learning_rate=[0.3, 0.03, 0.003, 0.0003],
        weight_decay=[1e-3, 1e-4, 1e-5],
        warmup_epochs=10,
        eval="linear_probe",
        label_fraction=1.0,
        seed=42,
        resources=Resources(cpu=4, gpu=1, concurrent=16),
    )


if __name__ == "__main__":
    cli.script(__file__)
