"""The RSSM against the official arrays: one core update, observed sequences with resets, open-loop imagination."""

import pytest
import torch
from golden_arrays import FORWARD, GRADIENT, Arrays, Golden
from golden_modules import fill, gradients, infer_dims, official_names
from golden_uniforms import midpoints, walk_observe
from torch import Tensor

from fastdreamer.batch import State
from fastdreamer.nets import concat_vectors
from fastdreamer.rssm import RSSM
from fastdreamer.spaces import Space, Spaces
from fastdreamer_kernels import rssm_core, unimix_kl, unimix_sample

UNIMIX, FREE_NATS, REP_SCALE = 0.01, 1.0, 0.1
CASES = ("disc", "cont", "multi")


def build(arrays: Arrays, stoch: Tensor) -> RSSM:
    """An RSSM of the sizes of the official parameters; parts that the file lacks stay zero."""
    params = arrays.group("param:")
    dims = infer_dims(params, stoch)
    tokens = params["dyn/obs0/kernel"].shape[0] - dims.deter if "dyn/obs0/kernel" in params else 0
    rssm = RSSM(dims, params["dyn/dynin2/kernel"].shape[0], tokens, UNIMIX)
    names = official_names(rssm, "dyn/")
    fill({name: names[name] for name in params}, params)
    return rssm


def core_step(rssm: RSSM, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
    """One deterministic update from one-hot latents (B, S, K) and flat actions (B, A)."""
    core = rssm.core(deter.dtype)
    embedded = rssm_core.embed_action(action, core.action)
    return rssm_core.step(core, *rssm_core.split_hidden(core), deter, stoch.flatten(1), embedded)


def test_core(golden: Golden) -> None:
    arrays = golden.open("rssm_core.npz")
    inputs = {key: arrays.read(key).requires_grad_() for key in ("deter", "stoch", "action")}
    rssm = build(arrays, inputs["stoch"])
    deter = core_step(rssm, **inputs)
    (deter * arrays.read("cotangent")).sum().backward()
    arrays.compare("deter_out", deter, FORWARD)
    arrays.compare_group("grad_param:", used_gradients(rssm, arrays), GRADIENT)
    for key, value in inputs.items():
        arrays.compare(f"grad_{key}", value.grad, GRADIENT)


def used_gradients(rssm: RSSM, arrays: Arrays) -> dict[str, Tensor]:
    """Gradients of the parameters that the file has."""
    grads = gradients(official_names(rssm, "dyn/"))
    return {name: grads[name] for name in arrays.keys("param:")}


def test_core_in_bfloat16(golden: Golden) -> None:
    """Both codes round to bfloat16 on the way: they may be as far apart as the official one is from float32."""
    arrays = golden.open("rssm_core_bf16.npz")
    inputs = {key: arrays.read(key) for key in ("deter", "stoch", "action")}
    rssm = build(arrays, inputs["stoch"])
    exact = core_step(rssm, **inputs)
    half = core_step(rssm, **{key: value.bfloat16() for key, value in inputs.items()})
    assert half.dtype == torch.bfloat16
    arrays.compare("deter_out", half.float(), arrays.drift("deter_out", exact.detach()))


def flat_actions(arrays: Arrays, width: int) -> Tensor:
    """The actions of every key as the product joins them; integers get as many classes as the rest leaves."""
    actions = arrays.group("action:")
    vectors = {key: value for key, value in actions.items() if value.is_floating_point()}
    spaces: Spaces = {key: Space("vector", tuple(value.shape[2:])) for key, value in vectors.items()}
    left = width - sum(space.width for space in spaces.values())
    for key in actions.keys() - vectors.keys():  # at most one key of integers per file
        shape = tuple(actions[key].shape[2:])
        spaces[key] = Space("discrete", shape, left // Space("vector", shape).elements)
    return concat_vectors(actions, spaces, 2, squish=False)


class Observed:
    """One observed sequence: the inputs of a file, and a pass of the product over them."""

    def __init__(self, arrays: Arrays) -> None:
        stoch = arrays.read("carry0:stoch")
        self.rssm = build(arrays, stoch)
        self.start = State(arrays.read("carry0:deter"), stoch.argmax(-1).int())
        self.embed = arrays.read("tokens").requires_grad_()
        self.action, self.is_first = arrays.read("action_emb"), arrays.read("reset")
        self.shape = (*self.embed.shape[:2], stoch.shape[1])

    def observe(self, uniform: Tensor) -> tuple[State, Tensor, Tensor]:
        return self.rssm.observe(self.start, self.embed, self.action, self.is_first, uniform)

    def uniforms(self, wanted: Tensor | None) -> Tensor:
        """Uniforms for the classes that are wanted (B, T, S), or for the likeliest."""
        return walk_observe(lambda uniform: self.observe(uniform)[2], self.shape, UNIMIX, wanted)


def compare_pass(arrays: Arrays, group: str, observed: Observed, wanted: Tensor | None) -> Tensor:
    """Compares states, logits, losses and entropies of one group; returns the official scalar, with gradient."""
    state, latent, post = observed.observe(observed.uniforms(wanted))
    latent = latent.unflatten(-1, post.shape[-2:])
    prior = observed.rssm.prior(state.deter)
    dyn, rep, post_entropy, prior_entropy = unimix_kl(post, prior, UNIMIX, FREE_NATS)
    outputs = {
        "deter": state.deter,
        "stoch": latent,
        "post_logit": post,
        "prior_logit": prior,
        "loss_dyn": dyn,
        "loss_rep": rep,
        "dyn_ent": prior_entropy.mean(),
        "rep_ent": post_entropy.mean(),
        "carry_deter": state.deter[:, -1],
        "carry_stoch": latent[:, -1],
    }
    arrays.compare_group(f"{group}:", outputs, FORWARD)
    assert (latent.argmax(-1) == state.stoch).all()
    weighted = (state.deter * arrays.read("cot_deter")).sum() + (latent * arrays.read("cot_stoch")).sum()
    return weighted + dyn.sum() + REP_SCALE * rep.sum()


@pytest.mark.parametrize("case", CASES)
def test_observe_likeliest_latents_and_gradients_through_time(golden: Golden, case: str) -> None:
    arrays = golden.open(f"rssm_observe_{case}.npz")
    observed = Observed(arrays)
    scalar = compare_pass(arrays, "mode", observed, None)
    scalar.backward()
    arrays.compare("scalar", scalar, FORWARD)
    arrays.compare_group("grad_param:", used_gradients(observed.rssm, arrays), GRADIENT)
    arrays.compare("grad_tokens", observed.embed.grad, GRADIENT)


@pytest.mark.parametrize("case", CASES)
def test_observe_sampled_latents(golden: Golden, case: str) -> None:
    arrays = golden.open(f"rssm_observe_{case}.npz")
    compare_pass(arrays, "sampled", Observed(arrays), arrays.read("sampled:stoch").argmax(-1))


@pytest.mark.parametrize("case", CASES)
def test_actions_are_joined_in_alphabetical_order(golden: Golden, case: str) -> None:
    arrays = golden.open(f"rssm_observe_{case}.npz")
    width = arrays.read("action_emb").shape[-1]
    arrays.compare("action_emb", flat_actions(arrays, width), FORWARD)


def test_imagine_with_given_actions(golden: Golden) -> None:
    """Imagination takes a policy, so given actions go through the parts of one step: core, prior, sample."""
    arrays = golden.open("rssm_imagine.npz")
    stoch = arrays.read("carry0:stoch")
    rssm, deter = build(arrays, stoch), arrays.read("carry0:deter")
    actions = flat_actions(arrays, rssm.core(deter.dtype).action.kernel.shape[0])
    steps = []
    for t in range(actions.shape[1]):
        deter = core_step(rssm, deter, stoch, actions[:, t])
        logits = rssm.prior(deter)
        stoch = unimix_sample(logits, midpoints(logits, UNIMIX), UNIMIX).onehot
        steps.append((deter, stoch, logits))
    outputs = dict(
        zip(
            ("deter", "stoch", "prior_logit"),
            (torch.stack(column, 1) for column in zip(*steps, strict=True)),
            strict=True,
        )
    )
    for key, value in outputs.items():
        arrays.compare(key, value, FORWARD)
