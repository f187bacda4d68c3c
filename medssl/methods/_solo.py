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

from solo.losses import byol_loss_func, simclr_loss_func  # noqa: E402

byol_loss = in_float32(byol_loss_func)
simclr_loss = in_float32(simclr_loss_func)  # writes into a view, which no compiler takes: tests
