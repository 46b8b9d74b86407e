"""Runs guest kernels through ctypes on libcuda.so.1, with the standard library only. Exit status 0 when all results are right.

Argument: the guest directory. Started by tests/driver.rs with LD_LIBRARY_PATH set; runs by hand under tools/softgpu/run.sh too.
"""
import array
import ctypes
import json
import math
import pathlib
import random
import struct
import sys

GUEST = pathlib.Path(sys.argv[1])
cuda = ctypes.CDLL("libcuda.so.1")
P = ctypes.c_void_p


def ok(result, what=""):
    if result != 0:
        name = ctypes.c_char_p()
        cuda.cuGetErrorName(result, ctypes.byref(name))
        raise SystemExit(f"{what}: {result} {name.value}")


def f16(values):
    return struct.pack(f"<{len(values)}e", *values)


def bf16(values):
    """Nearest bfloat16, ties to even."""
    out = []
    for v in values:
        (b,) = struct.unpack("<I", struct.pack("<f", v))
        out.append((b + 0x7FFF + (b >> 16 & 1)) >> 16)
    return struct.pack(f"<{len(out)}H", *out)


def from_bf16(raw):
    return [struct.unpack("<f", struct.pack("<I", h << 16))[0] for h in struct.unpack(f"<{len(raw) // 2}H", raw)]


def f32(values):
    return array.array("f", values).tobytes()


def i32(values):
    return array.array("i", values).tobytes()


class Buffer:
    def __init__(self, content):
        self.bytes = content if isinstance(content, int) else len(content)
        self.address = ctypes.c_uint64()
        ok(cuda.cuMemAlloc_v2(ctypes.byref(self.address), ctypes.c_size_t(self.bytes)), "cuMemAlloc")
        if not isinstance(content, int):
            ok(cuda.cuMemcpyHtoD_v2(self.address, content, ctypes.c_size_t(self.bytes)), "cuMemcpyHtoD")

    def read(self, form):
        raw = ctypes.create_string_buffer(self.bytes)
        ok(cuda.cuMemcpyDtoH_v2(raw, self.address, ctypes.c_size_t(self.bytes)), "cuMemcpyDtoH")
        return array.array(form, raw.raw)

    def raw(self):
        return bytes(self.read("B"))


def load(path):
    module = P()
    ok(cuda.cuModuleLoadData(ctypes.byref(module), pathlib.Path(path).read_bytes() + b"\0"), str(path))
    return module


def function(module, name):
    f = P()
    ok(cuda.cuModuleGetFunction(ctypes.byref(f), module, name.encode()), name)
    return f


def launch(f, grid, block, shared, *arguments):
    values = [a.address if isinstance(a, Buffer) else a for a in arguments]
    pointers = (P * len(values))(*[ctypes.cast(ctypes.pointer(v), P) for v in values])
    ok(cuda.cuLaunchKernel(f, *grid, *block, shared, None, pointers, None), "cuLaunchKernel")
    ok(cuda.cuCtxSynchronize(), "cuCtxSynchronize")


def close(got, want, tolerance, what):
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        if not abs(g - w) <= tolerance * (1 + abs(w)):
            raise SystemExit(f"{what}: element {i} is {g}, expected {w}")
    print("ok", what)


def half_value(v):
    return struct.unpack("<e", struct.pack("<e", v))[0]


ok(cuda.cuInit(0), "cuInit")
count, device, context = ctypes.c_int(), ctypes.c_int(), P()
ok(cuda.cuDeviceGetCount(ctypes.byref(count)))
ok(cuda.cuDeviceGet(ctypes.byref(device), 0))
ok(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
ok(cuda.cuCtxSetCurrent(context))
random.seed(1)
U32, F32 = ctypes.c_uint32, ctypes.c_float


def noise(n):
    return [random.uniform(-1, 1) for _ in range(n)]


def basic():
    module = load(GUEST / "basic.ptx")
    a, b = f32(noise(1000)), f32(noise(1000))
    c = Buffer(4000)
    launch(function(module, "vector_add"), (4, 1, 1), (256, 1, 1), 0, Buffer(a), Buffer(b), c, U32(1000))
    close(c.read("f"), [x + y for x, y in zip(array.array("f", a), array.array("f", b))], 1e-6, "vector_add")


def features():
    module = load(GUEST / "features.ptx")
    n = 256
    a, b = [half_value(v) for v in noise(n)], [half_value(v) for v in noise(n)]
    out = Buffer(2 * n)
    launch(function(module, "half_ops"), (1, 1, 1), (128, 1, 1), 0, Buffer(f16(a)), Buffer(f16(b)), out, U32(n))
    want = []
    for i in range(0, n, 2):
        pair = []
        for x, y in zip(a[i : i + 2], b[i : i + 2]):
            r = half_value(x * y + half_value(x + y))
            r = max(r, half_value(x - y))
            pair.append(half_value(r + half_value(2 ** min(x, y))))
        want += pair[::-1] if a[i] < b[i + 1] else pair
    close(struct.unpack(f"<{n}e", out.raw()), want, 2e-3, "half_ops")

    a, b = from_bf16(bf16(noise(n))), from_bf16(bf16(noise(n)))
    out = Buffer(2 * n)
    launch(function(module, "bfloat_ops"), (1, 1, 1), (128, 1, 1), 0, Buffer(bf16(a)), Buffer(bf16(b)), out, U32(n))
    one = lambda v: from_bf16(bf16([v]))[0]
    close(from_bf16(out.raw()), [abs(max(one(x * y + one(x * x)), one(x - y))) for x, y in zip(a, b)], 1e-6, "bfloat_ops")

    x = array.array("f", noise(128))
    x[5] = 4.0
    out = Buffer(512)
    launch(function(module, "tile_partitions"), (1, 1, 1), (128, 1, 1), 0, Buffer(x.tobytes()), out)
    tile = lambda i, k: sum(x[i // k * k : i // k * k + k])
    s = [tile(i, 8) + 2 * tile(i, 16) + 4 * tile(i, 32) for i in range(128)]
    want = []
    for i in range(128):
        w = i // 32 * 32
        bonus = 1000 if any(x[j] > 3.9 for j in range(w, w + 32)) else 0
        positive = sum(x[j] > 0 for j in range(w, w + 32))
        want.append(sum(s[(j + 1) % 128] for j in range(w, w + 32)) + w + 31 + bonus + positive)
    close(out.read("f"), want, 1e-5, "cooperative groups' tiles")

    x = array.array("f", noise(100))
    out = Buffer(400)
    launch(function(module, "device_calls"), (2, 1, 1), (64, 1, 1), 0, Buffer(x.tobytes()), out, U32(100))
    want = []
    for i in range(100):
        v = (x[i] + 1) ** 2 + 2 * i
        if i % 3 == 0:
            v += v * v + 7
        want.append(v + math.gcd(i * 6 + 12, 18))
    close(out.read("f"), want, 1e-5, "device function calls")

    x = [random.randrange(-1000, 1000) for _ in range(900)]
    out = Buffer(400)
    launch(function(module, "local_sort"), (1, 1, 1), (128, 1, 1), 0, Buffer(i32(x)), out, U32(100))
    close(out.read("i"), [sorted(x[9 * i : 9 * i + 9])[i % 9] for i in range(100)], 0, "local arrays")

    x = [random.randrange(-(2**31), 2**31) for _ in range(512)]
    out = Buffer(2048)
    launch(function(module, "switch_table"), (4, 1, 1), (128, 1, 1), 0, Buffer(i32(x)), out, U32(512))
    signed = lambda v: (v + 2**31) % 2**32 - 2**31
    quotient = lambda p, q: int(abs(p) // q) * (1 if p >= 0 else -1)
    table = [3, 1, 4, 1, 5, 9, 2, 6]

    def switched(v):
        u = v % 2**32
        return [
            signed(v * 3), v ^ 0x55, signed(v - 17), signed(v << 3), quotient(v, 7), v - 13 * quotient(v, 13),
            signed(int(f"{u:032b}"[::-1], 2)), 32 - u.bit_length(), (u & -u).bit_length(), ~v, min(v, 100),
        ][v & 15] if v & 15 < 11 else table[v & 7] + 5

    close(out.read("i"), [switched(v) for v in x], 0, "switch, constant table, global variable")

    a, b = ([random.randrange(-(2**63), 2**63) >> random.randrange(60) for _ in range(64)] for _ in range(2))
    out = Buffer(64 * 32)
    pack = lambda v: array.array("q", v).tobytes()
    launch(function(module, "wide_integers"), (1, 1, 1), (64, 1, 1), 0, Buffer(pack(a)), Buffer(pack(b)), out, U32(64))
    got, signed64 = out.read("q"), lambda v: (v + 2**63) % 2**64 - 2**63
    for i, (x, y) in enumerate(zip(a, b)):
        y |= 1
        q = abs(x) // abs(y) * (1 if (x >= 0) == (y >= 0) else -1)
        u, w = x % 2**64, y % 2**64
        byte = lambda v, n: ((v >> 8 * n & 255) + 128) % 256 - 128
        dot = signed(sum(byte(x, n) * byte(y, n) for n in range(4)) + 3)
        last = (x * y >> 64) + (u % 2**32) // 10 + bin(u).count("1") + 64 - w.bit_length() + dot
        close(got[4 * i : 4 * i + 4], [signed64(q), x - q * y, signed64((u * w >> 64) ^ (u >> (y & 63))), signed64(last)], 0, f"wide_integers {i}")

    x = array.array("f", [v * 3 for v in noise(128)])
    out = Buffer(128 * 48)
    launch(function(module, "math_functions"), (1, 1, 1), (128, 1, 1), 0, Buffer(x.tobytes()), out, U32(128))
    want = []
    for v in x:
        p = abs(v)
        want += [math.exp(v), math.log(p + 1e-3), math.sin(v * 10), math.cos(v * 10), math.tanh(v), math.erf(v), math.sqrt(p),
                 1 / math.sqrt(p + 0.1), (p + 0.5) ** 1.7, 1 / (v + 20), math.log1p(p), math.fmod(v * 7, 1.3)]
    close(out.read("f"), want, 2e-5, "math functions")

    x = [v * 50 for v in noise(64)]
    out = Buffer(64 * 32)
    launch(function(module, "double_math"), (1, 1, 1), (64, 1, 1), 0, Buffer(array.array("d", x).tobytes()), out, U32(64))
    want = []
    for v in x:
        toward_zero = struct.unpack("<f", struct.pack("<f", v))[0]
        if abs(toward_zero) > abs(v):
            (bits,) = struct.unpack("<I", struct.pack("<f", toward_zero))
            (toward_zero,) = struct.unpack("<f", struct.pack("<I", bits - 1))
        want += [v / 3 + math.sqrt(abs(v)), math.exp(v), math.sin(v) * math.cos(v), int(v) + toward_zero + round(v)]
    close(out.read("d"), want, 1e-14, "double math")

    x = [random.randrange(-50, 50) for _ in range(128)]
    out = Buffer(512)
    launch(function(module, "warp_functions"), (1, 1, 1), (128, 1, 1), 0, Buffer(i32(x)), out)
    want = []
    rem5 = lambda v: v - 5 * quotient(v, 5)
    for i, v in enumerate(x):
        w = x[i // 32 * 32 : i // 32 * 32 + 32]
        mask = lambda test: sum(1 << j for j, u in enumerate(w) if test(u))
        r = mask(lambda u: u & 1)
        joined = 0
        for u in w:
            joined |= u % 2**32
        r = r * 31 + mask(lambda u: rem5(u) == rem5(v))
        r = r * 31 + sum(w) + max(w) + joined
        if v > 0:
            r = r * 31 + mask(lambda u: u > 0)
        want.append((r * 31 + sum(w[: i % 32 + 1]) + 1 + any(u == 3 for u in w)) % 2**32)
    close(out.read("I"), want, 0, "warp functions")

    launch(function(module, "say_hello"), (1, 1, 1), (32, 1, 1), 0, U32(3))


def triton(name):
    path = GUEST / "triton" / f"{name}.ptx"
    facts = json.loads(path.read_text().split("\n", 1)[0][3:])
    return facts, function(load(path), name)


def run_triton(facts, f, grid, *arguments):
    # Triton's kernels end with pointers to scratch memory that these programs do not use.
    arguments += (ctypes.c_uint64(0),) * (facts["params"] - len(arguments))
    launch(f, grid, (32 * facts["num_warps"], 1, 1), facts["shared"], *arguments)


def triton_kernels():
    facts, f = triton("matmul")
    m, n, k = 100, 72, 64
    a, b = [half_value(v) for v in noise(m * k)], [half_value(v) for v in noise(k * n)]
    c = Buffer(m * n * 4)
    run_triton(facts, f, (2, 2, 1), Buffer(f16(a)), Buffer(f16(b)), c, U32(m), U32(n), U32(k))
    columns = [b[j::n] for j in range(n)]
    want = [math.fsum(x * y for x, y in zip(a[i * k : i * k + k], columns[j])) for i in range(m) for j in range(n)]
    close(c.read("f"), want, 1e-4, "Triton matmul")

    facts, f = triton("attention")
    s, d = 100, 64
    q, kk, v = ([half_value(x) for x in noise(s * d)] for _ in range(3))
    o = Buffer(s * d * 4)
    scale = 0.125
    run_triton(facts, f, (2, 1, 1), Buffer(f16(q)), Buffer(f16(kk)), Buffer(f16(v)), o, U32(s), F32(scale))
    want = []
    for i in range(s):
        scores = [scale * sum(x * y for x, y in zip(q[i * d : i * d + d], kk[j * d : j * d + d])) for j in range(i + 1)]
        e = [math.exp(x - max(scores)) for x in scores]
        want += [sum(p * v[j * d + t] for j, p in enumerate(e)) / sum(e) for t in range(d)]
    close(o.read("f"), want, 3e-3, "Triton attention")

    facts, f = triton("layernorm")
    rows, n = 3, 700
    x, w, b = array.array("f", noise(rows * n)), array.array("f", noise(n)), array.array("f", noise(n))
    y = Buffer(rows * n * 4)
    run_triton(facts, f, (rows, 1, 1), Buffer(x.tobytes()), Buffer(w.tobytes()), Buffer(b.tobytes()), y, U32(n), F32(1e-5))
    want = []
    for r in range(rows):
        row = x[r * n : r * n + n]
        mean = sum(row) / n
        inv = 1 / math.sqrt(sum((t - mean) ** 2 for t in row) / n + 1e-5)
        want += [(t - mean) * inv * g + h for t, g, h in zip(row, w, b)]
    close(y.read("f"), want, 1e-5, "Triton layernorm")

    facts, f = triton("sort_rows")
    rows, n = 4, facts["constants"]["BLOCK"]
    x = array.array("f", noise(rows * n))
    y = Buffer(rows * n * 4)
    run_triton(facts, f, (rows, 1, 1), Buffer(x.tobytes()), y)
    want = [v for r in range(rows) for v in sorted(x[r * n : r * n + n])]
    close(y.read("f"), want, 0, "Triton sort")


basic()
features()
triton_kernels()
ok(cuda.cuDevicePrimaryCtxRelease_v2(device))
print("all right")
