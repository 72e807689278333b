"""The GPU's kernel: a program averages one block of one tensor, in one read of θ for all tracks.

It says what ``rounding`` and ``native/kernel.c`` say. Whatever changes from update to update is read from
device memory, so that a launch can be captured in a CUDA graph and replayed.

A block is kept as two tiles, of the elements that share the low and the high halves of their random words;
so a word is computed once, by the thread that needs both halves.
"""

# No `from __future__ import annotations`: Triton reads the annotations of its kernels.
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

# Those of torch 2.4 and 2.5 compute something else of this file, at least in their interpreter.
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 2):
    raise ImportError(f"triton {triton.__version__} is too old")

BLOCK = tl.constexpr(4096)  # elements a program averages: whole blocks of random words
COLUMNS = tl.constexpr(5)  # of a row: θ, elements, of them in aligned memory, key, place among pairs
SCALARS = tl.constexpr(3)  # of an update before its weights: seed, step, number


@triton.jit
def average(
    table,
    blocks,
    scalars,
    seen,
    tensors,
    updates,
    TRACKS: tl.constexpr,
    LIVE: tl.constexpr,
    STORE: tl.constexpr,
    LARGEST: tl.constexpr,
    SKIP: tl.constexpr,
):
    """``avg ← avg + w·(θ - avg)`` in one block of one tensor.

    Args:
        table: int64 [pairs, COLUMNS + 2·TRACKS]: of each its columns, addresses of averages, then of lows.
        blocks: int32 [programs, 2]: a row of the table, and which of its blocks.
        scalars: int64 [SCALARS + TRACKS]: seed, step, number of the update, bits of the float64 weights.
        seen: int64 [1 + all pairs]: the last update counted, of all tensors and of each.
        tensors, updates: as in ``Counts``.
        LIVE, STORE: the dtype of θ; of the averages, or "split" or "compensated".
        LARGEST: what the storage can hold.
        SKIP: elements of θ beyond that keep their average, and are counted.
    """
    at = blocks + 2 * tl.program_id(0)
    row = table + tl.load(at).to(tl.int64) * (COLUMNS + 2 * TRACKS)
    first = tl.load(at + 1).to(tl.int64) * BLOCK
    # Known alignment and no mask make the memory accesses 16 bytes wide.
    if first + BLOCK <= tl.load(row + 2):
        _block(row, first, scalars, seen, tensors, updates, TRACKS, LIVE, STORE, LARGEST, SKIP, True)
    else:
        _block(row, first, scalars, seen, tensors, updates, TRACKS, LIVE, STORE, LARGEST, SKIP, False)


@triton.jit
def _block(
    row,
    first,
    scalars,
    seen,
    tensors,
    updates,
    TRACKS: tl.constexpr,
    LIVE: tl.constexpr,
    STORE: tl.constexpr,
    LARGEST: tl.constexpr,
    SKIP: tl.constexpr,
    WHOLE: tl.constexpr,
):
    i = tl.arange(0, BLOCK // 2)
    at0 = first + (i // 512 * 1024 + i % 512)
    at1 = at0 + 512
    size = tl.load(row + 1)
    live = tl.load(row)
    x0 = _widened(live, at0, size, LIVE, STORE, WHOLE)
    x1 = _widened(live, at1, size, LIVE, STORE, WHOLE)
    fine0 = tl.abs(x0) <= LARGEST  # false for a NaN
    fine1 = tl.abs(x1) <= LARGEST
    for track in tl.static_range(TRACKS):
        address = tl.load(row + COLUMNS + track)
        low = tl.load(row + COLUMNS + TRACKS + track)
        weight = tl.load(scalars + SCALARS + track).to(tl.float64, bitcast=True)
        key = _draw_key(tl.load(scalars), tl.load(scalars + 1), tl.load(row + 3), track)
        words = _words((first // 2).to(tl.uint32) + i.to(tl.uint32), key)
        random0 = (words & 0xFFFF).to(tl.int32)
        random1 = (words >> 16).to(tl.int32)
        _blend(address, low, at0, size, x0, fine0, weight, random0, STORE, SKIP, WHOLE)
        _blend(address, low, at1, size, x1, fine1, weight, random1, STORE, SKIP, WHOLE)
    if SKIP:  # noqa: SIM102 -- this one is decided when the kernel is compiled
        if tl.min((fine0 & fine1).to(tl.int32), axis=0) == 0:
            number = tl.load(scalars + 2)
            place = tl.load(row + 4)
            _count(seen, updates, number)
            _count(seen + 1 + place, tensors + place, number)


@triton.jit
def _count(seen, count, number):
    """Once per update, whichever block comes first."""
    if tl.atomic_xchg(seen, number) < number:
        tl.atomic_add(count, 1)


@triton.jit
def _blend(
    address,
    low,
    at,
    size,
    x,
    fine,
    weight,
    random,
    STORE: tl.constexpr,
    SKIP: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """One tile of one track. 16-bit formats are handled by their bits, which any GPU can."""
    if STORE == "compensated":
        a = _load(address, at, size, tl.pointer_type(tl.float32), WHOLE)
        b = _load(low, at, size, tl.pointer_type(tl.float32), WHOLE)
        w = weight.to(tl.float32)
        step = w * ((x - a) - b) + b
        total = a + step
        taken = total - a
        lost = (a - (total - taken)) + (step - taken)
        # At weight 1 θ itself, since θ - a may overflow where θ cannot.
        _store(
            address,
            at,
            size,
            tl.where(weight < 1, total, x),
            a,
            fine,
            tl.pointer_type(tl.float32),
            SKIP,
            WHOLE,
        )
        _store(
            low, at, size, tl.where(weight < 1, lost, 0.0), b, fine, tl.pointer_type(tl.float32), SKIP, WHOLE
        )
    elif STORE == "split":
        a = _load(address, at, size, tl.pointer_type(tl.int16), WHOLE)
        b = _load(low, at, size, tl.pointer_type(tl.int8), WHOLE)
        whole = (a.to(tl.int32) << 16) + (b.to(tl.int32) << 8)
        new = (_bits(_lerp(whole.to(tl.float32, bitcast=True), x, weight)) + (random & 0xFF)) >> 8
        high = (new + 0x80) >> 8
        _store(address, at, size, high.to(tl.int16), a, fine, tl.pointer_type(tl.int16), SKIP, WHOLE)
        _store(low, at, size, (new - (high << 8)).to(tl.int8), b, fine, tl.pointer_type(tl.int8), SKIP, WHOLE)
    elif STORE == "bfloat16":
        a = _load(address, at, size, tl.pointer_type(tl.int16), WHOLE)
        new = (_bits(_lerp(_from_bfloat16(a), x, weight)) + random) >> 16
        _store(address, at, size, new.to(tl.int16), a, fine, tl.pointer_type(tl.int16), SKIP, WHOLE)
    elif STORE == "float16":
        a = _load(address, at, size, tl.pointer_type(tl.float16), WHOLE)
        new = _round_float16(_lerp(a.to(tl.float32), x, weight), random)
        _store(address, at, size, new, a, fine, tl.pointer_type(tl.float16), SKIP, WHOLE)
    else:
        a = _load(address, at, size, tl.pointer_type(x.dtype), WHOLE)
        _store(address, at, size, _lerp(a, x, weight), a, fine, tl.pointer_type(x.dtype), SKIP, WHOLE)


@triton.jit
def _lerp(a, x, weight):
    """``a + w·(x - a)``, written from the nearer end, where it is exact; at weight 1 x, whatever a is."""
    far = weight >= 0.5
    of = tl.where(far, weight - 1, weight).to(x.dtype)
    return tl.where(far, x, a) + of * tl.where(weight < 1, x - a, 0.0)


@triton.jit
def _bits(x):
    """Any NaN as the one that survives the rounding: the GPU's own has all bits set, which would carry."""
    return tl.where(x == x, x.to(tl.int32, bitcast=True), 0x7FC00000)


@triton.jit
def _from_bfloat16(half):
    return (half.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def _round_float16(x, random):
    """Below 2⁻¹⁴ neighbours are 2⁻²⁴ apart, above they are 2¹³ units of float32 apart."""
    bits = _bits(x)
    sign = bits & -0x80000000
    magnitude = tl.abs(x)
    normal = (bits + (random & 0x1FFF)) & -0x2000
    multiple = ((tl.where(magnitude < 2**-14, magnitude, 0.0) * 2**40).to(tl.int32) + random) >> 16
    small = (multiple.to(tl.float32) * 2**-24).to(tl.int32, bitcast=True) | sign
    return tl.where(magnitude < 2**-14, small, normal).to(tl.float32, bitcast=True).to(tl.float16)


@triton.jit
def _widened(address, at, size, LIVE: tl.constexpr, STORE: tl.constexpr, WHOLE: tl.constexpr):
    """θ as the arithmetic wants it."""
    if LIVE == "bfloat16":
        x = _from_bfloat16(_load(address, at, size, tl.pointer_type(tl.int16), WHOLE))
    elif LIVE == "float16":
        x = _load(address, at, size, tl.pointer_type(tl.float16), WHOLE).to(tl.float32)
    elif LIVE == "float64":
        x = _load(address, at, size, tl.pointer_type(tl.float64), WHOLE)
    else:
        x = _load(address, at, size, tl.pointer_type(tl.float32), WHOLE)
    if STORE == "float64":
        return x.to(tl.float64)
    else:
        return x.to(tl.float32)


@triton.jit
def _load(address, at, size, POINTER: tl.constexpr, WHOLE: tl.constexpr):
    pointer = address.to(POINTER)
    if WHOLE:
        return tl.load(tl.multiple_of(pointer, 16) + at)
    else:
        return tl.load(pointer + at, mask=at < size, other=0)


@triton.jit
def _store(address, at, size, new, old, fine, POINTER: tl.constexpr, SKIP: tl.constexpr, WHOLE: tl.constexpr):
    """What is skipped is written back rather than masked, which would narrow the accesses."""
    pointer = address.to(POINTER)
    if SKIP:
        new = tl.where(fine, new, old)
    if WHOLE:
        tl.store(tl.multiple_of(pointer, 16) + at, new)
    else:
        tl.store(pointer + at, new, mask=at < size)


@triton.jit
def _words(word, key):
    """32 random bits for each word's number; see ``rounding.random_bits``."""
    x = word ^ (key & 0xFFFFFFFF).to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x7FEB352D + (key >> 32).to(tl.uint32)
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _draw_key(seed, step, tensor, track):
    """As ``rounding.draw_key``."""
    inner = _mix64((tensor << 32 | track).to(tl.uint64, bitcast=True))
    return _mix64(seed.to(tl.uint64, bitcast=True) + _mix64(step.to(tl.uint64, bitcast=True) + inner))


@triton.jit
def _mix64(x):
    """splitmix64: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"."""
    x += 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)
