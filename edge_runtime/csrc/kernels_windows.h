/* What a nonzero of a convolution touches, and the loops over it. */
#ifndef SFD_KERNELS_WINDOWS_H
#define SFD_KERNELS_WINDOWS_H

#include "sfd_kernels.h"

/* What a nonzero touches, by its place in the kernel: `lines` rows of pixels, `count` floats in each.
 * Where they begin is in floats, from the first one of the channel. */
struct window {
    uint32_t count, lines;
    size_t in, out;
};

/* The input or the output of a block, in floats: a channel, and the distances between the pixels and
 * the lines that neighbours in the output have here. */
struct side {
    size_t run, step, line;
};

/* One pass over one block of images. */
struct pass {
    const struct sfd_layer *layer;
    const struct window *windows;
    uint32_t area, group_rows, images;
    size_t group_run;
    struct side in, out;
};

/* Begin with a block of so many images, with scratch for a window of each place of the kernel. */
struct pass sfd_pass_begin(const struct sfd_layer *layer, uint32_t images, void *scratch);

/* y += w * x over a window, from one side of a pass to the other, of n images. */
void sfd_window_add(const struct window *window, uint32_t n, float *y, const struct side *to,
                    const float *x, const struct side *from, float w);

/* The product of a window's outputs and inputs. */
float sfd_window_dot(const struct pass *pass, const struct window *window, const float *y,
                     const float *x);

#endif
