"""An offloaded model is on its compute device only while it is used."""

import copy

import torch
from torch import nn

from cdpo_lightning.models.lm.placement import offload, on_device
from cdpo_lightning.models.lm.response_logp import response_logp_of_rows

CPU, DEVICE = (
    torch.device("cpu"),
    torch.device("cpu", 0),
)  # the second plays a GPU: it compares unequal, and exists on every machine


class RecordsMoves(nn.Linear):
    """Records the devices that it is moved to."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.devices: list[torch.device] = []

    def to(self, device):
        self.devices.append(torch.device(device))
        return super().to(device)


def test_a_model_that_is_not_offloaded_is_not_moved():
    model = RecordsMoves()
    with on_device(model) as device:
        assert device == CPU
    assert model.devices == []


def test_an_offloaded_model_is_moved_to_its_device_and_back():
    model = RecordsMoves()
    offload(model, DEVICE)
    for own in (model, copy.deepcopy(model)):  # a policy copied from the reference uses the same device
        with on_device(own) as device:
            assert device == own.devices[-1] == DEVICE
        assert own.devices == [CPU, DEVICE, CPU]


def test_an_offloaded_model_gives_the_same_log_probabilities(make_model):
    model, rows = make_model(), [([2, 3], [[4, 1], [5, 1]])]
    before = response_logp_of_rows(model, rows, 2, "32-true")
    offload(model, DEVICE)
    assert torch.equal(response_logp_of_rows(model, rows, 2, "32-true"), before)
