/* Single operations on activations, and the update. Layers are in sfd_layer_operators.c. */
#include "sfd_operators.h"

#include "sfd_kernels.h"

static const struct sfd_kernels *kernels(void)
{
    return sfd_kernels_find(SFD_KERNELS_AUTOMATIC);
}

void sfd_to_blocks(const float *x, uint32_t size, uint32_t n, float *y)
{
    uint32_t first, element, image;

    for (first = 0u; first < n; first += SFD_BLOCK) {
        const uint32_t images = sfd_block_images(n, first);
        const float *in = x + (size_t)first * size;
        float *out = y + (size_t)first * size;
        for (element = 0u; element < size; ++element)
            for (image = 0u; image < images; ++image)
                out[(size_t)element * images + image] = in[(size_t)image * size + element];
    }
}

void sfd_to_rows(const float *x, uint32_t size, uint32_t n, float *y)
{
    uint32_t first, element, image;

    for (first = 0u; first < n; first += SFD_BLOCK) {
        const uint32_t images = sfd_block_images(n, first);
        const float *in = x + (size_t)first * size;
        float *out = y + (size_t)first * size;
        for (image = 0u; image < images; ++image)
            for (element = 0u; element < size; ++element)
                out[(size_t)image * size + element] = in[(size_t)element * images + image];
    }
}

static struct sfd_batch_norm batch_norm_of(const struct sfd_batch_norm_geometry *geometry)
{
    const struct sfd_batch_norm norm = {
        .shape = {geometry->channels, geometry->pixels},
        .epsilon = geometry->epsilon,
        .weight = geometry->weight,
        .bias = geometry->bias,
    };

    return norm;
}

static const struct sfd_epilogue nothing = {NULL, 0.0f, NULL};

void sfd_batch_norm_train(const struct sfd_batch_norm_geometry *geometry, const float *x,
                          uint32_t n, float momentum, const float *const running[2], float *y,
                          float *moments, float *const next[2])
{
    struct sfd_batch_norm norm = batch_norm_of(geometry);
    const float count = (float)n * (float)geometry->pixels;
    const float unbiased[2] = {1.0f, count > 1.0f ? count / (count - 1.0f) : 1.0f};
    uint32_t which, c;

    norm.moments = moments;
    kernels()->tensors->batch_norm_forward(&norm, x, n, &nothing, y);
    for (which = 0u; which < 2u; ++which, moments += geometry->channels)
        for (c = 0u; c < geometry->channels; ++c)
            next[which][c] =
                running[which][c] + momentum * (moments[c] * unbiased[which] - running[which][c]);
}

void sfd_batch_norm_evaluate(const struct sfd_batch_norm_geometry *geometry, const float *x,
                             uint32_t n, const float *mean, const float *variance, float *y)
{
    struct sfd_batch_norm norm = batch_norm_of(geometry);

    norm.mean = mean;
    norm.variance = variance;
    kernels()->tensors->batch_norm_forward(&norm, x, n, &nothing, y);
}

void sfd_batch_norm_gradients(const struct sfd_batch_norm_geometry *geometry, const float *x,
                              const float *dy, uint32_t n, const float *moments, float *dx,
                              float *d_weight, float *d_bias)
{
    struct sfd_batch_norm norm = batch_norm_of(geometry);
    const struct sfd_norm_gradient gradient = {
        /* without a rectifier and an addend it is not written to */
        .dy = (float *)(uintptr_t)dy,
        .dx = dx,
        .d_weight = d_weight,
        .d_bias = d_bias,
    };

    norm.moments = (float *)(uintptr_t)moments; /* only read */
    kernels()->tensors->batch_norm_backward(&norm, x, n, &gradient);
}

static struct sfd_norm norm_of(const struct sfd_norm_geometry *geometry)
{
    const struct sfd_norm norm = {geometry->sets, geometry->elements, geometry->span,
                                  geometry->affine_step};

    return norm;
}

void sfd_norm(const struct sfd_norm_geometry *geometry, const float *x, uint32_t n, float *y,
              float *moments)
{
    const struct sfd_norm norm = norm_of(geometry);

    kernels()->tensors->norm_forward(&norm, x, n, geometry->epsilon, geometry->weight,
                                     geometry->bias, moments, y);
}

void sfd_norm_gradients(const struct sfd_norm_geometry *geometry, const float *x, const float *dy,
                        uint32_t n, const float *moments, float *dx, float *d_weight, float *d_bias)
{
    const struct sfd_norm norm = norm_of(geometry);

    kernels()->tensors->norm_backward(&norm, x, n, moments, geometry->weight, dy, dx, 0, d_weight,
                                      d_bias);
}

void sfd_rectifier(const float *x, uint32_t count, float ceiling, float *y)
{
    kernels()->tensors->rectifier_forward(x, count, ceiling, NULL, y);
}

void sfd_rectifier_gradient(const float *x, const float *dy, uint32_t count, float ceiling,
                            float *dx)
{
    uint64_t i;

    for (i = 0u; i < count; ++i)
        dx[i] = x[i] > 0.0f && x[i] < ceiling ? dy[i] : 0.0f;
}

static struct sfd_operation smooth_operation(uint32_t kind, uint32_t flags)
{
    const struct sfd_operation operation = {.kind = kind, .flags = flags};

    return operation;
}

void sfd_smooth(uint32_t kind, uint32_t flags, const float *x, uint32_t count, float *y)
{
    const struct sfd_operation operation = smooth_operation(kind, flags);

    kernels()->tensors->smooth_forward(&operation, x, count, y);
}

void sfd_smooth_gradient(uint32_t kind, uint32_t flags, const float *x, const float *dy,
                         uint32_t count, float *dx)
{
    const struct sfd_operation operation = smooth_operation(kind, flags);

    kernels()->tensors->smooth_backward(&operation, x, dy, count, dx, 0);
}

/* A pool over one block of images. */
struct pool_block {
    struct sfd_operation operation;
    struct sfd_view in, out;
    uint32_t images;
};

static struct sfd_view view_of(uint32_t channels, uint32_t height, uint32_t width, uint32_t images,
                               float *data)
{
    const struct sfd_view view = {data,          channels, height, width, height * width * images,
                                  width * images};

    return view;
}

/* The block that begins at image `first`; the caller knows which of x and y is only read. */
static struct pool_block pool_block(const struct sfd_pool_geometry *geometry, const float *x,
                                    const float *y, uint32_t n, uint32_t first)
{
    const struct sfd_pool_geometry g = *geometry;
    const size_t in = (size_t)g.channels * g.in_height * g.in_width;
    const size_t out = (size_t)g.channels * g.out_height * g.out_width;
    struct pool_block block = {
        .operation = {.kind = g.kind,
                      .flags = g.flags,
                      .kernel_h = g.kernel_h,
                      .kernel_w = g.kernel_w,
                      .stride_h = g.stride_h,
                      .stride_w = g.stride_w,
                      .padding_h = g.padding_h,
                      .padding_w = g.padding_w},
        .images = sfd_block_images(n, first),
    };

    block.in = view_of(g.channels, g.in_height, g.in_width, block.images,
                       (float *)(uintptr_t)x + first * in);
    block.out = view_of(g.channels, g.out_height, g.out_width, block.images,
                        (float *)(uintptr_t)y + first * out);
    return block;
}

static size_t pooled_elements(const struct sfd_pool_geometry *geometry)
{
    return (size_t)geometry->channels * geometry->out_height * geometry->out_width;
}

void sfd_pool(const struct sfd_pool_geometry *geometry, const float *x, uint32_t n, float *y,
              uint16_t *winner)
{
    uint32_t first;

    for (first = 0u; first < n; first += SFD_BLOCK) {
        const struct pool_block block = pool_block(geometry, x, y, n, first);
        if (geometry->kind == SFD_OPERATION_MAX_POOL)
            sfd_max_pool_forward(&block.operation, &block.in, &block.out, block.images,
                                 winner + first * pooled_elements(geometry));
        else
            sfd_average_pool_forward(&block.operation, &block.in, &block.out, block.images);
    }
}

void sfd_pool_gradient(const struct sfd_pool_geometry *geometry, const float *dy,
                       const uint16_t *winner, uint32_t n, float *dx)
{
    uint32_t first;

    for (first = 0u; first < n; first += SFD_BLOCK) {
        const struct pool_block block = pool_block(geometry, dx, dy, n, first);
        if (geometry->kind == SFD_OPERATION_MAX_POOL)
            sfd_max_pool_backward(&block.operation, &block.out, &block.in, block.images,
                                  winner + first * pooled_elements(geometry), 0);
        else
            sfd_average_pool_backward(&block.operation, &block.out, &block.in, block.images, 0);
    }
}

void sfd_descend(const float *p, const float *gradient, uint32_t count, float rate, float decay,
                 float *next)
{
    uint64_t i;

    for (i = 0u; i < count; ++i)
        next[i] = p[i] - rate * (gradient[i] + decay * p[i]);
}
