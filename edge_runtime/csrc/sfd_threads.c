/* The threads of a session. All that is POSIX in the core is here; a build without SFD_WITH_THREADS
 * has sessions of one thread.
 *
 * A step is some hundred parallel regions, most of them shorter than it takes to wake a thread. So a
 * thread that waits keeps looking for a while, then lets others run between its looks, and sleeps
 * only when nothing comes, as between two steps. */
#if defined(SFD_WITH_THREADS)
#define _POSIX_C_SOURCE 200809L
#endif
#include <string.h>

#include "sfd_threads.h"

#if defined(SFD_WITH_THREADS)
#include <pthread.h>
#include <sched.h>
#include <signal.h>

#define LOOKS 4000u  /* with a pause after each: some hundred microseconds */
#define YIELDS 1000u /* more of them, each lets others run */

struct member {
    uint32_t next, last; /* parts of its share that nobody has taken */
    uint32_t index;
    struct sfd_team *team;
    pthread_t thread;             /* but for the first, which calls */
    uint8_t apart[SFD_ALIGNMENT]; /* the next member's parts are in another line */
};

struct sfd_team {
    sfd_task task; /* NULL: the end */
    void *context;
    uint32_t count;      /* of threads, with the one that calls */
    uint32_t generation; /* of the task */
    uint32_t running;    /* workers that are not done with it */
    uint32_t sleeping;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct member member[];
};

static void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Rest after look number `look`. */
static void rest(uint32_t look)
{
    if (look < LOOKS)
        pause_briefly();
    else
        sched_yield();
}

static uint32_t current_generation(const struct sfd_team *team)
{
    return __atomic_load_n(&team->generation, __ATOMIC_SEQ_CST);
}

static void sleep_until_called(struct sfd_team *team, uint32_t seen)
{
    pthread_mutex_lock(&team->lock);
    __atomic_add_fetch(&team->sleeping, 1u, __ATOMIC_SEQ_CST);
    while (current_generation(team) == seen)
        pthread_cond_wait(&team->wake, &team->lock);
    __atomic_sub_fetch(&team->sleeping, 1u, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&team->lock);
}

static void *work(void *context)
{
    const struct member *member = context;
    struct sfd_team *team = member->team;
    uint32_t seen = 0u, look;

    for (;; ++seen) {
        for (look = 0u; look < LOOKS + YIELDS && current_generation(team) == seen; ++look)
            rest(look);
        if (look == LOOKS + YIELDS)
            sleep_until_called(team, seen);
        if (team->task == NULL)
            return NULL;
        team->task(team->context, member->index, team->count);
        __atomic_sub_fetch(&team->running, 1u, __ATOMIC_RELEASE);
    }
}

/* Hand a task to the workers. One who fell asleep before the generation changed is seen here, since
 * the order of all these accesses is one. */
static void call_workers(struct sfd_team *team, sfd_task task, void *context)
{
    team->task = task;
    team->context = context;
    __atomic_store_n(&team->running, team->count - 1u, __ATOMIC_RELAXED);
    __atomic_add_fetch(&team->generation, 1u, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&team->sleeping, __ATOMIC_SEQ_CST) > 0u) {
        pthread_mutex_lock(&team->lock);
        pthread_cond_broadcast(&team->wake);
        pthread_mutex_unlock(&team->lock);
    }
}

uint32_t sfd_threads_limit(void)
{
    return SFD_MAX_THREADS;
}

uint64_t sfd_team_bytes(uint32_t threads)
{
    const uint64_t bytes = sizeof(struct sfd_team) + threads * sizeof(struct member);

    return threads > 1u ? (bytes + SFD_ALIGNMENT - 1u) / SFD_ALIGNMENT * SFD_ALIGNMENT : 0u;
}

/* The signals of the process are for its own threads. */
static int start_worker(struct member *worker)
{
    sigset_t all, before;
    int error;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&worker->thread, NULL, work, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

int sfd_team_start(void *memory, uint32_t threads, struct sfd_team **started)
{
    struct sfd_team *team = memory;

    *started = NULL;
    if (threads <= 1u)
        return SFD_OK;
    memset(team, 0, (size_t)sfd_team_bytes(threads));
    if (pthread_mutex_init(&team->lock, NULL) != 0)
        return SFD_ERR_THREADS;
    if (pthread_cond_init(&team->wake, NULL) != 0) {
        pthread_mutex_destroy(&team->lock);
        return SFD_ERR_THREADS;
    }
    for (team->count = 1u; team->count < threads; ++team->count) {
        struct member *worker = &team->member[team->count];
        worker->team = team;
        worker->index = team->count;
        if (start_worker(worker) != 0) {
            sfd_team_end(team);
            return SFD_ERR_THREADS;
        }
    }
    *started = team;
    return SFD_OK;
}

void sfd_team_end(struct sfd_team *team)
{
    uint32_t i;

    if (team == NULL)
        return;
    call_workers(team, NULL, NULL);
    for (i = 1u; i < team->count; ++i)
        pthread_join(team->member[i].thread, NULL);
    pthread_cond_destroy(&team->wake);
    pthread_mutex_destroy(&team->lock);
}

uint32_t sfd_team_count(const struct sfd_team *team)
{
    return team == NULL ? 1u : team->count;
}

void sfd_team_run(struct sfd_team *team, sfd_task task, void *context)
{
    uint32_t look;

    if (team == NULL) {
        task(context, 0u, 1u);
        return;
    }
    call_workers(team, task, context);
    task(context, 0u, team->count);
    for (look = 0u; __atomic_load_n(&team->running, __ATOMIC_ACQUIRE) > 0u; ++look)
        rest(look);
}

struct parts_work {
    struct sfd_team *team;
    sfd_part_task task;
    void *context;
};

/* Its own parts first, then those that others have left. */
static void take_parts(void *context, uint32_t index, uint32_t count)
{
    const struct parts_work *work = context;
    uint32_t i, part;

    for (i = 0u; i < count; ++i) {
        struct member *of = &work->team->member[(index + i) % count];
        while (__atomic_load_n(&of->next, __ATOMIC_RELAXED) < of->last) {
            part = __atomic_fetch_add(&of->next, 1u, __ATOMIC_RELAXED);
            if (part < of->last)
                work->task(work->context, part, index);
        }
    }
}

void sfd_team_parts(struct sfd_team *team, sfd_part_task task, void *context, uint32_t parts)
{
    struct parts_work work = {team, task, context};
    uint32_t i;

    for (i = 0u; team == NULL && i < parts; ++i)
        task(context, i, 0u);
    if (team == NULL)
        return;
    for (i = 0u; i < team->count; ++i) {
        team->member[i].next = sfd_share(parts, i, team->count);
        team->member[i].last = sfd_share(parts, i + 1u, team->count);
    }
    sfd_team_run(team, take_parts, &work);
}

#else

uint32_t sfd_threads_limit(void)
{
    return 1u;
}

uint64_t sfd_team_bytes(uint32_t threads)
{
    (void)threads;
    return 0u;
}

int sfd_team_start(void *memory, uint32_t threads, struct sfd_team **started)
{
    (void)memory;
    *started = NULL;
    return threads <= 1u ? SFD_OK : SFD_ERR_THREADS;
}

void sfd_team_end(struct sfd_team *team)
{
    (void)team;
}

uint32_t sfd_team_count(const struct sfd_team *team)
{
    (void)team;
    return 1u;
}

void sfd_team_run(struct sfd_team *team, sfd_task task, void *context)
{
    (void)team;
    task(context, 0u, 1u);
}

void sfd_team_parts(struct sfd_team *team, sfd_part_task task, void *context, uint32_t parts)
{
    uint32_t i;

    (void)team;
    for (i = 0u; i < parts; ++i)
        task(context, i, 0u);
}
#endif
