"""Any other architecture of timm, under timm's own name: timm/efficientnet_b0.

The name is the architecture alone: weights are the init (random, or file:PATH), and what timm
changes between its versions is in no id; each row has the version. It is built as timm builds it:
an untrained timm/resnet34 is a stem with shortcuts, which resnet/18 is not. An architecture that
is told its image size gets it, and takes smaller images too where it can. One that cannot work at
this size says so when it is built: at the start of its trial, and not in the plan.
"""

import difflib
import importlib.util
import re
from functools import cache
from pathlib import Path

SIZED = ("img_size", "dynamic_img_size", "dynamic_img_pad")  # what a ViT of timm understands


@cache
def names() -> frozenset[str]:
    """Every architecture of the installed timm, read from its files: importing it takes seconds."""
    found = importlib.util.find_spec("timm")
    files = Path(found.origin).parent.glob("models/*.py") if found else ()
    pattern = re.compile(r"^@register_model\ndef (\w+)\(", re.M)
    return frozenset(name for file in files for name in pattern.findall(file.read_text()))


def check(variant: str, image_size: int) -> list[str]:
    if variant in names():
        return []
    if variant.partition(".")[0] in names():
        name = variant.partition(".")[0]
        return [f"timm/{variant} names weights too: use timm/{name} and choose weights as the init"]
    near = difflib.get_close_matches(variant, sorted(names()), n=3) or ["resnet34", "convnext_nano"]
    return [f"no timm/{variant}: choose for example {', '.join(f'timm/{n}' for n in near)}"]


def build(variant: str, image_size: int):
    if problems := check(variant, image_size):
        raise ValueError(problems[0])
    try:
        model = _create(variant, image_size)
        f_BD = _features(model, image_size)
    except Exception as failed:  # whatever an architecture raises at a size that it cannot take
        raise ValueError(
            f"timm/{variant} does not work at {image_size} px ({type(failed).__name__}: {failed}): "
            f"choose another image_size or backbone"
        ) from failed
    if f_BD.ndim != 2:
        raise ValueError(
            f"timm/{variant} gives features of shape {tuple(f_BD.shape[1:])}, not one vector per "
            f"image: choose another backbone"
        )
    model.dim = f_BD.shape[1]
    return model


def _create(variant: str, image_size: int):
    """With as many of the sized options as the architecture takes; timm lists them nowhere."""
    import timm

    values = dict(zip(SIZED, (image_size, True, True), strict=True))
    for count in range(len(SIZED), 0, -1):
        try:
            return timm.create_model(variant, num_classes=0, **dict(list(values.items())[:count]))
        except TypeError as failed:
            if "unexpected keyword" not in str(failed):
                raise
    return timm.create_model(variant, num_classes=0)


def _features(model, image_size: int):
    """Of one blank image; in evaluation mode, so that nothing in the model moves."""
    import torch

    model.eval()
    with torch.no_grad():
        f_BD = model(torch.zeros(1, 3, image_size, image_size))
    model.train()
    return f_BD
