/* A walk among the choices of a plan: where searches by the best change have ended, changes by chance,
 * one or two at a time, lead on. One that does not lower the memory is accepted within a bound that
 * falls to nothing (threshold accepting: Dueck and Scheuer 1990). Chance is a sequence of numbers that
 * is always the same, and the length is bounded by the number of steps that are looked at. */
#include "sfd_planning.h"

/* Steps that a walk may look at: some tenths of a second. */
#define WALK_STEPS (UINT32_C(1) << 18)

/* Plans with the least alive that are looked at more closely, and by which part the target is lower. */
#define WALK_PLANS 64u
#define TARGET_PART 64u

/* The sequence of Knuth, MMIX; its low bits are poor. */
static uint32_t draw(struct sfd_walk *walk, uint32_t count)
{
    walk->chance = walk->chance * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)((walk->chance >> 33) % count);
}

static uint32_t target_below(uint32_t live)
{
    return live - live / TARGET_PART;
}

void sfd_walk_begin(struct sfd_walk *walk, struct sfd_session *session, uint64_t work_limit)
{
    memset(walk, 0, sizeof *walk);
    walk->session = session;
    walk->work_limit = work_limit;
    walk->plans_left = WALK_PLANS;
    walk->lowest = sfd_lifetimes_peak(session);
    session->search_left = WALK_STEPS;
    (void)sfd_search_measure(session, target_below(walk->lowest), &walk->now);
}

/* Any choice but the one that there is; 0: the operation has no other. */
static int change_one(struct sfd_walk *walk, struct sfd_change *change)
{
    struct sfd_session *session = walk->session;
    uint32_t count;

    change->node = (uint16_t)draw(walk, session->operation_count);
    if (SFD_HAS(BATCH_NORM) && session->nodes[change->node].absorbed > 0u)
        return 0;
    change->is_packing = session->plans[change->node].packed_bytes > 0u && draw(walk, 4u) == 0u;
    count = change->is_packing ? 2u : sfd_search_retentions(session, change->node);
    change->choice = (uint8_t)draw(walk, count);
    sfd_search_exchange(session, change);
    return 1;
}

/* How much worse a plan may become: less and less. */
static uint64_t bound(struct sfd_walk *walk)
{
    const uint64_t left = walk->session->search_left / (WALK_STEPS / 1024u);

    return walk->lowest * left / 1024u * left / 1024u * left / 1024u * draw(walk, 1024u) / 1024u;
}

/* One change, or two. Returns whether the plan is as low as any before. */
static int walk_step(struct sfd_walk *walk)
{
    struct sfd_session *session = walk->session;
    struct sfd_change changes[2];
    struct sfd_measure after;
    uint32_t count = draw(walk, 5u) < 2u ? 2u : 1u, done, live;

    for (done = 0u; done < count && change_one(walk, &changes[done]); ++done)
        ;
    if (done > 0u && sfd_search_measure(session, target_below(walk->lowest), &after) &&
        after.work <= walk->work_limit && after.excess <= walk->now.excess + bound(walk)) {
        walk->now = after;
        live = sfd_lifetimes_peak(session);
        if (live > walk->lowest)
            return 0;
        if (live < walk->lowest)
            (void)sfd_search_measure(session, target_below(live), &walk->now);
        walk->lowest = live;
        return 1;
    }
    while (done > 0u)
        sfd_search_exchange(session, &changes[--done]);
    return 0;
}

int sfd_walk_on(struct sfd_walk *walk)
{
    while (walk->session->search_left > 0u && walk->plans_left > 0u)
        if (walk_step(walk)) {
            --walk->plans_left;
            return 1;
        }
    return 0;
}
