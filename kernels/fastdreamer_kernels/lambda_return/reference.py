"""The backward lambda-return scan in plain PyTorch. Source: SPEC 1.6 and 1.7."""

import torch
from torch import Tensor


def lambda_return(reward: Tensor, cont: Tensor, value: Tensor, lam: Tensor) -> Tensor:
    with torch.no_grad():
        ret = value[:, -1]
        one_step = reward + cont * (1 - lam) * value
        returns = []
        for t in range(reward.shape[1] - 1, 0, -1):
            ret = one_step[:, t] + cont[:, t] * lam[:, t] * ret
            returns.append(ret)
        return torch.stack(returns[::-1], 1)
