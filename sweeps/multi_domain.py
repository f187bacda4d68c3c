"""Does pretraining on several sets at once help, and each of them? arXiv 2412.19124, section 1.8.

    ray job submit --working-dir . -- python sweeps/multi_domain.py --store STORE --data FOLDER

One modality: Organ{A,C,S}. Several: Organ{A,S} + Pneumonia + Path, grey beside colour, sets of
4,708 to 89,996 images. Each union is sampled in proportion and balanced, and judged on each of its
members beside the encoder of that member alone. Cost: 400 epochs of each union and member for every
method, days on one GPU. Success: for every target one row per pretraining set.
"""

from medssl import Resources, Sweep, cli

UNIONS = ["organa organc organs", "organa organs pneumonia path"]
MEMBERS = sorted({name for union in UNIONS for name in union.split()})


def family(names: str) -> str:
    return "medmnist/" + "+".join(f"{name}mnist" for name in names.split())


def sweep() -> Sweep:
    return Sweep(
        name="multi_domain",
        method=["none", "simclr", "byol", "moco_v3", "dino"],
        dataset=[family(names) for names in [*UNIONS, *MEMBERS]],
        target=[family(name) for name in MEMBERS],
        backbone="resnet/50-7x7",
        sampling=["proportional", "balanced"],
        image_size=64,  # pixels
        epochs=400,
        seed=range(3),
        drop={
            "judged on its own members alone": lambda cell: (
                cell.target.partition("/")[2]
                not in cell.encoder.dataset.partition("/")[2].split("+")
            ),
        },
        resources=Resources(cpu=4, gpu=1, concurrent=16),
    )


if __name__ == "__main__":
    cli.script(__file__)
