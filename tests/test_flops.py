"""Operations are counted right, for every method, and counting leaves the method as it was."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from medssl import device, registry, views
from medssl._flops import of_step
from medssl.methods import SSLMethod, Step
from medssl.pretrain import initial
from medssl.spec import Sweep

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", registry.names("methods"))
def test_of_every_method_it_is_what_a_step_takes(name, tiny_vits):
    given = {"dataset": "phantom/cells", "backbone": "vit/tiny-14", "image_size": 28}
    spec = Sweep(name="t", method=name, eval="knn", **given).cells()[0].encoder
    module = registry.load("methods", name)
    method = module.Method(initial(spec).encoder, module.Config(**dict(spec.recipe))).train()
    x_BCHW, one_BC = torch.zeros(4, 3, 28, 28, dtype=torch.uint8), torch.ones(4, 3)
    generator = torch.Generator().manual_seed(0)
    batch = views.make(method.views, x_BCHW, one_BC, one_BC, spec.views, generator)
    before = {k: v.clone() for k, v in method.state_dict().items()}
    found, dice = of_step(method, batch), torch.get_rng_state()
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    assert all(p.grad is None for p in method.parameters())
    with FlopCounterMode(display=False) as counter, device.autocast(CPU):
        method.step(batch).loss.backward()
    assert found == counter.get_total_flops() > 0
    torch.set_rng_state(dice)


def test_a_multiply_and_an_add_are_two_and_backward_is_twice_forward():
    class Method(SSLMethod):
        def step(self, batch):
            return Step(self.encoder(batch[0]).sum(), {})

    found = of_step(Method(torch.nn.Linear(5, 7), None), [torch.zeros(3, 5)])
    assert found == 2 * (2 * 3 * 5 * 7)  # forward and of the weights: the input has no gradient


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10G", None),
        ("Tesla T4", None),
    ],
)
def test_what_a_gpu_could_do_is_by_its_name(monkeypatch, name, tera):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    found = device.peak(torch.device("cuda"))
    assert found == (tera * 1e12 if tera else None)
    assert device.peak(CPU) is None
