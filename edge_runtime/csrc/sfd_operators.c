/* Single operations: the weight's nonzeros are collected, the kernels called, gradients put in their
 * places. */
#include "sfd_operators.h"

#include "sfd_kernels.h"

static const struct sfd_kernels *kernels(void)
{
    return sfd_kernels_find(SFD_KERNELS_AUTOMATIC);
}

static uint64_t aligned(uint64_t bytes)
{
    return (bytes + SFD_ALIGNMENT - 1u) / SFD_ALIGNMENT * SFD_ALIGNMENT;
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

/* Without its nonzeros. */
static struct sfd_layer layer_sizes(const struct sfd_layer_geometry *geometry)
{
    const struct sfd_layer_geometry g = *geometry;
    const struct sfd_layer layer = {
        .shape = {g.groups, g.kernel_h, g.kernel_w, g.stride_h, g.stride_w, g.padding_h,
                  g.padding_w, g.dilation_h, g.dilation_w},
        .support = {.rows = g.out_channels,
                    .columns = g.in_channels / g.groups * g.kernel_h * g.kernel_w},
        .in_channels = g.in_channels,
        .in_height = g.in_height,
        .in_width = g.in_width,
        .out_height = g.out_height,
        .out_width = g.out_width,
        .threads = 1u,
    };

    return layer;
}

/* The sizes, with the number of nonzeros. */
static struct sfd_layer layer_counted(const struct sfd_layer_geometry *geometry, const float *v)
{
    struct sfd_layer layer = layer_sizes(geometry);
    const size_t positions = (size_t)layer.support.rows * layer.support.columns;
    uint32_t count = 0u;
    size_t i;

    for (i = 0u; i < positions; ++i)
        count += v[i] != 0.0f;
    layer.support.count = count;
    layer.support.index_width = layer.support.columns > 0x10000u ? 4u : 2u;
    return layer;
}

/* One more than the nonzeros: what is collected is written before it is known to be one. */
static uint64_t support_bytes(const struct sfd_support *support)
{
    return aligned(((uint64_t)support->rows + 1u) * 4u) +
           aligned(((uint64_t)support->count + 1u) * support->index_width) +
           2u * aligned(((uint64_t)support->count + 1u) * 4u);
}

/* The nonzeros of v in CSR. */
static void collect(const float *v, struct sfd_support *support, uint8_t *scratch, float **values,
                    float **working)
{
    uint32_t *row_pointer = (void *)scratch, row, j, k = 0u;
    uint16_t *narrow = (void *)(scratch + aligned(((uint64_t)support->rows + 1u) * 4u));
    uint32_t *wide = (void *)narrow;
    float *value = (void *)((uint8_t *)narrow +
                            aligned(((uint64_t)support->count + 1u) * support->index_width));

    for (row = 0u; row < support->rows; ++row, v += support->columns) {
        row_pointer[row] = k;
        if (support->index_width == 2u)
            for (j = 0u; j < support->columns; ++j) {
                narrow[k] = (uint16_t)j;
                value[k] = v[j];
                k += v[j] != 0.0f;
            }
        else
            for (j = 0u; j < support->columns; ++j) {
                wide[k] = j;
                value[k] = v[j];
                k += v[j] != 0.0f;
            }
    }
    row_pointer[row] = k;
    support->row_pointer = row_pointer;
    support->column = narrow;
    *values = value;
    *working = (void *)((uint8_t *)value + aligned(((uint64_t)support->count + 1u) * 4u));
}

uint64_t sfd_layer_forward_bytes(const struct sfd_layer_geometry *geometry, const float *v,
                                 uint32_t n)
{
    const struct sfd_layer layer = layer_counted(geometry, v);

    return support_bytes(&layer.support) + kernels()->forward_scratch_bytes(&layer, n);
}

void sfd_layer_forward(const struct sfd_layer_geometry *geometry, const float *v, float beta,
                       const float *bias, const float *x, uint32_t n, float *y, void *scratch)
{
    struct sfd_layer layer = layer_counted(geometry, v);
    uint8_t *cursor = scratch;
    float *values, *w;

    collect(v, &layer.support, cursor, &values, &w);
    cursor += support_bytes(&layer.support);
    kernels()->tensors->powerprop_forward(values, w, layer.support.count, beta);
    kernels()->forward(&layer, w, bias, x, y, n, cursor);
}

/* All of it, or nothing: neither has to be searched for. */
static int is_packed(const struct sfd_layer *layer, uint32_t n, uint64_t keep)
{
    return keep < sfd_in_elements(layer) * n;
}

static uint64_t packed_bytes(const struct sfd_layer *layer, uint32_t n, uint64_t keep)
{
    const uint64_t elements = sfd_in_elements(layer) * n;

    if (!is_packed(layer, n, keep))
        return 0u;
    return aligned(4u * (keep + (elements + 31u) / 32u)) + SFD_HISTOGRAM_BINS * 4u;
}

uint64_t sfd_layer_backward_bytes(const struct sfd_layer_geometry *geometry, const float *v,
                                  uint32_t n, uint64_t keep)
{
    const struct sfd_layer layer = layer_counted(geometry, v);

    return support_bytes(&layer.support) + packed_bytes(&layer, n, keep) +
           kernels()->backward_scratch_bytes(&layer, n);
}

static struct sfd_saved_input saved_input(const struct sfd_layer *layer, const float *x, uint32_t n,
                                          uint64_t keep, uint8_t *scratch)
{
    const uint64_t elements = sfd_in_elements(layer) * n;
    struct sfd_saved_input saved = {.dense = x, .kept = (uint32_t)elements};
    uint32_t *histogram = (void *)scratch;
    float *packed = (void *)(scratch + SFD_HISTOGRAM_BINS * 4u);

    if (!is_packed(layer, n, keep))
        return saved;
    saved.dense = NULL;
    saved.values = packed;
    saved.mask = (const uint32_t *)(const void *)packed + keep;
    saved.kept = (uint32_t)keep;
    if (keep == 0u)
        memset(packed, 0, (size_t)((elements + 31u) / 32u) * 4u);
    else
        kernels()->tensors->pack(x, (uint32_t)sfd_in_elements(layer), n, (uint32_t)keep, histogram,
                                 packed, NULL);
    return saved;
}

static void put_in_place(const struct sfd_support *support, const float *gradient, float *dv)
{
    uint32_t row, k;

    memset(dv, 0, (size_t)support->rows * support->columns * sizeof *dv);
    for (row = 0u; row < support->rows; ++row, dv += support->columns)
        for (k = support->row_pointer[row]; k < support->row_pointer[row + 1u]; ++k)
            dv[sfd_column(support, k)] = gradient[k];
}

void sfd_layer_backward(const struct sfd_layer_geometry *geometry, const float *v, float beta,
                        const float *x, const float *dy, uint32_t n, uint64_t keep, float *dx,
                        float *dv, float *d_bias, void *scratch)
{
    struct sfd_layer layer = layer_counted(geometry, v);
    const struct sfd_channels out = {layer.support.rows, layer.out_height * layer.out_width};
    struct sfd_multiply_adds done = {0};
    struct sfd_saved_input saved;
    uint8_t *cursor = scratch;
    float *values, *working;

    collect(v, &layer.support, cursor, &values, &working);
    cursor += support_bytes(&layer.support);
    saved = saved_input(&layer, x, n, keep, cursor);
    cursor += packed_bytes(&layer, n, keep);
    kernels()->tensors->powerprop_forward(values, working, layer.support.count, beta);
    kernels()->backward(&layer, working, &saved, dy, dx, 0, working, n, cursor, &done);
    kernels()->tensors->powerprop_backward(values, working, layer.support.count, beta);
    put_in_place(&layer.support, working, dv);
    if (d_bias)
        kernels()->tensors->bias_backward(&out, dy, n, d_bias);
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

void sfd_rectifier(const float *x, uint64_t count, float ceiling, float *y)
{
    kernels()->tensors->rectifier_forward(x, (uint32_t)count, ceiling, NULL, y);
}

void sfd_rectifier_gradient(const float *x, const float *dy, uint64_t count, float ceiling,
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

void sfd_smooth(uint32_t kind, uint32_t flags, const float *x, uint64_t count, float *y)
{
    const struct sfd_operation operation = smooth_operation(kind, flags);

    kernels()->tensors->smooth_forward(&operation, x, (uint32_t)count, y);
}

void sfd_smooth_gradient(uint32_t kind, uint32_t flags, const float *x, const float *dy,
                         uint64_t count, float *dx)
{
    const struct sfd_operation operation = smooth_operation(kind, flags);

    kernels()->tensors->smooth_backward(&operation, x, dy, (uint32_t)count, dx, 0);
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
    const size_t size = (size_t)geometry->channels * geometry->in_height * geometry->in_width;
    uint32_t first;

    memset(dx, 0, n * size * sizeof *dx);
    for (first = 0u; first < n; first += SFD_BLOCK) {
        const struct pool_block block = pool_block(geometry, dx, dy, n, first);
        if (geometry->kind == SFD_OPERATION_MAX_POOL)
            sfd_max_pool_backward(&block.operation, &block.out, &block.in, block.images,
                                  winner + first * pooled_elements(geometry));
        else
            sfd_average_pool_backward(&block.operation, &block.out, &block.in, block.images);
    }
}

void sfd_descend(const float *p, const float *gradient, uint64_t count, float rate, float decay,
                 float *next)
{
    uint64_t i;

    for (i = 0u; i < count; ++i)
        next[i] = p[i] - rate * (gradient[i] + decay * p[i]);
}
