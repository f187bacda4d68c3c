"""How many views a second, beside the same recipe in PIL on one core?

    python tests/benchmarks/bench_views.py            # about a minute; OMP_NUM_THREADS=1 per core

Both run in turn within each repeat, so that a busy machine slows both; medians are reported, and
the load is in the file. PIL has its fastest form: its own box blur, one channel for grey images.
Success: the ratio is well above the number of cores a loader would have had.
"""

import json
import os
import platform
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
import PIL
import torch
import torchvision
import torchvision.transforms as T
from PIL import Image, ImageFilter

from medssl.views import PRESETS, View, two_crops

BATCH = 256  # images, so 512 views
REPEATS = 15  # of each case
PIL_IMAGES = 32  # of the batch, in each repeat
RESULTS = Path(__file__).parent / "results" / "views_cpu.json"


def pil_pipeline(view: View, size: int) -> T.Compose:
    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*view.sigma)))

    jitter = T.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)
    steps = [
        T.RandomResizedCrop(size, view.scale, view.ratio, T.InterpolationMode.BICUBIC),
        T.RandomApply([jitter], view.jitter),
        T.RandomGrayscale(view.grayscale),
        T.RandomApply([T.Lambda(blur)], view.blur),
        T.RandomSolarize(128, view.solarise),
        T.RandomHorizontalFlip(view.flip),
        T.ToTensor(),
        T.Normalize([0.5], [0.25]),
    ]
    skipped = {2: view.grayscale, 4: view.solarise}
    return T.Compose([step for i, step in enumerate(steps) if skipped.get(i, 1) > 0])


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(size: int, channels: int, preset: str) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, channels, size, size)
    x_BCHW = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    mean_BC, std_BC = torch.full(shape[:2], 0.5), torch.full(shape[:2], 0.25)
    images = [Image.fromarray(x.permute(1, 2, 0).squeeze(2).numpy()) for x in x_BCHW[:PIL_IMAGES]]
    pipelines = [pil_pipeline(view, size) for view in PRESETS[preset]]

    def ours() -> list[torch.Tensor]:
        return two_crops(x_BCHW, mean_BC, std_BC, preset, generator)

    def theirs() -> list[torch.Tensor]:
        return [
            torch.stack([pipeline(image) for image in images]).expand(-1, 3, -1, -1).contiguous()
            for pipeline in pipelines
        ]

    ours(), theirs()
    our_s, their_s = zip(*((seconds(ours), seconds(theirs)) for _ in range(REPEATS)), strict=True)
    our_rate = 2 * BATCH / median(our_s)  # views/s
    their_rate = 2 * PIL_IMAGES / median(their_s)
    return {
        "image_size": size,
        "channels": channels,
        "preset": preset,
        "batch": BATCH,
        "views_per_s": round(our_rate),
        "batch_ms": round(1e3 * median(our_s), 2),
        "batch_ms_best": round(1e3 * min(our_s), 2),
        "pil_views_per_s_per_core": round(their_rate),
        "ratio": round(our_rate / their_rate, 2),
    }


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    random.seed(0)
    torch.manual_seed(0)
    cases = []
    print(f"{torch.get_num_threads()} threads of {cpu()}, batch {BATCH}, medians of {REPEATS}")
    for size in (28, 64):
        for channels, preset in ((1, "grey"), (3, "asymmetric")):
            case = measure(size, channels, preset)
            cases.append(case)
            print(
                f"{size} px, {preset:10s} {case['views_per_s']:7,d} views/s"
                f" | PIL {case['pil_views_per_s_per_core']:6,d} per core | x {case['ratio']}"
            )
    environment = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
        "numpy": np.__version__,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"environment": environment, "cases": cases}, indent=2) + "\n")
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
