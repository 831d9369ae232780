/* The k largest magnitudes: of a saved input, of an update. */
#ifndef SFD_TOPK_H
#define SFD_TOPK_H

#include "sfd_threads.h"

#define SFD_HISTOGRAM_BINS 256u

/* Packed form: `keep` values, then the bitmask of their positions, both in the order of
 * memory. A tie goes to the lower position in the order image, element. */
uint64_t sfd_packed_bytes(uint32_t keep, uint64_t elements);
void sfd_pack(const float *x, uint32_t size, uint32_t n, uint32_t keep, uint32_t *histogram,
              void *packed, struct sfd_team *team);

/* Place in the order image, element of what lies at `at` in memory. */
uint32_t sfd_image_order(uint32_t size, uint32_t n, uint32_t at);

/* One past the place, in that order, of the last of `ties` elements of this magnitude. */
uint32_t sfd_tie_end(const float *x, uint32_t size, uint32_t n, uint32_t threshold, uint32_t ties);

/* A threshold search over magnitudes: passes over a few bits at a time, the highest first. */
struct sfd_selection {
    uint32_t prefix;    /* the bits of the threshold found so far */
    uint32_t remaining; /* entries still to take among those that share the prefix */
    uint32_t sharing;   /* all those; as many as remain: what is not below the prefix is taken */
    uint32_t shift;     /* of the pass that runs */
    uint32_t *histogram;
};
void sfd_selection_begin(struct sfd_selection *selection, uint32_t keep, uint32_t *histogram);
void sfd_selection_pass(struct sfd_selection *selection);
void sfd_selection_count(struct sfd_selection *selection, const float *x, uint32_t elements);
int sfd_selection_narrow(struct sfd_selection *selection);

#endif
