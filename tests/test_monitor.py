"""The look in between: it tells a collapsed encoder from a healthy one, and knows no test image."""

import numpy as np
import pytest
import torch
from torch import nn

from medssl import monitor
from medssl.datasets import Images

CPU = torch.device("cpu")


def images(n=300) -> Images:
    """Dark and bright noise, a class each."""
    rng = np.random.default_rng(0)
    bright = np.arange(n) % 2
    x = rng.integers(0, 128, (n, 32, 32, 3)) + 100 * bright[:, None, None, None]
    half = np.full((1, 3), 0.5, np.float32)
    return Images(
        *(np.uint8(x), np.eye(2, dtype=np.float32)[bright], "binary-class", ("dark", "bright")),
        *(half, half, np.zeros(n, np.int64), "-"),
    )


class Point(nn.Module):
    """The same features for every image, but for a little noise."""

    def __init__(self, noise: float, directions: int):
        super().__init__()
        self.noise, self.directions = noise, directions

    def forward(self, x_BCHW):
        g = torch.Generator().manual_seed(0)
        along = torch.randn(len(x_BCHW), self.directions, generator=g)
        basis = torch.randn(self.directions, 16, generator=g)
        return torch.ones(len(x_BCHW), 16) + self.noise * along @ basis


def test_rankme_is_the_number_of_directions_used():
    basis = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))[0]
    for directions in (1, 4, 16):
        along = torch.randn(4000, directions, generator=torch.Generator().manual_seed(1))
        x_ND = along @ basis[:directions] + 5  # a common offset is no direction
        assert monitor.rankme(x_ND) == pytest.approx(directions, rel=0.05)


@pytest.mark.parametrize(
    ("encoder", "verdict"), [(Point(1e-5, 8), True), (Point(1, 1), True), (Point(1, 8), False)]
)
def test_a_point_and_a_line_are_collapses(encoder, verdict):
    found = monitor.look(encoder, images(), CPU)
    assert monitor.collapsed([found]) is verdict


def test_a_look_is_exact_where_training_is_not(monkeypatch):
    """bfloat16 turns a line into twenty directions: its rounding is one of each."""
    monkeypatch.setattr("medssl.device.bf16", lambda device: True)

    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.to_line = nn.Linear(3 * 32 * 32, 1)
            self.spread = nn.Linear(1, 512)

        def forward(self, x_BCHW):
            return 1 + 0.1 * self.spread(self.to_line(x_BCHW.flatten(1)))

    torch.manual_seed(0)
    found = monitor.look(Line(), images(), CPU)
    assert found["rankme"] == pytest.approx(1, abs=0.05)
    assert monitor.collapsed([found])


def test_a_healthy_encoder_finds_its_neighbours(tiny_encoder):
    torch.manual_seed(0)
    encoder = tiny_encoder()
    found = monitor.look(encoder, images(), CPU)
    assert found["knn_auroc"] > 0.95
    assert not monitor.collapsed([found])
    assert encoder.training


def test_the_last_looks_decide():
    flat, round_ = ({"rankme": r, "feature_spread": 0.5} for r in (1.0, 9.0))
    nothing = {"loss": 1.0}
    assert not monitor.collapsed([])
    assert not monitor.collapsed([nothing])
    assert monitor.collapsed([round_, flat, nothing])
    assert not monitor.collapsed([flat, round_])
    assert not monitor.collapsed([round_, flat], times=2)
    assert monitor.collapsed([flat, nothing, flat], times=2)
    assert not monitor.collapsed([flat], times=2)


@pytest.mark.parametrize(
    ("epochs", "looks"), [(1, 1), (5, 5), (20, 20), (400, 20), (410, 20), (39, 20)]
)
def test_a_run_is_looked_at_about_twenty_times_and_at_its_end(epochs, looks):
    due = [e for e in range(1, epochs + 1) if monitor.due(e, epochs)]
    assert len(due) == looks
    assert due[-1] == epochs


def test_one_class_alone_has_no_neighbours_to_count(tiny_encoder):
    import dataclasses

    one = dataclasses.replace(images(), t_NK=np.tile(np.float32([1, 0]), (300, 1)))
    assert "knn_auroc" not in monitor.look(tiny_encoder(), one, CPU)
