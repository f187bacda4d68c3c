"""What tests share. Those that need what a machine lacks skip with the reason."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from medssl import backbones

ROOT = Path(__file__).parents[1]
FILES = "breastmnist.npz", "breastmnist_64.npz", "pneumoniamnist.npz"

torch.set_num_threads(1)  # Ray's workers have the other core


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Files that start Ray come first: with two workers the others then fill the second core."""
    items.sort(key=lambda item: "slow" not in item.keywords)
    if not os.environ.get("MEDSSL_LONG"):
        skip = pytest.mark.skip(reason="takes minutes: set MEDSSL_LONG=1, as .ci/run does")
        for item in items:
            if "long" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of three real MedMNIST files; must be there in CI, may be missing elsewhere."""
    for folder in (os.environ.get("MEDMNIST_ROOT"), ROOT.parent / "shared" / "data" / "medmnist"):
        if folder and all((Path(folder) / name).exists() for name in FILES):
            return Path(folder)
    pytest.skip(f"real MedMNIST files ({', '.join(FILES)}) are not here: set MEDMNIST_ROOT")


@pytest.fixture(autouse=True)
def _own_places(tmp_path, monkeypatch):
    """No test reads or leaves anything in the user's home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("MEDSSL_STORE", "MEDSSL_WEIGHTS", "MEDMNIST_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


class TinyEncoder(nn.Module):
    """Sixteen features of a 3-channel image, in a millisecond."""

    dim = 16

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )

    def forward(self, x_BCHW):
        return self.net(x_BCHW)


def tiny_vit(size: int = 32, patch: int = 8) -> nn.Module:
    """Forty-eight features of a square image, cut in patches; smaller images too."""
    from timm.models.vision_transformer import VisionTransformer

    small = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    dynamic = {"dynamic_img_size": True, "dynamic_img_pad": True}
    model = VisionTransformer(size, patch, num_classes=0, **small, **dynamic)
    model.dim = model.num_features
    return model


@pytest.fixture
def tiny_vits(monkeypatch):
    """Every vit/... is a tiny one, for tests that are about the loop and not about the encoder."""
    real = backbones.build

    def build(name: str, image_size: int) -> nn.Module:
        vit = name.startswith("vit/")
        return tiny_vit(image_size, image_size // 4) if vit else real(name, image_size)

    monkeypatch.setattr(backbones, "build", build)


@pytest.fixture
def tiny_encoder():
    """Calls make fresh encoders, the same for one torch seed; of the family "vit" if asked."""
    return lambda family="": tiny_vit() if family == "vit" else TinyEncoder()
