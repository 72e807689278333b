/* Threads that sleep between jobs. One job runs at a time; a second caller works alone. */
#ifndef POLYAK_POOL_H
#define POLYAK_POOL_H

#include <stdint.h>

/* Calls work(context, i) once for each i in [0, units), on up to `threads` threads, the caller's included. */
void polyak_run(void (*work)(void *context, int64_t unit), void *context, int64_t units, int threads);

#endif
