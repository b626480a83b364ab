/* Every unit of every phase is done once, by any number of threads, and helpers sleep when there is no call. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>

#include "threads.h"

enum { CALLS = 3000, PHASES = 20, MOST_UNITS = 140, HELPERS = 4 };

static int done[MOST_UNITS]; /* a unit belongs to one thread at a time, so these need no lock */

static void part(const void *work, int first, int end)
{
    (void)work;
    for (int unit = first; unit < end; unit++)
        done[unit]++;
}

int main(void)
{
    for (int call = 0; call < CALLS; call++) {
        begin_call(1 + call % (HELPERS + 1));
        for (int phase = 0; phase < PHASES; phase++) {
            const int units = 1 + phase * 7;
            share(units, part, NULL);
            for (int unit = 0; unit < MOST_UNITS; unit++) {
                if (done[unit] != (unit < units))
                    return 1;
                done[unit] = 0;
            }
        }
        end_call();
    }
    while (atomic_load(&pool.asleep) < HELPERS)
        sched_yield();
    puts("every unit once, all asleep");
    return 0;
}
