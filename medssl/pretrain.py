"""One loop for every method: images on the device, views, step, backward, update, checkpoint.

    uint8 images -> batch -> views -> method.step -> loss -> optimiser -> method.after_update

Nothing in a step waits for the host: batches are cut from images that live on the device, logs are
summed there and read once per epoch, and a loss that is not finite makes the optimiser skip its
update (found on the device) until the epoch's end stops the run with the step range. The order of
images is a function of (seed, epoch) and the views of (seed, step), so a run that was killed and
resumed is, on CPU, bit for bit the run that was not.
"""

import contextlib
import hashlib
import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from medssl import _flops, backbones, monitor, optimizers, registry, views, weights
from medssl._work import Checkpoint
from medssl.datasets import Images
from medssl.device import autocast, peak
from medssl.methods import SSLMethod
from medssl.spec import NONE, EncoderSpec

# B images in a batch, C channels, H rows, W columns, D members of a union

UNDECAYED = ("cls_token", "reg_token", "pos_embed", "place_LQ")  # of timm's ViTs, of MAE's decoder

Report = Callable[[list[dict[str, float]]], None]  # the whole curve, after each epoch


class NotFinite(ArithmeticError):
    """The loss stopped being a number. Not worth a retry: the same steps give the same end."""


@dataclass
class Pretrained:
    """An encoder and what it cost. Under method "none" it is the init itself."""

    encoder: nn.Module  # x_BCHW -> f_BD, with .dim
    loaded: weights.Loaded
    seconds: float = 0.0  # in the loop, over all attempts
    views_per_s: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)  # one entry per epoch
    notes: list[str] = field(default_factory=list)  # what a reader of its numbers should know


def initial(spec: EncoderSpec, start: bytes | None = None) -> Pretrained:
    """The encoder before its first step, the same for every method of one seed.

    `start` is the file of the encoder that the init goes on from, where that is one of the store's.
    """
    torch.manual_seed(spec.seed)
    encoder = backbones.build(spec.backbone, spec.image_size)
    return Pretrained(encoder, weights.initialise(encoder, spec.backbone, spec.init, start))


def pretrain(
    spec: EncoderSpec,
    images: Images,
    device: torch.device,
    report: Report = lambda curve: None,
    checkpoint: Checkpoint | None = None,
    start: bytes | None = None,
    spare: bool = False,
) -> Pretrained:
    """The encoder after `spec.epochs` over `images`; NotFinite where the loss diverged.

    A resumed run goes on from its last checkpoint, in the middle of an epoch too. With `spare` a
    step keeps what goes into each block of the encoder, and computes what is inside again for the
    gradient: much less memory, more time, the same numbers.
    """
    result = initial(spec, start)
    if spec.method == NONE:
        return result
    module, recipe = registry.load("methods", spec.method), dict(spec.recipe)
    half = max(1, len(images) // 2)  # of all, and half of the batch would meet its own older keys
    if recipe.get("queue", 0) > half:
        result.notes.append(f"queue {recipe['queue']} cut to half of the {len(images)} images")
        recipe["queue"] = half
    if spare := spare and module.Method.forwards and spares(result.encoder):
        result.notes.append("pretrained with less memory, after it had run out")
    method = module.Method(result.encoder, module.Config(**recipe))
    method.to(device, memory_format=torch.channels_last).train()
    optimizer = optimizers.build(spec.optimizer, groups(method, spec.weight_decay))
    generator = torch.Generator(device)
    x_NCHW = torch.from_numpy(images.x_NHWC).permute(0, 3, 1, 2).to(device)
    mean_DC, std_DC, domain_N = (
        torch.from_numpy(a).to(device) for a in (images.mean_DC, images.std_DC, images.domain_N)
    )

    batch = min(spec.batch_size, len(images))
    if batch < spec.batch_size:
        result.notes.append(f"batch_size {spec.batch_size} cut to the {batch} training images")
    if 2 * spec.warmup_epochs > spec.epochs:
        result.notes.append(f"warmup_epochs {spec.warmup_epochs:g} cut to half of {spec.epochs}")
    per_epoch = len(images) // batch  # the incomplete last batch is left out, as the paper does
    total = per_epoch * spec.epochs
    step, seen, order_N = 0, Epoch.empty(device), None
    if checkpoint and (state := checkpoint.load()):
        step, seen, seconds, curve = restore(state, method, optimizer, device)
        result.seconds, result.curve = seconds, curve
        if curve:
            report(curve)

    best, operations = peak(device), None  # a second, and in a step
    while step < total:
        started = time.perf_counter()
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            seen = Epoch.empty(device)
        if place == 0 or order_N is None:
            order_N = order(images.domain_N, spec.sampling, spec.seed, epoch).to(device)
        picked_B = order_N[place * batch : (place + 1) * batch]
        generator.manual_seed(number(spec.seed, "views", step))
        domain_B = domain_N[picked_B]
        with torch.no_grad():
            x_views = views.make(
                method.views,
                x_NCHW[picked_B],
                mean_DC[domain_B],
                std_DC[domain_B],
                spec.views,
                generator,
            )
        seen.data_s += time.perf_counter() - started
        if best and operations is None:
            operations = counted(method, x_views)

        with autocast(device):
            loss, logs = method.step(x_views)
        optimizer.zero_grad()
        with unseen(method) if spare else contextlib.nullcontext():
            loss.backward()
        optimizer.found_inf = (~loss.detach().isfinite()).float()  # 1: the update is skipped
        rate = learning_rate(spec, step, per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = spec.learning_rate if group["steady"] else rate
        optimizer.step()
        method.after_update((step + 1) / total)
        seen.add(loss.detach(), logs, optimizer.found_inf)

        step += 1
        seen.work_s += time.perf_counter() - started
        if place + 1 == per_epoch:
            each = sum(x.shape[1] == 3 for x in x_views)  # the dice of a mask are no view
            values = seen.read(per_epoch, epoch, per_epoch * batch * each) | {"lr": rate}
            if operations:
                values["mfu"] = per_epoch * operations / values["seconds"] / best
            if device.type == "cuda":
                values["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
            result.seconds += values["seconds"]
            if monitor.due(epoch + 1, spec.epochs):  # as it is after the last
                must_be_finite(method.encoder)
                values |= monitor.look(method.encoder, images, device)
            result.curve.append(values)
            report(result.curve)
            if spec.early_stop == "collapse" and monitor.collapsed(result.curve, times=2):
                result.notes.append(f"ended after {epoch + 1} of {spec.epochs} epochs: collapsed")
                break
        if checkpoint and step < total:
            so_far = step, seen, method, optimizer, device, result.seconds, result.curve
            checkpoint.after(step, total, partial(snapshot, *so_far))

    made = sum(epoch["views_per_s"] * epoch["seconds"] for epoch in result.curve)
    result.views_per_s = made / result.seconds
    return result


def counted(method: SSLMethod, x_views: list[Tensor]) -> float:
    """Operations of a step; 0 where they cannot be counted, which costs no more than the number."""
    try:
        return _flops.of_step(method, x_views)
    except Exception:  # whatever an operation may do that was not made for shapes alone
        return 0


def spares(encoder: nn.Module) -> bool:
    """Tells the encoder to compute again what it needs not keep; whether it can."""
    try:
        encoder.set_grad_checkpointing(True)
    except (AttributeError, AssertionError):  # timm's networks assert, where they cannot
        return False
    return True


@contextlib.contextmanager
def unseen(method: nn.Module) -> Iterator[None]:
    """Inside, batches leave no trace in running statistics: they have been there before."""
    norms = [m for m in method.modules() if getattr(m, "track_running_stats", False)]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)


def must_be_finite(encoder: nn.Module) -> None:
    """NotFinite where an update of finite loss and infinite gradient has spoiled a weight."""
    if not all(p.isfinite().all() for p in encoder.parameters()):
        raise NotFinite("an update left weights that are not finite: lower learning_rate")


@dataclass
class Epoch:
    """Sums over one epoch, kept on the device until its end."""

    sums: dict[str, Tensor]
    bad: Tensor  # (), how many losses were not finite
    work_s: float = 0.0
    data_s: float = 0.0  # of which making views

    @classmethod
    def empty(cls, device: torch.device) -> "Epoch":
        return cls({}, torch.zeros((), device=device))

    def add(self, loss: Tensor, logs: dict[str, Tensor], bad: Tensor) -> None:
        for name, value in {"loss": loss, **logs}.items():
            value = value.double() if value.device.type == "cpu" else value.float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.bad = self.bad + bad

    def read(self, steps: int, epoch: int, views_made: int) -> dict[str, float]:
        """Means over the epoch; the one place where the host waits for the device."""
        waited = time.perf_counter()
        values = {name: (total / steps).item() for name, total in self.sums.items()}
        if bad := int(self.bad.item()):
            raise NotFinite(
                f"{bad} of {steps} losses of epoch {epoch + 1} (steps {epoch * steps} to "
                f"{(epoch + 1) * steps - 1}) were not finite: lower learning_rate or lengthen "
                f"warmup_epochs"
            )
        seconds = self.work_s + time.perf_counter() - waited
        values |= {"seconds": seconds, "views_per_s": views_made / seconds}
        if self.bad.device.type == "cpu":  # elsewhere this is the time of asking, not of making
            values["data_wait"] = self.data_s / seconds
        return values


def learning_rate(spec: EncoderSpec, step: int, per_epoch: int) -> float:
    """A straight line from 1/10 to the full rate, then a half cosine to 0; stepped per update."""
    warm, total = spec.warmup_epochs * per_epoch, spec.epochs * per_epoch
    warm = min(warm, total / 2)  # a short run warms up for at most half of it
    if step < warm:
        return spec.learning_rate * (0.1 + 0.9 * step / warm)
    return spec.learning_rate * (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2


def groups(method: SSLMethod, weight_decay: float) -> list[dict]:
    """Parameter groups: weights decay; norms, biases, tokens and positions ("bare") do not. Parts
    that the method calls steady are groups of their own."""
    found: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, p in method.named_parameters():
        if p.requires_grad:
            bare = p.ndim <= 1 or name.rpartition(".")[2] in UNDECAYED
            found.setdefault((name.partition(".")[0] in method.steady, bare), []).append(p)
    return [
        {"params": p, "weight_decay": 0.0 if bare else weight_decay, "steady": steady, "bare": bare}
        for (steady, bare), p in sorted(found.items())
    ]


def order(domain_N: np.ndarray, sampling: str, seed: int, epoch: int) -> Tensor:
    """Which image comes when in this epoch of N, drawn on the host so that devices agree.

    proportional: each image once. balanced: as many of each member of a union; those of a small one
    come again (all of them equally often, give or take one), and of a large one some wait.
    """
    generator = torch.Generator().manual_seed(number(seed, "order", epoch))
    N, members = len(domain_N), np.unique(domain_N)
    if sampling == "proportional" or len(members) == 1:
        return torch.randperm(N, generator=generator)
    picked = []
    for place, member in enumerate(members):
        own = torch.from_numpy(np.flatnonzero(domain_N == member))
        share = N // len(members) + (place < N % len(members))
        rounds = [
            own[torch.randperm(len(own), generator=generator)] for _ in range(-(-share // len(own)))
        ]
        picked.append(torch.cat(rounds)[:share])
    picked = torch.cat(picked)
    return picked[torch.randperm(N, generator=generator)]


def number(seed: int, what: str, index: int) -> int:
    """A seed of its own for every (seed, what, index), with no pattern between neighbours."""
    return int.from_bytes(hashlib.sha256(f"{seed} {what} {index}".encode()).digest()[:7])


def snapshot(step, seen, method, optimizer, device, seconds, curve) -> bytes:
    """Everything that the next step depends on, and what has been measured so far."""
    state = {
        "step": step,
        "method": method.state_dict(),  # teachers and queues are buffers and parameters of it
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "epoch": {"sums": seen.sums, "bad": seen.bad, "s": (seen.work_s, seen.data_s)},
        "seconds": seconds,
        "curve": curve,
    }
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def restore(state: bytes, method, optimizer, device) -> tuple[int, Epoch, float, list]:
    """The inverse of `snapshot`: fills method and optimizer, sets the random state."""
    read = torch.load(io.BytesIO(state), map_location=device, weights_only=True)
    method.load_state_dict(read["method"])
    optimizer.load_state_dict(read["optimizer"])
    torch.set_rng_state(read["rng"].cpu())
    if device.type == "cuda" and read["cuda_rng"] is not None:
        torch.cuda.set_rng_state(read["cuda_rng"].cpu(), device)
    epoch = read["epoch"]
    seen = Epoch(epoch["sums"], epoch["bad"], *epoch["s"])
    return read["step"], seen, read["seconds"], read["curve"]
