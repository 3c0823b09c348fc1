/* A team of threads that stays between calls. Own threads rather than OpenMP: no second runtime beside torch's, and a forked
 * child simply starts a team of its own instead of waiting for threads that it does not have. */
#ifndef NS_TEAM_H
#define NS_TEAM_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

typedef void (*team_task)(void *context, int member, int members);

/* Runs task on `members` threads, the caller among them (member 0), and returns when all are done. Calls from several threads
 * take turns. Returns 0, or -1 when threads cannot be started (the task has then run on fewer). */
int team_run(int members, team_task task, void *context);

/* Inside a task: waits for all members. */
void team_barrier(int members);

/* Inside a task: memory of at least `bytes`, kept for the next call by the same member; NULL when there is none. */
void *team_scratch(int member, size_t bytes);

/* Items handed out one by one to whichever member is free. */
typedef struct {
    atomic_int next;
} work_list;

static inline int work_take(work_list *list, int items)
{
    int item = atomic_fetch_add_explicit(&list->next, 1, memory_order_relaxed);
    return item < items ? item : -1;
}

#endif
