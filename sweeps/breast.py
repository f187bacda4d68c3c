"""Real images, two small grey sets: what do six epochs on unlabeled images buy?

    medssl run sweeps/breast.py --data FOLDER      (breastmnist.npz and pneumoniamnist.npz, 28 px)

Cost: about half an hour on 2 idle cores. Success: on PneumoniaMNIST at 100 % of the labels
the linear probe of `simclr` stands at least 0.01 AUROC above `none`, mean of 3 seeds.
"""

from medssl import Resources, Sweep, cli


def sweep() -> Sweep:
    return Sweep(
        name="breast",
        method=["none", "simclr"],
        dataset=["medmnist/pneumoniamnist", "medmnist/breastmnist"],
        backbone="resnet/18-3x3",
        image_size=28,  # pixels
        epochs=6,
        warmup_epochs=1,
        batch_size=64,  # 73 updates an epoch instead of 18: so few epochs need them
        learning_rate=1e-3,
        views="grey",
        seed=range(3),
        label_fraction=[0.01, 0.1, 1.0],
        resources=Resources(cpu=1),
    )


if __name__ == "__main__":
    cli.script(__file__)
