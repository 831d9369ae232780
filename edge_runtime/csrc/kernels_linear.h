/* Linear layers, whose nonzeros meet all floats of their channel. */
#ifndef SFD_KERNELS_LINEAR_H
#define SFD_KERNELS_LINEAR_H

#include "sfd_kernels.h"

/* y = bias + W x; bias may be NULL. Returns the multiply-adds, as below. */
uint64_t sfd_linear_forward(const struct sfd_layer *layer, const float *w, const float *bias,
                            const float *x, float *y, uint32_t n);

/* dx += W^T dy */
uint64_t sfd_linear_d_input(const struct sfd_layer *layer, const float *w, const float *dy,
                            float *dx, uint32_t n);

#endif
