/* The thread pool. Each thread has its own contiguous share of the units, so that neighbouring memory is read
 * by one core, and takes from the others' shares when its own is done, so that a core used by another process
 * does not delay the rest.
 *
 * On the main thread the threads are those of the OpenMP runtime that torch brought: after each of torch's
 * own operations they spin for milliseconds waiting for the next, and threads of ours would have to share
 * their cores (an update took 1.4 times as long). Elsewhere, in a child of fork, where torch has no such
 * runtime, and while another process keeps its threads from their cores, they are threads that sleep between
 * jobs; there one job runs at a time, a second caller works alone, and a job never waits for a thread that has
 * not begun. */
#ifdef _WIN32
#error "the kernel needs POSIX threads; without it polyak runs in plain torch"
#else
#define _GNU_SOURCE
#include "pool.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

enum { MOST = 256 };

typedef struct {
    _Atomic int64_t next; /* first unit of the share that is not taken */
    int64_t end;
    char padding[48]; /* shares on cache lines of their own */
} Share;

typedef struct {
    void (*work)(void *, int64_t);
    void *context;
    int threads;
    _Atomic int joined;
    Share shares[MOST];
} Job;

static void take_part(void *argument) {
    Job *job = argument;
    int self = atomic_fetch_add_explicit(&job->joined, 1, memory_order_relaxed);
    for (int i = 0; i < job->threads; i++) {
        Share *share = &job->shares[(self + i) % job->threads];
        for (;;) {
            int64_t unit = atomic_fetch_add_explicit(&share->next, 1, memory_order_relaxed);
            if (unit >= share->end) break;
            job->work(job->context, unit);
        }
    }
}

/* -- Threads of our own ------------------------------------------------------------------------------------- */

static struct {
    pthread_mutex_t busy; /* held by the caller whose job runs */
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake, idle;
    Job *job;        /* the current job */
    uint64_t number; /* of that job, so that no thread joins it twice */
    int workers, active;
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .idle = PTHREAD_COND_INITIALIZER};

static bool forked; /* this process is the child of one that may have had threads */

static void *worker(void *argument) {
    int place = (int)(intptr_t)argument;
    uint64_t done = 0;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (!pool.job || pool.number == done || place >= pool.job->threads)
            pthread_cond_wait(&pool.wake, &pool.lock);
        Job *job = pool.job;
        done = pool.number;
        pool.active++;
        pthread_mutex_unlock(&pool.lock);
        take_part(job);
        pthread_mutex_lock(&pool.lock);
        if (--pool.active == 0) pthread_cond_signal(&pool.idle);
    }
    return NULL;
}

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

static void run_here(Job *job) {
    pthread_mutex_lock(&pool.lock);
    hire(job->threads - 1);
    pool.job = job, pool.number++;
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    take_part(job);
    pthread_mutex_lock(&pool.lock);
    pool.job = NULL;
    while (pool.active) pthread_cond_wait(&pool.idle, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
}

/* A child of fork has the memory of the pool and none of its threads; nor has OpenMP's, which would hang. */
static void forget(void) {
    pthread_mutex_init(&pool.busy, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pthread_cond_init(&pool.idle, NULL);
    pool.job = NULL;
    pool.workers = pool.active = 0;
    forked = true;
}

/* -- torch's threads ---------------------------------------------------------------------------------------- */

/* The entry that GCC's compiled code calls; LLVM's and Intel's runtimes have it too. */
typedef void Parallel(void (*part)(void *), void *data, unsigned threads, unsigned flags);
static Parallel *parallel;
static pthread_t home; /* the thread that looked for it: the one that imported us */
static int crowded;    /* jobs yet to do without: the last time one of its threads came when all was done */

enum { AVOID = 64 };

/* OpenMP waits for a thread that has not begun until the system gives it a core: 4 ms beside a busy process,
 * where all the work takes one or two. */
static void take_part_in_theirs(void *argument) {
    Job *job = argument;
    take_part(job);
    if (pthread_equal(pthread_self(), home) && atomic_load(&job->joined) < job->threads) crowded = AVOID;
}

static void begin(void) {
    pthread_atfork(NULL, NULL, forget);
    *(void **)&parallel = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    home = pthread_self();
}

void polyak_begin(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, begin);
}

void polyak_run(void (*work)(void *, int64_t), void *context, int64_t units, int threads) {
    if (threads > MOST) threads = MOST;
    bool theirs = parallel && !forked && pthread_equal(pthread_self(), home);
    if (theirs && crowded > 0) theirs = false, crowded--;
    /* All of theirs, also for less work than that: in a smaller team the others end for good, and the next
     * of torch's operations makes them anew. */
    if (!theirs && threads > units) threads = (int)units;
    if (units < 2 || threads < 2 || (!theirs && pthread_mutex_trylock(&pool.busy))) {
        for (int64_t unit = 0; unit < units; unit++) work(context, unit);
        return;
    }
    Job job = {.work = work, .context = context, .threads = threads};
    for (int i = 0; i < threads; i++) {
        atomic_init(&job.shares[i].next, units * i / threads);
        job.shares[i].end = units * (i + 1) / threads;
    }
    if (theirs) {
        parallel(take_part_in_theirs, &job, (unsigned)threads, 0);
    } else {
        run_here(&job);
        pthread_mutex_unlock(&pool.busy);
    }
}
#endif
