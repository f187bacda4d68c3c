"""A first look, on a laptop, with generated images: does self-supervision help, at how many labels?

    make demo            or   medssl run sweeps/demo.py   or   python sweeps/demo.py

Cost: about three minutes on 2 cores, no GPU, no network, no data. Success: a table in which the
linear probe of `simclr` stands above `none`, the same encoder with random weights, at 10 and 100 %
of the labels of `phantom/cells`. Five epochs are a taste: at 1 % both are near chance.
"""

from medssl import Resources, Sweep, cli


def sweep() -> Sweep:
    return Sweep(
        name="demo",
        method=["none", "simclr"],
        dataset=["phantom/cells", "phantom/organs"],
        backbone="resnet/10-3x3",
        image_size=28,  # pixels
        epochs=5,
        warmup_epochs=1,
        batch_size=128,
        learning_rate=1e-3,
        label_fraction=[0.01, 0.1, 1.0],
        resources=Resources(cpu=1),
    )


if __name__ == "__main__":
    cli.script(__file__)
