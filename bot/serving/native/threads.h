/* Threads that share the work of a call.
 *
 * A call is a row of phases, some microseconds each, too short to put a thread to sleep and wake it in between. So helpers
 * look for work all through a call, and sleep once there has been none for a while. Whoever is free takes the next units of
 * a phase, fewer the fewer are left. Nobody waits for a thread, only for units that one has taken: a helper that the system
 * doesn't run takes none, and the caller does all the work itself.
 *
 * Which thread does a unit never changes its result.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

/* Whoever looks for work offers its core to others after so many looks. Helpers go to sleep so long after a call that the
 * next token's comes before. */
enum { MOST_THREADS = 256, LOOKS = 2000, LINGER_US = 2000 };

/* Units `first` up to `end` of a phase. */
typedef void (*Part)(const void *work, int first, int end);

static struct {
    pthread_mutex_t lock;
    pthread_cond_t called;
    atomic_flag taken;      /* by the thread whose call is running */
    int started, registered; /* helpers that there are; whether `forget_helpers` is */
    pthread_t helpers[MOST_THREADS];
    int core; /* on which no helper may run, or -1 */
    atomic_int asleep, wanted;
    atomic_uint calls; /* odd while one runs */
    const void *work;
    Part part;
    int units;
    uint32_t phase;
    _Alignas(64) _Atomic uint64_t open; /* the phase's number and how many of its units nobody has taken */
    _Alignas(64) atomic_int done;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .called = PTHREAD_COND_INITIALIZER, .taken = ATOMIC_FLAG_INIT, .core = -1};

/* How many share this thread's call, 0 outside of one; and which of them this one is. */
static _Thread_local int sharers, sharer;

static inline void look_again(int *looks)
{
    if (++*looks % LOOKS == 0)
        sched_yield(); /* to whoever waits for this core: maybe the one that is waited for */
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Take units of the phase until none is left; returns whether there was one. */
static int work_along(void)
{
    int any = 0;
    uint64_t open = atomic_load_explicit(&pool.open, memory_order_acquire);
    for (uint32_t left; (left = (uint32_t)open);) {
        const uint32_t part = left / (2 * (atomic_load_explicit(&pool.wanted, memory_order_relaxed) + 1));
        const uint32_t count = part ? part : 1;
        if (!atomic_compare_exchange_weak_explicit(
                &pool.open, &open, open - count, memory_order_acq_rel, memory_order_acquire))
            continue;
        const int first = pool.units - (int)left;
        pool.part(pool.work, first, first + (int)count);
        atomic_fetch_add_explicit(&pool.done, (int)count, memory_order_release);
        any = 1;
        open = atomic_load_explicit(&pool.open, memory_order_acquire);
    }
    return any;
}

static inline int called(void)
{
    return (atomic_load(&pool.calls) & 1) && sharer <= atomic_load(&pool.wanted);
}

/* Look out for the next call; returns whether there is one. */
static int linger(void)
{
    struct timespec now;
    int64_t until = 0;
    for (int looks = 0; !called(); look_again(&looks)) {
        if (looks % LOOKS)
            continue;
        clock_gettime(CLOCK_MONOTONIC, &now);
        const int64_t us = (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
        if (until && us > until)
            return 0;
        until = until ? until : us + LINGER_US;
    }
    return 1;
}

static void *help(void *number)
{
    sharer = (int)(intptr_t)number;
    for (;;) {
        pthread_mutex_lock(&pool.lock);
        while (!called()) {
            atomic_fetch_add(&pool.asleep, 1);
            pthread_cond_wait(&pool.called, &pool.lock);
            atomic_fetch_sub(&pool.asleep, 1);
        }
        pthread_mutex_unlock(&pool.lock);
        do
            for (int looks = 0; called();)
                if (!work_along())
                    look_again(&looks);
        while (linger());
    }
    return NULL;
}

/* A forked child has none of its parent's threads, and none of the work that they had open. */
static void forget_helpers(void)
{
    atomic_store(&pool.open, 0);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.called, NULL);
    atomic_flag_clear(&pool.taken);
    atomic_store(&pool.asleep, 0);
    atomic_store(&pool.calls, 0);
    pool.started = 0;
    pool.core = -1;
}

/* Start helpers until there are `count`; returns how many of those there are. */
static int start_helpers(int count)
{
    sigset_t all, before;
    pthread_attr_t attributes;
    if (pool.started >= count)
        return count;
    if (!pool.registered)
        pool.registered = !pthread_atfork(NULL, NULL, forget_helpers);
    /* Signals are for the threads of the program. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    for (; pool.started < count; pool.started++)
        if (pthread_create(&pool.helpers[pool.started], &attributes, help, (void *)(intptr_t)(pool.started + 1)))
            break;
    pool.core = -1;
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return pool.started < count ? pool.started : count;
}

/* Keep helpers off the core of who calls: on it they would wait for the caller, and the system may not move them for
 * longer than a step takes. */
static void leave_core(void)
{
#if defined(__linux__)
    cpu_set_t cores;
    const int core = sched_getcpu();
    if (core < 0 || core == pool.core || pthread_getaffinity_np(pthread_self(), sizeof cores, &cores))
        return;
    pool.core = core;
    CPU_CLR(core, &cores);
    for (int helper = 0; helper < pool.started && CPU_COUNT(&cores); helper++)
        pthread_setaffinity_np(pool.helpers[helper], sizeof cores, &cores);
#endif
}

/* Let up to `threads` threads share what this one does until `end_call`; while another thread's call is running, none. */
static void begin_call(int threads)
{
    if (threads > MOST_THREADS)
        threads = MOST_THREADS;
    if (threads <= 1 || atomic_flag_test_and_set(&pool.taken))
        return;
    pthread_mutex_lock(&pool.lock);
    const int helpers = start_helpers(threads - 1);
    leave_core();
    sharers = helpers + 1;
    atomic_store(&pool.wanted, helpers);
    atomic_fetch_add(&pool.calls, 1);
    if (atomic_load(&pool.asleep))
        pthread_cond_broadcast(&pool.called);
    pthread_mutex_unlock(&pool.lock);
}

static void end_call(void)
{
    if (!sharers)
        return;
    sharers = 0;
    atomic_fetch_add(&pool.calls, 1);
    atomic_flag_clear(&pool.taken);
}

/* Do all units of a phase; returns once they are done. */
static void share(int units, Part part, const void *work)
{
    if (sharers <= 1 || units <= 1) {
        part(work, 0, units);
        return;
    }
    pool.part = part;
    pool.work = work;
    pool.units = units;
    atomic_store_explicit(&pool.done, 0, memory_order_relaxed);
    atomic_store_explicit(&pool.open, (uint64_t)++pool.phase << 32 | (uint32_t)units, memory_order_release);
    work_along();
    for (int looks = 0; atomic_load_explicit(&pool.done, memory_order_acquire) != units;)
        look_again(&looks);
}
