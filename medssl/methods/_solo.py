"""The one door to solo-learn: its losses, which are the paper's own. Its trainer stays outside.

The published wheel's `import solo` also imports a 2021 trainer that runs on no current stack. The
losses are functions of tensors and need only torch: registering the two packages by their folders,
without running their `__init__`, reaches them. Nothing else of solo-learn may be imported.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec

from medssl.methods._parts import in_float32


def _register(name: str, folder: str) -> None:
    spec = ModuleSpec(name, loader=None, is_package=True)
    spec.submodule_search_locations.append(folder)
    sys.modules.setdefault(name, importlib.util.module_from_spec(spec))


_spec = importlib.util.find_spec("solo")
if _spec is None:
    raise ModuleNotFoundError("solo-learn is missing: pip install --no-deps solo-learn==1.0.2")
_register("solo", _spec.submodule_search_locations[0])
_register("solo.utils", _spec.submodule_search_locations[0] + "/utils")

from solo import losses  # noqa: E402
from solo.utils.sinkhorn_knopp import SinkhornKnopp  # noqa: E402

byol_loss = in_float32(losses.byol_loss_func)
moco_loss = in_float32(losses.moco_loss_func)
nnclr_loss = in_float32(losses.nnclr_loss_func)
ressl_loss = in_float32(losses.ressl_loss_func)
simsiam_loss = in_float32(losses.simsiam_loss_func)

# what no compiler or CUDA graph takes (writes into views, boolean masks, loops): for tests alone
barlow_loss = losses.barlow_loss_func
dino_loss = losses.DINOLoss
simclr_loss = losses.simclr_loss_func
swav_loss = losses.swav_loss_func
vicreg_loss = losses.vicreg_loss_func
sinkhorn = SinkhornKnopp
