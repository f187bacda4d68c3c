"""Whose checkpoint is this? Puts the tensors of a foreign file into an encoder of ours, or refuses.

    bytes -> {name: tensor} -> prefix cut off, numbers named -> resampled -> the encoder, in place

Two things look right and are not. A smaller network finds all of its tensors in a larger one of its
family (ResNet-18 in ResNet-34), so a file with weights of its own for our modules is refused, also
for modules that are empty in ours: a norm before the blocks or after the pool, registers.
And MoCo v3's ViT-Small has twelve heads where every other has six, with tensors of equal shapes. It
is known by MoCo v3's prefix alone: saved under another one, or anyone's ViT of other heads, it is
taken without a word, for nothing in a file says how many heads it had.
"""

import argparse
import importlib
import io
import json
import re
from collections.abc import Mapping

STATES = ("state_dict", "teacher", "model", "model_state_dict")  # where a checkpoint keeps tensors
MOCO_V3 = ("module.base_encoder.", "module.momentum_encoder.")
PREFIXES = (  # of the encoder's tensors; where several fit equally well, the first counts
    "",  # torchvision, timm, medssl, and what authors publish as "backbone only"
    "backbone.",  # solo-learn, lightly, MMSelfSup, and DINO's teacher
    "encoder.",  # solo-learn before it said backbone
    "module.encoder_q.",  # MoCo v1 and v2
    *MOCO_V3,  # as its own linear evaluation: the encoder that was trained, else its average
    "module.backbone.",  # DINO's student, and what was trained in parallel
    "module.",  # SwAV
)
NUMBERS = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
MAY_STAY = 3  # tensors that need not be in the file, as a stem; but never the positions of a ViT


def header(content: bytes) -> dict:
    """What medssl wrote into the header of a safetensors file; {} for any other file."""
    try:
        size = int.from_bytes(content[:8], "little")
        return json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["medssl"])
    except (ValueError, KeyError, TypeError):
        return {}


def read(content: bytes, suffix: str) -> dict:
    """{name: tensor} of a file's content, executing nothing; ValueError with what is wrong."""
    import safetensors.torch
    import torch

    try:
        if suffix == ".safetensors":
            return safetensors.torch.load(content)
        with torch.serialization.safe_globals([argparse.Namespace]):  # the settings of DINO and MAE
            held = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as failed:  # whatever a reader raises on bytes that are not its format
        if asked := re.search(r"GLOBAL (\S+)", str(failed)):
            raise ValueError(
                f"holds more than tensors: it asks for {asked[1]}, which could run code. "
                f"If you trust it, open it where it was made and keep its state_dict alone, with "
                f"safetensors.torch.save_file"
            ) from None
        raise ValueError(
            f"cannot be read ({type(failed).__name__}: {str(failed).partition('.')[0]}): it is cut "
            f"short, or neither safetensors (named .safetensors) nor of torch.save. Get it again"
        ) from None
    if found := _tensors(held):
        return found
    raise ValueError("holds no tensors by name: save a state_dict, with safetensors or torch.save")


def fit(encoder, state: Mapping) -> tuple[list[str], list[str], list[str]]:
    """Fills the encoder: what of it stayed, what was changed to fit, what of the file is unused.

    ValueError where the file is of another architecture, and then the encoder is as it was.
    """
    own = encoder.state_dict()
    prefix, names = _names(state, own)
    if prefix in MOCO_V3 and getattr(encoder, "embed_dim", None) == 384:
        raise ValueError(
            "is MoCo v3's ViT-Small, which has 12 attention heads where ours has 6: its tensors "
            "have the right shapes and another meaning. Use MoCo v3's ResNet-50 or ViT-Base"
        )
    found = {name: state[key] for name, key in names.items()}
    ready = {name: _coloured(v, own.get(name)) for name, v in _resampled(found, encoder).items()}
    fits = {k: v for k, v in ready.items() if k in own and own[k].shape == v.shape}
    kept = [k for k in own if k not in fits and not k.endswith("num_batches_tracked")]
    scales = [k for k in kept if k.endswith((".ls1.gamma", ".ls2.gamma")) and (own[k] == 1).all()]
    kept = [k for k in kept if k not in scales]
    alien = [k for k, v in ready.items() if v.is_floating_point() and _inside(k, encoder, own)]
    if len(kept) > MAY_STAY or "pos_embed" in kept or alien:
        raise ValueError(_misfit(own, kept, alien, found, state))

    encoder.load_state_dict(fits, strict=False)
    changed = [
        f"{k} {_shape(found[k])} to {_shape(v)}"
        for k, v in fits.items()
        if k in found and found[k].shape != v.shape
    ]
    if scales:
        changed.append(f"{len(scales)} LayerScales stay at 1, where they change nothing")
    unused = state.keys() - {names[k] for k in fits if k in names}
    return kept, changed, sorted({_module(key, prefix) for key in unused})


def _tensors(held: object) -> dict:
    """The tensors of a checkpoint, which lie in it directly or under one of `STATES`."""
    if not isinstance(held, Mapping):
        return {}
    for key in STATES:
        if isinstance(held.get(key), Mapping):
            return _tensors(held[key])
    return {k: v for k, v in held.items() if isinstance(k, str) and hasattr(v, "untyped_storage")}


def _names(state: Mapping, own: Mapping) -> tuple[str, dict[str, str]]:
    """The prefix under which most of our tensors are, and {our name: the file's name} below it."""
    best = "", {}
    for prefix in PREFIXES:
        plain = {k.removeprefix(prefix): k for k in state if k.startswith(prefix)}
        for names in (plain, {_named(k): key for k, key in plain.items()}):
            if len(names.keys() & own.keys()) > len(best[1].keys() & own.keys()):
                best = prefix, names
    return best


def _named(name: str) -> str:
    """4.0.conv1.weight, of lightly's Sequential(*resnet.children()), is layer1.0.conv1.weight."""
    number, dot, rest = name.partition(".")
    return NUMBERS.get(number, number) + dot + rest


def _module(key: str, prefix: str) -> str:
    """The module of a file that a tensor is in: backbone.fc, projector, module.encoder_k."""
    start = next((p for p in (prefix, "module.") if key.startswith(p)), "")
    return start + key.removeprefix(start).partition(".")[0]


def _resampled(found: dict, encoder) -> dict:
    """Position and patch embeddings as large as the encoder's, by timm's filter of its family."""
    if not hasattr(encoder, "patch_embed"):
        return found
    module = importlib.import_module(type(encoder).__module__)
    change = getattr(module, "checkpoint_filter_fn", lambda found, encoder: found)
    try:
        return change(dict(found), encoder)
    except Exception as failed:  # whatever it raises on tensors of another architecture
        raise ValueError(f"has embeddings that cannot be resampled ({failed})") from None


def _coloured(tensor, own):
    """A stem of one channel over three, so that a grey image gives what it gave."""
    if own is None or own.ndim != 4 or tensor.ndim != 4:
        return tensor
    grey = (tensor.shape[1], own.shape[1]) == (1, 3)
    return tensor.expand(-1, 3, -1, -1) / 3 if grey else tensor


def _inside(name: str, encoder, own: Mapping) -> bool:
    """Whether a tensor that we have not belongs into a module of ours, and not to a classifier.

    timm's encoders have the parts of their relatives too, empty: fc_norm, norm_pre, reg_token.
    """
    classifier = (getattr(encoder, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    if name in own or name.startswith(tuple(f"{head}." for head in heads)):
        return False
    return hasattr(encoder, name.partition(".")[0])


def _misfit(own: Mapping, kept: list, alien: list, found: Mapping, state: Mapping) -> str:
    """What was expected and what was found, with an example of each."""
    said = []
    if kept:
        has = f"it has {_shape(found[kept[0]])}" if kept[0] in found else "it has none"
        said.append(
            f"{len(kept)} of the encoder's {len(own)} tensors find nothing in it (as {kept[0]}, "
            f"{_shape(own[kept[0]])}: {has})"
        )
    if alien:
        said.append(f"{len(alien)} of its tensors have no place in the encoder (as {alien[0]})")
    return (
        f"does not fit: {' and '.join(said)}. It holds {len(state)} tensors, from "
        f"{next(iter(state), 'none')}: choose the backbone that it was trained as"
    )


def _shape(tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
