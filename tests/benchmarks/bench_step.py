"""How much of a step's own speed does the whole loop keep?

    python tests/benchmarks/bench_step.py             # minutes on 2 cores; with a GPU, its cases

The ceiling: the method's step (forward, loss, backward, optimiser, what follows an update) on
views that are on the device already, and nothing else. The loop: `pretrain` as trials call it, with
views, logs, looks at the encoder and checkpoints. After each epoch of the loop the ceiling is
measured for as many steps, so that both meet the same machine; medians over epochs.
Success: a share of 0.95 on a GPU (batch 256, 64 px), of 0.90 on 2 cores (ResNet-18, 28 px).
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from here import environment

from medssl import datasets, device, optimizers, pretrain, registry, views
from medssl._work import Checkpoint
from medssl.spec import EncoderSpec, Sweep
from medssl.store import Store

RESULTS = Path(__file__).parent / "results"
EPOCHS = 4  # of which the first is not counted: kernels are chosen in it
CASES = {  # backbone, image size, batch
    "cpu": [("resnet/18-7x7", 28, 128), ("vit/tiny-14", 28, 128)],
    "cuda": [("resnet/50-7x7", 64, 256), ("vit/small-16", 64, 256), ("vit/small-8", 64, 256)],
}
IMAGES = {"cpu": 4096, "cuda": 16384}


class Ceiling:
    """A method with its optimiser, on views that are made once."""

    def __init__(self, spec: EncoderSpec, images: datasets.Images, where: torch.device):
        module = registry.load("methods", spec.method)
        encoder = pretrain.initial(spec).encoder
        self.method = module.Method(encoder, module.Config(**dict(spec.recipe)))
        self.method.to(where, memory_format=torch.channels_last).train()
        decayed = pretrain.groups(self.method, spec.weight_decay)
        self.optimizer, self.where = optimizers.build(spec.optimizer, decayed), where
        picked = torch.arange(spec.batch_size) % len(images)
        x_BCHW = torch.from_numpy(images.x_NHWC)[picked].permute(0, 3, 1, 2).to(where)
        mean_BC, std_BC = (
            torch.from_numpy(each)[torch.from_numpy(images.domain_N)[picked]].to(where)
            for each in (images.mean_DC, images.std_DC)
        )
        generator = torch.Generator(where).manual_seed(0)
        self.views = views.make(self.method.views, x_BCHW, mean_BC, std_BC, spec.views, generator)

    def seconds(self, steps: int) -> float:
        self.wait()
        start = time.perf_counter()
        for _ in range(steps):
            self.step(self.views)
        self.wait()
        return time.perf_counter() - start

    def step(self, batch: list[torch.Tensor]) -> None:
        with device.autocast(self.where):
            loss, _ = self.method.step(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.method.after_update(0.5)

    def wait(self) -> None:
        if self.where.type == "cuda":
            torch.cuda.synchronize()


def work(
    dataset: str, backbone: str, size: int, batch: int, epochs: int, count: int
) -> tuple[EncoderSpec, datasets.Images]:
    """SimCLR on so many images, those that there are again and again."""
    given = {"backbone": backbone, "image_size": size, "batch_size": batch, "epochs": epochs}
    asked = Sweep(name="bench", method="simclr", dataset=dataset, eval="knn", **given)
    images = datasets.load(dataset, "train", size)
    return asked.cells()[0].encoder, images.part(np.arange(count) % len(images))


def measure(backbone: str, size: int, batch: int, where: torch.device) -> dict[str, object]:
    spec, images = work("phantom/organs", backbone, size, batch, EPOCHS, IMAGES[where.type])
    steps = len(images) // batch
    ceiling = Ceiling(spec, images, where)
    ceiling.seconds(3)
    loop_s, ceiling_s, began = [], [], time.perf_counter()

    def report(curve: list[dict[str, float]]) -> None:
        nonlocal began
        ceiling.wait()
        loop_s.append(time.perf_counter() - began)
        ceiling_s.append(ceiling.seconds(steps))
        began = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        saved = Checkpoint(lambda: None, lambda state: store.write("c.pt", state), 60.0)
        pretrain.pretrain(spec, images, where, report, saved)
    pairs, seen = list(zip(loop_s, ceiling_s, strict=True))[1:], 2 * batch * steps
    return {
        "backbone": backbone,
        "image_size": size,
        "batch": batch,
        "precision": device.describe(where)["precision"],
        "threads": torch.get_num_threads(),
        "ceiling_views_per_s": round(seen / median(ceiling for _, ceiling in pairs)),
        "loop_views_per_s": round(seen / median(loop for loop, _ in pairs)),
        "share": round(median(ceiling / loop for loop, ceiling in pairs), 3),
    }


def record(name: str, measure: Callable[..., dict], all_cases: dict[str, list[tuple]]) -> None:
    """Measures the cases of the device that is here, and writes its file of results."""
    torch.manual_seed(0)
    where, cases = device.pick(gpu=torch.cuda.is_available()), []
    for case in all_cases[where.type]:
        cases.append(measure(*case, where))
        print(json.dumps(cases[-1], indent=2), flush=True)
    result = {"environment": environment(), **device.describe(where), "cases": cases}
    file = RESULTS / f"{name}_{where.type}.json"
    file.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {file}")


if __name__ == "__main__":
    record("step", measure, CASES)
