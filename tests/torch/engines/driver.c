/* All of the kernel and the pool but Python, for compilers that watch every access: all kinds of theta and
 * storage, odd sizes, several tracks, elements that cannot be stored, threads, two callers at once, forks.
 * Ends with 0 if any number of threads gave the bits that one gave. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernel.h"
#include "pool.h"

enum { TRACKS = 3, PIECE = 2 * BLOCK };

static const int64_t sizes[] = {1, 7, 511, 513, 1023, 1025, 2047, 2049, 4097, 9001};
static const size_t live_width[] = {4, 8, 2, 2}, store_width[] = {4, 8, 2, 2, 2, 4};
static const size_t low_width[] = {0, 0, 0, 0, 1, 4};

/* One tensor whose memory is as large as it must be and no larger. */
static Tensor make(Live dtype, Store store, int64_t size, bool bad) {
    Tensor t = {.size = size, .dtype = dtype, .key = (uint32_t)size};
    char *live = malloc((size_t)size * live_width[dtype]);
    for (int64_t i = 0; i < size; i++) {
        float x = bad && i % 97 == 5 ? (i % 2 ? NAN : -INFINITY) : (float)(i % 1000) / 512 - 1;
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        uint16_t half = (uint16_t)(bits >> 16), of[] = {(uint16_t)(i * 37 % 0x7c00), 0x7e00};
        if (dtype == LIVE_F32) ((float *)live)[i] = x;
        if (dtype == LIVE_F64) ((double *)live)[i] = x;
        if (dtype == LIVE_BF16) ((uint16_t *)live)[i] = half;
        if (dtype == LIVE_F16) ((uint16_t *)live)[i] = of[bad && i % 97 == 5];
    }
    t.live = live;
    t.averages = calloc(2 * TRACKS, sizeof *t.averages), t.lows = t.averages + TRACKS;
    for (int k = 0; k < TRACKS; k++) {
        t.averages[k] = calloc((size_t)size, store_width[store]);
        t.lows[k] = low_width[store] ? calloc((size_t)size, low_width[store]) : NULL;
    }
    return t;
}

static void discard(Tensor *t) {
    for (int k = 0; k < TRACKS; k++) free(t->averages[k]), free(t->lows[k]);
    free(t->averages), free((void *)t->live);
}

typedef struct {
    const Tensor *tensor;
    const Update *update;
    Piece *piece;
    int found;
} Job;

static void work(void *context, int64_t unit) {
    Job *job = context;
    int64_t first = unit * PIECE, last = first + PIECE;
    if (last > job->tensor->size) last = job->tensor->size;
    if (job->piece(job->tensor, first, last, job->update)) __atomic_store_n(&job->found, 1, __ATOMIC_RELAXED);
}

static int run(const Tensor *t, Store store, Piece *piece, int threads, bool skip, bool write) {
    const double weights[TRACKS] = {1e-4, 0.5, 1.0};
    Update update = {store, TRACKS, weights, ~0ull, 7, skip, write};
    Job job = {t, &update, piece, 0};
    polyak_run(work, &job, (t->size + PIECE - 1) / PIECE, threads);
    return job.found;
}

static int differ(const Tensor *a, const Tensor *b, Store store) {
    int out = 0;
    for (int k = 0; k < TRACKS; k++) {
        out |= memcmp(a->averages[k], b->averages[k], (size_t)a->size * store_width[store]);
        if (a->lows[k]) out |= memcmp(a->lows[k], b->lows[k], (size_t)a->size * low_width[store]);
    }
    return out != 0;
}

static int everything(void) {
    Variant variants[4];
    int wrong = 0, count = polyak_variants(variants, 4);
    for (int v = 0; v < count; v++)
        for (int live = 0; live < 4; live++)
            for (int store = 0; store < 6; store++)
                for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
                    for (int bad = 0; bad < 2; bad++) {
                        Tensor a = make(live, store, sizes[s], bad), b = make(live, store, sizes[s], bad);
                        int spoilt = bad && sizes[s] > 5;
                        Piece *piece = variants[v].piece;
                        for (int threads = 1; threads < 6; threads += 2) {
                            wrong |= run(&a, store, piece, 1, true, true) != spoilt;
                            wrong |= run(&b, store, piece, threads, true, true) != spoilt;
                            wrong |= run(&b, store, piece, threads, false, false) != spoilt;
                        }
                        wrong |= differ(&a, &b, store);
                        run(&b, store, piece, 2, false, true);
                        discard(&a), discard(&b);
                    }
    return wrong;
}

static void *caller(void *wrong) {
    Variant best;
    polyak_variants(&best, 1);
    for (int i = 0; i < 200; i++) {
        Tensor a = make(LIVE_F32, STORE_BF16, 9001, false), b = make(LIVE_F32, STORE_BF16, 9001, false);
        run(&a, STORE_BF16, best.piece, 4, true, true);
        run(&b, STORE_BF16, best.piece, 1, true, true);
        if (differ(&a, &b, STORE_BF16)) *(int *)wrong = 1;
        discard(&a), discard(&b);
    }
    return NULL;
}

int main(int count, char **arguments) {
    int wrong[2] = {0, 0};
    pthread_t other;
    polyak_begin();
    if (everything()) return puts("results differ"), 1;
    pthread_create(&other, NULL, caller, &wrong[0]);
    caller(&wrong[1]);
    pthread_join(other, NULL);
    if (wrong[0] | wrong[1]) return puts("two callers disturb each other"), 1;
    for (int i = 0; count > 1 && strcmp(arguments[1], "fork") == 0 && i < 5; i++) {
        int status = 1;
        pid_t child = fork();
        if (child == 0) {
            caller(&wrong[0]);
            _exit(wrong[0]);
        }
        waitpid(child, &status, 0);
        if (status) return puts("a child of fork differs"), 1;
    }
    return 0;
}
