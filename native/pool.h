/* Work shared among threads: torch's where that can be, our own elsewhere. */
#ifndef POLYAK_POOL_H
#define POLYAK_POOL_H

#include <stdint.h>

/* Once, before the first job, on the thread that will run most of them. */
void polyak_begin(void);

/* Calls work(context, i) once for each i in [0, units), on up to `threads` threads, the caller's included. */
void polyak_run(void (*work)(void *context, int64_t unit), void *context, int64_t units, int threads);

#endif
