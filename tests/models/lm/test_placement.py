"""A parked model is on its device while it works, and only then."""

import copy

import torch
from torch import nn

from cdpo_lightning.evaluation.evaluator import logp_of
from cdpo_lightning.models.lm.placement import on_device, park

CPU, DEVICE = torch.device("cpu"), torch.device("cpu", 0)  # the second stands for a GPU: other, and there everywhere


class Moves(nn.Linear):
    """Notes where it is sent."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.seen: list[torch.device] = []

    def to(self, device):
        self.seen.append(torch.device(device))
        return super().to(device)


def test_a_model_that_is_not_parked_stays_where_it_is():
    model = Moves()
    with on_device(model) as device:
        assert device == CPU
    assert model.seen == []


def test_a_parked_model_is_brought_and_taken_back():
    model = Moves()
    park(model, DEVICE)
    for own in (model, copy.deepcopy(model)):  # a policy that is copied from the reference works where that did
        with on_device(own) as device:
            assert device == own.seen[-1] == DEVICE
        assert own.seen == [CPU, DEVICE, CPU]


def test_a_parked_model_measures_the_same_on_its_device(make_model):
    model, rows = make_model(), [([2, 3], [[4, 1], [5, 1]])]
    before = logp_of(model, rows, 2, "32-true")
    park(model, DEVICE)
    assert torch.equal(logp_of(model, rows, 2, "32-true"), before)
