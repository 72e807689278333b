/* Each thread has its own contiguous share of the units, so that neighbouring memory is read by one core,
 * and takes from the others' shares when its own is done, so that a core somebody else uses holds nobody up.
 * The caller never waits for a thread that has not begun: on a busy machine it does all the work itself.
 *
 * Why not OpenMP: torch brings its own runtime, and two of them spin against each other. */
#include "pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

enum { MOST = 256 };

typedef struct {
    _Atomic int64_t next; /* first unit of the share nobody has taken */
    int64_t end;
    char padding[48]; /* shares on cache lines of their own */
} Share;

static struct {
    pthread_mutex_t busy; /* held by the caller whose job runs */
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake, idle;
    uint64_t job; /* number of the job that may be joined; 0 while there is none */
    int workers, active;
    void (*work)(void *, int64_t);
    void *context;
    int threads;
    Share shares[MOST];
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .idle = PTHREAD_COND_INITIALIZER};

static void take_part(int self) {
    for (int i = 0; i < pool.threads; i++) {
        Share *share = &pool.shares[(self + i) % pool.threads];
        for (;;) {
            int64_t unit = atomic_fetch_add_explicit(&share->next, 1, memory_order_relaxed);
            if (unit >= share->end) break;
            pool.work(pool.context, unit);
        }
    }
}

static void *worker(void *argument) {
    int self = (int)(intptr_t)argument;
    uint64_t done = 0;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (pool.job == 0 || pool.job == done || self >= pool.threads)
            pthread_cond_wait(&pool.wake, &pool.lock);
        done = pool.job;
        pool.active++;
        pthread_mutex_unlock(&pool.lock);
        take_part(self);
        pthread_mutex_lock(&pool.lock);
        if (--pool.active == 0) pthread_cond_signal(&pool.idle);
    }
    return NULL;
}

/* A child of fork has the memory of the pool and none of its threads. */
static void forget(void) {
    pthread_mutex_init(&pool.busy, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pthread_cond_init(&pool.idle, NULL);
    pool.job = 0;
    pool.workers = pool.active = 0;
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget); }

/* As many workers as can be had: a system that refuses a thread only makes the job slower. */
static void hire(int wanted) {
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    while (pool.workers < wanted) {
        pthread_t thread;
        if (pthread_create(&thread, &detached, worker, (void *)(intptr_t)(pool.workers + 1))) break;
        pool.workers++;
    }
    pthread_attr_destroy(&detached);
}

void polyak_run(void (*work)(void *, int64_t), void *context, int64_t units, int threads) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    static uint64_t jobs;
    pthread_once(&once, watch_forks);
    if (threads > MOST) threads = MOST;
    if (threads > units) threads = (int)units;
    if (threads < 2 || pthread_mutex_trylock(&pool.busy)) {
        for (int64_t unit = 0; unit < units; unit++) work(context, unit);
        return;
    }
    pthread_mutex_lock(&pool.lock);
    hire(threads - 1);
    pool.work = work, pool.context = context, pool.threads = threads;
    for (int i = 0; i < threads; i++) {
        atomic_store_explicit(&pool.shares[i].next, units * i / threads, memory_order_relaxed);
        pool.shares[i].end = units * (i + 1) / threads;
    }
    pool.job = ++jobs;
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    take_part(0);
    pthread_mutex_lock(&pool.lock);
    pool.job = 0;
    while (pool.active) pthread_cond_wait(&pool.idle, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&pool.busy);
}
