/* The arithmetic of one update on one stretch of memory. It knows nothing of threads and of Python. */
#ifndef POLYAK_KERNEL_H
#define POLYAK_KERNEL_H

#include <stdbool.h>
#include <stdint.h>

enum { BLOCK = 1024 }; /* elements that share random words; a piece begins at a multiple of it */

typedef enum { LIVE_F32, LIVE_F64, LIVE_BF16, LIVE_F16 } Live;
typedef enum {
    STORE_F32,
    STORE_F64,
    STORE_BF16,  /* stochastically rounded */
    STORE_F16,   /* stochastically rounded */
    STORE_SPLIT, /* bfloat16 and the 8 bits that follow, int8; stochastically rounded to 24 bits */
    STORE_PAIR   /* float32 and what rounding lost, float32 */
} Store;

/* One tensor: theta and, for each track, its average and the low part of it (NULL if it has none). */
typedef struct {
    const void *live;
    void **averages, **lows;
    int64_t size, offset; /* offset: of the first element in the whole tensor, of which this may be a piece */
    Live dtype;
    uint32_t key; /* tells its random numbers from those of other tensors */
} Tensor;

/* One update of all tensors. */
typedef struct {
    Store store;
    int tracks;
    const double *weights; /* 1-beta of each track */
    uint64_t seed, step;
    bool skip;  /* elements that cannot be stored keep their average */
    bool write; /* false: only look for such elements */
} Update;

/* Work on elements [first, last) of a tensor; true if some of them cannot be stored. */
typedef bool Piece(const Tensor *tensor, int64_t first, int64_t last, const Update *update);

typedef struct {
    const char *name; /* of the instruction set */
    Piece *piece;
} Variant;

/* Those this processor can run, best first; the last is always there. */
int polyak_variants(Variant *out, int room);

#endif
