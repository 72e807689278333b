"""The GPU kernel: a program averages one block of one tensor, in one read of θ for all tracks.

Its arithmetic is that of ``rounding`` and ``native/kernel.c``. Arguments that change from update to update
are read from device memory, so that a launch can be captured in a CUDA graph and replayed.

A block is processed as two tiles, of the elements that use the low and the high halves of the random words;
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
# Of a row: θ, elements, of them in aligned memory, key, place among pairs, first word of random bits.
COLUMNS = tl.constexpr(6)
SCALARS = tl.constexpr(3)  # of an update before its weights: seed, step, number


@triton.jit(do_not_specialize=["count"])
def average(
    table,
    blocks,
    scalars,
    seen,
    tensors,
    updates,
    count,
    TRACKS: tl.constexpr,
    LIVE: tl.constexpr,
    STORE: tl.constexpr,
    LARGEST: tl.constexpr,
    SKIP: tl.constexpr,
    PERSISTENT: tl.constexpr,
):
    """``avg ← avg + w·(θ - avg)``, block by block.

    Args:
        table: int64 [pairs, COLUMNS + 2·TRACKS]: of each its columns, addresses of averages, then of lows.
        blocks: int32 [count, 2]: a row of the table, and which of its blocks.
        scalars: int64 [SCALARS + TRACKS]: seed, step, number of the update, bits of the float64 weights.
        seen: int64 [1 + all pairs]: the last update counted, of all tensors and of each.
        tensors, updates: as in ``Counts``.
        count: blocks in all.
        LIVE, STORE: the dtype of θ; of the averages, or "split" or "compensated".
        LARGEST: what the storage can hold.
        SKIP: elements of θ beyond that keep their average, and are counted.
        PERSISTENT: few programs take turns at the blocks, which leaves room on the GPU for other kernels;
            otherwise there is a program for each block.
    """
    if PERSISTENT:
        for number in range(tl.program_id(0), count, tl.num_programs(0)):
            _one(
                table,
                blocks + 2 * number,
                scalars,
                seen,
                tensors,
                updates,
                TRACKS,
                LIVE,
                STORE,
                LARGEST,
                SKIP,
            )
    else:
        at = blocks + 2 * tl.program_id(0)
        _one(table, at, scalars, seen, tensors, updates, TRACKS, LIVE, STORE, LARGEST, SKIP)


@triton.jit
def _one(
    table,
    at,
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
    """The block that ``at`` names."""
    row = table + tl.load(at).to(tl.int64) * (COLUMNS + 2 * TRACKS)
    first = tl.load(at + 1).to(tl.int64) * BLOCK
    live = tl.load(row)
    left = tl.minimum(tl.load(row + 1) - first, BLOCK).to(tl.int32)
    # Known alignment and no mask make the memory accesses 16 bytes wide.
    if first + BLOCK <= tl.load(row + 2):
        _block(
            row, live, first, left, scalars, seen, tensors, updates, TRACKS, LIVE, STORE, LARGEST, SKIP, True
        )
    else:
        _block(
            row, live, first, left, scalars, seen, tensors, updates, TRACKS, LIVE, STORE, LARGEST, SKIP, False
        )


@triton.jit
def _block(
    row,
    live,
    first,
    left,
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
    """Elements ``first`` to ``first + left``. Places in a block are 32-bit, which takes fewer registers."""
    i = tl.arange(0, BLOCK // 2)
    at0 = i // 512 * 1024 + i % 512
    at1 = at0 + 512
    x0 = _widened(live, first, at0, left, LIVE, STORE, WHOLE)
    x1 = _widened(live, first, at1, left, LIVE, STORE, WHOLE)
    fine0 = tl.abs(x0) <= LARGEST  # false for a NaN
    fine1 = tl.abs(x1) <= LARGEST
    for track in tl.static_range(TRACKS):
        address = tl.load(row + COLUMNS + track)
        low = tl.load(row + COLUMNS + TRACKS + track)
        weight = tl.load(scalars + SCALARS + track).to(tl.float64, bitcast=True)
        key = _draw_key(tl.load(scalars), tl.load(scalars + 1), tl.load(row + 3), track)
        words = _words((tl.load(row + 5) + first // 2).to(tl.uint32) + i.to(tl.uint32), key)
        random0 = (words & 0xFFFF).to(tl.int32)
        random1 = (words >> 16).to(tl.int32)
        # All is loaded before anything is stored: to the compiler the addresses may be the same.
        a0, b0 = _load_average(address, low, first, at0, left, STORE, WHOLE)
        a1, b1 = _load_average(address, low, first, at1, left, STORE, WHOLE)
        new0, rest0 = _blended(a0, b0, x0, weight, random0, STORE)
        new1, rest1 = _blended(a1, b1, x1, weight, random1, STORE)
        _store_average(address, low, first, at0, left, new0, rest0, a0, b0, fine0, STORE, SKIP, WHOLE)
        _store_average(address, low, first, at1, left, new1, rest1, a1, b1, fine1, STORE, SKIP, WHOLE)
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
def _load_average(address, low, first, at, left, STORE: tl.constexpr, WHOLE: tl.constexpr):
    """One tile of an average and its low part; 16-bit formats by their bits, which any GPU supports."""
    if STORE == "compensated":
        a = _load(address, first, at, left, tl.pointer_type(tl.float32), WHOLE)
        b = _load(low, first, at, left, tl.pointer_type(tl.float32), WHOLE)
        return a, b
    elif STORE == "split":
        a = _load(address, first, at, left, tl.pointer_type(tl.int16), WHOLE)
        b = _load(low, first, at, left, tl.pointer_type(tl.int8), WHOLE)
        return a, b
    elif STORE == "bfloat16":
        a = _load(address, first, at, left, tl.pointer_type(tl.int16), WHOLE)
        return a, a
    elif STORE == "float16":
        a = _load(address, first, at, left, tl.pointer_type(tl.float16), WHOLE)
        return a, a
    elif STORE == "float64":
        a = _load(address, first, at, left, tl.pointer_type(tl.float64), WHOLE)
        return a, a
    else:
        a = _load(address, first, at, left, tl.pointer_type(tl.float32), WHOLE)
        return a, a


@triton.jit
def _blended(a, b, x, weight, random, STORE: tl.constexpr):
    """A tile after the update: the average and its low part."""
    if STORE == "compensated":
        w = weight.to(tl.float32)
        # Of weights 0 and 1 nothing is computed: θ may be NaN where nothing moves, θ - a may overflow.
        step = w * tl.where((weight > 0) & (weight < 1), (x - a) - b, 0.0) + b
        total = a + step
        taken = total - a
        lost = (a - (total - taken)) + (step - taken)
        return tl.where(weight < 1, total, x), tl.where(weight < 1, lost, 0.0)
    elif STORE == "split":
        whole = (a.to(tl.int32) << 16) + (b.to(tl.int32) << 8)
        new = (_bits(_lerp(whole.to(tl.float32, bitcast=True), x, weight)) + (random & 0xFF)) >> 8
        high = (new + 0x80) >> 8
        return high.to(tl.int16), (new - (high << 8)).to(tl.int8)
    elif STORE == "bfloat16":
        new = ((_bits(_lerp(_from_bfloat16(a), x, weight)) + random) >> 16).to(tl.int16)
        return new, new
    elif STORE == "float16":
        new = _round_float16(_lerp(a.to(tl.float32), x, weight), random)
        return new, new
    else:
        new = _lerp(a, x, weight)
        return new, new


@triton.jit
def _store_average(
    address,
    low,
    first,
    at,
    left,
    new,
    rest,
    a,
    b,
    fine,
    STORE: tl.constexpr,
    SKIP: tl.constexpr,
    WHOLE: tl.constexpr,
):
    _store(address, first, at, left, new, a, fine, SKIP, WHOLE)
    if STORE == "compensated" or STORE == "split":
        _store(low, first, at, left, rest, b, fine, SKIP, WHOLE)


@triton.jit
def _lerp(a, x, weight):
    """``a + w·(x - a)``, written from the nearer end, where it is exact.

    At weight 1 it is x whatever a is, and at weight 0 a whatever x is: a replay that was not prepared.
    """
    far = weight >= 0.5
    of = tl.where(far, weight - 1, weight).to(x.dtype)
    return tl.where(far, x, a) + of * tl.where((weight > 0) & (weight < 1), x - a, 0.0)


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
def _widened(address, first, at, left, LIVE: tl.constexpr, STORE: tl.constexpr, WHOLE: tl.constexpr):
    """θ in the arithmetic's dtype."""
    if LIVE == "bfloat16":
        x = _from_bfloat16(_load(address, first, at, left, tl.pointer_type(tl.int16), WHOLE))
    elif LIVE == "float16":
        x = _load(address, first, at, left, tl.pointer_type(tl.float16), WHOLE).to(tl.float32)
    elif LIVE == "float64":
        x = _load(address, first, at, left, tl.pointer_type(tl.float64), WHOLE)
    else:
        x = _load(address, first, at, left, tl.pointer_type(tl.float32), WHOLE)
    if STORE == "float64":
        return x.to(tl.float64)
    else:
        return x.to(tl.float32)


@triton.jit
def _load(address, first, at, left, POINTER: tl.constexpr, WHOLE: tl.constexpr):
    pointer = address.to(POINTER) + first
    if WHOLE:
        return tl.load(tl.multiple_of(pointer, 16) + at)
    else:
        return tl.load(pointer + at, mask=at < left, other=0)


@triton.jit
def _store(address, first, at, left, new, old, fine, SKIP: tl.constexpr, WHOLE: tl.constexpr):
    """Skipped elements are written back rather than masked, which would narrow the accesses."""
    pointer = address.to(tl.pointer_type(old.dtype)) + first
    if SKIP:
        new = tl.where(fine, new, old)
    if WHOLE:
        tl.store(tl.multiple_of(pointer, 16) + at, new)
    else:
        tl.store(pointer + at, new, mask=at < left)


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
