"""Does halving choose as well as the full grid, with a third of its epochs? On a real set.

    medssl run sweeps/search.py --data FOLDER      (breastmnist.npz, 28 px)
    medssl choices sweeps/search.py

SimCLR on BreastMNIST, the paper's twelve points of learning rate x weight decay: 18 epochs for each
by the grid, 2, 6 and 12 for fewer and fewer by halving; then 72 epochs with what each has chosen, 3
seeds. Cost: half an hour on 2 cores. Success: halving took at most a third of the grid's epochs,
and 0 is in the 95 % interval over seeds of the difference between its encoders and the grid's.
"""

from medssl import Resources, Search, Sweep, cli


def sweep() -> Sweep:
    return Sweep(
        name="search",
        method=["none", "simclr"],
        dataset="medmnist/breastmnist",
        backbone="resnet/18-7x7",
        views="grey",
        image_size=28,  # pixels
        epochs=72,
        warmup_epochs=2,
        batch_size=64,
        search=[Search(how="grid"), Search(how="halving")],
        seed=range(3),
        eval=["linear_probe", "knn"],
        label_fraction=1.0,
        resources=Resources(cpu=1),
    )


if __name__ == "__main__":
    cli.script(__file__)
