"""The loop: a resumed run is the run, a diverged one stops by name, and labels cannot be seen."""

import dataclasses
import functools
import io
import math
import os
import pickle

import numpy as np
import pytest
import torch
from timm.models import VGG

from medssl import pretrain as room
from medssl import registry, trial
from medssl._flops import of_step
from medssl._work import Checkpoint
from medssl.datasets import Images
from medssl.evals import _training
from medssl.methods import Step
from medssl.pretrain import NotFinite, learning_rate, order, pretrain
from medssl.spec import EncoderSpec, settings

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("tiny_vits")


def images(n=40, channels=1, domains=1) -> Images:
    rng = np.random.default_rng(0)
    return Images(
        x_NHWC=rng.integers(0, 256, (n, 28, 28, channels), np.uint8),
        t_NK=np.eye(2, dtype=np.float32)[np.arange(n) % 2],
        task="binary-class",
        classes=("a", "b"),
        mean_DC=np.full((domains, channels), 0.5, np.float32),
        std_DC=np.full((domains, channels), 0.25, np.float32),
        domain_N=np.arange(n) % domains,
        md5="-",
    )


def spec(method="simclr", **changes) -> EncoderSpec:
    narrow = {"hidden_dim": 16, "out_dim": 8, "predictor_dim": 16, "prototypes": 8, "queue": 20}
    narrow |= {"bottleneck_dim": 8, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
    known = {f.name for f in dataclasses.fields(registry.config("methods", method))}
    narrow = {k: v for k, v in narrow.items() if k in known}
    given = {"method": method, "dataset": "a/1", "backbone": "vit/tiny-14", "image_size": 28}
    given |= {"recipe": settings("methods", (method, narrow))}
    given |= {"epochs": 3, "batch_size": 16, "warmup_epochs": 1, "learning_rate": 1e-3}
    return EncoderSpec(**given | changes)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def measured(curve):
    """What of a curve does not depend on the clock."""
    return [{k: e[k] for k in ("loss", "spread", "lr")} for e in curve]


class Killed(BaseException):
    pass


def interrupted(spec, data, after_saves: int):
    """Checkpoints after every step, dies after so many, and is run again: the second result."""
    held = []

    def save(content):
        held.append(content)
        if len(held) == after_saves:
            raise Killed

    def again():
        return pretrain(spec, data, CPU, checkpoint=Checkpoint(lambda: held[-1], held.append, 0))

    with pytest.raises(Killed):
        pretrain(spec, data, CPU, checkpoint=Checkpoint(lambda: None, save, 0))
    torch.manual_seed(999)  # another process has another global state
    return again()


@pytest.mark.parametrize("method", registry.names("methods"))
@pytest.mark.parametrize("after_saves", [1, 2, 3])
def test_a_resumed_run_is_the_run_bit_for_bit(method, after_saves):
    """Two steps an epoch: killed in the middle of an epoch, at its end, and in the next."""
    whole = pretrain(spec(method), images(), CPU)
    resumed = interrupted(spec(method), images(), after_saves)
    assert same(whole.encoder, resumed.encoder)
    assert measured(whole.curve) == measured(resumed.curve)
    assert len(resumed.curve) == 3


@pytest.mark.parametrize("backbone", ["resnet/18-7x7"])
def test_batch_norm_statistics_are_resumed_too(backbone):
    wanted = spec("byol", backbone=backbone, epochs=2)
    assert same(pretrain(wanted, images(), CPU).encoder, interrupted(wanted, images(), 1).encoder)


def saved_bytes(work) -> int:
    """What the forward passes of `work` keep for their gradients."""
    kept = []

    def pack(x):
        kept.append(x.nbytes)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        work()
    return sum(kept)


@pytest.mark.parametrize(
    ("method", "backbone"),
    [("byol", "resnet/18-7x7"), ("simclr", "vit/tiny-14"), ("dino", "bit/50x1")],
)
def test_with_less_memory_it_is_the_same_to_the_last_digit(method, backbone):
    wanted, made = spec(method, backbone=backbone, epochs=1, batch_size=20), {}

    def work(spare: bool):
        made[spare] = pretrain(wanted, images(), CPU, spare=spare)

    usual, little = (saved_bytes(functools.partial(work, spare)) for spare in (False, True))
    assert same(made[False].encoder, made[True].encoder)
    assert measured(made[False].curve) == measured(made[True].curve)
    assert little < usual / 2
    told = set(made[True].notes) - set(made[False].notes)
    assert told == {"pretrained with less memory, after it had run out"}


@pytest.mark.parametrize("method", ["mae", "simclr"])
def test_what_cannot_do_with_less_memory_does_not_say_so(method, monkeypatch):
    if method == "simclr":  # on an encoder that asserts it cannot, as timm's VGG does
        real = room.backbones.build

        def build(name, size):
            made = real("vit/tiny-14", size)
            made.set_grad_checkpointing = VGG.set_grad_checkpointing.__get__(made)
            return made

        monkeypatch.setattr(room.backbones, "build", build)
    wanted = spec(method, epochs=2)
    usual, spared = (pretrain(wanted, images(), CPU, spare=spare) for spare in (False, True))
    assert same(usual.encoder, spared.encoder)
    assert usual.notes == spared.notes


def test_the_same_seed_is_the_same_run_and_another_is_not():
    a, b, c = (pretrain(spec(seed=s, epochs=1), images(), CPU) for s in (0, 0, 1))
    assert same(a.encoder, b.encoder)
    assert not same(a.encoder, c.encoder)


def test_every_step_and_every_seed_throws_its_own_dice(monkeypatch):
    thrown = []
    real = room.views.make

    def listen(*arguments):
        thrown.append(arguments[-1].initial_seed())
        return real(*arguments)

    monkeypatch.setattr(room.views, "make", listen)
    for seed in (0, 1):
        pretrain(spec(seed=seed, epochs=2), images(), CPU)
    assert len(thrown) == len(set(thrown)) == 2 * 2 * 2


def test_the_optimiser_is_the_papers(monkeypatch):
    made = []
    real = torch.optim.AdamW
    monkeypatch.setattr(
        torch.optim, "AdamW", lambda *a, **k: made.append(real(*a, **k)) or made[-1]
    )
    pretrain(spec(epochs=1), images(), CPU)
    assert {g["betas"] for g in made[0].param_groups} == {(0.9, 0.95)}


def test_labels_cannot_be_seen():
    shuffled = dataclasses.replace(images(), t_NK=images().t_NK[::-1].copy())
    a, b = (pretrain(spec(epochs=1), data, CPU) for data in (images(), shuffled))
    assert same(a.encoder, b.encoder)


def test_none_is_the_init_that_the_methods_start_from():
    none = EncoderSpec(
        method="none", dataset="a/1", backbone="vit/tiny-14", image_size=28, epochs=0
    )
    frozen = pretrain(spec(epochs=1, learning_rate=1e-12, weight_decay=0), images(), CPU)
    untouched = pretrain(none, images(), CPU)
    assert untouched.curve == []
    for a, b in zip(untouched.encoder.parameters(), frozen.encoder.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_loss_that_is_not_finite_stops_by_name_and_does_not_touch_the_weights(monkeypatch):
    seen = {}
    real = registry.load("methods", "simclr").Method.step

    def step(self, views):
        seen["method"] = self
        seen["calls"] = seen.get("calls", 0) + 1
        found = real(self, views)
        if seen["calls"] == 3:
            seen["before"] = [p.detach().clone() for p in self.parameters()]
            return found._replace(loss=found.loss * torch.nan)
        if seen["calls"] == 4:
            seen["after"] = [p.detach().clone() for p in self.parameters()]
        return found

    monkeypatch.setattr(registry.load("methods", "simclr").Method, "step", step)
    with pytest.raises(
        NotFinite, match=r"1 of 2 losses of epoch 2 \(steps 2 to 3\).*learning_rate"
    ):
        pretrain(spec(), images(), CPU)
    assert all(torch.equal(a, b) for a, b in zip(seen["before"], seen["after"], strict=True))


def test_the_rate_warms_up_then_falls_by_a_half_cosine():
    wanted = spec(epochs=10, warmup_epochs=2, learning_rate=1.0)
    rates = [learning_rate(wanted, step, per_epoch=5) for step in range(50)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(1.0) == max(rates)
    assert rates[5] == pytest.approx(0.55)
    assert rates[30] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx((1 + math.cos(math.pi * 39 / 40)) / 2)


def test_a_short_run_warms_up_for_half_of_it_at_most():
    rates = [learning_rate(spec(epochs=2, warmup_epochs=10), s, 5) for s in range(10)]
    assert max(rates) == rates[5] == 1e-3


def test_every_image_once_per_epoch_in_an_order_of_the_seed():
    first, again, next_epoch, other = (
        order(np.zeros(50), "proportional", 0, 0),
        order(np.zeros(50), "proportional", 0, 0),
        order(np.zeros(50), "proportional", 0, 1),
        order(np.zeros(50), "proportional", 1, 0),
    )
    assert sorted(first.tolist()) == list(range(50))
    assert torch.equal(first, again)
    assert not torch.equal(first, next_epoch)
    assert not torch.equal(first, other)


def test_norms_and_biases_do_not_decay(tiny_encoder):
    module = registry.load("methods", "simclr")
    decayed, free = room.groups(module.Method(tiny_encoder(), module.Config()), 0.05)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0)
    assert {p.ndim for p in free["params"]} == {1}
    assert all(p.ndim > 1 for p in decayed["params"])


def test_tokens_and_positions_of_a_vit_do_not_decay(tiny_encoder):
    module = registry.load("methods", "mae")
    method = module.Method(tiny_encoder("vit"), module.Config(decoder_dim=32))
    free = {id(p) for p in room.groups(method, 0.05)[1]["params"]}
    named = {n for n, p in method.named_parameters() if p.ndim > 1 and id(p) in free}
    assert named == {"encoder.cls_token", "encoder.pos_embed", "place_LQ"}


def test_a_set_smaller_than_the_batch_is_one_batch():
    result = pretrain(spec(epochs=1, batch_size=256), images(n=11), CPU)
    assert len(result.curve) == 1


def test_grey_and_colour_and_unions_are_trained_on():
    for data in (images(channels=3), images(domains=2)):
        assert len(pretrain(spec(epochs=1), data, CPU).curve) == 1


def test_each_image_is_normalised_by_its_own_set(monkeypatch):
    union = dataclasses.replace(
        images(domains=2), mean_DC=np.float32([[0.5], [9.0]]), std_DC=np.float32([[0.25], [1.0]])
    )
    seen = []
    make = room.views.make

    def listen(arrangement, x_BCHW, mean_BC, std_BC, *rest):
        seen.append((x_BCHW, mean_BC, std_BC))
        return make(arrangement, x_BCHW, mean_BC, std_BC, *rest)

    monkeypatch.setattr(room.views, "make", listen)
    pretrain(spec(epochs=1), union, CPU)
    for x_BCHW, mean_BC, std_BC in seen:
        for x_CHW, mean_C, std_C in zip(x_BCHW, mean_BC, std_BC, strict=True):
            same_N = (union.x_NHWC[..., 0] == x_CHW[0].numpy()).all((1, 2))
            place = np.flatnonzero(same_N)[0]
            assert (mean_C.item(), std_C.item()) == ((0.5, 0.25), (9.0, 1.0))[place % 2]


def test_weights_that_are_not_finite_after_a_finite_loss_are_a_diverged_run(monkeypatch):
    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(_, x):
            return x.clone()

        @staticmethod
        def backward(_, grad):
            return grad * math.inf

    method = registry.load("methods", "simclr").Method
    monkeypatch.setattr(
        method, "step", lambda self, x: Step(Spoil.apply(self.encoder(x[0]).square().mean()), {})
    )
    with pytest.raises(NotFinite, match="weights that are not finite: lower learning_rate"):
        pretrain(spec(epochs=1), images(n=16), CPU)


def test_a_steady_part_keeps_its_rate(monkeypatch):
    rates = []
    build = room.optimizers.build

    def listen(name, groups):
        optimizer = build(name, groups)
        step = optimizer.step

        def told(*a):
            rates.append({g["steady"]: g["lr"] for g in optimizer.param_groups})
            return step(*a)

        optimizer.step = told
        return optimizer

    monkeypatch.setattr(room.optimizers, "build", listen)
    pretrain(spec("simsiam"), images(), CPU)
    assert {rate[True] for rate in rates} == {1e-3}
    assert len({rate[False] for rate in rates}) == len(rates)
    predictor = registry.load("methods", "simsiam").Method
    assert predictor.steady == ("predictor",)


@pytest.mark.parametrize(
    ("arrangement", "each"), [("two_crops", 2), ("multi_crop/3", 5), ("masked", 1)]
)
def test_views_are_images_that_a_network_sees_and_dice_are_not(monkeypatch, arrangement, each):
    """The rate counts local crops, and not the dice of a mask."""
    method = registry.load("methods", "simclr").Method
    monkeypatch.setattr(method, "views", arrangement)
    monkeypatch.setattr(
        method, "step", lambda self, x: Step(self.encoder(x[0]).square().mean(), {})
    )
    done = pretrain(spec(epochs=1), images(), CPU)
    assert done.views_per_s * done.seconds == pytest.approx(2 * 16 * each)


def test_what_is_reported_each_epoch():
    told = []
    pretrain(spec(), images(), CPU, report=lambda curve: told.append(list(curve)))
    assert [len(curve) for curve in told] == [1, 2, 3]
    for values in told[-1]:
        assert {"loss", "spread", "lr", "views_per_s", "data_wait", "seconds"} <= values.keys()
        assert 0 < values["data_wait"] < 1
        assert values["views_per_s"] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_it_trains():
    whole = pretrain(spec(), images(), torch.device("cuda"))
    assert all(math.isfinite(e["loss"]) for e in whole.curve)


def test_balanced_sampling_gives_each_member_the_same_share_and_every_image_its_turn():
    domain_N = np.repeat([0, 1, 2], [100, 17, 3])
    picked = order(domain_N, "balanced", 0, 0)
    assert len(picked) == 120
    assert np.bincount(domain_N[picked]).tolist() == [40, 40, 40]
    times = np.bincount(picked, minlength=120)
    assert set(times[:100]) == {0, 1}
    assert set(times[100:117]) == {2, 3}
    assert set(times[117:]) == {13, 14}
    assert not torch.equal(picked, order(domain_N, "balanced", 0, 1))
    assert torch.equal(picked, order(domain_N, "balanced", 0, 0))
    first = domain_N[picked[:30]]
    assert len(set(first)) == 3  # mixed, not one member after another


def test_balanced_and_proportional_are_one_where_there_is_one_set():
    one = np.zeros(30)
    assert torch.equal(order(one, "balanced", 3, 1), order(one, "proportional", 3, 1))


def test_a_queue_is_cut_to_the_training_images_and_says_so():
    small = pretrain(spec("moco_v2", epochs=2), images(), CPU)
    assert small.notes == []
    recipe = settings("methods", ("moco_v2", {"hidden_dim": 16, "out_dim": 8}))
    cut = pretrain(spec("moco_v2", epochs=2, recipe=recipe), images(), CPU)
    assert cut.notes == ["queue 65536 cut to half of the 40 images"]


def test_what_was_asked_and_cannot_be_is_said():
    asked = spec(epochs=2, batch_size=64, warmup_epochs=1.5)
    assert pretrain(asked, images(), CPU).notes == [
        "batch_size 64 cut to the 40 training images",
        "warmup_epochs 1.5 cut to half of 2",
    ]


@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", 1e-3), ("sgd", 0.05), ("lars", 0.3)])
def test_every_optimizer_trains_and_resumes(optimizer, rate):
    given = spec(optimizer=optimizer, learning_rate=rate, epochs=2)
    whole = pretrain(given, images(), CPU)
    assert not same(whole.encoder, room.initial(given).encoder)
    assert same(whole.encoder, interrupted(given, images(), 1).encoder)
    other = pretrain(dataclasses.replace(given, weight_decay=0.5), images(), CPU)
    assert not same(whole.encoder, other.encoder)


def test_how_well_a_device_is_used_is_in_the_curve_and_changes_nothing(monkeypatch):
    asked = spec(epochs=2)
    alone = pretrain(asked, images(), CPU)
    assert "mfu" not in alone.curve[-1]  # of a CPU it is not known what it could do
    monkeypatch.setattr("medssl.pretrain.peak", lambda device: 1e9)
    told = []
    monkeypatch.setattr(room._flops, "of_step", lambda *a: told.append(of_step(*a)) or told[-1])
    counted, steps = pretrain(asked, images(), CPU), len(images()) // asked.batch_size
    assert measured(counted.curve) == measured(alone.curve)
    assert same(counted.encoder, alone.encoder)
    (operations,) = told
    for entry in counted.curve:
        assert entry["mfu"] == pytest.approx(steps * operations / entry["seconds"] / 1e9)


def test_a_step_that_cannot_be_counted_is_trained_all_the_same(monkeypatch):
    monkeypatch.setattr("medssl.pretrain.peak", lambda device: 1e9)
    monkeypatch.setattr(room._flops, "of_step", lambda *_: 1 / 0)
    assert "mfu" not in pretrain(spec(epochs=1), images(), CPU).curve[-1]


def test_looks_are_in_the_curve_and_change_nothing(monkeypatch):
    looked = pretrain(spec(), images(), CPU)
    assert all({"knn_auroc", "feature_spread", "rankme"} <= set(entry) for entry in looked.curve)
    monkeypatch.setattr(room.monitor, "due", lambda epoch, epochs: False)
    blind = pretrain(spec(), images(), CPU)
    assert "rankme" not in blind.curve[-1]
    assert same(looked.encoder, blind.encoder)
    assert measured(looked.curve) == measured(blind.curve)


def test_a_collapsed_run_ends_early_where_that_was_asked(monkeypatch):
    monkeypatch.setattr(room.monitor, "look", lambda *a: {"rankme": 1.1, "feature_spread": 0.5})
    asked = pretrain(spec(epochs=5, early_stop="collapse"), images(), CPU)
    assert len(asked.curve) == 2
    assert asked.notes == ["ended after 2 of 5 epochs: collapsed"]
    assert len(pretrain(spec(epochs=5), images(), CPU).curve) == 5


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("reader", ["pretraining", "evaluation", "whether it can be read"])
def test_code_in_a_checkpoint_is_not_run(reader, tmp_path):
    file = io.BytesIO()
    torch.save({"method": Evil(tmp_path / "ran")}, file)
    read = {
        "pretraining": lambda content: room.restore(content, None, None, CPU),
        "evaluation": lambda content: _training.restore(content, torch.nn.Linear(1, 1), None, None),
        "whether it can be read": trial._loadable,
    }[reader]
    with pytest.raises(pickle.UnpicklingError):
        read(file.getvalue())
    assert not (tmp_path / "ran").exists()
