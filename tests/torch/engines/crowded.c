/* An OpenMP runtime of our own under the pool: whose second thread comes in time, or when all is done. Ends
 * with 0 if the pool leaves it alone after it was late, and comes back to it later. */
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "pool.h"

enum { UNITS = 50, JOBS = 1000 };

static bool late;
static int calls;

typedef struct {
    void (*part)(void *);
    void *data;
} Begun;

static void *begin(void *argument) {
    Begun *begun = argument;
    begun->part(begun->data);
    return NULL;
}

__attribute__((visibility("default"))) void GOMP_parallel(void (*part)(void *), void *data, unsigned threads,
                                                          unsigned flags) {
    Begun begun = {part, data};
    pthread_t other;
    calls++;
    (void)flags;
    if (threads != 2) puts("not two threads");
    if (late) part(data);
    pthread_create(&other, NULL, begin, &begun);
    pthread_join(other, NULL);
    if (!late) part(data);
}

static void work(void *context, int64_t unit) {
    __atomic_add_fetch((int *)context + unit, 1, __ATOMIC_RELAXED);
}

static bool all_done_once(void) {
    int done[UNITS];
    memset(done, 0, sizeof done);
    polyak_run(work, done, UNITS, 2);
    for (int i = 0; i < UNITS; i++)
        if (done[i] != 1) return false;
    return true;
}

static int calls_of(int jobs) {
    calls = 0;
    for (int i = 0; i < jobs; i++)
        if (!all_done_once()) return -1;
    return calls;
}

int main(void) {
    polyak_begin();
    if (calls_of(JOBS) != JOBS) return puts("in time, and not used"), 1;
    late = true;
    if (calls_of(1) != 1) return puts("not used"), 1;
    int tries = calls_of(JOBS);
    if (tries < 2 || tries > JOBS / 20) return printf("late, and tried %d times\n", tries), 1;
    late = false;
    calls_of(JOBS);
    if (calls_of(JOBS) != JOBS) return puts("in time again, and not used"), 1;
    return 0;
}
