"""One sweep of pretraining runs on medical images, one table that can be trusted."""

from medssl.spec import Cell, EncoderSpec, Resources, Search, Sweep

__version__ = "0.1.0"
__all__ = ["Cell", "EncoderSpec", "Resources", "Search", "Sweep"]
