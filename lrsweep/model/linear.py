"""Parametrisations of a linear layer; none has a bias."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Module):
    """y = x Wᵀ, W of shape (out, in)."""

    bf16: Tensor | None = None
    """bf16 copy that multiplies in the weight's place and takes its gradient, if whoever moves the weight keeps one."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))

    def matrix(self) -> Tensor:
        """W as it multiplies."""
        return self.weight if self.bf16 is None else self.bf16

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.matrix())


class SigmaReparam(nn.Module):
    """y = (g/σ(W))·x Wᵀ with a learnable scalar g (Zhai et al., 2303.06296, Eq. 3).

    σ(W) = uᵀWv, where u and v take one step of power iteration at each training forward and carry no gradient;
    all of it in fp32. :meth:`start` sets g = σ(W), so that the layer computes x Wᵀ at first.
    """

    u: Tensor
    v: Tensor

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        self.sigma_gain = nn.Parameter(torch.empty(()))
        self.register_buffer("u", torch.zeros(n_out))
        self.register_buffer("v", torch.zeros(n_in))

    @torch.no_grad()
    def start(self) -> None:
        """Set u, v to the leading singular vectors of W and g to its spectral norm."""
        w = self.weight.double()
        wide = w.shape[0] < w.shape[1]
        # The leading eigenvector of the smaller Gram matrix costs far less than an SVD of a vocabulary-sized W.
        small = torch.linalg.eigh(w @ w.T if wide else w.T @ w).eigenvectors[:, -1]
        other = (w.T if wide else w) @ small
        sigma = torch.linalg.vector_norm(other)
        u, v = (small, other / sigma) if wide else (other / sigma, small)
        self.u.copy_(u)
        self.v.copy_(v)
        self.sigma_gain.copy_(sigma)

    def matrix(self) -> Tensor:
        """(g/σ(W))·W; in training each call moves u and v by one step of power iteration."""
        with torch.autocast(self.weight.device.type, enabled=False):
            if self.training:
                with torch.no_grad():
                    self.u.copy_(F.normalize(self.weight @ self.v, dim=0))
                    self.v.copy_(F.normalize(self.weight.T @ self.u, dim=0))
            # Copies, because the next forward writes u and v in place before this one's backward may have run.
            u, v = self.u.clone(), self.v.clone()
            return (self.sigma_gain / (u @ (self.weight @ v))) * self.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.matrix())


LINEARS: dict[str, type[Linear] | type[SigmaReparam]] = {"plain": Linear, "sigma_reparam": SigmaReparam}
"""Parametrisation by its name in a scheme's row."""
