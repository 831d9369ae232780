/* The parts of a memory plan: fusion, schedule, lifetimes, search, placement. */
#ifndef SFD_PLANNING_H
#define SFD_PLANNING_H

#include "sfd_session.h"

/* Without a search sfd_plan takes the layout of a plan that was made elsewhere. */
#if !defined(SFD_WITH_SEARCH)
#define SFD_WITH_SEARCH 1
#endif

/* sfd_fusion.c: which operations run with the batch norm before them. */
void sfd_fusion_plan(struct sfd_session *session);

/* sfd_schedule.c: the steps that follow from the choices in values (retention) and nodes
 * (packs_late), and their regions. 0: there are more steps than fit. */
int sfd_schedule_build(struct sfd_session *session);

/* Whether SFD_RESTORE_BY_CHANNEL is a choice for the result of this operation. */
int sfd_can_restore_by_channel(const struct sfd_session *session, uint32_t node);

/* sfd_lifetimes.c: the regions, with their sizes and lifetimes. Persistent ones depend on where the
 * working copies are, not on other choices; they have their lifetimes with the transient ones. The
 * first one is that of the tables, whose size follows from the number of steps and regions. */
void sfd_lifetimes_persistent(struct sfd_session *session);
void sfd_lifetimes_transient(struct sfd_session *session);

/* Add up what is alive in each step, beside what is persistent. A region counts in whole units. */
void sfd_lifetimes_sum(struct sfd_session *session, uint32_t unit);

/* The most of it in one step, in units of SFD_ALIGNMENT. */
uint32_t sfd_lifetimes_peak(struct sfd_session *session);

struct sfd_measure {
    uint64_t excess; /* memory over a target, summed over the steps, in units of SFD_ALIGNMENT */
    uint64_t work;   /* of what is computed again */
};

/* A new choice for the result of an operation, or for when its input is packed. */
struct sfd_change {
    uint16_t node;
    uint8_t is_packing;
    uint8_t choice;
};

/* sfd_search.c: what the choices as they are lead to. 0: there are too many steps, or none is left to
 * the search. Leaves schedule and lifetimes behind. */
int sfd_search_measure(struct sfd_session *session, uint32_t target, struct sfd_measure *measure);

/* Exchange the choice of the plan and that of the change. */
void sfd_search_exchange(struct sfd_session *session, struct sfd_change *change);

/* How many choices there are for the result of an operation. */
uint32_t sfd_search_retentions(const struct sfd_session *session, uint32_t node);

/* A walk among choices (sfd_walk.c). */
struct sfd_walk {
    struct sfd_session *session;
    uint64_t work_limit;
    uint64_t chance;
    uint32_t
        lowest; /* most that is alive in a step of the lowest plan, in units of SFD_ALIGNMENT */
    uint32_t plans_left; /* that it may still find */
    struct sfd_measure now;
};

/* Begin with the choices as they are, whose schedule and lifetimes are there. */
void sfd_walk_begin(struct sfd_walk *walk, struct sfd_session *session, uint64_t work_limit);

/* Go on to the next plan that has as little alive as any before, or less. 0: there is none. */
int sfd_walk_on(struct sfd_walk *walk);

/* Choose what is kept and what is computed again: the least work, up to a limit, with
 * at most so much alive in each step, in units of SFD_ALIGNMENT. Leaves schedule and lifetimes
 * behind, and the work of what is computed again. 0: nothing was found. */
int sfd_search(struct sfd_session *session, uint32_t target, uint64_t work_limit, uint64_t *work);

/* The work of one forward, and of that the writing of results, in the measure of the search. */
uint64_t sfd_search_forward_work(const struct sfd_session *session);
uint64_t sfd_search_element_work(const struct sfd_session *session);

/* sfd_placement.c: persistent regions lie one after the other. *end: where the transient ones may
 * begin. SFD_ERR_LIMIT over SFD_ARENA_LIMIT, here and below. */
int sfd_place_persistent(struct sfd_session *session, uint32_t *end);

/* Those share memory over the steps. *end: the end of the highest one. */
int sfd_place_transient(struct sfd_session *session, uint32_t base, uint32_t *end);

/* Whether two regions are never alive in the same step. */
static inline int sfd_are_apart(const struct sfd_lifetime *a, const struct sfd_lifetime *b)
{
    return a->last_step < b->first_step || b->last_step < a->first_step;
}

/* sfd_layout.c: the choices of a layout, once its persistent regions are placed the places of the others.
 * SFD_ERR_STRUCTURE where it is none of this model. */
int sfd_layout_choose(struct sfd_session *session, const uint8_t *layout, uint32_t bytes);
int sfd_layout_place(struct sfd_session *session, const uint8_t *layout, uint32_t bytes,
                     uint32_t base, uint32_t *end);

/* sfd_memory.c: list and place the persistent regions; *base: where the transient ones may begin. */
int sfd_begin_plan(struct sfd_session *session, uint32_t *base);

/* Bytes that the arena begins with: the tables, and the team of a session with threads. */
uint32_t sfd_begin_bytes(const struct sfd_session *session);

/* Choose, list and place all regions. SFD_ERR_LIMIT over SFD_ARENA_LIMIT. */
int sfd_memory_plan(struct sfd_session *session, const struct sfd_options *options,
                    struct sfd_plan *plan);

/* sfd_descent.c: the best plan for the options, without the tables. */
int sfd_find_plan(struct sfd_session *session, const struct sfd_options *options, uint32_t *base,
                  uint32_t *end);

#endif
