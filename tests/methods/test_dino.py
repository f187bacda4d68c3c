"""DINO: schedules, the resting prototypes, the centre, and what the small crops are for."""

import pytest
import torch

from medssl.methods.dino import Config, Method

SMALL = {"hidden_dim": 32, "bottleneck_dim": 16, "prototypes": 24}


@pytest.fixture
def method(tiny_encoder):
    torch.manual_seed(0)
    return Method(tiny_encoder(), Config(**SMALL, warmup=0.5, frozen=0.2))


@pytest.fixture
def views():
    return [torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(2)]


def test_the_teachers_temperature_rises_in_a_straight_line(method, views):
    found = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        method.step(views)
        method.after_update(progress)
        found.append(method.temperature.item())
    assert found == pytest.approx([0.04, 0.055, 0.07, 0.07])


def test_prototypes_rest_first_and_move_then(method, views):
    prototypes = method.student[1].prototypes_KP
    method.step(views).loss.backward()
    assert prototypes.grad.abs().sum() == 0
    method.after_update(0.2)
    method.step(views).loss.backward()
    assert prototypes.grad.abs().sum() > 0


def test_prototypes_are_short_enough_to_turn(method):
    """Their direction counts alone, and an update of AdamW is as long for a long one: 2 degrees of
    a standard normal in the steps in which the reference's turn 50."""
    length = method.student[1].prototypes_KP.detach().norm(dim=1).mean().item()
    assert length == pytest.approx(3**-0.5, abs=0.1)


def test_the_centre_follows_the_mean_of_the_teachers_scores(method, views):
    with torch.no_grad():
        mean_K = method.teacher(torch.cat(views)).mean(0)
    method.step(views)
    method.after_update(0.0)
    torch.testing.assert_close(method.centre_K, 0.1 * mean_K)


def test_a_vit_has_many_prototypes_with_lengths_and_no_warmup(tiny_encoder):
    small = {k: v for k, v in SMALL.items() if k != "prototypes"}
    resnet, vit = (Method(tiny_encoder(f), Config(**small)) for f in ("", "vit"))
    assert len(resnet.centre_K) == 4096
    assert len(vit.centre_K) == 65536
    assert [m.student[1].length_K.requires_grad for m in (resnet, vit)] == [False, True]
    assert resnet.temperature.item() == pytest.approx(0.04)
    assert vit.temperature.item() == pytest.approx(0.07)


@pytest.mark.parametrize("family", ["", "vit"])
def test_small_crops_are_seen_by_the_student_alone(tiny_encoder, views, family):
    torch.manual_seed(0)
    method = Method(tiny_encoder(family), Config(**SMALL, local_crops=3))
    assert method.views == "multi_crop/3"
    seen = []
    method.teacher.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[-1]))
    small = [v[:, :, :16, :16] for v in views] + [views[0][:, :, 8:24, 8:24]]
    whole, more = method.step(views).loss, method.step([*views, *small]).loss
    assert seen == [32, 32]
    assert not torch.equal(whole, more)
