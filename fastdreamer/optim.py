"""One optimizer for everything: adaptive gradient clipping, RMS scaling, momentum (LaProp). Source: SPEC 1.9.

Per tensor, with step t = 1, 2, ...:

    g  <- g / max(1, |g| / (agc max(1e-3, |theta|)))
    nu <- 0.999 nu + 0.001 g^2 ;    u = g / (sqrt(nu / (1 - 0.999^t)) + 1e-20)
    mu <- 0.9 mu + 0.1 u ;          theta <- theta - lr_t mu / (1 - 0.9^t)
    lr_t = lr min(1, (t - 1) / warmup)

Nothing here may flush denormals: with eps 1e-20 a tiny gradient whose square vanishes would become a huge update.
"""

import torch
from torch import Tensor, nn

BETA1, BETA2, EPS, MIN_NORM = 0.9, 0.999, 1e-20, 1e-3


class LaProp:
    """Updates `params` in place from their `.grad`. Learning rate and step live on the device: no host sync.

    agc: the largest |gradient| / |parameter| per tensor, 0 for no clipping. warmup in updates; the first changes
    nothing. weight_decay: added after momentum, to the tensors called kernel only.
    """

    def __init__(
        self, params: dict[str, nn.Parameter], lr: float, warmup: int, agc: float, weight_decay: float = 0.0
    ) -> None:
        self.names = list(params)
        self.params: list[Tensor] = list(params.values())
        self.lr, self.warmup, self.agc, self.weight_decay = lr, warmup, agc, weight_decay
        self.step_count = torch.zeros((), dtype=torch.float32, device=self.params[0].device)
        self.nu = [torch.zeros_like(param) for param in self.params]
        self.mu = [torch.zeros_like(param) for param in self.params]

    @torch.no_grad()
    def step(self) -> dict[str, Tensor]:
        """One update; clears the gradients. Returns grad_norm, grad_rms, update_rms, param_rms as 0-d tensors."""
        grads = [param.grad for param in self.params if param.grad is not None]
        assert len(grads) == len(self.params), "every parameter must have a gradient"
        self.step_count += 1
        norms = torch.stack(torch._foreach_norm(grads))
        if self.agc:
            grads = self._clip(grads, norms)
        torch._foreach_lerp_(self.nu, torch._foreach_mul(grads, grads), 1 - BETA2)
        scale = torch._foreach_div(self.nu, 1 - BETA2**self.step_count)
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, EPS)
        torch._foreach_lerp_(self.mu, torch._foreach_div(grads, scale), 1 - BETA1)
        lr = self.learning_rate()
        updates = torch._foreach_mul(self.mu, -lr / (1 - BETA1**self.step_count))
        if self.weight_decay:
            for name, param, update in zip(self.names, self.params, updates, strict=True):
                if name.endswith("kernel"):
                    update -= lr * self.weight_decay * param
        torch._foreach_add_(self.params, updates)
        for param in self.params:
            param.grad = None
        count = sum(param.numel() for param in self.params)
        norm = torch.linalg.vector_norm(norms)
        return {
            "opt/grad_norm": norm,
            "opt/grad_rms": norm / count**0.5,
            "opt/update_rms": _norm(updates) / count**0.5,
            "opt/param_rms": _norm(self.params) / count**0.5,
        }

    def learning_rate(self) -> Tensor:
        """The learning rate of the current step, 0-d: 0 at step 1, then a linear warm-up."""
        if self.warmup == 0:
            return torch.full_like(self.step_count, self.lr)
        return self.lr * ((self.step_count - 1) / self.warmup).clamp(max=1.0)

    def _clip(self, grads: list[Tensor], norms: Tensor) -> list[Tensor]:
        limit = self.agc * torch.stack(torch._foreach_norm(self.params)).clamp(min=MIN_NORM)
        return list(torch._foreach_div(grads, (norms / limit).clamp(min=1.0).unbind()))

    def state(self) -> dict[str, Tensor]:
        """Every tensor to save: step, mu/NAME, nu/NAME. They are the live tensors, so copying into them restores."""
        mu = {f"mu/{name}": value for name, value in zip(self.names, self.mu, strict=True)}
        nu = {f"nu/{name}": value for name, value in zip(self.names, self.nu, strict=True)}
        return {"step": self.step_count, **mu, **nu}


def _norm(tensors: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
