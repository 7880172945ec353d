"""How keys are joined, and what absent values do: parts that no official array covers."""

import torch

from fastdreamer.nets import concat_vectors, onehot
from fastdreamer.spaces import Space
from fastdreamer.world_model import reconstruction_loss


def test_keys_are_joined_in_alphabetical_order() -> None:
    spaces = {"speed": Space("vector", (2,)), "room": Space("discrete", (), 3), "bend": Space("vector")}
    values = {"speed": torch.tensor([[[1.0, -3.0]]]), "room": torch.tensor([[2]]), "bend": torch.tensor([[7.0]])}
    joined = [7.0, 0.0, 0.0, 1.0, 1.0, -3.0]
    assert concat_vectors(values, spaces, 2, squish=False).tolist() == [[joined]]
    squished = torch.tensor([7.0, 0.0, 0.0, 1.0, 1.0, -3.0])
    squished[[0, 4, 5]] = torch.tensor([8.0, 2.0, 4.0]).log() * torch.tensor([1.0, 1.0, -1.0])
    torch.testing.assert_close(concat_vectors(values, spaces, 2, squish=True), squished.view(1, 1, 6))


def test_absent_values_are_zeros() -> None:
    assert onehot(torch.tensor([1, -1]), 2).tolist() == [[0.0, 1.0], [0.0, 0.0]]
    value = {"speed": torch.tensor([[[-torch.inf, 5.0]]])}
    assert concat_vectors(value, {"speed": Space("vector", (2,))}, 2, squish=False).tolist() == [[[0.0, 5.0]]]


def test_absent_values_have_no_loss() -> None:
    prediction = torch.tensor([[[2.0, 3.0]]])
    target = torch.tensor([[[-torch.inf, 0.0]]])
    assert reconstruction_loss(prediction, target, Space("vector", (2,))).tolist() == [[9.0]]
    logits = torch.tensor([[[[0.0, 0.0], [5.0, -5.0]]]])
    loss = reconstruction_loss(logits, torch.tensor([[[1, -1]]]), Space("discrete", (2,), 2))
    torch.testing.assert_close(loss, torch.tensor([[2.0]]).log())
