"""One optimizer for everything: adaptive gradient clipping, RMS scaling, momentum (LaProp). Source: SPEC 1.9.

The arithmetic is the op `laprop_agc`; here are its state, the learning rate and the names.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fastdreamer_kernels import laprop_agc


class LaProp:
    """Updates `params` in place from their `.grad`. Learning rate and step live on the device: no host sync.

    agc: the largest |gradient| / |parameter| per tensor, 0 for no clipping. warmup in updates; the first changes
    nothing. slow: moving averages by the name of their parameter, 2 % nearer to it after each update. weight_decay:
    added after momentum, to the tensors called kernel only. shadow: bfloat16 copies of all parameters, in their order.
    """

    def __init__(
        self, params: dict[str, nn.Parameter], lr: float, warmup: int, agc: float,
        slow: Mapping[str, Tensor] | None = None, weight_decay: float = 0.0, shadow: Sequence[Tensor] = (),
    ) -> None:  # fmt: skip
        self.names = list(params)
        self.params: list[Tensor] = list(params.values())
        self.lr, self.warmup, self.agc, self.weight_decay = lr, warmup, agc, weight_decay
        self.step_count = torch.zeros((), dtype=torch.float32, device=self.params[0].device)
        self.nu = [torch.zeros_like(param) for param in self.params]
        self.mu = [torch.zeros_like(param) for param in self.params]
        averaged = slow or {}
        self._slow_index = [i for i, name in enumerate(self.names) if name in averaged]
        self._slow = [averaged[self.names[i]] for i in self._slow_index]
        self.shadow = list(shadow)
        assert not (weight_decay and shadow), "the op makes the copies, before the decay"
        self._size = sum(param.numel() for param in self.params)

    @torch.no_grad()
    def step(self) -> dict[str, Tensor]:
        """One update; clears the gradients. Returns grad_norm, grad_rms, update_rms, param_rms as 0-d tensors.

        And skipped: 1 where the gradients were not finite, so that nothing changed, the step neither; else 0. The next
        update then has the learning rate of this one.
        """
        grads = [param.grad for param in self.params if param.grad is not None]
        assert len(grads) == len(self.params), "every parameter must have a gradient"
        self.step_count += 1
        lr = self.learning_rate()
        decay = [
            lr * self.weight_decay * param if self.weight_decay and name.endswith("kernel") else None
            for name, param in zip(self.names, self.params, strict=True)
        ]
        squares = laprop_agc(
            self.params, grads, self.nu, self.mu, self.shadow, self._slow, self._slow_index, self.step_count, lr,
            self.agc,
        )  # fmt: skip
        made = squares[0].isfinite()
        skipped = (~made).float()
        self.step_count -= skipped
        for param, part in zip(self.params, decay, strict=True):
            param.grad = None
            if part is not None:
                param -= torch.where(made, part, 0.0)  # 0 times a part would turn -0 into 0, and inf into NaN
        grad, update, new = squares.sqrt().unbind()
        count = self._size**0.5
        return {
            "opt/grad_norm": grad,
            "opt/grad_rms": grad / count,
            "opt/update_rms": update / count,
            "opt/param_rms": new / count,
            "opt/skipped": skipped,
        }

    def learning_rate(self) -> Tensor:
        """The learning rate of the current step, 0-d: 0 at step 1, then a linear warm-up."""
        if self.warmup == 0:
            return torch.full_like(self.step_count, self.lr)
        return self.lr * ((self.step_count - 1) / self.warmup).clamp(max=1.0)

    def state(self) -> dict[str, Tensor]:
        """Every tensor to save: step, mu/NAME, nu/NAME. They are the live tensors, so copying into them restores."""
        mu = {f"mu/{name}": value for name, value in zip(self.names, self.mu, strict=True)}
        nu = {f"nu/{name}": value for name, value in zip(self.names, self.nu, strict=True)}
        return {"step": self.step_count, **mu, **nu}
