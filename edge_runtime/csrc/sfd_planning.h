/* The parts of a memory plan: fusion, schedule, lifetimes, search, placement. */
#ifndef SFD_PLANNING_H
#define SFD_PLANNING_H

#include "sfd_session.h"

/* sfd_fusion.c: which operations run with the batch norm before them. */
void sfd_fusion_plan(struct sfd_session *session);

/* sfd_schedule.c: the steps that follow from the choices in values (retention) and nodes
 * (packs_late). 0: there are more than fit. */
int sfd_schedule_build(struct sfd_session *session);

/* sfd_lifetimes.c: the regions, with their sizes and lifetimes. Persistent ones depend on where the
 * working copies are, not on other choices; they have their lifetimes with the transient ones. The
 * first one is that of the tables, whose size follows from the number of steps and regions. */
void sfd_lifetimes_persistent(struct sfd_session *session);
void sfd_lifetimes_transient(struct sfd_session *session);

/* Add up what is alive in each step, beside what is persistent. A region counts in whole units. */
void sfd_lifetimes_sum(struct sfd_session *session, uint32_t unit);

/* The most of it in one step, in units of SFD_ALIGNMENT. */
uint32_t sfd_lifetimes_peak(struct sfd_session *session);

/* sfd_search.c: choose what is kept and what is computed again: the least work, up to a limit, with
 * at most so much alive in each step, in units of SFD_ALIGNMENT. Leaves schedule and lifetimes
 * behind, and the work of what is computed again. 0: nothing was found. */
int sfd_search(struct sfd_session *session, uint32_t target, uint64_t work_limit, uint64_t *work);

/* The schedule and the lifetimes of the choices as they are. 0: there are too many steps. */
int sfd_search_build(struct sfd_session *session);

/* The work of one forward, and of that the writing of results, in the measure of the search. */
uint64_t sfd_search_forward_work(const struct sfd_session *session);
uint64_t sfd_search_element_work(const struct sfd_session *session);

/* sfd_placement.c: persistent regions lie one after the other. *end: where the transient ones may
 * begin. SFD_ERR_LIMIT over SFD_ARENA_LIMIT, here and below. */
int sfd_place_persistent(struct sfd_session *session, uint32_t *end);

/* Those share memory over the steps. *end: the end of the highest one. */
int sfd_place_transient(struct sfd_session *session, uint32_t base, uint32_t *end);

/* sfd_memory.c: choose, list and place all regions. SFD_ERR_LIMIT over SFD_ARENA_LIMIT. */
int sfd_memory_plan(struct sfd_session *session, const struct sfd_options *options,
                    struct sfd_plan *plan);

#endif
