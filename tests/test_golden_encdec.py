"""Encoder and decoder against the official arrays: images of two kinds, vectors, integers, mixtures, bfloat16."""

import pytest
import torch
from golden_arrays import FORWARD, GRADIENT, Arrays, Golden, Tolerance
from golden_modules import fill, gradients, official_names
from torch import Tensor

from fastdreamer.nets import Decoder, Encoder
from fastdreamer.spaces import Space, Spaces
from fastdreamer.world_model import reconstruction_loss

CASES = ("img", "img96gray", "vec", "mixed")
STORED_AS_HALF = Tolerance(1e-3, 1e-3)
"""Images that the files keep in float16."""


def infer_spaces(obs: dict[str, Tensor], params: dict[str, Tensor]) -> Spaces:
    """What kind of observation every key is; integers have one class per logit of the decoder."""
    spaces: Spaces = {}
    for key, value in obs.items():
        shape = tuple(value.shape[2:])
        if value.dtype == torch.uint8:
            spaces[key] = Space("image", shape)
        elif value.is_floating_point():
            spaces[key] = Space("vector", shape)
        else:
            logits = params[f"dec/vec/{key}/logits/bias"].numel()
            spaces[key] = Space("discrete", shape, logits // Space("vector", shape).elements)
    return spaces


def sizes(params: dict[str, Tensor]) -> tuple[int, int, int]:
    """Units, depth and blocks behind official parameters; what only one half of the networks has may be absent."""
    units = params["enc/mlp0/bias"].numel() if "enc/mlp0/bias" in params else params["dec/sp1/bias"].numel() // 2
    depth = params["enc/cnn0/bias"].numel() // 2 if "enc/cnn0/bias" in params else 1
    blocks = len(params["dec/sp0/kernel"]) if "dec/sp0/kernel" in params else 1
    return units, depth, blocks


class Networks:
    """Encoder and decoder with the official parameters, and the inputs of a file."""

    def __init__(self, arrays: Arrays) -> None:
        params = arrays.group("param:")
        self.obs = arrays.group("obs:")
        self.deter, self.stoch = arrays.read("feat:deter").requires_grad_(), arrays.read("feat:stoch").requires_grad_()
        self.spaces = infer_spaces(self.obs, params)
        units, depth, blocks = sizes(params)
        self.encoder = Encoder(self.spaces, units, depth)
        latent = self.stoch.shape[-2] * self.stoch.shape[-1]
        self.decoder = Decoder(self.spaces, self.deter.shape[-1], latent, units, depth, blocks)
        self.parameters = official_names(self.encoder, "enc/") | official_names(self.decoder, "dec/")
        fill(self.parameters, params)

    def run(self, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Tokens, predictions and losses per key."""
        tokens = self.encoder(self.obs, dtype)
        predictions = self.decoder(self.deter.to(dtype), self.stoch.flatten(-2).to(dtype))
        losses = {key: reconstruction_loss(out, self.obs[key], self.spaces[key]) for key, out in predictions.items()}
        return tokens, predictions, losses

    def values(self, predictions: dict[str, Tensor]) -> dict[str, Tensor]:
        """Images and vectors as predicted, integers as the likeliest class."""
        discrete = {
            key: out.argmax(-1).int() for key, out in predictions.items() if self.spaces[key].kind == "discrete"
        }
        return predictions | discrete


@pytest.mark.parametrize("case", CASES)
def test_tokens_predictions_and_losses(golden: Golden, case: str) -> None:
    arrays = golden.open(f"encdec_{case}.npz")
    networks = Networks(arrays)
    tokens, predictions, losses = networks.run(torch.float32)
    arrays.compare("tokens", tokens, FORWARD)
    arrays.compare_group("loss:", losses, FORWARD)
    for key, value in networks.values(predictions).items():
        half = arrays.arrays[f"pred:{key}"].dtype == "float16"
        arrays.compare(f"pred:{key}", value, STORED_AS_HALF if half else FORWARD)
    arrays.compare_group("raw:", {key: predictions[key] for key in arrays.keys("raw:")}, FORWARD)


def test_gradients_of_the_image_networks(golden: Golden) -> None:
    arrays = golden.open("encdec_img.npz")
    networks = Networks(arrays)
    tokens, _, losses = networks.run(torch.float32)
    scalar = (tokens * arrays.read("cot_tokens")).sum() + losses["image"].mean()
    scalar.backward()
    arrays.compare("scalar", scalar, FORWARD)
    arrays.compare_group("grad_param:", gradients(networks.parameters), GRADIENT)
    arrays.compare_group("grad_feat:", {"deter": networks.deter.grad, "stoch": networks.stoch.grad}, GRADIENT)


def test_bfloat16(golden: Golden) -> None:
    """Both codes round to bfloat16 on the way: they may be as far apart as the official one is from its float32."""
    arrays, half = golden.open("encdec_img.npz"), golden.open("encdec_img_bf16_outputs.npz")
    networks = Networks(arrays)
    tokens, predictions, losses = networks.run(torch.bfloat16)
    assert tokens.dtype == predictions["image"].dtype == torch.bfloat16
    got = {
        "tokens": (tokens, arrays.read("tokens")),
        "loss:image": (losses["image"], arrays.read("loss:image")),
        "pred_first": (predictions["image"][0, 0], arrays.read("pred:image")[0, 0]),
    }
    for key, (actual, exact) in got.items():
        half.compare(key, actual.float(), half.drift(key, exact))
