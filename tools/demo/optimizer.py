"""The optimiser of training: Muon for the matrices inside the blocks, AdamW for everything else, on flat buffers.

In:  averaged gradients.   Out: updated float32 weights, a running average for export.
Owns: weights, moments and their order in memory. `parts` workers each update a part of the matrices and add up the results.

Muon orthogonalises the momentum of each matrix by four Newton-Schulz steps (K. Jordan et al., 2024); matrices of one shape lie
side by side and go through it as one batch.
"""

from contextlib import contextmanager

import torch


def _orthogonal(g):
    """The nearest semi-orthogonal matrices, roughly. g: [n, rows, columns]."""
    x = g
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(4):
        a = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return x.transpose(1, 2) if tall else x


class FlatOptimizer:
    def __init__(self, model, lr, muon_lr, part=0, parts=1):
        """The parameters and gradients of `model` turn into views of flat buffers."""
        self.lr, self.muon_lr, self.part, self.parts = lr, muon_lr, part, parts
        named = list(model.named_parameters())
        inner = [(n, p) for n, p in named if n.endswith("patch_embedding.weight")
                 or p.ndim == 2 and not any(k in n for k in ("embed", "lm_head", "latents", "aux", "position"))]
        taken = {n for n, _ in inner}
        matrix = {n: (p.shape[0], p.numel() // p.shape[0]) for n, p in inner}
        inner.sort(key=lambda entry: matrix[entry[0]])
        matrices = [(n, p) for n, p in named if n not in taken and p.ndim >= 2]
        vectors = [(n, p) for n, p in named if p.ndim < 2]
        self.order = inner + matrices + vectors
        size = sum(p.numel() for _, p in self.order)
        self.master = torch.cat([p.detach().flatten().float() for _, p in self.order])
        self.grads = torch.zeros(size)
        self.moment = torch.zeros(size)
        self.stacks, self.shapes, at = [], [], 0
        for n, p in self.order:
            self.shapes.append((n, at, tuple(p.shape)))
            p.data = self.master[at:at + p.numel()].view(p.shape)
            p.grad = self.grads[at:at + p.numel()].view(p.shape)
            if n in taken:
                if self.stacks and self.stacks[-1][1] == matrix[n]:
                    self.stacks[-1][2] += 1
                else:
                    self.stacks.append([at, matrix[n], 1])
            at += p.numel()
        self.inner_end = sum(p.numel() for _, p in inner)
        self.decay_end = self.inner_end + sum(p.numel() for _, p in matrices)
        self.second = torch.zeros(size - self.inner_end)
        self.average = self.master.clone()
        self.frozen = []  # (start, end, values)
        self.steps = 0

    def freeze(self, prefix):
        """From here on the averaged weights are the weights, and those whose names begin with `prefix` stay as they are."""
        self.master.copy_(self.average)
        for name, at, shape in self.shapes:
            if name.startswith(prefix):
                end = at + torch.Size(shape).numel()
                self.frozen.append((at, end, self.master[at:end].clone()))

    def muon_update(self, grad):
        """This part's share of the update of the inner matrices, zero elsewhere. grad: [all], averaged."""
        update = torch.zeros(self.inner_end)
        moment = self.moment[:self.inner_end].mul_(0.95).add_(grad[:self.inner_end], alpha=0.05)
        look = torch.lerp(moment, grad[:self.inner_end], 0.05) if self.steps else moment
        still = {at for at, _, _ in self.frozen}
        for at, (rows, columns), count in self.stacks:
            if at in still:  # matrices of one shape are frozen together
                continue
            low, high = count * self.part // self.parts, count * (self.part + 1) // self.parts
            if low == high:
                continue
            span = slice(at + low * rows * columns, at + high * rows * columns)
            scale = 0.2 * max(rows, columns) ** 0.5  # the root mean square of an AdamW update
            update[span] = _orthogonal(look[span].view(high - low, rows, columns)).flatten() * scale
        return update

    def step(self, grad, update, factor):
        """Applies `update` (summed over the parts) to the inner matrices and AdamW to the rest; factor scales both rates."""
        self.steps += 1
        inner, outer = self.master[:self.inner_end], self.master[self.inner_end:]
        inner.mul_(1 - 0.05 * self.muon_lr * factor).sub_(update, alpha=self.muon_lr * factor)
        g = grad[self.inner_end:]
        g = g * min(1.0, 1.0 / (g.norm().item() + 1e-6))
        moment = self.moment[self.inner_end:].lerp_(g, 0.1)
        self.second.lerp_(g * g, 0.02)
        fixed = (self.second / (1 - 0.98 ** self.steps)).sqrt_().add_(1e-8)
        outer[:self.decay_end - self.inner_end].mul_(1 - 0.02 * self.lr * factor)
        outer.addcdiv_(moment, fixed, value=-self.lr * factor / (1 - 0.9 ** self.steps))
        for at, end, values in self.frozen:
            self.master[at:end] = values
        if self.steps % 8 == 0:  # an average over the last few hundred steps
            self.average.lerp_(self.master, 1 - min(0.984, (1 + self.steps) / (80 + self.steps)))

    @contextmanager
    def averaged(self):
        """The model computes with the running average inside."""
        kept = self.master.clone()
        self.master.copy_(self.average)
        try:
            yield
        finally:
            self.master.copy_(kept)

    def state(self):
        return {k: getattr(self, k) for k in ("master", "moment", "second", "average", "steps")}

    def restore(self, state):
        for k, v in state.items():
            if k == "steps":
                self.steps = v
            else:
                getattr(self, k).copy_(v)

    def named(self, flat):
        """The tensors of a flat buffer by name."""
        return {n: flat[at:at + torch.Size(shape).numel()].view(shape).clone() for n, at, shape in self.shapes}
