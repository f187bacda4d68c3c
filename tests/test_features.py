"""Frozen features: eval mode, the training statistics, no dependence on how they were cut."""

import dataclasses

import numpy as np
import pytest
import torch

from medssl.evals import Features
from medssl.features import Judged, extract

CPU = torch.device("cpu")


@pytest.fixture
def images():
    from medssl import datasets

    found = datasets.load("phantom/cells", "val", 28)
    return dataclasses.replace(
        found, x_NHWC=found.x_NHWC[:50], t_NK=found.t_NK[:50], domain_N=found.domain_N[:50]
    )


def test_the_chunk_does_not_change_the_answer_and_neither_does_the_company(images, tiny_encoder):
    encoder = tiny_encoder()
    whole = extract(encoder, images, CPU)
    assert whole.shape == (50, 16)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(extract(encoder, images, CPU, chunk=7), whole, rtol=2e-2, atol=2e-3)


def test_the_encoder_is_in_eval_mode_and_left_as_it_was(images, tiny_encoder):
    encoder = tiny_encoder().train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    extract(encoder, images, CPU)
    assert encoder.training
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())


def test_images_are_normalised_by_their_own_sets_training_statistics(images):
    class Mean(torch.nn.Module):
        def forward(self, x_BCHW):
            return x_BCHW.mean((2, 3))

    found = extract(Mean(), images, CPU).numpy()
    pixels = images.x_NHWC / 255
    expected = ((pixels - images.mean_DC) / images.std_DC).mean((1, 2))
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=1e-2)


def test_a_judged_encoder_sees_few_labels_of_train_and_all_of_the_rest():
    t_NK = torch.eye(2).repeat(50, 1)
    held = {s: Features(torch.arange(100.0)[:, None], t_NK) for s in ("train", "val", "test")}
    subject = Judged(lambda: None, lambda d, s: held[s], "a/1", "binary-class", 0.1, 3)
    assert len(subject.features("train").x_ND) == 10
    assert len(subject.features("val").x_ND) == len(subject.features("test").x_ND) == 100
    unlabeled = subject.features("unlabeled")
    assert len(unlabeled.x_ND) == 100
    assert unlabeled.t_NK.isnan().all()


def test_a_copy_of_the_encoder_is_free_to_be_changed(tiny_encoder):
    own = tiny_encoder()
    subject = Judged(lambda: own, None, "a/1", "binary-class")
    with torch.no_grad():
        next(subject.encoder().parameters()).zero_()
    assert next(own.parameters()).abs().sum() > 0
