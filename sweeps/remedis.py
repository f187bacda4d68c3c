"""How few labels does self-supervision save, where it was pretrained and elsewhere? REMEDIS.

    medssl run sweeps/remedis.py --data FOLDER        (organamnist_64.npz, organcmnist, organsmnist)
    medssl needed sweeps/remedis.py

CT organs cut in three planes: BiT's weights, then SimCLR on axial OrganAMNIST, then fine-tuning;
`none` is the supervised baseline, BiT fine-tuned. Three questions, told apart by target and source:

    OrganA, same             in distribution
    OrganC, OrganS, OrganA   shifted, without retraining: the OrganA model as it is
    OrganC, OrganS, same     shifted, retrained on some of their labels: REMEDIS's 1 to 33 %

Batch, temperature and views are REMEDIS's, AdamW and fine-tuning's settings ours. Nothing is
mirrored in fine-tuning, as left and right kidneys are two classes; the views of SimCLR are.
Cost: 3 pretrainings (200 epochs of 34,561 images) and 234 fine-tunings, some 85 million images in
all: half a day or so on one GPU (estimated, not measured). Success: where retrained, `simclr` needs
fewer labels than `none` does by itself, and as they are it stands above `none` at 100 %.
Azizi et al. 2023, https://doi.org/10.1038/s41551-023-01049-7
"""

from medssl import Resources, Sweep, cli

AXIAL, CORONAL, SAGITTAL = (f"medmnist/organ{plane}mnist" for plane in "acs")


def sweep() -> Sweep:
    return Sweep(
        name="remedis",
        method=["none", ("simclr", {"temperature": 0.1})],
        dataset=AXIAL,
        target=[AXIAL, CORONAL, SAGITTAL],
        source=["same", AXIAL],
        backbone="bit/50x1",
        init="bit",
        views="remedis",
        image_size=64,  # pixels
        epochs=200,
        batch_size=512,
        learning_rate=3e-4,
        seed=range(3),
        eval=("finetune", {"flip": 0}),
        label_fraction=[0.01, 0.03, 0.1, 0.3, 1.0],
        subset_seed=range(3),
        resources=Resources(cpu=4, gpu=1, concurrent=16),
    )


if __name__ == "__main__":
    cli.script(__file__)
