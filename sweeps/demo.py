"""A first look, on a laptop, with generated images: does self-supervision help when labels are few?

    make demo            or   medssl run sweeps/demo.py   or   python sweeps/demo.py

Cost: minutes on 2 cores, no GPU, no network, no data. Success: a table in which `simclr` and `byol`
stand above `none`, the same encoder with random weights.
"""

from medssl import Resources, Sweep, cli


def sweep() -> Sweep:
    return Sweep(
        name="demo",
        method=["none", "simclr", "byol"],
        dataset=["phantom/cells", "phantom/lesions"],
        backbone="resnet/18-7x7",
        image_size=28,  # pixels
        epochs=6,
        warmup_epochs=1,
        learning_rate=1e-3,
        label_fraction=[0.01, 0.1, 1.0],
        resources=Resources(cpu=1),
    )


if __name__ == "__main__":
    cli.script(__file__)
