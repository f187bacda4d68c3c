"""MedMNIST v2's own baseline again: do our images, training and metrics give the published numbers?

    medssl run sweeps/medmnist_v2.py --data FOLDER
    medssl compare sweeps/medmnist_v2.py --to medmnist_v2_published.csv --model resnet18_28

ResNet-18 from random weights on all labels, no augmentation: Adam 1e-3, batches of 128, 100 epochs,
a tenth of the rate after 50 and a hundredth after 75, the epoch with the best validation AUROC.
Ours is normalised by the set's own mean and spread where theirs is by 0.5.
Cost: on a GPU a minute a set; on one core 100 epochs of BreastMNIST's 546 images take 10 minutes,
of PneumoniaMNIST's 4,708 an hour and a half. Success: AUROC within 0.02 of the published, accuracy
within 0.03. Measured, three seeds: BreastMNIST, AUROC 0.901 ± 0.014 where 0.901 is published, and
accuracy 0.853 ± 0.019 (0.863); PneumoniaMNIST, 0.947 ± 0.015 (0.944) and 0.873 ± 0.026 (0.854);
tests/benchmarks/results/medmnist_v2.json.
"""

from medssl import Resources, Sweep, cli


def sweep() -> Sweep:
    return Sweep(
        name="medmnist_v2",
        method="none",
        dataset=["medmnist/breastmnist", "medmnist/pneumoniamnist"],
        backbone="resnet/18-3x3",
        image_size=28,  # pixels
        seed=range(3),
        eval=(
            "finetune",
            {
                "epochs": 100,
                "updates": 1,
                "batch_size": 128,
                "learning_rate": 1e-3,
                "weight_decay": 0,
                "schedule": "steps",
                "smallest_crop": 1,
                "flip": 0,
                "looks": 100,
                "choose": "auroc",
            },
        ),
        label_fraction=1.0,
        resources=Resources(cpu=1),
    )


if __name__ == "__main__":
    cli.script(__file__)
