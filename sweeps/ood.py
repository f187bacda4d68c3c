"""Which encoder sees that an image is of none of its kind? arXiv 2412.19124, section 1.7.

    ray job submit --working-dir . -- python sweeps/ood.py --store STORE --data FOLDER

All ordered pairs of 11 MedMNIST sets, told apart by nine scores of frozen features, for every
encoder of `full_grid.py`: on its store nothing is pretrained. One list serves all targets, since
the target itself is left out. Cost: there, the features of eleven test splits for each encoder, and
a few minutes of four cores for each cell, most of them for neighbours among PathMNIST's 89,996 or
TissueMNIST's 165,466 images (estimated, not measured). Success: every cell has a row
`mahalanobis/auroc:SET` for the ten other sets. A pair's numbers over all encoders:

    medssl table sweeps/ood.py --store STORE --metric mahalanobis/auroc:medmnist/dermamnist
"""

import runpy
from dataclasses import replace
from pathlib import Path

from medssl import Sweep, cli


def sweep() -> Sweep:
    grid = runpy.run_path(str(Path(__file__).with_name("full_grid.py")))["sweep"]()
    return replace(grid, name="ood", eval=("ood", {"far": grid.dataset}), label_fraction=1.0)


if __name__ == "__main__":
    cli.script(__file__)
