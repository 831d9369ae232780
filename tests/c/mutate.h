/* Deterministic damage to the files of the core. */
#ifndef MUTATE_H
#define MUTATE_H

#include "sfd_parse.h"

struct bytes {
    uint8_t *data;
    size_t size;
};

enum file { ARTIFACT, STATE, UPDATE, FILES };

/* The next number of the sequence that *random is the state of. */
uint64_t next_random(uint64_t *random);

/* A number in [0, bound), or 0 for bound 0. */
size_t below(uint64_t *random, size_t bound);

/* Memory aligned to SFD_ALIGNMENT, for free(). Ends the program if there is none. */
void *allocate(size_t size);

/* A damaged copy in a heap block of exactly its size. Half of the copies have a right length and
 * checksum, so that the checks behind them see the damage. */
struct bytes mutate(const struct bytes *original, enum file which, uint64_t *random);

#endif
