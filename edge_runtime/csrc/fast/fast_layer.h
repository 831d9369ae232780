/* The passes over a convolution or linear layer, part by part of a batch. */
#ifndef SFD_FAST_LAYER_H
#define SFD_FAST_LAYER_H

#include "fast_blocks.h"
#include "fast_columns.h"
#include "fast_linear.h"
#include "fast_small.h"
#include "fast_trio.h"

/* The ways to compute a part of a batch. */
enum fast_path {
    FAST_LINEAR,  /* fast_linear.h: one image, or some whole blocks of a linear layer */
    FAST_COLUMNS, /* fast_columns.h: a block whose output channels are a few vectors each */
    FAST_BLOCKS,  /* fast_blocks.h: all whole blocks at once */
    FAST_SMALL    /* fast_small.h: a block of fewer images */
};

/* How to go on where so many images of a batch are left; *images of them come next. */
static enum fast_path fast_path(const struct sfd_layer *layer, uint32_t left, uint32_t *images)
{
    *images = linear_images(layer, left);
    if (*images > 0u)
        return FAST_LINEAR;
    *images = left < SFD_BLOCK ? left : SFD_BLOCK;
    if (column_pixels(layer, *images) > 0u)
        return FAST_COLUMNS;
    *images = left < SFD_BLOCK ? left : left / SFD_BLOCK * SFD_BLOCK;
    return left < SFD_BLOCK ? FAST_SMALL : FAST_BLOCKS;
}

static uint64_t part_forward_bytes(const struct sfd_layer *layer, uint32_t left)
{
    uint32_t images;

    switch (fast_path(layer, left, &images)) {
    case FAST_COLUMNS:
        return columns_forward_bytes(layer, images);
    case FAST_BLOCKS:
        return trio_pays(layer) ? trio_forward_bytes(layer) : blocks_forward_bytes(layer);
    case FAST_SMALL:
        return small_forward_bytes(layer, images);
    default: /* linear: none */
        return 0u;
    }
}

static uint64_t part_backward_bytes(const struct sfd_layer *layer, uint32_t left)
{
    uint32_t images;

    switch (fast_path(layer, left, &images)) {
    case FAST_COLUMNS:
        return columns_backward_bytes(layer, images);
    case FAST_BLOCKS:
        return blocks_backward_bytes(layer);
    case FAST_SMALL:
        return small_backward_bytes(layer, images);
    default:
        return linear_backward_bytes(layer, left);
    }
}

/* 0.6 ns against 0.025 with vectors of 64 bytes, where the tensor comes from memory. */
#define FAST_ELEMENT_WORK 24u

static int fast_skips_zeros(const struct sfd_layer *layer)
{
    return !fast_is_ordinary(layer);
}

/* A batch may be smaller than planned: each number of images from 1 on can be the rest. */
static uint64_t fast_forward_scratch_bytes(const struct sfd_layer *layer, uint32_t n)
{
    uint64_t bytes;
    uint32_t images;

    if (!fast_is_ordinary(layer))
        return sfd_kernels_portable.forward_scratch_bytes(layer, n);
    bytes = part_forward_bytes(layer, n);
    for (images = 1u; images <= n && images <= SFD_BLOCK; ++images)
        bytes = sfd_maximum(bytes, part_forward_bytes(layer, images));
    return bytes;
}

static uint64_t fast_forward(const struct sfd_layer *layer, const float *w, const float *bias,
                             const float *x, float *y, uint32_t n, void *scratch)
{
    uint32_t first, images;
    uint64_t done = 0u;

    if (!fast_is_ordinary(layer))
        return sfd_kernels_portable.forward(layer, w, bias, x, y, n, scratch);
    for (first = 0u; first < n; first += images) {
        const enum fast_path path = fast_path(layer, n - first, &images);
        const float *from = x + first * sfd_in_elements(layer);
        float *to = y + first * sfd_out_elements(layer);
        if (path == FAST_BLOCKS && !trio_pays(layer)) {
            done += blocks_forward(layer, w, bias, from, to, images, scratch);
            continue;
        }
        if (path == FAST_LINEAR)
            linear_forward(layer, w, bias, from, to, images);
        else if (path == FAST_BLOCKS)
            trio_forward(layer, w, bias, from, to, images, scratch);
        else if (path == FAST_COLUMNS)
            columns_forward_part(layer, w, bias, from, to, images, scratch);
        else
            small_forward(layer, w, bias, from, to, images, scratch);
        done += layer->multiply_adds * images;
    }
    return done;
}

static uint64_t fast_backward_scratch_bytes(const struct sfd_layer *layer, uint32_t n)
{
    uint64_t kept = unpacking_bytes(layer, strips_apart(layer)), bytes;
    uint32_t images;

    if (!fast_is_ordinary(layer))
        return sfd_kernels_portable.backward_scratch_bytes(layer, n);
    bytes = part_backward_bytes(layer, n);
    if (n > SFD_BLOCK)
        kept += aligned_bytes((uint64_t)layer->support.count * 4u);
    for (images = 1u; images <= n && images <= SFD_BLOCK; ++images)
        bytes = sfd_maximum(bytes, part_backward_bytes(layer, images));
    return kept + bytes;
}

static void part_backward(const struct sfd_layer *layer, const struct fast_part *part,
                          enum fast_path path, uint8_t *scratch, struct sfd_multiply_adds *done)
{
    if (path == FAST_BLOCKS) {
        blocks_backward(layer, part, scratch, done);
        return;
    }
    if (path != FAST_LINEAR && !part->x)
        unpacking_begin(part->unpacking, layer->team, part->images, layer->in_height);
    if (path == FAST_LINEAR)
        linear_backward(layer, part, (void *)scratch);
    else if (path == FAST_COLUMNS)
        columns_backward_part(layer, part, scratch);
    else
        small_backward_part(layer, part, scratch);
    done->d_weight += layer->multiply_adds * part->images;
    done->d_input += part->dx ? layer->multiply_adds * part->images : 0u;
}

static void fast_backward(const struct sfd_layer *layer, const float *w,
                          const struct sfd_saved_input *x, const float *dy, float *dx,
                          int accumulate, float *gradient, uint32_t n, void *scratch,
                          struct sfd_multiply_adds *done)
{
    struct fast_unpacking unpacking;
    struct fast_part part = {.accumulate = accumulate, .gradient = gradient, .w = w};
    uint8_t *cursor = scratch;
    uint32_t first;

    if (!fast_is_ordinary(layer)) {
        sfd_kernels_portable.backward(layer, w, x, dy, dx, accumulate, gradient, n, scratch, done);
        return;
    }
    unpacking = unpacking_of(layer, x, cursor);
    cursor += unpacking_bytes(layer, strips_apart(layer));
    if (n > SFD_BLOCK) { /* gradient may be w: a later part needs w as it was */
        part.w = memcpy(cursor, w, layer->support.count * sizeof *w);
        cursor += aligned_bytes(layer->support.count * sizeof *w);
    }
    part.unpacking = &unpacking;
    for (first = 0u; first < n; first += part.images) {
        const enum fast_path path = fast_path(layer, n - first, &part.images);
        const size_t at = first * sfd_in_elements(layer);
        part.later = first > 0u;
        part.x = x->dense ? x->dense + at : NULL;
        part.dy = dy + first * sfd_out_elements(layer);
        part.dx = dx ? dx + at : NULL;
        part_backward(layer, &part, path, cursor, done);
    }
}

#endif
