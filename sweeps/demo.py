"""The whole path on a laptop, with generated images: pretrain, evaluate, a table, curves in MLflow.

    make demo            or   medssl run sweeps/demo.py   or   python sweeps/demo.py

Cost: a minute or two on 2 idle cores, no GPU, no network, no data. Success: every cell has a
number, and the linear probe of `simclr` stands above `none`, the same ResNet with random weights
(0.75 and 0.69 AUROC with all labels).
"""

from medssl import Resources, Sweep, cli


def sweep() -> Sweep:
    return Sweep(
        name="demo",
        method=["none", "simclr"],
        dataset="phantom/organs",
        backbone="resnet/10-3x3",
        image_size=28,  # pixels
        epochs=3,
        warmup_epochs=1,
        batch_size=128,
        learning_rate=1e-3,
        label_fraction=[0.01, 0.1, 1.0],
        resources=Resources(cpu=1),
    )


if __name__ == "__main__":
    cli.script(__file__)
