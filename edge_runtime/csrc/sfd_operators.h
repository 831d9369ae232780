/* Single operations of the core, for engines that run a graph of their own.
 *
 * Activations are float32 in the core's order: blocks of 16 images, the images of a block interleaved.
 * sfd_to_blocks and sfd_to_rows convert from and to images in NCHW order. Element by element both
 * orders are alike, and a reshape of single images is the same memory in both.
 *
 * Weights are v, dense; the work is that of their nonzeros. Nothing is allocated: where a function
 * takes scratch, another one says how much, aligned to SFD_ALIGNMENT. The kernels are the best ones
 * that build and processor have, on one thread. Sizes are not checked: n is 1 or more, and no tensor has
 * 2^32 elements. */
#ifndef SFD_OPERATORS_H
#define SFD_OPERATORS_H

#include "sfd.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A convolution. A linear layer is one of kernel 1 on images of one pixel. The weight is dense, out
 * channels by in channels of a group by kernel. */
struct sfd_layer_geometry {
    uint32_t in_channels, in_height, in_width, out_channels, out_height, out_width;
    uint32_t groups, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h,
        dilation_w;
};

/* n images of `size` elements each. */
SFD_API void sfd_to_blocks(const float *x, uint32_t size, uint32_t n, float *y);
SFD_API void sfd_to_rows(const float *x, uint32_t size, uint32_t n, float *y);

/* y = bias + w x with w = sign(v) |v|^beta; bias may be NULL. */
SFD_API uint64_t sfd_layer_forward_bytes(const struct sfd_layer_geometry *geometry, const float *v,
                                         uint32_t n);
SFD_API void sfd_layer_forward(const struct sfd_layer_geometry *geometry, const float *v,
                               float beta, const float *bias, const float *x, uint32_t n, float *y,
                               void *scratch);

/* dx = w^T dy, dv = dL/dv from the `keep` largest |x| of the batch, 0 where v is 0, and the sum of dy
 * for each output channel. dx and d_bias may be NULL. A tie of |x| goes to the lower place in NCHW
 * order. */
SFD_API uint64_t sfd_layer_backward_bytes(const struct sfd_layer_geometry *geometry, const float *v,
                                          uint32_t n, uint32_t keep);
SFD_API void sfd_layer_backward(const struct sfd_layer_geometry *geometry, const float *v,
                                float beta, const float *x, const float *dy, uint32_t n,
                                uint32_t keep, float *dx, float *dv, float *d_bias, void *scratch);

/* A batch norm over n images of `channels` by `pixels`. weight and bias may be NULL. */
struct sfd_batch_norm_geometry {
    uint32_t channels, pixels;
    float epsilon;
    const float *weight, *bias;
};

/* In training: moments takes the means of the batch and their variances; `running` is mean and
 * variance, `next` their new values. */
SFD_API void sfd_batch_norm_train(const struct sfd_batch_norm_geometry *geometry, const float *x,
                                  uint32_t n, float momentum, const float *const running[2],
                                  float *y, float *moments, float *const next[2]);
SFD_API void sfd_batch_norm_evaluate(const struct sfd_batch_norm_geometry *geometry, const float *x,
                                     uint32_t n, const float *mean, const float *variance,
                                     float *y);
SFD_API void sfd_batch_norm_gradients(const struct sfd_batch_norm_geometry *geometry,
                                      const float *x, const float *dy, uint32_t n,
                                      const float *moments, float *dx, float *d_weight,
                                      float *d_bias);

/* Group and layer norm: `sets` of `elements` consecutive elements of an image; each `span` of them
 * share a coefficient of weight and bias, the next set's begin `affine_step` on. moments has room
 * for 2 * sets * n. weight, bias, d_weight and d_bias may be NULL. */
struct sfd_norm_geometry {
    uint32_t sets, elements, span, affine_step;
    float epsilon;
    const float *weight, *bias;
};

SFD_API void sfd_norm(const struct sfd_norm_geometry *geometry, const float *x, uint32_t n,
                      float *y, float *moments);
SFD_API void sfd_norm_gradients(const struct sfd_norm_geometry *geometry, const float *x,
                                const float *dy, uint32_t n, const float *moments, float *dx,
                                float *d_weight, float *d_bias);

/* y = min(max(x, 0), ceiling). dx = dy where 0 < x < ceiling, x being input or output; else 0. */
SFD_API void sfd_rectifier(const float *x, uint32_t count, float ceiling, float *y);
SFD_API void sfd_rectifier_gradient(const float *x, const float *dy, uint32_t count, float ceiling,
                                    float *dx);

/* kind: SFD_OPERATION_SILU or SFD_OPERATION_GELU; flags: SFD_FLAG_GELU_TANH. */
SFD_API void sfd_smooth(uint32_t kind, uint32_t flags, const float *x, uint32_t count, float *y);
SFD_API void sfd_smooth_gradient(uint32_t kind, uint32_t flags, const float *x, const float *dy,
                                 uint32_t count, float *dx);

/* kind: SFD_OPERATION_MAX_POOL, _AVERAGE_POOL or _ADAPTIVE_AVERAGE_POOL, which reads no more than the
 * sizes; flags: SFD_FLAG_COUNT_PADDING. A max pool writes the winner of each output, the first one of
 * its window on a tie. */
struct sfd_pool_geometry {
    uint32_t kind, flags, channels, in_height, in_width, out_height, out_width;
    uint32_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w;
};

SFD_API void sfd_pool(const struct sfd_pool_geometry *geometry, const float *x, uint32_t n,
                      float *y, uint16_t *winner);
SFD_API void sfd_pool_gradient(const struct sfd_pool_geometry *geometry, const float *dy,
                               const uint16_t *winner, uint32_t n, float *dx);

/* next = p - rate * (gradient + decay * p) */
SFD_API void sfd_descend(const float *p, const float *gradient, uint32_t count, float rate,
                         float decay, float *next);

#ifdef __cplusplus
}
#endif
#endif
