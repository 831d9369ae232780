/* What the backward of a part of a batch takes: its images follow each other in one block or, for
 * linear layers, in some blocks. */
#ifndef SFD_FAST_PART_H
#define SFD_FAST_PART_H

#include "fast_unpack.h"

struct fast_part {
    uint32_t images;
    int later; /* an earlier part has written the gradient: add to it */
    const float *w;
    const float *x;                   /* NULL: the input is packed */
    struct fast_unpacking *unpacking; /* stands at the part */
    const float *dy;
    float *dx;       /* NULL: not wanted */
    int accumulate;  /* add to dx */
    float *gradient; /* may be w: each weight is read before its gradient is written */
};

#endif
