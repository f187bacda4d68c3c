"""The whole path on a laptop, with generated images: pretrain, evaluate, a table, curves in MLflow.

    make demo            or   medssl run sweeps/demo.py   or   python sweeps/demo.py

Cost: about two minutes on 2 cores, no GPU, no network, no data. Success: every cell has a number.
Three epochs are too few for `simclr` to pass `none`, the same ResNet with random weights, which is
a better opponent than it sounds; `sweeps/breast.py` shows a gain, on real images.
"""

from medssl import Resources, Sweep, cli


def sweep() -> Sweep:
    return Sweep(
        name="demo",
        method=["none", "simclr"],
        dataset=["phantom/cells", "phantom/organs"],
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
