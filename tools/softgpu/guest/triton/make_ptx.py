#!/usr/bin/env python3
"""Compiles the Triton programs below to PTX for sm_80; no GPU needed. Needs `pip install triton`; the PTX is committed.

Each kernel.ptx begins with a comment line of JSON: launch facts the test needs (name, num_warps, shared bytes, scratch arguments).
"""
import json
import pathlib
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def matmul(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """c[M,N] f32 = a[M,K] b[K,N], f16 in."""
    pm, pn = tl.program_id(0), tl.program_id(1)
    rm, rn, rk = pm * BM + tl.arange(0, BM), pn * BN + tl.arange(0, BN), tl.arange(0, BK)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, K, BK):
        x = tl.load(a + rm[:, None] * K + (k + rk)[None, :], mask=rm[:, None] < M, other=0.0)
        y = tl.load(b + (k + rk)[:, None] * N + rn[None, :], mask=rn[None, :] < N, other=0.0)
        acc += tl.dot(x, y)
    tl.store(c + rm[:, None] * N + rn[None, :], acc, mask=(rm[:, None] < M) & (rn[None, :] < N))


@triton.jit
def attention(q, k, v, o, S, scale, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """o[S,D] = softmax(q k^T scale) v with causal mask, one head, f16 in, f32 out."""
    rm, rd = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, D)
    x = tl.load(q + rm[:, None] * D + rd[None, :], mask=rm[:, None] < S, other=0.0)
    m = tl.full((BM,), -1e30, tl.float32)
    l = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, D), tl.float32)
    for n in range(0, S, BN):
        rn = n + tl.arange(0, BN)
        y = tl.load(k + rn[None, :] * D + rd[:, None], mask=rn[None, :] < S, other=0.0)
        s = tl.dot(x, y) * scale
        s = tl.where((rn[None, :] <= rm[:, None]) & (rn[None, :] < S), s, -1e30)
        top = tl.maximum(m, tl.max(s, 1))
        p = tl.exp(s - top[:, None])
        fix = tl.exp(m - top)
        l = l * fix + tl.sum(p, 1)
        z = tl.load(v + rn[:, None] * D + rd[None, :], mask=rn[:, None] < S, other=0.0)
        acc = acc * fix[:, None] + tl.dot(p.to(tl.float16), z)
        m = top
    tl.store(o + rm[:, None] * D + rd[None, :], acc / l[:, None], mask=rm[:, None] < S)


@triton.jit
def layernorm(x, w, b, y, N, eps, BLOCK: tl.constexpr):
    """y = (x - mean) / sqrt(var + eps) * w + b, one row a program, f32."""
    row, cols = tl.program_id(0), tl.arange(0, BLOCK)
    on = cols < N
    v = tl.load(x + row * N + cols, mask=on, other=0.0)
    mean = tl.sum(v, 0) / N
    d = tl.where(on, v - mean, 0.0)
    r = tl.rsqrt(tl.sum(d * d, 0) / N + eps)
    tl.store(y + row * N + cols, d * r * tl.load(w + cols, mask=on) + tl.load(b + cols, mask=on), mask=on)


@triton.jit
def sort_rows(x, y, BLOCK: tl.constexpr):
    """Each row of BLOCK f32 ascending."""
    row, cols = tl.program_id(0), tl.arange(0, BLOCK)
    tl.store(y + row * BLOCK + cols, tl.sort(tl.load(x + row * BLOCK + cols)))


KERNELS = [
    (matmul, {"a": "*fp16", "b": "*fp16", "c": "*fp32", "M": "i32", "N": "i32", "K": "i32"}, {"BM": 64, "BN": 64, "BK": 32}, 3),
    (attention, {"q": "*fp16", "k": "*fp16", "v": "*fp16", "o": "*fp32", "S": "i32", "scale": "fp32"}, {"D": 64, "BM": 64, "BN": 32}, 2),
    (layernorm, {"x": "*fp32", "w": "*fp32", "b": "*fp32", "y": "*fp32", "N": "i32", "eps": "fp32"}, {"BLOCK": 1024}, 1),
    (sort_rows, {"x": "*fp32", "y": "*fp32"}, {"BLOCK": 256}, 1),
]

here = pathlib.Path(__file__).parent
for fn, signature, constants, stages in KERNELS:
    signature = {**signature, **{k: "constexpr" for k in constants}}
    attrs = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(signature.values()) if t.startswith("*")}
    src = ASTSource(fn=fn, signature=signature, constexprs={(list(signature).index(k),): v for k, v in constants.items()}, attrs=attrs)
    out = triton.compile(src, target=GPUTarget("cuda", 80, 32), options={"num_warps": 4, "num_stages": stages})
    text = out.asm["ptx"]
    text = re.sub(r'^(\s*\.file\s+\d+ )".*/([^"/]+)"', r'\1"\2"', text, flags=re.M)
    # Debug sections name the machine's folders and are of no use here.
    text = re.sub(r"\n\t\.section\t\.debug_(?:abbrev|info|str)\n\t\{.*?\n\t\}", "", text, flags=re.S)
    text = re.sub(r"\n\t\.section\t\.debug_macinfo\s*\{\s*\}", "", text)
    params = len(re.findall(r"\.param ", text.split(")")[0]))
    facts = {"kernel": fn.fn.__name__, "num_warps": 4, "shared": out.metadata.shared, "params": params, "constants": constants}
    (here / f"{fn.fn.__name__}.ptx").write_text("// " + json.dumps(facts) + "\n" + text)
    print(fn.fn.__name__, facts)
