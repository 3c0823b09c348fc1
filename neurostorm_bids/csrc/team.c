#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#define MOST_MEMBERS 256
#define CALL 512u
#define SPINS 4000 /* tens of microseconds: barriers inside a block come closer together than a sleep and a wake-up */

static struct {
    pthread_mutex_t turn;           /* one task at a time */
    pthread_mutex_t lock;           /* guards call and the condition */
    pthread_cond_t wake;
    atomic_uint call;               /* tasks so far * CALL + members of the last: read as one, so never of two tasks */
    int started;                    /* threads beside the caller */
    team_task task;
    void *context;
    atomic_int running;             /* members beside the caller that have not finished the task */
    atomic_int arrived;             /* at the barrier */
    atomic_uint barrier_generation;
    void *scratch[MOST_MEMBERS];
    size_t scratch_bytes[MOST_MEMBERS];
} team = {.turn = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static inline void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static unsigned wait_for_task(unsigned seen)
{
    for (int spin = 0; spin < SPINS; spin++) {
        unsigned now = atomic_load_explicit(&team.call, memory_order_acquire);
        if (now != seen)
            return now;
        pause_briefly();
    }
    pthread_mutex_lock(&team.lock);
    while (atomic_load_explicit(&team.call, memory_order_acquire) == seen)
        pthread_cond_wait(&team.wake, &team.lock);
    pthread_mutex_unlock(&team.lock);
    return atomic_load_explicit(&team.call, memory_order_acquire);
}

typedef struct {
    int member;
    unsigned seen;
} start;

static void *member_main(void *argument)
{
    start s = *(start *)argument;
    free(argument);
    for (;;) {
        s.seen = wait_for_task(s.seen);
        int members = (int)(s.seen % CALL);
        if (s.member < members) {
            team.task(team.context, s.member, members);
            atomic_fetch_sub_explicit(&team.running, 1, memory_order_release);
        }
    }
    return NULL;
}

/* The child of a fork has none of the threads. */
static void forget_threads(void)
{
    team.started = 0;
    pthread_mutex_init(&team.turn, NULL);
    pthread_mutex_init(&team.lock, NULL);
    pthread_cond_init(&team.wake, NULL);
}

static void before_fork(void) { pthread_mutex_lock(&team.turn); }
static void after_fork(void) { pthread_mutex_unlock(&team.turn); }
static void watch_forks(void) { pthread_atfork(before_fork, after_fork, forget_threads); }

static int start_member(int member)
{
    pthread_t thread;
    start *s = malloc(sizeof *s);
    if (!s)
        return -1;
    *s = (start){member, atomic_load(&team.call)};
    if (pthread_create(&thread, NULL, member_main, s)) {
        free(s);
        return -1;
    }
    pthread_detach(thread);
    return 0;
}

static int start_members(int members)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    while (team.started + 1 < members && start_member(team.started + 1) == 0)
        team.started++;
    return team.started + 1 < members ? team.started + 1 : members;
}

static void begin(int members, team_task task, void *context)
{
    team.task = task, team.context = context;
    atomic_store(&team.running, members - 1);
    atomic_store(&team.arrived, 0);
    pthread_mutex_lock(&team.lock);
    unsigned calls = atomic_load(&team.call) / CALL + 1;
    atomic_store_explicit(&team.call, calls * CALL + (unsigned)members, memory_order_release);
    pthread_cond_broadcast(&team.wake);
    pthread_mutex_unlock(&team.lock);
}

int team_run(int members, team_task task, void *context)
{
    int wanted = members < 1 ? 1 : members > MOST_MEMBERS ? MOST_MEMBERS : members;
    pthread_mutex_lock(&team.turn);
    int available = wanted > 1 ? start_members(wanted) : 1;
    if (available > 1)
        begin(available, task, context);
    task(context, 0, available);
    for (int spin = 0; available > 1 && atomic_load_explicit(&team.running, memory_order_acquire) > 0; spin++)
        spin < SPINS ? pause_briefly() : (void)sched_yield();
    pthread_mutex_unlock(&team.turn);
    return available == wanted ? 0 : -1;
}

void team_barrier(int members)
{
    if (members < 2)
        return;
    unsigned generation = atomic_load_explicit(&team.barrier_generation, memory_order_acquire);
    if (atomic_fetch_add_explicit(&team.arrived, 1, memory_order_acq_rel) + 1 == members) {
        atomic_store_explicit(&team.arrived, 0, memory_order_relaxed);
        atomic_fetch_add_explicit(&team.barrier_generation, 1, memory_order_release);
        return;
    }
    for (int spin = 0; atomic_load_explicit(&team.barrier_generation, memory_order_acquire) == generation; spin++)
        spin < SPINS ? pause_briefly() : (void)sched_yield();
}

void *team_scratch(int member, size_t bytes)
{
    if (team.scratch_bytes[member] < bytes) {
        free(team.scratch[member]);
        team.scratch[member] = NULL;
        team.scratch_bytes[member] = 0;
        if (posix_memalign(&team.scratch[member], 64, bytes))
            return team.scratch[member] = NULL;
        team.scratch_bytes[member] = bytes;
    }
    return team.scratch[member];
}
