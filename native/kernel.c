/* avg <- avg + (1-beta)(theta - avg), in one read of theta for all tracks.
 *
 * Each block of theta is read into the first-level cache, widened if need be, checked for elements that
 * cannot be stored, and blended into every track from there: theta is read from memory once. The loops are
 * plain C that compilers turn into vector instructions; `piece` is compiled once per instruction set. */
#include "kernel.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum { WORDS = BLOCK / 2 };

/* -- 16-bit formats, by their bits: no instruction set is needed that has them --------------------------- */

INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE float from_bf16(uint16_t h) { return float_of((uint32_t)h << 16); }

/* Normal: move the fields, add 112 to the exponent. Subnormal: mantissa * 2^-24, through an integer so that
 * it survives a processor told to flush subnormals. Infinity and NaN keep their mantissa. */
INLINE float from_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = h & 0x7fff;
    uint32_t normal = (magnitude << 13) + (112u << 23);
    uint32_t special = (magnitude << 13) | 0x7f800000u;
    uint32_t small = bits_of((float)(int32_t)magnitude * 0x1p-24f);
    uint32_t out = magnitude < 0x0400 ? small : magnitude >= 0x7c00 ? special : normal;
    return float_of(out | sign);
}

/* -- Random bits ------------------------------------------------------------------------------------------- */

/* Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators": splitmix64. */
INLINE uint64_t mix64(uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

/* 32 bits for every two elements of a block, word i for the elements i (low half) and WORDS + i (high
 * half): a bijective mixer of the word's number, keyed before and between its rounds by all that tells one
 * draw from another. It has two multiplications where Philox4x32-7 has six to ten; with Philox the update of
 * a bfloat16 average takes as long as computing random numbers does, with this as long as memory does.
 * The constants are those of C. Wellons' lowbias32, found by search for least bias. */
INLINE void draw(uint32_t *restrict words, int64_t first, int n, uint64_t key) {
    uint32_t before = (uint32_t)key, between = (uint32_t)(key >> 32);
    for (int i = 0; i < n; i++) {
        uint32_t x = ((uint32_t)first + (uint32_t)i) ^ before;
        x = (x ^ (x >> 16)) * 0x7FEB352Du + between;
        x = (x ^ (x >> 15)) * 0x846CA68Bu;
        words[i] = x ^ (x >> 16);
    }
}

/* The bits to add random ones to; a NaN of all ones (CUDA's own) would carry into -0. */
INLINE uint32_t carried(float x) {
    uint32_t bits = bits_of(x);
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc00000 : bits;
}

INLINE uint16_t round_bf16(float x, uint32_t random) { return (uint16_t)((carried(x) + random) >> 16); }

/* Below 2^-14 neighbours are 2^-24 apart, above they are 2^13 units of float32 apart. */
INLINE uint16_t round_f16(float x, uint32_t random) {
    uint32_t bits = bits_of(x), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    uint32_t normal = (magnitude + (random & 0x1fff) - (112u << 23)) >> 13;
    normal = magnitude >= 0x47800000u || normal > 0x7c00u ? 0x7c00u : normal;
    normal = magnitude > 0x7f800000u ? 0x7e00u : normal;
    float scaled = float_of(magnitude < 0x38800000u ? magnitude : 0) * 0x1p40f;
    uint32_t small = ((uint32_t)(int32_t)scaled + random) >> 16;
    uint32_t below = magnitude < 0x38800000u ? ~0u : 0; /* a selection that compilers make no branch of */
    return (uint16_t)(sign | (small & below) | (normal & ~below));
}

/* The 24 bits kept of a float32. */
INLINE uint32_t round_split(float x, uint32_t random) { return (carried(x) + (random & 0xff)) >> 8; }

INLINE uint32_t from_split(uint16_t high, int8_t low) {
    return ((uint32_t)high << 16) + ((uint32_t)(int32_t)low << 8);
}

/* -- theta, widened ---------------------------------------------------------------------------------------- */

INLINE void widen(float *restrict out, const Tensor *t, int64_t first, int n) {
    if (t->dtype == LIVE_F32)
        memcpy(out, (const float *)t->live + first, (size_t)n * sizeof *out);
    else if (t->dtype == LIVE_F64)
        for (int i = 0; i < n; i++) out[i] = (float)((const double *)t->live)[first + i];
    else if (t->dtype == LIVE_BF16)
        for (int i = 0; i < n; i++) out[i] = from_bf16(((const uint16_t *)t->live)[first + i]);
    else
        for (int i = 0; i < n; i++) out[i] = from_f16(((const uint16_t *)t->live)[first + i]);
}

INLINE float largest(Store store) {
    return store == STORE_F16 ? 65504.0f
           : store == STORE_BF16 || store == STORE_SPLIT ? 0x1.FEp127f
                                                         : 0x1.FFFFFEp127f;
}

INLINE bool all_below(const float *x, int n, float limit) {
    int bad = 0; /* a NaN fails the comparison too */
    for (int i = 0; i < n; i++) bad |= !(fabsf(x[i]) <= limit);
    return !bad;
}

/* -- The blend --------------------------------------------------------------------------------------------- */

/* The weight of theta, ready for use. */
typedef struct {
    double of;     /* 1-beta from a's end, -beta from theta's */
    uint32_t kept; /* all bits, or none where the weight is 1: theta - a may overflow where theta cannot */
    bool far;      /* theta's end is nearer: the form that is exact at its own end, as in torch.lerp */
} Weight;

INLINE Weight weight(double w) { return (Weight){w < 0.5 ? w : w - 1, w < 1 ? ~0u : 0, w >= 0.5}; }

/* No branch in it, only selections: compilers do not vectorise long loops around a branch. */
INLINE float lerp(float a, float x, Weight w) {
    float apart = float_of(bits_of(x - a) & w.kept);
    return (w.far ? x : a) + (float)w.of * apart;
}

INLINE double lerp64(double a, double x, Weight w) {
    return (w.far ? x : a) + w.of * (w.kept ? x - a : 0);
}

INLINE void blend_f32(float *restrict a, const float *restrict x, int n, Weight w) {
    for (int i = 0; i < n; i++) a[i] = lerp(a[i], x[i], w);
}

INLINE void blend_bf16(uint16_t *restrict a, const float *restrict x, int n, Weight w,
                       const uint32_t *restrict words, int half) {
    for (int i = 0; i < n; i++)
        a[i] = round_bf16(lerp(from_bf16(a[i]), x[i], w), words[i] >> half & 0xffff);
}

INLINE void blend_f16(uint16_t *restrict a, const float *restrict x, int n, Weight w,
                      const uint32_t *restrict words, int half) {
    for (int i = 0; i < n; i++)
        a[i] = round_f16(lerp(from_f16(a[i]), x[i], w), words[i] >> half & 0xffff);
}

/* The 24 bits are rounded to bfloat16 by the nearest, and the low part says how far off that is. */
INLINE void blend_split(uint16_t *restrict a, int8_t *restrict low, const float *restrict x, int n, Weight w,
                        const uint32_t *restrict words, int half) {
    for (int i = 0; i < n; i++) {
        uint32_t new = round_split(lerp(float_of(from_split(a[i], low[i])), x[i], w), words[i] >> half);
        a[i] = (uint16_t)((new + 0x80) >> 8);
        low[i] = (int8_t)(new - ((uint32_t)a[i] << 8));
    }
}

/* The average is a + low (Kahan); what the sum a + step loses in rounding is the next low, exactly and
 * whichever is larger (Knuth, TAOCP vol. 2, 4.2.2, theorem B). No compiler may reassociate this. */
INLINE void blend_pair(float *restrict a, float *restrict low, const float *restrict x, int n, float w) {
    for (int i = 0; i < n; i++) {
        float step = w * ((x[i] - a[i]) - low[i]) + low[i], sum = a[i] + step, taken = sum - a[i];
        low[i] = (a[i] - (sum - taken)) + (step - taken);
        a[i] = sum;
    }
}

INLINE void blend(const Tensor *t, int64_t first, const float *x, int n, int k, const Update *u) {
    Weight w = weight(u->weights[k]);
    char *average = t->averages[k];
    if (u->store == STORE_F32) {
        blend_f32((float *)average + first, x, n, w);
        return;
    }
    if (u->store == STORE_PAIR) {
        if (w.kept)
            blend_pair((float *)average + first, (float *)t->lows[k] + first, x, n, (float)u->weights[k]);
        else {
            memcpy((float *)average + first, x, (size_t)n * sizeof *x);
            memset((float *)t->lows[k] + first, 0, (size_t)n * sizeof *x);
        }
        return;
    }
    uint64_t key = mix64(u->seed + mix64(u->step + mix64((uint64_t)t->key << 32 | (uint32_t)k)));
    uint32_t words[WORDS];
    int64_t drawn = -1;
    for (int i = 0, m; i < n; i += m) {
        /* In the whole tensor. Of a piece that begins within a block, no two halves share words. */
        int64_t at = t->offset + first + i, word = at / BLOCK * WORDS + at % WORDS;
        int room = (int)(WORDS - at % WORDS), half = at % BLOCK < WORDS ? 0 : 16;
        m = n - i < room ? n - i : room;
        if (word != drawn) draw(words, drawn = word, m, key);
        uint16_t *a = (uint16_t *)average + first + i;
        if (u->store == STORE_BF16)
            blend_bf16(a, x + i, m, w, words, half);
        else if (u->store == STORE_F16)
            blend_f16(a, x + i, m, w, words, half);
        else
            blend_split(a, (int8_t *)t->lows[k] + first + i, x + i, m, w, words, half);
    }
}

/* The current values of track k, widened. */
INLINE void recall(float *restrict out, const Tensor *t, int64_t first, int n, int k, Store store) {
    const uint16_t *a = (const uint16_t *)t->averages[k] + first;
    if (store == STORE_F32 || store == STORE_PAIR)
        memcpy(out, (const float *)t->averages[k] + first, (size_t)n * sizeof *out);
    else if (store == STORE_BF16)
        for (int i = 0; i < n; i++) out[i] = from_bf16(a[i]);
    else if (store == STORE_F16)
        for (int i = 0; i < n; i++) out[i] = from_f16(a[i]);
    else
        for (int i = 0; i < n; i++)
            out[i] = float_of(from_split(a[i], ((const int8_t *)t->lows[k])[first + i]));
}

/* Where theta cannot be stored the average is blended with itself: rounding keeps what is on the grid.
 * Not so the pair of floats, whose low part would be added in; there both parts are put back. */
INLINE void blend_around(const Tensor *t, int64_t first, const float *x, int n, int k, const Update *u) {
    float held[BLOCK], mixed[BLOCK], low[BLOCK];
    float limit = largest(u->store);
    recall(held, t, first, n, k, u->store);
    if (u->store == STORE_PAIR) memcpy(low, (float *)t->lows[k] + first, (size_t)n * sizeof *low);
    for (int i = 0; i < n; i++) mixed[i] = fabsf(x[i]) <= limit ? x[i] : held[i];
    blend(t, first, mixed, n, k, u);
    if (u->store != STORE_PAIR) return;
    for (int i = 0; i < n; i++)
        if (!(fabsf(x[i]) <= limit)) {
            ((float *)t->averages[k])[first + i] = held[i];
            ((float *)t->lows[k])[first + i] = low[i];
        }
}

/* -- Averages in float64 ------------------------------------------------------------------------------------ */

INLINE bool piece64(const Tensor *t, int64_t first, int64_t last, const Update *u) {
    double x[BLOCK];
    float narrow[BLOCK];
    bool found = false;
    for (; first < last; first += BLOCK) {
        int n = last - first < BLOCK ? (int)(last - first) : BLOCK, bad = 0;
        if (t->dtype == LIVE_F64)
            memcpy(x, (const double *)t->live + first, (size_t)n * sizeof *x);
        else {
            widen(narrow, t, first, n);
            for (int i = 0; i < n; i++) x[i] = narrow[i];
        }
        if (u->skip || !u->write)
            for (int i = 0; i < n; i++) bad |= !(fabs(x[i]) <= 0x1.FFFFFFFFFFFFFp1023);
        found |= bad;
        for (int k = 0; k < (u->write ? u->tracks : 0); k++) {
            double *restrict a = (double *)t->averages[k] + first;
            Weight w = weight(u->weights[k]);
            for (int i = 0; i < n; i++) {
                double new = lerp64(a[i], x[i], w);
                a[i] = !bad || fabs(x[i]) <= 0x1.FFFFFFFFFFFFFp1023 ? new : a[i];
            }
        }
    }
    return found;
}

INLINE bool piece(const Tensor *t, int64_t first, int64_t last, const Update *u) {
    if (u->store == STORE_F64) return piece64(t, first, last, u);
    float buffer[BLOCK], limit = largest(u->store);
    bool found = false, looking = u->skip || !u->write;
    for (; first < last; first += BLOCK) {
        int n = last - first < BLOCK ? (int)(last - first) : BLOCK;
        const float *x = buffer;
        if (t->dtype == LIVE_F32)
            x = (const float *)t->live + first;
        else
            widen(buffer, t, first, n);
        /* Checked even if not required: it brings theta in, and reading one array after the other is
         * faster than both at once (80 GB/s against 70, and 60 when blending and looking share a loop). */
        bool fine = all_below(x, n, limit) || !looking;
        found |= !fine;
        for (int k = 0; k < (u->write ? u->tracks : 0); k++) {
            if (fine)
                blend(t, first, x, n, k, u);
            else
                blend_around(t, first, x, n, k, u);
        }
    }
    return found;
}

/* -- One compilation per instruction set -------------------------------------------------------------------- */

static bool piece_baseline(const Tensor *t, int64_t first, int64_t last, const Update *u) {
    return piece(t, first, last, u);
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static bool piece_avx2(const Tensor *t, int64_t first, int64_t last,
                                                           const Update *u) {
    return piece(t, first, last, u);
}

__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))) static bool
piece_avx512(const Tensor *t, int64_t first, int64_t last, const Update *u) {
    /* Where memory bandwidth is the limit, wide vectors are slower: by 10 % on Zen 4. */
    bool streams = t->dtype == LIVE_F32 && u->store == STORE_F32;
    return streams ? piece_avx2(t, first, last, u) : piece(t, first, last, u);
}
#endif

int polyak_variants(Variant *out, int room) {
    int n = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (n < room && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        out[n++] = (Variant){"avx512", piece_avx512};
    if (n < room && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        out[n++] = (Variant){"avx2", piece_avx2};
#endif
    if (n < room) out[n++] = (Variant){"baseline", piece_baseline};
    return n;
}
