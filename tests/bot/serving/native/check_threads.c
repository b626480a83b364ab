/* Every unit of every phase is done once, by any number of threads, also in a process that was forked while another thread's
 * call was running; and helpers sleep when there is no call. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "threads.h"

enum { CALLS = 3000, PHASES = 20, MOST_UNITS = 140, HELPERS = 4 };

static int done[MOST_UNITS]; /* a unit belongs to one thread at a time, so these need no lock */

static void part(const void *work, int first, int end)
{
    (void)work;
    for (int unit = first; unit < end; unit++)
        done[unit]++;
}

static atomic_int begun, released;

static void slow_part(const void *work, int first, int end)
{
    (void)work, (void)first, (void)end;
    for (atomic_fetch_add(&begun, 1); !atomic_load(&released);)
        sched_yield();
}

static void *slow_call(void *unused)
{
    begin_call(2);
    share(MOST_UNITS, slow_part, NULL);
    end_call();
    return unused;
}

/* Whether a child finds no work of its parent's, most of which nobody had taken. */
static int forked_is_free(void)
{
    pthread_t caller;
    int status;
    if (pthread_create(&caller, NULL, slow_call, NULL))
        return 0;
    while (!atomic_load(&begun))
        sched_yield();
    const pid_t child = fork();
    if (child == 0)
        _exit((uint32_t)atomic_load(&pool.open) != 0);
    waitpid(child, &status, 0);
    atomic_store(&released, 1);
    pthread_join(caller, NULL);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

int main(void)
{
    if (!forked_is_free())
        return 2;
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
