"""Frozen features: eval mode, the training statistics, no dependence on how they were cut."""

import copy
import dataclasses
import warnings

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


class Switches(torch.nn.Module):
    """Notes how torch would compute what is float32, by its older switches and its newer ones."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x_BCHW):
        self.seen.append(switches())
        return x_BCHW.mean((2, 3))


def switches():
    b = torch.backends
    newer = [p.fp32_precision for p in (b.cudnn.conv, b.cudnn.rnn, b.cuda.matmul, b.mkldnn.matmul)]
    flags = b.cudnn.enabled, b.cudnn.benchmark, b.cudnn.deterministic
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            older = b.cudnn.allow_tf32, torch.get_float32_matmul_precision()
        except RuntimeError:  # the two sets of switches disagree
            older = None
    return older, newer, flags


@pytest.fixture
def own_switches():
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = False


@pytest.mark.usefixtures("own_switches")
@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
@pytest.mark.parametrize("convolutions", ["tf32", "ieee", "newer"])
def test_an_exact_look_is_float32_and_leaves_the_switches_as_they_were(
    images, matmul, convolutions
):
    cudnn = torch.backends.cudnn
    cudnn.benchmark = cudnn.deterministic = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.set_float32_matmul_precision(matmul)
        if convolutions == "newer":
            cudnn.conv.fp32_precision = "ieee"  # and not cudnn.rnn: allow_tf32 cannot be read
        else:
            cudnn.allow_tf32 = convolutions == "tf32"
    before, encoder = switches(), Switches()
    extract(encoder, images, CPU, exact=True)
    assert encoder.seen == [((False, "highest"), ["ieee"] * 4, (True, True, True))]
    assert switches() == before
    extract(encoder, images, CPU)
    assert encoder.seen[1] == before


@pytest.mark.usefixtures("own_switches")
def test_the_switches_are_set_back_after_an_error_too(images):
    class Broken(torch.nn.Module):
        def forward(self, x_BCHW):
            raise RuntimeError("out of memory")

    before = switches()
    with pytest.raises(RuntimeError, match="out of memory"):
        extract(Broken(), images, CPU, exact=True)
    assert switches() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_an_exact_look_is_that_of_float64(images):
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 3, 1, 1),
        torch.nn.Conv2d(64, 128, 3, 2, 1),
        torch.nn.AdaptiveAvgPool2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(2048, 64),
    )

    class Double(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = copy.deepcopy(encoder).double()

        def forward(self, x_BCHW):
            return self.net(x_BCHW.double())

    found = extract(encoder, images, torch.device("cuda"), exact=True)
    want = extract(Double(), images, CPU, exact=True)
    # TF32 has 10 bits: off by 1e-3
    torch.testing.assert_close(found, want, rtol=0, atol=3e-5 * want.abs().max().item())


def test_a_judged_encoder_sees_few_labels_of_train_and_all_of_the_rest():
    t_NK = torch.eye(2).repeat(50, 1)
    held = {s: Features(torch.arange(100.0)[:, None], t_NK) for s in ("train", "val", "test")}
    subject = Judged(lambda: None, lambda d, s, source: held[s], "a/1", "binary-class", 0.1, 3)
    assert len(subject.features("train").x_ND) == 10
    assert len(subject.features("val").x_ND) == len(subject.features("test").x_ND) == 100
    unlabeled = subject.features("unlabeled")
    assert len(unlabeled.x_ND) == 100
    assert unlabeled.t_NK.isnan().all()


def test_images_of_the_target_are_normalised_as_the_sources(images):
    """Which a model that was fine-tuned on the source's must meet them with."""
    other = dataclasses.replace(images, mean_DC=images.mean_DC / 2, std_DC=images.std_DC / 3)
    of = {"here": images, "there": other}
    subject = Judged(
        lambda: None, None, "there", "multi-class", images=lambda d, s: of[d], source="here"
    )
    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(subject.images(split).mean_DC, images.mean_DC)
        np.testing.assert_array_equal(subject.images(split).std_DC, images.std_DC)
    alone = Judged(lambda: None, None, "there", "multi-class", images=lambda d, s: of[d])
    np.testing.assert_array_equal(alone.images("test").mean_DC, other.mean_DC)


def test_one_fit_at_a_time_is_kept():
    """A fine-tuned encoder for each share of the labels would fill the device."""
    made, asked = {}, []

    def subject(alike):
        return Judged(lambda: None, None, "a/1", "multi-class", alike=alike, made=made)

    for alike in ("few", "few", "all", "few"):
        assert subject(alike).once(lambda alike=alike: asked.append(alike) or alike) == alike
        assert len(made) == 1
    assert asked == ["few", "all", "few"]


def test_a_copy_of_the_encoder_is_free_to_be_changed(tiny_encoder):
    own = tiny_encoder()
    subject = Judged(lambda: own, None, "a/1", "binary-class")
    with torch.no_grad():
        next(subject.encoder().parameters()).zero_()
    assert next(own.parameters()).abs().sum() > 0
