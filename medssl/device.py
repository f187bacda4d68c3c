"""What this machine computes with: a device, the type its matrix products take, and its name.

bf16 where the hardware multiplies it (any recent GPU; CPUs with AVX512-BF16 or AMX, where it halves
the time of a step), float32 elsewhere. It changes the last digits of a result and is therefore a
column of the table, not a setting.
"""

import contextlib
import platform
import warnings
from collections.abc import Iterator

import torch


def pick(gpu: bool) -> torch.device:
    """The GPU that was given to this process, or the CPU; ValueError where torch sees no GPU."""
    if gpu and not torch.cuda.is_available():
        raise ValueError("a GPU was given to this trial, but torch sees none: check the driver")
    return torch.device("cuda" if gpu else "cpu")


def confine(device: torch.device, share: float) -> None:
    """Lets this process have no more of a GPU's memory than its share: the others' is theirs."""
    if device.type == "cuda" and 0 < share < 1:
        torch.cuda.set_per_process_memory_fraction(share, torch.cuda.current_device())


def bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


# TFLOP/s of dense bfloat16 products, by NVIDIA's data sheets; the first name that fits
PEAKS = {"B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989}
PEAKS |= {"L40S": 362, "A100": 312, "L40": 181, "L4": 121}


def peak(device: torch.device) -> float | None:
    """Operations a second that a device could do at best, where that is known; a CPU's is not."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = [tera * 1e12 for gpu, tera in PEAKS.items() if gpu in name]
    return known[0] if known else None


def autocast(device: torch.device) -> torch.autocast:
    """The context in which encoders and heads run; losses are float32 inside it all the same."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16(device))


@contextlib.contextmanager
def float32() -> Iterator[None]:
    """No TF32 and no bfloat16 inside of what is float32, which cuDNN's convolutions are not alone.

    torch has two sets of switches, and forbids to read the older where they disagree: both are set,
    and set back. They are the process's; other flags of cuDNN stay as they are.
    """
    cudnn, cuda, mkldnn = torch.backends.cudnn, torch.backends.cuda, torch.backends.mkldnn
    parts = (cudnn.conv, cudnn.rnn, cuda.matmul, mkldnn.conv, mkldnn.matmul)
    was = conv, rnn, gpu, _, cpu = [part.fp32_precision for part in parts]
    matmul = "highest" if gpu != "tf32" else "medium" if cpu == "bf16" else "high"
    _switch(parts, False, "highest", ["ieee"] * len(parts))
    try:
        yield
    finally:
        _switch(parts, conv == rnn == "tf32", matmul, was)


def _switch(parts, convolutions: bool, matmul: str, precisions: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of torch warn of the older switches
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(matmul)
    for part, precision in zip(parts, precisions, strict=True):
        part.fp32_precision = precision


def describe(device: torch.device) -> dict[str, str | int]:
    """What a row says of where it was computed."""
    cpu = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name") or platform.machine()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cpu} (CPU)",
        "precision": "bf16" if bf16(device) else "float32",
        "threads": torch.get_num_threads(),
    }
