"""What an encoder knows before pretraining: nothing, or a supervised ImageNet.

    imagenet -> timm's resnet*.tv_in1k, which are the weights the paper starts from; for ViT
                augreg_in21k_ft_in1k, timm's default and so the paper's: ImageNet-21k, then 1k

Position and patch embeddings are resampled to the image size. A 3x3 stem finds no 3x3 weights and
stays random. Files are looked for in MEDSSL_WEIGHTS (TAG.safetensors), then in the hub's cache,
then on the hub.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

INITS = ("random", "imagenet")
TAGS = {
    "resnet/18": "resnet18.tv_in1k",
    "resnet/50": "resnet50.tv_in1k",
    "vit/tiny": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "vit/small": "vit_small_patch16_224.augreg_in21k_ft_in1k",
}


@dataclass(frozen=True)
class Loaded:
    """What an init put into an encoder."""

    sha256: str = ""  # of the file; empty where there is none
    left_random: tuple[str, ...] = ()  # parameters that found nothing of their shape


def wrong(backbone: str, init: str) -> list[str]:
    """What no file can mend: an unknown init, or one that the backbone has not."""
    if init not in INITS:
        return [f"no init {init!r}: choose from {', '.join(INITS)}"]
    if init != "random" and backbone.partition("-")[0] not in TAGS:
        return [f"no weights of init {init!r} for {backbone}: choose init='random'"]
    return []


def check(backbone: str, init: str) -> list[str]:
    """What stands between this machine and the init, a sentence each; imports no torch."""
    if problems := wrong(backbone, init):
        return problems
    if init == "random" or _offline(backbone) or _cached(backbone):
        return []
    return [_absent(backbone)]


def ready(backbone: str, init: str) -> None:
    """Fetches what is absent; ValueError with a remedy where it cannot be had."""
    if problems := wrong(backbone, init):
        raise ValueError(problems[0])
    if init != "random":
        _file(backbone)


def initialise(encoder, backbone: str, init: str) -> Loaded:
    """Puts the init's weights into `encoder`, in place; "random" leaves it as it was built."""
    if init == "random":
        return Loaded()
    from safetensors.torch import load_file

    path = _file(backbone)
    state = load_file(path)
    if backbone.startswith("vit/"):
        from timm.models.vision_transformer import checkpoint_filter_fn

        state = checkpoint_filter_fn(state, encoder)
    own = encoder.state_dict()
    fits = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    missing, _ = encoder.load_state_dict(fits, strict=False)
    left = tuple(k for k in missing if k in dict(encoder.named_parameters()))
    if len(left) > 3:  # more than a stem or the embeddings
        raise ValueError(f"{path} is not {_tag(backbone)}: {len(left)} parameters are not in it")
    return Loaded(hashlib.sha256(path.read_bytes()).hexdigest(), left)


def _tag(backbone: str) -> str:
    return TAGS[backbone.partition("-")[0]]


def _offline(backbone: str) -> Path | None:
    folder = os.environ.get("MEDSSL_WEIGHTS")
    path = Path(folder or "/").expanduser() / f"{_tag(backbone)}.safetensors"
    return path if folder and path.is_file() else None


def _cached(backbone: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(f"timm/{_tag(backbone)}", "model.safetensors")
    return Path(found) if isinstance(found, str) else None


def _file(backbone: str) -> Path:
    if found := _offline(backbone) or _cached(backbone):
        return found
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(f"timm/{_tag(backbone)}", "model.safetensors"))
    except Exception as failed:  # whatever the hub's client raises when it has no network
        raise ValueError(f"{_absent(backbone)} ({type(failed).__name__})") from None


def _absent(backbone: str) -> str:
    return (
        f"init 'imagenet' of {backbone} is not there: get model.safetensors of timm/"
        f"{_tag(backbone)} from the Hugging Face hub, name it {_tag(backbone)}.safetensors and set "
        f"MEDSSL_WEIGHTS to its folder"
    )
