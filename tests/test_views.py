"""Views against what they promise to be: PIL's crop, torchvision's colours and blur, their chances.

Two kinds of test: each op given its numbers, to a stated tolerance, and each number's distribution.
"""

import ast
import inspect
import itertools
import math
import random
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as F
from scipy import stats
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from medssl import views
from medssl._pixels import b_spline, blur, crop, warp
from medssl.views import ARRANGEMENTS, PLAIN, PRESETS, Drawn, View, apply, draw, make, two_crops

# B images, C channels, H W pixels, N pooled draws

LEVEL = 1 / 255
RARE = 1e-3  # p-value under which two samples are called different; seeds are fixed


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(B: int, C: int, H: int, W: int | None = None, seed: int = 0) -> Tensor:
    """The worst image for a filter: every pixel its own, black and white among them."""
    return torch.randint(0, 256, (B, C, H, W or H), dtype=torch.uint8, generator=dice(seed))


def picture(C: int, S: int) -> Tensor:
    """(C, S, S) uint8 of blobs and edges, coloured if C = 3: closer to an image than noise is."""
    y, x = torch.meshgrid(torch.linspace(0, 1, S), torch.linspace(0, 1, S), indexing="ij")
    planes = [
        0.2 + 0.6 * torch.exp(-((x - 0.3 - 0.2 * c) ** 2 + (y - 0.4) ** 2) * (9 + 5 * c))
        for c in range(C)
    ]
    planes = [p + 0.2 * ((6 * x).floor() + (5 * y).floor()).remainder(2) for p in planes]
    return (torch.stack(planes).clamp(0, 1) * 255).round().byte()


def stay(B: int, H: int, W: int | None = None) -> Drawn:
    """Numbers that change nothing."""
    no_B, zero_B = torch.zeros(B, dtype=torch.bool), torch.zeros(B)
    return Drawn(
        equalise_B=no_B,
        box_B4=torch.tensor([0, 0, H, W or H]).float().expand(B, 4),
        flip_B=no_B,
        angle_B=zero_B,
        bend_B2GG=torch.zeros(B, 2, 7, 7),
        factor_BO=torch.ones(B, 3),
        order_BO=torch.arange(3).expand(B, 3),
        turn_B=zero_B,
        shuffle_B=torch.arange(B),
        grayscale_B=no_B,
        sigma_B=zero_B,
        solarise_B=no_B,
    )


def unit(B: int, C: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(B, C), torch.ones(B, C)


def places(drawn: Drawn) -> list[int]:
    """After how many of the three ops each image has its hue turned."""
    place_B = torch.empty_like(drawn.shuffle_B)
    for place, quarter in enumerate(drawn.shuffle_B.tensor_split(4)):
        place_B[quarter] = place
    return place_B.tolist()


@pytest.fixture
def exact_luma(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's tensors use 0.2989, 0.587, 0.114, which add to 0.9999; PIL's add to 1."""

    def rgb_to_grayscale(x: Tensor, num_output_channels: int = 1) -> Tensor:
        luma = x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        return (x * luma).sum(-3, keepdim=True).expand(num_output_channels, -1, -1)

    monkeypatch.setattr(
        "torchvision.transforms._functional_tensor.rgb_to_grayscale", rgb_to_grayscale
    )


# --- each op, given its numbers ------------------------------------------------------------------


def test_whole_box_is_the_image_itself() -> None:
    x_BCHW = noise(4, 3, 20, 31)
    y_BCHW = apply(View(), x_BCHW, *unit(4, 3), stay(4, 20, 31))
    torch.testing.assert_close(y_BCHW, x_BCHW / 255, rtol=0, atol=2e-6)


@pytest.mark.usefixtures("exact_luma")
@pytest.mark.parametrize("factor", [0.6, 0.83, 1.0, 1.4])
@pytest.mark.parametrize("op", ["brightness", "contrast", "saturation"])
def test_each_op_is_torchvisions_within_1e_6(op: str, factor: float) -> None:
    x_CBHW = noise(5, 3, 17).transpose(0, 1) / 255
    drawn = stay(5, 17)
    drawn.factor_BO[:, ("brightness", "contrast", "saturation").index(op)] = factor
    ours = x_CBHW.clone()
    views.jitter_(ours, drawn, hue=False)
    for b in range(5):
        theirs = getattr(F, f"adjust_{op}")(x_CBHW[:, b], factor)
        torch.testing.assert_close(ours[:, b], theirs, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("exact_luma")
def test_jitter_follows_each_of_the_24_orders_within_1e_5() -> None:
    B = 384  # that one order of 24 is not among them: one seed in two million
    drawn = draw(View(jitter=1.0, hue=0.4), B, 12, 12, dice())
    x_CBHW = noise(B, 3, 12).transpose(0, 1) / 255
    ours = x_CBHW.clone()
    views.jitter_(ours, drawn, hue=True)

    seen = set()
    for b, place in enumerate(places(drawn)):
        order = drawn.order_BO[b].tolist()
        order.insert(place, 3)
        values = [*drawn.factor_BO[b].tolist(), drawn.turn_B[b].item()]
        theirs = x_CBHW[:, b]
        for op in order:
            name = ("brightness", "contrast", "saturation", "hue")[op]
            theirs = getattr(F, f"adjust_{name}")(theirs, values[op])
        torch.testing.assert_close(ours[:, b], theirs, rtol=0, atol=1e-5)
        seen.add(tuple(order))
    assert len(seen) == 24


def test_grayscale_is_pils_within_half_a_level() -> None:
    x_BCHW = noise(6, 3, 19)
    drawn = stay(6, 19)._replace(grayscale_B=torch.tensor([True, False] * 3))
    y_BCHW = apply(View(), x_BCHW, *unit(6, 3), drawn)
    torch.testing.assert_close(y_BCHW[1::2], x_BCHW[1::2] / 255, rtol=0, atol=2e-6)
    for x_CHW, y_CHW in zip(x_BCHW[::2], y_BCHW[::2], strict=True):
        grey = F.pil_to_tensor(F.rgb_to_grayscale(F.to_pil_image(x_CHW), 3)) / 255
        torch.testing.assert_close(y_CHW, grey, rtol=0, atol=0.51 * LEVEL)


@pytest.mark.usefixtures("exact_luma")
@pytest.mark.parametrize("preset", PRESETS)
def test_steps_are_in_the_papers_order_with_the_flip_last(preset: str) -> None:
    """Our flip is the first step; here it is the last, and blur comes between grey and solarise."""
    B, S = 32, 24
    x_BCHW = picture(3, S).expand(B, 3, S, S)
    mean_BC, std_BC = torch.rand(B, 3, generator=dice()), 0.2 + torch.rand(B, 3, generator=dice(1))
    for view in PRESETS[preset]:
        view = replace(view, solarise=0.5 if view.solarise else 0.0, blur=0.5)
        view = replace(view, equalise=0.0, rotate=0.0, elastic=0.0)
        drawn = draw(view, B, S, S, dice(2))
        ours = apply(view, x_BCHW, mean_BC, std_BC, drawn)
        box_CBHW = x_BCHW.transpose(0, 1).float()
        box_CBHW = crop(box_CBHW, drawn.box_B4, torch.zeros(B, dtype=torch.bool), (S, S))
        far = []
        for b, place in enumerate(places(drawn)):
            y = box_CBHW[:, b]
            order = drawn.order_BO[b].tolist()
            order.insert(place, 3)
            values = [*drawn.factor_BO[b].tolist(), drawn.turn_B[b].item()]
            for op in order:
                name = ("brightness", "contrast", "saturation", "hue")[op]
                y = getattr(F, f"adjust_{name}")(y, values[op])
            y = F.rgb_to_grayscale(y, 3) if drawn.grayscale_B[b] else y
            sigma = drawn.sigma_B[b].item()
            y = F.gaussian_blur(y, [17, 17], [sigma, sigma]) if sigma else y
            y = F.solarize(y, 128 / 255) if drawn.solarise_B[b] else y
            y = F.hflip(y) if drawn.flip_B[b] else y
            y = F.normalize(y, mean_BC[b].tolist(), std_BC[b].tolist())
            far.append((ours[b] - y).abs() > 1e-4)
        # a pixel within rounding of 128/255 may fall on either side
        assert torch.stack(far).float().mean() < (1e-3 if view.solarise else 1e-9)


def test_equalise_precedes_the_crop_and_the_warp_follows_it() -> None:
    B, S = 32, 24
    [view, _] = PRESETS["remedis"]
    x_BCHW = noise(B, 3, S)
    drawn = draw(view, B, S, S, dice(2))
    flat_BCHW = torch.where(drawn.equalise_B[:, None, None, None], F.equalize(x_BCHW), x_BCHW)
    y_CBHW = crop(flat_BCHW.transpose(0, 1).float(), drawn.box_B4, drawn.flip_B, (S, S))
    y_CBHW = warp(y_CBHW, drawn.angle_B, drawn.bend_B2GG)
    views.jitter_(y_CBHW, drawn, hue=False)
    y_CBHW = blur(y_CBHW, drawn.sigma_B, 8)
    ours = apply(view, x_BCHW, *unit(B, 3), drawn)
    torch.testing.assert_close(ours, y_CBHW.transpose(0, 1), rtol=0, atol=1e-6)


# --- each number's distribution ------------------------------------------------------------------


def theirs_boxes(view: View, H: int, W: int, n: int) -> np.ndarray:
    x = torch.empty(3, H, W)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return np.array(
            [
                T.RandomResizedCrop.get_params(x, list(view.scale), list(view.ratio))
                for _ in range(n)
            ]
        )


@pytest.mark.parametrize(
    ("H", "W", "view"),
    [
        (28, 28, View()),
        (64, 64, View()),
        (48, 64, View(scale=(0.2, 1.0))),
        (64, 64, View(scale=(0.1, 0.4), ratio=(0.4, 0.8))),  # tall only: height is not width
        (64, 64, View(scale=(0.93, 1.0))),  # about half of all attempts do not fit
        (64, 64, View(scale=(1.0, 1.12), ratio=(0.9, 1.1))),  # nearly all fall back
    ],
)
def test_boxes_are_distributed_as_torchvisions(H: int, W: int, view: View) -> None:
    n = 6000
    theirs = theirs_boxes(view, H, W, n)
    ours = draw(view, n, H, W, dice()).box_B4.numpy()
    assert (ours == ours.round()).all()
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] >= 1).all()
    assert (ours[:, 0] + ours[:, 2] <= H).all()
    assert (ours[:, 1] + ours[:, 3] <= W).all()

    def facts(box_N4: np.ndarray) -> list[np.ndarray]:
        top, left, h, w = box_N4.T.astype(float)
        return [top, left, h, w, h * w, w / h, top + h, left + w, top - left, top * h, left * w]

    for our, their in zip(facts(ours), facts(theirs), strict=True):
        assert stats.ks_2samp(our, their).pvalue > RARE
    full = [(box[:, 2] == H).mean() + (box[:, 3] == W).mean() for box in (ours, theirs)]
    assert abs(full[0] - full[1]) < 0.05


def test_corner_is_uniform_over_all_that_fit() -> None:
    top_B, left_B, h_B, w_B = draw(View(), 40_000, 28, 28, dice()).box_B4.unbind(1)
    for start_B, length_B in ((top_B, h_B), (left_B, w_B)):
        start = start_B[length_B == 20].long()
        count = torch.bincount(start, minlength=9)
        assert len(count) == 9
        assert stats.chisquare(count.numpy()).pvalue > RARE


@pytest.mark.parametrize(("H", "W"), [(28, 28), (20, 51), (51, 20), (27, 64)])
@pytest.mark.parametrize("ratio", [(3.0, 4.0), (0.2, 0.3), (0.9, 1.1)])
def test_fallback_is_torchvisions_central_crop(H: int, W: int, ratio: tuple[float, float]) -> None:
    view = View(scale=(1.5, 2.0), ratio=ratio)  # no attempt can fit
    box_B4 = draw(view, 50, H, W, dice()).box_B4
    assert (box_B4 == torch.from_numpy(theirs_boxes(view, H, W, 1)).float()).all()


def test_ten_attempts_come_before_the_fallback() -> None:
    n, low, width = 20_000, 0.05, 4.45
    view = View(scale=(low, low + width), ratio=(0.5, 0.5))  # a tenth of the attempts fit
    fits, smaller = ((h**2 / (2 * 64**2) - low) / width for h in (64.5, 63.5))
    share = (draw(view, n, 64, 64, dice()).box_B4[:, 2] < 64).float().mean().item()
    expected = (1 - (1 - fits) ** 10) * smaller / fits  # 0.64; with nine attempts 0.60
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / n)


@pytest.mark.parametrize(
    "view",
    [
        View(equalise=0.5, rotate=45.0),
        PRESETS["asymmetric"][1],
        View(equalise=0.1, rotate=7.0, jitter=0.3, hue=0.5),
    ],
)
def test_chances_are_the_recipes(view: View) -> None:
    n = 24_000
    drawn = draw(view, n, 28, 28, dice(3))

    def is_share(chosen_B: Tensor, p: float) -> bool:
        return abs(chosen_B.float().mean().item() - p) <= 4 * math.sqrt(p * (1 - p) / n)

    assert is_share(drawn.equalise_B, view.equalise)
    assert is_share(drawn.flip_B, view.flip)
    assert is_share(drawn.grayscale_B, view.grayscale)
    assert is_share(drawn.solarise_B, view.solarise)
    assert is_share(drawn.sigma_B > 0, view.blur)
    jittered_B = drawn.turn_B != 0
    assert is_share(jittered_B, view.jitter)
    assert (drawn.factor_BO[~jittered_B] == 1).all()

    def is_uniform(value_B: Tensor, low: float, high: float) -> bool:
        value = value_B.numpy()
        inside = low - 1e-6 <= value.min() and value.max() <= high + 1e-6
        return inside and stats.kstest(value, "uniform", (low, high - low)).pvalue > RARE

    if view.rotate:
        assert is_uniform(drawn.angle_B, -view.rotate, view.rotate)
    else:
        assert (drawn.angle_B == 0).all()
    for o, strength in enumerate((view.brightness, view.contrast, view.saturation)):
        assert is_uniform(drawn.factor_BO[jittered_B, o], 1 - strength, 1 + strength)
    assert is_uniform(drawn.turn_B[jittered_B], -view.hue, view.hue)
    assert is_uniform(drawn.sigma_B[drawn.sigma_B > 0], *view.sigma)


def test_bends_are_smooth_and_fold_nothing() -> None:
    """In pixels of a 64 px image: no drift, 2% of the side on average, no tear and no fold."""
    n, S, view = 4000, 64, PRESETS["remedis"][0]
    bend_N2GG = draw(view, n, S, S, dice(7)).bend_B2GG
    assert stats.kstest(bend_N2GG[:, 1, 3, 4].numpy(), "uniform", (-0.07, 0.14)).pvalue > RARE
    weights_SG = b_spline(S, bend_N2GG)
    move_N2HW = S * (weights_SG @ bend_N2GG @ weights_SG.mT)
    assert move_N2HW.mean((0, 2, 3)).abs().max() < 4 * 0.05 * S / 7 / math.sqrt(n)
    assert 0.018 * S < move_N2HW.std() < 0.022 * S
    assert move_N2HW.abs().max() <= 0.07 * S
    x_x, x_y = move_N2HW[:, 0, :-1].diff(dim=2), move_N2HW[:, 0, :, :-1].diff(dim=1)
    y_x, y_y = move_N2HW[:, 1, :-1].diff(dim=2), move_N2HW[:, 1, :, :-1].diff(dim=1)
    assert max(d.abs().max() for d in (x_x, x_y, y_x, y_y)) < 0.6
    assert ((1 + x_x) * (1 + y_y) - x_y * y_x).min() > 0.1  # area of a pixel where it is looked up
    assert draw(View(), 5, S, S, dice()).bend_B2GG.count_nonzero() == 0


def test_each_of_the_24_orders_is_as_likely() -> None:
    drawn = draw(View(), 24_000, 28, 28, dice())
    place_B = torch.tensor(places(drawn))
    assert torch.bincount(place_B).tolist() == [6000] * 4
    weights = torch.tensor([16, 4, 1])
    key_B = place_B * 64 + (drawn.order_BO * weights).sum(1)
    kinds, counts = key_B.unique(return_counts=True)
    assert len(kinds) == 24
    assert stats.chisquare(counts.numpy()).pvalue > RARE
    place = torch.bincount(  # of one image, over batches: its place in the batch says nothing
        torch.tensor([places(draw(View(), 8, 28, 28, dice(seed)))[0] for seed in range(2000)])
    )
    assert stats.chisquare(place.numpy()).pvalue > RARE


def test_no_number_tells_of_another() -> None:
    n = 20_000
    view = View(jitter=1.0, blur=0.5, solarise=0.5, equalise=0.5, rotate=9.0, elastic=0.1)
    drawn = draw(view, n, 28, 28, dice(5))
    columns = [
        drawn.box_B4[:, 2:].prod(1), drawn.box_B4[:, 3] / drawn.box_B4[:, 2], drawn.flip_B,
        *drawn.factor_BO.T, *drawn.order_BO.T[:2], drawn.turn_B, torch.tensor(places(drawn)),
        drawn.grayscale_B, drawn.sigma_B > 0, drawn.solarise_B, torch.arange(n),
        drawn.equalise_B, drawn.angle_B, *drawn.bend_B2GG.flatten(1).T[::13],
    ]  # fmt: skip
    corr = torch.corrcoef(torch.stack([c.double() for c in columns]))
    order = slice(6, 8)
    corr[order, order] = 0  # first and second op are never the same
    assert (corr - torch.diag(corr.diag())).abs().max() < 4.5 / math.sqrt(n)


def test_the_dice_fall_the_same_whatever_the_recipe() -> None:
    one, *others = (
        draw(replace(view, scale=(0.2, 1.0), blur=1.0), 50, 28, 28, dice())
        for pair in PRESETS.values()
        for view in pair
    )
    for other in others:
        for field in ("box_B4", "flip_B", "order_BO", "shuffle_B", "sigma_B"):
            assert torch.equal(getattr(one, field), getattr(other, field)), field


PAPER = {  # BYOL's first view
    "equalise": 0.0, "scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.5, "rotate": 0.0,
    "elastic": 0.0, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2,
    "hue": 0.1, "grayscale": 0.2, "blur": 1.0, "sigma": (0.1, 2.0), "solarise": 0.0,
}  # fmt: skip
NO_COLOUR = {"saturation": 0.0, "hue": 0.0, "grayscale": 0.0}
CROP_AND_FLIP = {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
CHANGES = {  # of PAPER in both views; what these tests do not read from PRESETS
    "vicreg": {"scale": (0.2, 1.0), "blur": 0.5, "solarise": 0.1},
    "moco_v1": {"scale": (0.2, 1.0), "jitter": 1.0, "saturation": 0.4, "hue": 0.4, "blur": 0.0},
    "moco_v2": {"scale": (0.2, 1.0), "saturation": 0.4, "blur": 0.5},
    "swav": {
        "scale": (0.14, 1.0), "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2,
        "blur": 0.5,
    },
    "mae": {"scale": (0.2, 1.0), **CROP_AND_FLIP},
    "remedis": {
        "equalise": 0.5, "rotate": 45.0, "elastic": 0.07, "brightness": 0.8, "contrast": 0.8,
        "blur": 0.5, **NO_COLOUR,
    },
}  # fmt: skip


def test_presets_are_the_papers_numbers() -> None:
    """Every other test reads the recipe from PRESETS, so a slip in it would go unseen."""
    grey = PAPER | NO_COLOUR
    papers = {name: [PAPER | changes] * 2 for name, changes in CHANGES.items()} | {
        "asymmetric": [PAPER, PAPER | {"blur": 0.1, "solarise": 0.2}],
        "grey": [grey, grey | {"blur": 0.1}],
    }
    assert {name: list(map(asdict, pair)) for name, pair in PRESETS.items()} == papers


# --- arrangements ---------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict, tuple[int, int] | None]]:
    """The view and the size of each call to `apply`, in order."""
    calls: list = []

    def listen(view: View, *rest: object) -> Tensor:
        calls.append((asdict(view), rest[-1]))
        return apply(view, *rest)

    monkeypatch.setattr(views, "apply", listen)
    return calls


def look_at(arrangement: str, preset: str, C: int = 3, S: int = 28, B: int = 6) -> list[Tensor]:
    return make(arrangement, noise(B, C, S), *unit(B, C), preset, dice())


def test_strong_and_weak_are_ressls(asked: list) -> None:
    look_at("strong_weak", "asymmetric")
    assert asked == [(PAPER | {"blur": 0.5}, None), (PAPER | CROP_AND_FLIP, None)]


@pytest.mark.parametrize("preset", ["moco_v1", "vicreg", "remedis"])
def test_any_preset_has_a_strong_and_a_weak_view(asked: list, preset: str) -> None:
    look_at("strong_weak", preset)
    strong = PAPER | CHANGES[preset] | {"solarise": 0.0}
    weak = PAPER | CROP_AND_FLIP | {"scale": strong["scale"]}
    assert asked == [(strong, None), (weak, None)]


def test_the_weak_view_is_cropped_and_flipped_as_the_first(
    asked: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = {"scale": (0.3, 0.9), "ratio": (1.0, 1.1), "flip": 0.0}
    monkeypatch.setitem(PRESETS, "mine", (View(**geometry, rotate=9.0, equalise=0.5), View()))
    look_at("strong_weak", "mine")
    assert asked[1] == (PAPER | CROP_AND_FLIP | geometry, None)


def test_the_weak_view_changes_no_colour() -> None:
    x_BCHW = noise(64, 3, 1).expand(-1, -1, 28, 28)
    for preset in PRESETS:
        _, weak = make("strong_weak", x_BCHW, *unit(64, 3), preset, dice())
        torch.testing.assert_close(weak, x_BCHW / 255, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("preset", "photometric"),
    [("swav", CHANGES["swav"]), ("asymmetric", {"blur": 0.5}), ("vicreg", CHANGES["vicreg"])],
)
def test_local_crops_are_swavs_and_dinos(asked: list, preset: str, photometric: dict) -> None:
    look_at("multi_crop/3", preset)
    local = PAPER | photometric | {"solarise": 0.0, "scale": (0.05, 0.14)}
    whole = [asdict(v) for v in PRESETS[preset]]
    for view in whole:
        view["scale"] = (max(view["scale"][0], 0.14), 1.0)
    assert asked == [(view, None) for view in whole] + [(local, (12, 12))] * 3


def test_local_crops_differ_as_the_first_view_does(
    asked: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {"jitter": 0.3, "brightness": 0.1, "rotate": 9.0, "blur": 0.0}
    monkeypatch.setitem(PRESETS, "mine", (View(**first), View()))
    look_at("multi_crop/1", "mine")
    assert asked[2] == (PAPER | first | {"scale": (0.05, 0.14)}, (12, 12))


@pytest.mark.parametrize(("S", "local"), [(28, 12), (64, 28), (128, 56), (224, 96), (4, 4)])
def test_multi_crop_is_two_large_views_and_as_many_small_ones_as_asked(S: int, local: int) -> None:
    for arrangement, count in (("multi_crop", 6), ("multi_crop/2", 2), ("multi_crop/0", 0)):
        x_views = look_at(arrangement, "mae", 1, S, B=1)
        assert [tuple(x.shape) for x in x_views] == [(1, 3, S, S)] * 2 + [
            (1, 3, local, local)
        ] * count


def test_local_crops_see_a_small_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an image whose colour is the place: its range along both axes is the area seen."""
    monkeypatch.setitem(PRESETS, "plain", (PLAIN, PLAIN))
    B, S = 200, 128
    place_S = torch.arange(S, dtype=torch.uint8)
    x_BCHW = torch.stack(
        (place_S.expand(S, S), place_S[:, None].expand(S, S), 0 * place_S.expand(S, S))
    )
    x_views = make("multi_crop/2", x_BCHW.expand(B, -1, -1, -1), *unit(B, 3), "plain", dice())
    areas = []
    for x in x_views:
        seen_B3 = (x.amax((2, 3)) - x.amin((2, 3))) * 255 / S * x.shape[3] / (x.shape[3] - 1)
        areas.append(seen_B3[:, 0] * seen_B3[:, 1])
    large, small = torch.cat(areas[:2]), torch.cat(areas[2:])
    for area, low, high in ((large, 0.14, 1.0), (small, 0.05, 0.14)):
        assert low - 0.01 < area.min() < low + 0.02
        assert 0.9 * high < area.max() < high + 0.01  # few of the largest fit
    assert not torch.equal(areas[2], areas[3])


def test_masked_is_the_first_view_and_uniform_dice(asked: list) -> None:
    x, dice_B1HW = look_at("masked", "mae", B=400)
    _, one_channel = look_at("masked", "asymmetric", C=1, B=400)
    assert asked == [(PAPER | CHANGES["mae"], None), (PAPER, None)]
    assert x.shape == (400, 3, 28, 28)
    assert dice_B1HW.shape == (400, 1, 28, 28)
    assert dice_B1HW.dtype == torch.float32
    assert dice_B1HW.min() >= 0 and dice_B1HW.max() < 1  # noqa: PT018
    assert stats.kstest(dice_B1HW[:, 0, ::7, ::7].flatten().numpy(), "uniform").pvalue > RARE
    between = torch.corrcoef(dice_B1HW[:, 0, ::7, ::7].flatten(1).T)  # the patches of 7 pixels
    assert (between - torch.eye(16)).abs().max() < 4.5 / math.sqrt(400)
    assert len(dice_B1HW.flatten(1).unique(dim=0)) == 400
    assert torch.equal(dice_B1HW, one_channel)  # whatever the preset and the image


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("preset", ["asymmetric", "swav", "remedis"])
def test_an_image_is_looked_at_as_if_it_were_alone(arrangement: str, preset: str) -> None:
    """The others in the batch can be anything: no histogram, mean or mask is shared."""
    B, x_BCHW, others = 8, noise(8, 3, 28), noise(8, 3, 28, seed=1) // 2
    others[3] = x_BCHW[3]
    mean_BC, std_BC = torch.rand(B, 3, generator=dice()), 0.5 + torch.rand(B, 3, generator=dice(1))
    other_mean, other_std = torch.zeros(B, 3), torch.ones(B, 3)
    other_mean[3], other_std[3] = mean_BC[3], std_BC[3]
    ours = make(arrangement, x_BCHW, mean_BC, std_BC, preset, dice())
    theirs = make(arrangement, others, other_mean, other_std, preset, dice())
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x[3], y[3], rtol=0, atol=1e-6)
        assert x.shape[1] == 1 or not torch.equal(x[2], y[2])


def test_presets_that_do_not_warp_or_equalise_do_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: object) -> Tensor:
        raise AssertionError("called")

    monkeypatch.setattr(views, "warp", unwanted)
    monkeypatch.setattr(views, "equalise", unwanted)
    for preset in PRESETS.keys() - {"remedis"}:
        look_at("two_crops", preset)
    with pytest.raises(AssertionError, match="called"):
        look_at("two_crops", "remedis")


def test_each_preset_gives_other_views() -> None:
    each = [torch.stack(look_at("two_crops", preset)) for preset in PRESETS]
    for one, other in itertools.combinations(each, 2):
        assert not torch.equal(one, other)


def test_unknown_arrangements_are_answered_with_the_known() -> None:
    known = "choose from two_crops, strong_weak, multi_crop, masked"
    with pytest.raises(ValueError, match=f"no 'three_crops' among view arrangements: {known}"):
        look_at("three_crops", "grey")
    for wrong in ("two_crops/2", "multi_crop/", "multi_crop/-1", "multi_crop/six"):
        with pytest.raises(ValueError, match=f"no '{wrong}' .* as in 'multi_crop/6'"):
            look_at(wrong, "grey")
    for arrangement in ARRANGEMENTS:
        with pytest.raises(ValueError, match="no 'gray' among view presets: choose from asymm"):
            look_at(arrangement, "gray")


# --- the whole -----------------------------------------------------------------------------------


def pil_pipeline(view: View, size: int) -> T.Compose:
    jitter = T.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)
    return T.Compose(
        [
            T.RandomResizedCrop(size, view.scale, view.ratio, T.InterpolationMode.BICUBIC),
            T.RandomApply([jitter], view.jitter),
            T.RandomGrayscale(view.grayscale),
            T.RandomApply([T.GaussianBlur(17, view.sigma)], view.blur),
            T.RandomSolarize(128, view.solarise),
            T.RandomHorizontalFlip(view.flip),
            T.ToTensor(),
        ]
    )


@pytest.mark.parametrize(("C", "preset"), [(3, "asymmetric"), (1, "asymmetric"), (1, "grey")])
def test_views_are_distributed_as_a_pil_pipelines(C: int, preset: str) -> None:
    """Over many views of one image: brightness, spread, colour, texture, sides and histogram."""
    n, size = 1500, 32
    x_CHW = picture(C, size)
    ours = two_crops(x_CHW.expand(n, -1, -1, -1), *unit(n, C), preset, dice())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = F.to_pil_image(x_CHW).convert("RGB")
        theirs = [
            torch.stack([pipeline(image) for _ in range(n)])
            for pipeline in (pil_pipeline(view, size) for view in PRESETS[preset])
        ]

    def facts(x_NCHW: Tensor) -> dict[str, Tensor]:
        found = {
            "mean": x_NCHW.mean((1, 2, 3)),
            "spread": x_NCHW.std((1, 2, 3)),
            "texture across": x_NCHW.diff(dim=3).abs().mean((1, 2, 3)),
            "texture down": x_NCHW.diff(dim=2).abs().mean((1, 2, 3)),
            "right - left": (x_NCHW[..., 16:] - x_NCHW[..., :16]).mean((1, 2, 3)),
            "low - high": (x_NCHW[..., 16:, :] - x_NCHW[..., :16, :]).mean((1, 2, 3)),
            "darkest": x_NCHW.amin((1, 2, 3)),
        }
        colours = {
            "red - green": (x_NCHW[:, 0] - x_NCHW[:, 1]).mean((1, 2)),
            "colour": (x_NCHW.amax(1) - x_NCHW.amin(1)).mean((1, 2)),
        }
        return {k: (v * 255).round() for k, v in (found | (colours if C == 3 else {})).items()}

    for our, their in zip(ours, theirs, strict=True):
        for fact, value in facts(our).items():
            assert stats.ks_2samp(value, facts(their)[fact]).pvalue > RARE, fact
        shares = [torch.histc(x, 10, 0, 1) / x.numel() for x in (our, their)]
        torch.testing.assert_close(*shares, rtol=0, atol=0.015)
        # four standard errors of a difference between two means of 1500 views, and of spreads
        torch.testing.assert_close(our.mean(), their.mean(), rtol=0, atol=0.02)
        torch.testing.assert_close(our.std(), their.std(), rtol=0, atol=0.01)


@pytest.mark.parametrize("preset", PRESETS)
def test_grey_in_one_channel_is_grey_in_three_within_1e_5(preset: str) -> None:
    B, S = 64, 28
    x_BCHW = noise(B, 1, S)
    mean_BC, std_BC = torch.rand(B, 1, generator=dice()), 0.5 + torch.rand(B, 1, generator=dice(1))
    for view in PRESETS[preset]:
        drawn = draw(view, B, S, S, dice(2))
        one = apply(view, x_BCHW, mean_BC, std_BC, drawn)
        three = apply(
            view, x_BCHW.expand(-1, 3, -1, -1), mean_BC.expand(-1, 3), std_BC.expand(-1, 3), drawn
        )
        far = (one - three).abs() > 1e-5  # a pixel within rounding of 128/255 is either side
        assert far.float().mean() < (1e-3 if view.solarise else 1e-9)


@pytest.mark.parametrize(("C", "preset"), list(itertools.product((1, 3), PRESETS)))
@pytest.mark.parametrize(("B", "H", "W"), [(1, 28, 28), (2, 28, 28), (3, 20, 31), (7, 5, 9)])
def test_any_batch_and_image_size(C: int, preset: str, B: int, H: int, W: int) -> None:
    pair = two_crops(noise(B, C, H, W), *unit(B, C), preset, dice())
    assert len(pair) == 2
    for x_BCHW in pair:
        assert x_BCHW.shape == (B, 3, H, W)
        assert x_BCHW.dtype == torch.float32
        assert x_BCHW.is_contiguous(memory_format=torch.channels_last)
        assert x_BCHW.isfinite().all()
        assert x_BCHW.min() >= 0 and x_BCHW.max() <= 1 + 1e-6  # noqa: PT018
    assert B * H < 40 or not torch.equal(*pair)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("preset", ["asymmetric", "remedis"])
def test_same_seed_same_views_other_seed_other_views(arrangement: str, preset: str) -> None:
    x_BCHW = noise(16, 3, 28)

    def look(generator: torch.Generator) -> list[Tensor]:
        return make(arrangement, x_BCHW, *unit(16, 3), preset, generator)

    one, again, other = (look(dice(seed)) for seed in (0, 0, 1))
    assert all(map(torch.equal, one, again))
    assert not any(map(torch.equal, one, other))
    generator = dice()
    assert not any(map(torch.equal, look(generator), look(generator)))


@pytest.mark.parametrize(("C", "preset"), [(3, "asymmetric"), (1, "grey")])
def test_every_view_of_one_image_is_another(C: int, preset: str) -> None:
    B = 50
    x_BCHW = picture(C, 28).expand(B, -1, -1, -1)
    x_ND = torch.cat(two_crops(x_BCHW, *unit(B, C), preset, dice())).flatten(1)
    assert (torch.cdist(x_ND, x_ND) + 9 * torch.eye(2 * B)).min() > 0.1


def test_views_stay_beside_their_image() -> None:
    x_BCHW = (torch.arange(12) * 20).byte().view(12, 1, 1, 1).repeat(1, 3, 28, 28)
    for x in two_crops(x_BCHW, *unit(12, 3), "grey", dice()):
        assert ((x.mean((1, 2, 3)) - torch.arange(12) * 20 / 255).abs() <= 0.4 * 220 / 255).all()
    still = replace(View(), jitter=0.0, grayscale=0.0)
    x = apply(still, x_BCHW, *unit(12, 3), draw(still, 12, 28, 28, dice()))
    torch.testing.assert_close(x, x_BCHW / 255, rtol=0, atol=1e-5)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("preset", ["asymmetric", "remedis"])
def test_autocast_around_it_changes_nothing(arrangement: str, preset: str) -> None:
    plain = look_at(arrangement, preset)
    with torch.autocast("cpu", torch.bfloat16):
        inside = look_at(arrangement, preset)
    assert all(x.dtype == torch.float32 for x in inside)
    assert all(map(torch.equal, plain, inside))


def test_each_image_is_normalised_by_its_own_mean_and_std() -> None:
    B = 6
    x_BCHW = noise(B, 3, 28)
    mean_BC, std_BC = torch.rand(B, 3, generator=dice()), 0.1 + torch.rand(B, 3, generator=dice(1))
    plain = two_crops(x_BCHW, *unit(B, 3), "asymmetric", dice(2))
    ours = two_crops(x_BCHW, mean_BC, std_BC, "asymmetric", dice(2))
    for x, y in zip(plain, ours, strict=True):
        expected = (x - mean_BC[:, :, None, None]) / std_BC[:, :, None, None]
        torch.testing.assert_close(y, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("preset", ["asymmetric", "remedis"])
def test_global_generators_and_inputs_are_left_alone(arrangement: str, preset: str) -> None:
    x_BCHW, (mean_BC, std_BC) = noise(4, 3, 28), unit(4, 3)
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    make(arrangement, x_BCHW, mean_BC, std_BC, preset, dice())
    after = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert torch.equal(x_BCHW, noise(4, 3, 28))
    assert torch.equal(mean_BC, torch.zeros(4, 3))
    assert torch.equal(std_BC, torch.ones(4, 3))


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("preset", ["asymmetric", "remedis"])
def test_no_step_waits_for_a_value(arrangement: str, preset: str) -> None:
    """Fake tensors have shapes and no values: .item(), a mask or a branch on one would raise."""
    with FakeTensorMode():
        x_BCHW = torch.empty(6, 3, 28, 28, dtype=torch.uint8)
        args = arrangement, x_BCHW, torch.empty(6, 3), torch.empty(6, 3), preset, dice()
        shapes = [x.shape for x in make(*args)]
    assert shapes == [x.shape for x in look_at(arrangement, preset)]


@pytest.mark.parametrize(
    ("C", "preset", "size"),
    [(3, "asymmetric", None), (1, "grey", None), (1, "remedis", (12, 12))],
)
def test_apply_compiles_without_a_graph_break(
    C: int, preset: str, size: tuple[int, int] | None
) -> None:
    """All that an arrangement does but for the dice: a compiled graph holds no generator."""
    view = PRESETS[preset][1]
    x_BCHW, drawn = noise(6, C, 28), draw(view, 6, 28, 28, dice())
    compiled = torch.compile(apply, fullgraph=True, backend="aot_eager")
    args = view, x_BCHW, *unit(6, C), drawn, size
    torch.testing.assert_close(compiled(*args), apply(*args), rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("preset", ["asymmetric", "remedis"])
def test_a_cuda_graph_holds_all_views_and_new_dice_each_replay(
    arrangement: str, preset: str
) -> None:
    x_BCHW, (mean_BC, std_BC) = noise(32, 3, 28), unit(32, 3)
    view = PRESETS[preset][0]
    drawn = draw(view, 32, 28, 28, dice())
    on_gpu = apply(
        view, x_BCHW.cuda(), mean_BC.cuda(), std_BC.cuda(), Drawn(*(d.cuda() for d in drawn))
    )
    on_cpu = apply(view, x_BCHW, mean_BC, std_BC, drawn)
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=5e-3)  # TF32 may be on

    args = arrangement, x_BCHW.cuda(), mean_BC.cuda(), std_BC.cuda(), preset
    generator, graph = torch.Generator("cuda").manual_seed(0), torch.cuda.CUDAGraph()
    make(*args, generator)
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        x_views = make(*args, generator)
    seen = []
    for _ in range(2):
        graph.replay()
        seen.append([x.clone() for x in x_views])
    assert not torch.equal(seen[0][0], seen[1][0])
    assert all(x.isfinite().all() for x in seen[1])


def test_presets_are_a_literal_that_can_be_read_without_importing() -> None:
    tree = ast.parse(inspect.getsource(views))
    [presets] = [n for n in tree.body if isinstance(n, ast.AnnAssign) and n.target.id == "PRESETS"]
    assert [ast.literal_eval(key) for key in presets.value.keys] == list(PRESETS)
