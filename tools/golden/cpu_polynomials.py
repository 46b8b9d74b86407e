"""Fits the polynomials of engine/backend/cpu/math.rs.

In: nothing. Out: coefficients, highest degree first, rounded to f32, with the largest error of the rounded
polynomial on the interval. Interpolation at Chebyshev nodes in 40 digits (mpmath), which is within a small factor
of the minimax polynomial. Run by hand: python tools/golden/cpu_polynomials.py
"""

import mpmath as mp
import numpy as np

mp.mp.dps = 40


def fit(name, f, lo, hi, degree, weight=lambda t: mp.mpf(1)):
    """Polynomial of `degree` through `f` at Chebyshev nodes of [lo, hi]; `weight` scales the printed error."""
    lo, hi = mp.mpf(lo), mp.mpf(hi)
    n = degree + 1
    nodes = [(lo + hi) / 2 + (hi - lo) / 2 * mp.cos(mp.pi * (2 * i + 1) / (2 * n)) for i in range(n)]
    a = mp.matrix(n, n)
    for i, t in enumerate(nodes):
        for j in range(n):
            a[i, j] = t**j
    c = mp.lu_solve(a, mp.matrix([f(t) for t in nodes]))
    c32 = [np.float32(float(v)) for v in c]
    worst = 0
    for i in range(2001):
        t = lo + (hi - lo) * i / 2000
        p = sum(mp.mpf(float(v)) * t**j for j, v in enumerate(c32))
        worst = max(worst, abs((p - f(t)) * weight(t)))
    print(f"{name}: degree {degree}, weighted error {mp.nstr(worst, 3)}")
    print("    [" + ", ".join(f"{float(v):.9e}" for v in reversed(c32)) + "]")


def safe(f, limit):
    """`f` with its limit at zero."""
    return lambda t: mp.mpf(limit) if abs(t) < mp.mpf("1e-12") else f(t)


half_ln2 = mp.log(2) / 2
# exp(r) = 1 + r + r^2 Q(r)
fit("exp", safe(lambda r: (mp.exp(r) - 1 - r) / r**2, 0.5), -half_ln2, half_ln2, 4, lambda r: r * r)
# tanh(x) = x + x z P(z), z = x^2, |x| <= 0.625
fit("tanh", safe(lambda z: (mp.tanh(mp.sqrt(z)) / mp.sqrt(z) - 1) / z, mp.mpf(-1) / 3), 0, mp.mpf("0.625") ** 2, 4, lambda z: z)
# erf(x) = x + x P(z), z = x^2, |x| <= 1
fit("erf, small", safe(lambda z: mp.erf(mp.sqrt(z)) / mp.sqrt(z) - 1, 2 / mp.sqrt(mp.pi) - 1), 0, 1, 6)
# erfc(x) = exp(-x S(x)), 1 <= x <= 4; an error e of x S(x) changes erf by erfc(x) e
fit("erf, large", lambda x: -mp.log(mp.erfc(x)) / x, 1, 4, 7, lambda x: x * mp.erfc(x))
