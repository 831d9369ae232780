/* The threads of a session. */
#ifndef SFD_THREADS_H
#define SFD_THREADS_H

#include "sfd.h"

struct sfd_team;

/* A task runs once on each of the `count` threads of the team, on the calling one with index 0; it
 * is done when sfd_team_run returns. A team that is NULL is the calling thread alone. Each number is
 * computed by one thread, in the order in which one thread would: the bits do not depend on the
 * threads. */
typedef void (*sfd_task)(void *context, uint32_t index, uint32_t count);
void sfd_team_run(struct sfd_team *team, sfd_task task, void *context);
uint32_t sfd_team_count(const struct sfd_team *team);

/* A task over parts [0, parts), each of which one thread does; `index` says which. A thread begins
 * with its share of them, as sfd_share has it, so that what it wrote before is in its own cache; then
 * it takes parts that others have not come to. */
typedef void (*sfd_part_task)(void *context, uint32_t part, uint32_t index);
void sfd_team_parts(struct sfd_team *team, sfd_part_task task, void *context, uint32_t parts);

/* The most threads that this build can have. */
uint32_t sfd_threads_limit(void);

/* Bytes of the team, a multiple of SFD_ALIGNMENT; none for one thread. */
uint64_t sfd_team_bytes(uint32_t threads);

/* Start the threads of a team in `memory`; *started is NULL for one thread. */
int sfd_team_start(void *memory, uint32_t threads, struct sfd_team **started);

/* End the threads of a team, which may be NULL. */
void sfd_team_end(struct sfd_team *team);

/* Where the share of thread `index` of `count` begins; that of the next one is its end. */
static inline uint32_t sfd_share(uint32_t total, uint32_t index, uint32_t count)
{
    return (uint32_t)((uint64_t)total * index / count);
}

/* The same in runs of 64, so that the ends of vectors do not depend on the threads. */
static inline uint32_t sfd_run_share(uint32_t total, uint32_t index, uint32_t count)
{
#if !defined(SFD_ONE_THREAD)
    if (index != 0u && index != count)
        return sfd_share(total / 64u, index, count) * 64u;
#else
    (void)count;
#endif
    return index == 0u ? 0u : total;
}

/* Passes over fewer floats than these take no longer than to call other threads. */
#define SFD_SHARED_LEAST 8192u

#endif
