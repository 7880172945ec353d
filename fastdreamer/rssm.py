"""The recurrent state-space model: deterministic state, discrete latents, prior and posterior. Source: SPEC 2.3."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdreamer.batch import State
from fastdreamer.config import Dims
from fastdreamer.nets import BlockLinear, Linear, Norm, kernel_weights, layer_weights
from fastdreamer_kernels import imagine_sequence, mlp, observe_sequence, rssm_core
from fastdreamer_kernels.mlp import Kept
from fastdreamer_kernels.policy import ActionKey, Policy
from fastdreamer_kernels.rssm_core import Core, Head
from fastdreamer_kernels.unimix_sample.reference import draw

PRIOR_LAYERS, POSTERIOR_LAYERS = 2, 1


class RSSM(nn.Module):
    """World state = deter (D) + stoch (S groups of K classes); features are both, flattened: F = D + S*K."""

    def __init__(self, dims: Dims, action: int, tokens: int, unimix: float) -> None:
        super().__init__()
        self.dims, self.unimix = dims, unimix
        self.latent = dims.stoch * dims.classes
        self.width = dims.deter + self.latent
        hidden = dims.hidden
        for i, inputs in enumerate((dims.deter, self.latent, action)):
            self.add_module(f"dynin{i}", Linear(inputs, hidden))
            self.add_module(f"dynin{i}norm", Norm(hidden))
        # Every block also sees all three embeddings, so the input is that much wider.
        self.dynhid0 = BlockLinear(dims.deter + 3 * hidden * dims.blocks, dims.deter, dims.blocks)
        self.dynhid0norm = Norm(dims.deter)
        self.dyngru = BlockLinear(dims.deter, 3 * dims.deter, dims.blocks)
        self._add_head("prior", dims.deter, PRIOR_LAYERS)
        self._add_head("obs", dims.deter + tokens, POSTERIOR_LAYERS)

    def _add_head(self, name: str, inputs: int, layers: int) -> None:
        for i in range(layers):
            self.add_module(f"{name}{i}", Linear(inputs if i == 0 else self.dims.hidden, self.dims.hidden))
            self.add_module(f"{name}{i}norm", Norm(self.dims.hidden))
        self.add_module(f"{name}logit", Linear(self.dims.hidden, self.latent))

    def core(self, dtype: torch.dtype) -> Core:
        """The weights of the deterministic update in the compute dtype."""
        deter, stoch, action = (layer_weights(self, f"dynin{i}", f"dynin{i}norm", dtype) for i in range(3))
        hidden = layer_weights(self, "dynhid0", "dynhid0norm", dtype)
        return Core(deter, stoch, action, hidden, self.dyngru.weights(dtype))

    def head(self, name: str, layers: int, dtype: torch.dtype) -> Head:
        """The weights of the prior or the posterior in the compute dtype."""
        stack = tuple(layer_weights(self, f"{name}{i}", f"{name}{i}norm", dtype) for i in range(layers))
        return Head(stack, kernel_weights(self, f"{name}logit", dtype))

    def initial(self, rows: int, dtype: torch.dtype, device: torch.device) -> State:
        """Zeros: deter (rows, D), stoch (rows, S). Whatever it holds, is_first resets it before its first use."""
        deter = torch.zeros(rows, self.dims.deter, dtype=dtype, device=device)
        return State(deter, torch.zeros(rows, self.dims.stoch, dtype=torch.int32, device=device))

    def observe(
        self, start: State, embed: Tensor, prev_action: Tensor, is_first: Tensor, uniform: Tensor
    ) -> tuple[State, Tensor, Tensor]:
        """States (B, T, ...), the differentiable one-hot (B, T, S*K), and the posterior logits (B, T, S, K).

        start (B, ...), embed (B, T, E) in the compute dtype, flat prev_action (B, T, A), is_first (B, T),
        uniform (B, T, S) in [0, 1).
        """
        dtype = embed.dtype
        deter, stoch, sample, logits = observe_sequence(
            self.core(dtype), self.head("obs", POSTERIOR_LAYERS, dtype), start.deter.to(dtype), start.stoch,
            embed, prev_action.to(dtype), is_first, uniform, self.unimix,
        )  # fmt: skip
        return State(deter, stoch), sample.flatten(-2), logits

    def prior(self, deter: Tensor) -> Tensor:
        """Prior logits (..., S, K) of deter (..., D): no shift, prior and posterior share one deter."""
        logits = mlp(*self.head("prior", PRIOR_LAYERS, deter.dtype), deter)
        return logits.unflatten(-1, (self.dims.stoch, self.dims.classes))

    def imagine(
        self, start: State, policy: Policy, keys: tuple[ActionKey, ...], uniform: Tensor, action_noise: Tensor,
        actor_unimix: float,
    ) -> tuple[State, Tensor, Kept | None]:  # fmt: skip
        """H steps from N states: states (N, H+1, ...) with the start included, flat actions (N, H+1, A).

        And what the policy left for its loss, where the kernels keep it. uniform (N, H, S), action_noise
        (N, H+1, elements). No gradient flows.
        """
        dtype = start.deter.dtype
        deter, stoch, action, kept = imagine_sequence(
            self.core(dtype), self.head("prior", PRIOR_LAYERS, dtype), policy, keys,
            *start, uniform, action_noise, self.unimix, actor_unimix,
        )  # fmt: skip
        return State(deter, stoch), action, kept

    @torch.no_grad()
    def follow(self, start: State, action: Tensor, uniform: Tensor) -> State:
        """H steps from N states under given flat actions (N, H, A), without observations: states (N, H, ...).

        uniform (N, H, S) in [0, 1). To look at, not to learn from: plain PyTorch, one step after the other.
        """
        core, dtype = self.core(start.deter.dtype), start.deter.dtype
        own, shared = rssm_core.split_hidden(core)
        deter, stoch, states = start.deter, start.stoch, []
        for h in range(action.shape[1]):
            onehot = F.one_hot(stoch.long(), self.dims.classes).to(dtype).flatten(1)
            embedded = rssm_core.embed_action(action[:, h].to(dtype), core.action)
            deter = rssm_core.step(core, own, shared, deter, onehot, embedded)
            stoch, _ = draw(self.prior(deter), uniform[:, h], self.unimix)
            states.append((deter, stoch))
        deters, stochs = (torch.stack(column, 1) for column in zip(*states, strict=True))
        return State(deters, stochs)
