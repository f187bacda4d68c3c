"""Which view goes where: one-sided methods ask with the first and answer with the second."""

import copy

import pytest
import torch

from medssl import registry

SMALL = {"queue": 16, "out_dim": 8}


@pytest.fixture(params=["moco_v1", "moco_v2", "ressl"])
def method(request, tiny_encoder):
    torch.manual_seed(0)
    module = registry.load("methods", request.param)
    return module.Method(tiny_encoder(), module.Config(**SMALL))


def test_the_student_sees_the_first_view_and_the_teacher_the_second(method):
    first, second = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)
    seen = {}
    method.student.register_forward_pre_hook(lambda _, x: seen.update(student=x[0]))
    method.teacher.register_forward_pre_hook(lambda _, x: seen.update(teacher=x[0]))
    method.step([first, second])
    assert seen["student"] is first
    assert seen["teacher"] is second


def test_the_queue_holds_the_teachers_keys(method):
    views = [torch.rand(16, 3, 32, 32) for _ in range(2)]
    key_BP = torch.nn.functional.normalize(copy.deepcopy(method.teacher)(views[1]), dim=1)
    method.step(views)
    method.after_update(0.0)
    torch.testing.assert_close(method.queue.keys_MP, key_BP)


@pytest.mark.parametrize("name", ["moco_v1", "moco_v2"])
def test_mocos_teacher_keeps_its_pace_to_the_end(name, tiny_encoder):
    module = registry.load("methods", name)
    method = module.Method(tiny_encoder(), module.Config(**SMALL, momentum=0.9))
    teacher, student = next(method.teacher.parameters()), next(method.student.parameters())
    with torch.no_grad():
        teacher.zero_()
        student.fill_(1)
    method.step([torch.rand(4, 3, 32, 32) for _ in range(2)])
    method.after_update(1.0)
    torch.testing.assert_close(teacher, torch.full_like(teacher, 0.1))


def test_mocos_heads_are_a_line_and_then_two_layers(tiny_encoder):
    heads = []
    for name in ("moco_v1", "moco_v2"):
        module = registry.load("methods", name)
        heads.append(module.Method(tiny_encoder(), module.Config(queue=16)).student[1])
    line, layers = heads
    assert (line.in_features, line.out_features) == (16, 128)
    assert [type(part).__name__ for part in layers] == ["Linear", "ReLU", "Linear"]
    assert layers[0].out_features == 2048
