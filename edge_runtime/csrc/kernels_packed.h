/* A packed input, expanded stretch by stretch to the coordinates of what was kept. */
#ifndef SFD_KERNELS_PACKED_H
#define SFD_KERNELS_PACKED_H

#include "sfd_kernels.h"

/* A kept input, or a place of the kernel. Input pixel y (the padding included) meets kernel row i in
 * output row (y - i * dilation) / stride, if that divides and lies inside; columns likewise. Both
 * sides are divided once, beforehand: a coordinate t becomes t % stride * span + t / stride, with a
 * span longer than any quotient. The difference of two such codes is the output row where the
 * remainders are equal, and out of range where they are not. */
struct place {
    uint32_t row, column; /* codes */
    uint32_t offset;      /* of the quotients, in floats of the output's channel */
};

/* What one column multiplies: an input, and the offset of its output in any row's channel. */
struct factor {
    uint32_t offset;
    float value;
};

/* A nonzero of the weight: its place in the support, and the next one of its column. */
struct nonzero {
    uint32_t row, k, next;
};

#define NOT_MADE UINT32_MAX
#define NO_NONZERO UINT32_MAX

/* A column of a channel in the stretch: its list, and the first of its collected nonzeros. */
struct column {
    uint32_t list, count, nonzero;
};

struct product {
    const struct sfd_layer *layer;
    const struct sfd_saved_input *x;
    uint32_t area, group_rows, group_channels, row_span, column_span;
    uint32_t listed; /* places with lists: all, or 0 for a kernel with too many */
    struct place *kernel;
    /* the block: its images, its first element, the floats of a channel of input and output */
    uint32_t images, block, in_run, out_run;
    /* the stretch: its channels, and where the entries of each begin; the values of all of them */
    struct place *entry;
    uint32_t *start;
    const float *value;
    uint32_t entry_room, channel_room, first_channel, channels;
    /* lists and collected nonzeros, by column */
    struct column *column;
    struct factor *factor;
    struct nonzero *nonzero;
    uint32_t factors, nonzero_room, nonzeros; /* no room: nonzeros are not collected */
};

/* Begin with a batch, with scratch of sfd_packed_scratch_bytes. */
struct product sfd_product_begin(const struct sfd_layer *layer, const struct sfd_saved_input *x,
                                 uint32_t n, void *scratch);

/* Begin with the block of images from `first` on. */
void sfd_product_block(struct product *product, uint32_t n, uint32_t first);

/* Expand the channels from element `at` on, as many as there is room for; of the last one perhaps a
 * part. Returns where it stopped. */
uint32_t sfd_product_stretch(struct product *product, uint32_t at);

/* A place of the kernel. */
struct place sfd_kernel_place(const struct product *product, uint32_t index);

#endif
