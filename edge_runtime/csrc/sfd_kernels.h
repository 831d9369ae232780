/* The kernels: what they compute on, and the tables through which they are called. */
#ifndef SFD_KERNELS_H
#define SFD_KERNELS_H

#include "sfd_math.h"
#include "sfd_parse.h"
#include "sfd_threads.h"
#include "sfd_topk.h"

/* A batch is cut into blocks of this many images; the last one may have fewer. Blocks follow each
 * other in memory. Within one the images are interleaved: the values of one pixel lie side by side,
 * pixels follow in rows, rows in channels. So a channel of a block is one run of floats, and a
 * kernel meets the same widths whatever the batch. */
#define SFD_BLOCK 16u

/* The support of one sparse layer, in CSR. */
struct sfd_support {
    const uint32_t *row_pointer;
    const void *column;
    uint32_t rows, columns, count, index_width;
};

/* A tensor over one block of images. Strides are in floats. */
struct sfd_view {
    float *data;
    uint32_t channels, height, width;
    uint32_t channel_stride, row_stride;
};

/* Images of the block that begins at image `first` of a batch of n. */
static inline uint32_t sfd_block_images(uint32_t n, uint32_t first)
{
    return n - first < SFD_BLOCK ? n - first : SFD_BLOCK;
}

/* The geometry of a convolution. */
struct sfd_convolution {
    uint32_t groups, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h,
        dilation_w;
};

/* A convolution or linear layer as the kernels see it. A linear layer is a 1x1 convolution on images
 * of one pixel whose channels are its inputs. */
struct sfd_layer {
    struct sfd_convolution shape;
    struct sfd_support support; /* its rows are the output channels */
    uint32_t in_channels, in_height, in_width, out_height, out_width;
    uint64_t multiply_adds; /* of one image: a nonzero with an input inside it */
    uint32_t threads;       /* at most that many work on it, each with scratch of its own */
    struct sfd_team *team;
};

/* What the forward kept of a layer's input: all of it, or the kept values and the bitmask of their
 * places, both in the order of memory. */
struct sfd_saved_input {
    const float *dense; /* NULL: packed */
    const float *values;
    const uint32_t *mask;
    uint32_t kept;
};

/* One set of kernels: those below work over the nonzeros alone. w and gradient run over the support in CSR order, n is
 * the images of the batch, in all its blocks. Scratch is aligned to SFD_ALIGNMENT. Each pass returns
 * the multiply-adds that it did. */
struct sfd_kernels {
    const char *name;
    const struct sfd_tensor_kernels *tensors;
    /* The time of writing one element of a tensor, in multiply-adds; the same for all vectorised
     * sets, so that they have the same plans. It needs no precision: it is to rank what is cheap to
     * compute again. */
    uint32_t element_work;
    /* Whether a forward of some rows of a layer of one group, in the scratch of all, gives the bits
     * of the forward of all. */
    int forwards_rows;
    /* Whether the weight gradient multiplies only the kept entries of a packed input. */
    int (*skips_zeros)(const struct sfd_layer *layer);
    /* Bytes of scratch, a multiple of 4. They follow from the sizes alone (the support's arrays are
     * not there yet), do not fall as n grows, and are the same for all sets of vectorised kernels. */
    uint64_t (*forward_scratch_bytes)(const struct sfd_layer *layer, uint32_t n);
    uint64_t (*backward_scratch_bytes)(const struct sfd_layer *layer, uint32_t n);
    /* y = bias + W x; bias may be NULL. */
    uint64_t (*forward)(const struct sfd_layer *layer, const float *w, const float *bias,
                        const float *x, float *y, uint32_t n, void *scratch);
    /* dx = W^T dy, or dx += W^T dy to accumulate, unless dx is NULL; then gradient = dy x^T at the
     * nonzeros. gradient may be w. Adds the multiply-adds that it did to *done. */
    void (*backward)(const struct sfd_layer *layer, const float *w, const struct sfd_saved_input *x,
                     const float *dy, float *dx, int accumulate, float *gradient, uint32_t n,
                     void *scratch, struct sfd_multiply_adds *done);
};

/* The portable set: the oracle of all others, and what microboards run. The same bits on every
 * machine; its weight gradient multiplies only the kept entries of a packed input, but for a
 * convolution that keeps over a third of them. */
extern const struct sfd_kernels sfd_kernels_portable;

/* kernels_packed.c: add the weight gradient of a packed input. */
uint64_t sfd_packed_scratch_bytes(const struct sfd_layer *layer, uint32_t n);
uint64_t sfd_packed_d_weight(const struct sfd_layer *layer, const struct sfd_saved_input *x,
                             const float *dy, float *gradient, uint32_t n, void *scratch);

/* sfd_dispatch.c: the kernels of an enum sfd_kernel_set, NULL where this build or this processor
 * does not have them. */
const struct sfd_kernels *sfd_kernels_find(int32_t set);

/* A constant width makes it one load. */
static inline uint32_t sfd_column_at(const void *column, uint32_t k, uint32_t index_width)
{
    return index_width == 2u ? ((const uint16_t *)column)[k] : ((const uint32_t *)column)[k];
}

static inline uint32_t sfd_column(const struct sfd_support *support, uint32_t k)
{
    return sfd_column_at(support->column, k, support->index_width);
}

/* The first nonzero of [low, high), a part of a row, whose column is not below `column`; or high. */
static inline uint32_t sfd_column_search(const struct sfd_support *support, uint32_t low,
                                         uint32_t high, uint32_t column)
{
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2u;
        if (sfd_column(support, middle) < column)
            low = middle + 1u;
        else
            high = middle;
    }
    return low;
}

/* Places of a layer's kernel. */
static inline uint32_t sfd_kernel_area(const struct sfd_layer *layer)
{
    return layer->shape.kernel_h * layer->shape.kernel_w;
}

/* Whether each channel is one pixel that all its nonzeros meet. */
static inline int sfd_is_linear(const struct sfd_layer *layer)
{
    return sfd_kernel_area(layer) == 1u && layer->in_height == 1u && layer->in_width == 1u &&
           layer->shape.padding_h == 0u && layer->shape.padding_w == 0u &&
           layer->shape.groups == 1u;
}

/* Elements of one image of a layer's input, and of its output. */
static inline size_t sfd_in_elements(const struct sfd_layer *layer)
{
    return (size_t)layer->in_channels * layer->in_height * layer->in_width;
}

static inline size_t sfd_out_elements(const struct sfd_layer *layer)
{
    return (size_t)layer->support.rows * layer->out_height * layer->out_width;
}

/* Outputs y in [low, high) read an input inside [0, in) at kernel offset `offset`: 0 <= y * stride
 * - padding + offset < in. */
void sfd_valid_range(uint32_t in, uint32_t out, uint32_t stride, uint32_t padding, uint32_t offset,
                     uint32_t *low, uint32_t *high);

/* A tensor whose channels are treated alike, wherever their pixels lie. */
struct sfd_channels {
    uint32_t channels, pixels;
};

/* Where the run of one channel begins in the block that begins at image `first`. */
static inline size_t sfd_channel_start(const struct sfd_channels *shape, uint32_t n, uint32_t first,
                                       uint32_t channel)
{
    return ((size_t)first * shape->channels + (size_t)channel * sfd_block_images(n, first)) *
           shape->pixels;
}

/* A batch norm. Its statistics are given or, where `mean` is NULL, are those of the batch, which
 * `moments` takes: the means of all channels, then their variances. */
struct sfd_batch_norm {
    struct sfd_channels shape;
    float epsilon;
    const float *weight, *bias; /* NULL: ones, zeros */
    const float *mean, *variance;
    float *moments;
    struct sfd_team *team; /* which the vectorised kernels use */
};

/* What happens to the output of a batch norm in the same pass: an addition, then a rectifier. */
struct sfd_epilogue {
    const float *addend; /* NULL: none; may be the output */
    float ceiling;       /* of the rectifier; 0: none */
    uint32_t *mask;      /* the rectifier's; NULL: not wanted */
};

/* The gradients of a batch norm and of its epilogue. */
struct sfd_norm_gradient {
    const uint32_t *mask;     /* of the rectifier; NULL: none */
    float *dy;                /* may be overwritten */
    float *addend;            /* takes the gradient of the addend, may be dy; NULL: none */
    float *dx;                /* may be dy if the addend's is not; NULL: not wanted */
    int accumulate;           /* add to dx, which may be the addend's: added to it after dy */
    float *d_weight, *d_bias; /* NULL: not wanted */
    /* Puts a channel of x to x, which has room for one; NULL: x has all channels. For kernel sets
     * whose forward takes rows. */
    void (*restore)(void *context, uint32_t channel);
    void *context;
};

/* Group and layer norm: `sets` of `elements` consecutive elements of an image are normalised, each
 * `span` of them share an affine coefficient, and the next set's coefficients begin `affine_step`
 * on. moments: block by block, for each set the means of its images, then the inverse deviations. */
struct sfd_norm {
    uint32_t sets, elements, span, affine_step;
};

/* One set of kernels over whole tensors: `count` floats, or n images in all their blocks. */
struct sfd_tensor_kernels {
    void (*batch_norm_forward)(const struct sfd_batch_norm *norm, const float *x, uint32_t n,
                               const struct sfd_epilogue *after, float *y);
    void (*batch_norm_backward)(const struct sfd_batch_norm *norm, const float *x, uint32_t n,
                                const struct sfd_norm_gradient *gradient);
    void (*norm_forward)(const struct sfd_norm *norm, const float *x, uint32_t n, float epsilon,
                         const float *weight, const float *bias, float *moments, float *y);
    void (*norm_backward)(const struct sfd_norm *norm, const float *x, uint32_t n,
                          const float *moments, const float *weight, const float *dy, float *dx,
                          int accumulate, float *d_weight, float *d_bias);
    /* y = min(max(x, 0), ceiling), and a bit where the slope is 1. y may be x, mask NULL. */
    void (*rectifier_forward)(const float *x, uint32_t count, float ceiling, uint32_t *mask,
                              float *y);
    /* dx is dy itself, or is added to. */
    void (*rectifier_backward)(const uint32_t *mask, const float *dy, uint32_t count, float *dx,
                               int accumulate);
    /* GELU and SiLU. y may be x. dx may be dy, unless it is added to. */
    void (*smooth_forward)(const struct sfd_operation *operation, const float *x, uint32_t count,
                           float *y);
    void (*smooth_backward)(const struct sfd_operation *operation, const float *x, const float *dy,
                            uint32_t count, float *dx, int accumulate);
    void (*add_forward)(const float *a, const float *b, uint32_t count, float *y);
    void (*add_into)(const float *x, uint32_t count, float *y);
    void (*bias_backward)(const struct sfd_channels *shape, const float *dy, uint32_t n,
                          float *d_bias);
    void (*pack)(const float *x, uint32_t size, uint32_t n, uint32_t keep, uint32_t *histogram,
                 void *packed, struct sfd_team *team);
    void (*powerprop_forward)(const float *v, float *w, uint32_t count, float beta);
    void (*powerprop_backward)(const float *v, float *gradient, uint32_t count, float beta);
};

extern const struct sfd_tensor_kernels sfd_tensors_portable;

/* kernels_norm.c */
void sfd_batch_norm_forward(const struct sfd_batch_norm *norm, const float *x, uint32_t n,
                            const struct sfd_epilogue *after, float *y);
void sfd_batch_norm_backward(const struct sfd_batch_norm *norm, const float *x, uint32_t n,
                             const struct sfd_norm_gradient *gradient);
void sfd_norm_forward(const struct sfd_norm *norm, const float *x, uint32_t n, float epsilon,
                      const float *weight, const float *bias, float *moments, float *y);
void sfd_norm_backward(const struct sfd_norm *norm, const float *x, uint32_t n,
                       const float *moments, const float *weight, const float *dy, float *dx,
                       int accumulate, float *d_weight, float *d_bias);

/* kernels_elementwise.c */
void sfd_rectifier_forward(const float *x, uint32_t count, float ceiling, uint32_t *mask, float *y);
void sfd_rectifier_backward(const uint32_t *mask, const float *dy, uint32_t count, float *dx,
                            int accumulate);
void sfd_smooth_forward(const struct sfd_operation *operation, const float *x, uint32_t count,
                        float *y);
void sfd_smooth_backward(const struct sfd_operation *operation, const float *x, const float *dy,
                         uint32_t count, float *dx, int accumulate);
void sfd_add_forward(const float *a, const float *b, uint32_t count, float *y);
void sfd_add_into(const float *x, uint32_t count, float *y);
void sfd_bias_backward(const struct sfd_channels *shape, const float *dy, uint32_t n,
                       float *d_bias);

/* kernels_pool.c */
void sfd_max_pool_forward(const struct sfd_operation *operation, const struct sfd_view *x,
                          const struct sfd_view *y, uint32_t n, uint16_t *winner);
void sfd_max_pool_backward(const struct sfd_operation *operation, const struct sfd_view *dy,
                           const struct sfd_view *dx, uint32_t n, const uint16_t *winner,
                           int accumulate);
void sfd_average_pool_forward(const struct sfd_operation *operation, const struct sfd_view *x,
                              const struct sfd_view *y, uint32_t n);
void sfd_average_pool_backward(const struct sfd_operation *operation, const struct sfd_view *dy,
                               const struct sfd_view *dx, uint32_t n, int accumulate);

/* kernels_loss.c. Both return the mean loss and, where gradient is not null, dL/d(output). */
float sfd_cross_entropy(const float *logits, const void *labels, enum sfd_target target, uint32_t n,
                        uint32_t classes, float *gradient, uint32_t *correct);
float sfd_mean_squared_error(const float *output, const float *target, uint32_t n, uint32_t size,
                             float *gradient);

#endif
