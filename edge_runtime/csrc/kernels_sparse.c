/* Portable kernels over the nonzeros alone: forward, gradient of the input, and gradient of the
 * weight from a dense input. That from a packed input is in kernels_packed.c.
 *
 * A row of pixels of a block is one run of floats, so that each nonzero does a long, plain loop
 * whatever the image's size. Each output element is the sum over the nonzeros of its row in CSR
 * order, so that the result does not depend on how a loop is vectorised. */
#include "sfd_kernels.h"

/* Partial sums of a dot product: fixed, so that the order of additions is the same everywhere. */
#define LANES 8u

void sfd_valid_range(uint32_t in, uint32_t out, uint32_t stride, uint32_t padding, uint32_t offset,
                     uint32_t *low, uint32_t *high)
{
    uint64_t reach = (uint64_t)in + padding; /* y * stride + offset must be in [padding, reach) */
    uint64_t last;

    *low = offset >= padding ? 0u : (padding - offset + stride - 1u) / stride;
    last = offset < reach ? (reach - offset - 1u) / stride + 1u : 0u;
    *high = last < out ? (uint32_t)last : out;
    if (*low > *high)
        *low = *high;
}

/* The pixels that a nonzero touches, by its place in the kernel: `lines` rows of `count` pixels.
 * Offsets are in pixels, from the first one of the channel. */
struct window {
    uint32_t count, lines, in_start, out_start;
};

/* One pass over one block of images. Runs and steps are in floats. */
struct pass {
    const struct sfd_layer *layer;
    const struct window *windows;
    uint32_t area, group_rows, group_channels;
    uint32_t images, in_run, out_run, out_line;
    size_t step, line_step;
};

static void windows_find(const struct sfd_layer *layer, struct window *window)
{
    const struct sfd_convolution *shape = &layer->shape;
    uint32_t ky, kx, y_low, y_high, x_low, x_high;

    for (ky = 0u; ky < shape->kernel_h; ++ky)
        for (kx = 0u; kx < shape->kernel_w; ++kx, ++window) {
            uint32_t offset_y = ky * shape->dilation_h, offset_x = kx * shape->dilation_w;
            sfd_valid_range(layer->in_height, layer->out_height, shape->stride_h, shape->padding_h,
                            offset_y, &y_low, &y_high);
            sfd_valid_range(layer->in_width, layer->out_width, shape->stride_w, shape->padding_w,
                            offset_x, &x_low, &x_high);
            memset(window, 0, sizeof *window);
            if (y_low == y_high || x_low == x_high)
                continue;
            window->count = x_high - x_low;
            window->lines = y_high - y_low;
            window->in_start =
                (y_low * shape->stride_h + offset_y - shape->padding_h) * layer->in_width +
                (x_low * shape->stride_w + offset_x - shape->padding_w);
            window->out_start = y_low * layer->out_width + x_low;
            if (shape->stride_h == 1u && shape->stride_w == 1u &&
                window->count == layer->out_width && layer->in_width == layer->out_width) {
                window->count *= window->lines; /* the rows lie end to end: one long row */
                window->lines = 1u;
            }
        }
}

static struct pass pass_begin(const struct sfd_layer *layer, void *scratch)
{
    const struct sfd_convolution *shape = &layer->shape;
    struct pass pass;

    memset(&pass, 0, sizeof pass);
    windows_find(layer, scratch);
    pass.layer = layer;
    pass.windows = scratch;
    pass.area = sfd_kernel_area(layer);
    pass.group_rows = layer->support.rows / shape->groups;
    pass.group_channels = layer->in_channels / shape->groups;
    return pass;
}

static void pass_block(struct pass *pass, uint32_t images)
{
    const struct sfd_layer *layer = pass->layer;

    pass->images = images;
    pass->in_run = layer->in_height * layer->in_width * images;
    pass->out_run = layer->out_height * layer->out_width * images;
    pass->out_line = layer->out_width * images;
    pass->step = (size_t)layer->shape.stride_w * images;
    pass->line_step = (size_t)layer->shape.stride_h * layer->in_width * images;
}

/* The window of nonzero k, and where it begins in the input and in the output of the block. */
static inline const struct window *window_find(const struct pass *pass, uint32_t row, uint32_t k,
                                               size_t *in, size_t *out)
{
    uint32_t column = sfd_column(&pass->layer->support, k), place = 0u;
    const struct window *window;

    if (pass->area > 1u) {
        place = column % pass->area;
        column /= pass->area;
    }
    window = &pass->windows[place];
    if (pass->layer->shape.groups > 1u)
        column += row / pass->group_rows * pass->group_channels;
    *in = (size_t)column * pass->in_run + (size_t)window->in_start * pass->images;
    *out = (size_t)row * pass->out_run + (size_t)window->out_start * pass->images;
    return window;
}

/* y += w * x over `count` pixels; the pixels of x are `step` floats apart. */
static void row_add(float *restrict y, const float *restrict x, uint32_t count, uint32_t n,
                    size_t step, float w)
{
    uint32_t i, j;

    if (step == n)
        for (i = 0u; i < count * n; ++i)
            y[i] += w * x[i];
    else if (n == 1u)
        for (i = 0u; i < count; ++i)
            y[i] += w * x[i * step];
    else
        for (i = 0u; i < count; ++i)
            for (j = 0u; j < n; ++j)
                y[(size_t)i * n + j] += w * x[i * step + j];
}

/* x += w * y, the other way round. */
static void row_scatter(float *restrict x, const float *restrict y, uint32_t count, uint32_t n,
                        size_t step, float w)
{
    uint32_t i, j;

    if (step == n)
        for (i = 0u; i < count * n; ++i)
            x[i] += w * y[i];
    else if (n == 1u)
        for (i = 0u; i < count; ++i)
            x[i * step] += w * y[i];
    else
        for (i = 0u; i < count; ++i)
            for (j = 0u; j < n; ++j)
                x[i * step + j] += w * y[(size_t)i * n + j];
}

/* Add the products of two runs to the partial sums; element i goes to sum i % LANES. */
static void run_dot(const float *restrict y, const float *restrict x, uint32_t count,
                    float *restrict lane)
{
    uint32_t i, j, whole = count - count % LANES;

    for (i = 0u; i < whole; i += LANES)
        for (j = 0u; j < LANES; ++j)
            lane[j] += y[i + j] * x[i + j];
    for (j = 0u; i + j < count; ++j)
        lane[j] += y[i + j] * x[i + j];
}

static void row_dot(const float *y, const float *x, uint32_t count, uint32_t n, size_t step,
                    float *lane)
{
    uint32_t i;

    if (step == n)
        run_dot(y, x, count * n, lane);
    else if (n == 1u)
        for (i = 0u; i < count; ++i)
            lane[i % LANES] += y[i] * x[i * step];
    else
        for (i = 0u; i < count; ++i)
            run_dot(y + (size_t)i * n, x + i * step, n, lane);
}

static float lanes_sum(const float *lane)
{
    return ((lane[0] + lane[4]) + (lane[1] + lane[5])) +
           ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}

static uint64_t block_forward(const struct pass *pass, const float *w, const float *bias,
                              const float *x, float *y)
{
    const struct sfd_support *support = &pass->layer->support;
    uint64_t done = 0u;
    uint32_t row, k, i, line;

    for (row = 0u; row < support->rows; ++row) {
        float start = bias ? bias[row] : 0.0f;
        for (i = 0u; i < pass->out_run; ++i)
            y[(size_t)row * pass->out_run + i] = start;
        for (k = support->row_pointer[row]; k < support->row_pointer[row + 1u]; ++k) {
            size_t in, out;
            const struct window *window = window_find(pass, row, k, &in, &out);
            for (line = 0u; line < window->lines; ++line)
                row_add(y + out + (size_t)line * pass->out_line, x + in + line * pass->line_step,
                        window->count, pass->images, pass->step, w[k]);
            done += (uint64_t)window->count * window->lines * pass->images;
        }
    }
    return done;
}

static uint64_t block_d_input(const struct pass *pass, const float *w, const float *dy, float *dx)
{
    const struct sfd_support *support = &pass->layer->support;
    uint64_t done = 0u;
    uint32_t row, k, line;

    for (row = 0u; row < support->rows; ++row)
        for (k = support->row_pointer[row]; k < support->row_pointer[row + 1u]; ++k) {
            size_t in, out;
            const struct window *window = window_find(pass, row, k, &in, &out);
            for (line = 0u; line < window->lines; ++line)
                row_scatter(dx + in + line * pass->line_step,
                            dy + out + (size_t)line * pass->out_line, window->count, pass->images,
                            pass->step, w[k]);
            done += (uint64_t)window->count * window->lines * pass->images;
        }
    return done;
}

static uint64_t block_d_weight(const struct pass *pass, const float *x, const float *dy,
                               float *gradient)
{
    const struct sfd_support *support = &pass->layer->support;
    uint64_t done = 0u;
    uint32_t row, k, line;

    for (row = 0u; row < support->rows; ++row)
        for (k = support->row_pointer[row]; k < support->row_pointer[row + 1u]; ++k) {
            float lane[LANES] = {0.0f};
            size_t in, out;
            const struct window *window = window_find(pass, row, k, &in, &out);
            for (line = 0u; line < window->lines; ++line)
                row_dot(dy + out + (size_t)line * pass->out_line, x + in + line * pass->line_step,
                        window->count, pass->images, pass->step, lane);
            gradient[k] += lanes_sum(lane);
            done += (uint64_t)window->count * window->lines * pass->images;
        }
    return done;
}

static uint64_t forward(const struct sfd_layer *layer, const float *w, const float *bias,
                        const float *x, float *y, uint32_t n, void *scratch)
{
    struct pass pass = pass_begin(layer, scratch);
    uint64_t done = 0u;
    uint32_t first;

    for (first = 0u; first < n; first += SFD_BLOCK) {
        pass_block(&pass, sfd_block_images(n, first));
        done += block_forward(&pass, w, bias, x + first * sfd_in_elements(layer),
                              y + first * sfd_out_elements(layer));
    }
    return done;
}

static uint64_t d_input(const struct sfd_layer *layer, const float *w, const float *dy, float *dx,
                        int accumulate, uint32_t n, void *scratch)
{
    struct pass pass = pass_begin(layer, scratch);
    uint64_t done = 0u;
    uint32_t first;

    if (!accumulate)
        memset(dx, 0, n * sfd_in_elements(layer) * sizeof *dx);
    for (first = 0u; first < n; first += SFD_BLOCK) {
        pass_block(&pass, sfd_block_images(n, first));
        done += block_d_input(&pass, w, dy + first * sfd_out_elements(layer),
                              dx + first * sfd_in_elements(layer));
    }
    return done;
}

static uint64_t d_weight(const struct sfd_layer *layer, const struct sfd_saved_input *x,
                         const float *dy, float *gradient, uint32_t n, void *scratch)
{
    struct pass pass;
    uint64_t done = 0u;
    uint32_t first;

    memset(gradient, 0, (size_t)layer->support.count * sizeof *gradient);
    if (x->dense == NULL)
        return sfd_packed_d_weight(layer, x, dy, gradient, n, scratch);
    pass = pass_begin(layer, scratch);
    for (first = 0u; first < n; first += SFD_BLOCK) {
        pass_block(&pass, sfd_block_images(n, first));
        done += block_d_weight(&pass, x->dense + first * sfd_in_elements(layer),
                               dy + first * sfd_out_elements(layer), gradient);
    }
    return done;
}

/* dX needs w; afterwards its memory may take the gradient. */
static void backward(const struct sfd_layer *layer, const float *w, const struct sfd_saved_input *x,
                     const float *dy, float *dx, int accumulate, float *gradient, uint32_t n,
                     void *scratch, struct sfd_multiply_adds *done)
{
    if (dx)
        done->d_input += d_input(layer, w, dy, dx, accumulate, n, scratch);
    done->d_weight += d_weight(layer, x, dy, gradient, n, scratch);
}

static uint64_t forward_scratch_bytes(const struct sfd_layer *layer, uint32_t n)
{
    (void)n;
    return (uint64_t)sfd_kernel_area(layer) * sizeof(struct window);
}

static uint64_t backward_scratch_bytes(const struct sfd_layer *layer, uint32_t n)
{
    uint64_t windows = forward_scratch_bytes(layer, n), packed = sfd_packed_scratch_bytes(layer, n);

    return windows > packed ? windows : packed;
}

static int skips_zeros(const struct sfd_layer *layer)
{
    (void)layer;
    return 1;
}

/* Measured on x86-64 with vectors of 16 bytes: an element takes twice as long as a multiply-add, and
 * 3.4 times as long with vectors of 64 bytes, so this is the fast sets' number by that ratio. */
#define ELEMENT_WORK 14u

const struct sfd_kernels sfd_kernels_portable = {
    "portable",
    &sfd_tensors_portable,
    ELEMENT_WORK,
    skips_zeros,
    forward_scratch_bytes,
    backward_scratch_bytes,
    forward,
    backward,
};
