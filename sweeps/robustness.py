"""What is left when test images are noisy, blurred, stained: do pretrained encoders lose less?

    medssl run sweeps/robustness.py --data FOLDER     (breastmnist.npz, pneumoniamnist.npz, 28 px)
    medssl table sweeps/robustness.py --metric error  (clean_error, added_error, error:jpeg, ...;
                                                            intervals with --bootstrap 1000)

Cost: five passes over the test split for each corruption, at each share of labels. Success: `error`
stands above `clean_error` in every row, and AUROC of `robustness` below that of `linear_probe`.
With `head="finetune"` it is asked of a fine-tuned encoder.
"""

from medssl import Resources, Sweep, cli


def sweep() -> Sweep:
    return Sweep(
        name="robustness",
        method=["none", "simclr"],
        dataset=["medmnist/breastmnist", "medmnist/pneumoniamnist"],
        backbone="resnet/18-7x7",
        image_size=28,  # pixels
        epochs=6,
        warmup_epochs=1,
        batch_size=64,
        learning_rate=3e-4,
        views="grey",
        seed=range(3),
        eval=["linear_probe", "robustness"],
        label_fraction=1.0,
        resources=Resources(cpu=1),
    )


if __name__ == "__main__":
    cli.script(__file__)
