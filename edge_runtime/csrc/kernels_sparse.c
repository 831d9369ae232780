/* Portable kernels over the nonzeros alone: forward, gradient of the input, and gradient of the
 * weight from an input that is dense, or of which much was kept. That from other packed inputs is in
 * kernels_packed.c, the rows of linear layers are in kernels_linear.c.
 *
 * Each output element is the sum over the nonzeros of its row in CSR order, so that the result does
 * not depend on how a loop is vectorised. */
#include "kernels_linear.h"
#include "kernels_windows.h"

/* Where the channels begin that a row reads. */
static size_t row_start(const struct pass *pass, uint32_t row)
{
    return pass->layer->shape.groups == 1u ? 0u : row / pass->group_rows * pass->group_run;
}

/* The window of nonzero k, and where it begins in the channels that its row reads. */
static inline const struct window *nonzero_window(const struct pass *pass, uint32_t k, size_t *in)
{
    const uint32_t column = sfd_column(&pass->layer->support, k);
    const uint32_t channel = pass->area == 1u ? column : column / pass->area;
    const struct window *window = &pass->windows[column - channel * pass->area];

    *in = channel * pass->in.run + window->in;
    return window;
}

/* y[0..count) = value */
static void fill(float *y, size_t count, float value)
{
    float *const end = y + count;

    for (; count >= 8u; count -= 8u, y += 8)
        y[0] = y[1] = y[2] = y[3] = y[4] = y[5] = y[6] = y[7] = value;
    while (y < end)
        *y++ = value;
}

static uint64_t block_forward(const struct pass *pass, const float *w, const float *bias,
                              const float *x, float *y)
{
    const struct sfd_support *support = &pass->layer->support;
    uint64_t done = 0u;
    uint32_t row, k;
    size_t at;

    for (row = 0u; row < support->rows; ++row, y += pass->out.run) {
        const float *in = x + row_start(pass, row);
        const uint32_t end = support->row_pointer[row + 1u];
        fill(y, pass->out.run, bias ? bias[row] : 0.0f);
        for (k = support->row_pointer[row]; k < end; ++k) {
            const struct window *window = nonzero_window(pass, k, &at);
            sfd_window_add(window, pass->images, y + window->out, &pass->out, in + at, &pass->in,
                           w[k]);
            done += window->count * window->lines;
        }
    }
    return done;
}

static uint64_t block_d_input(const struct pass *pass, const float *w, const float *dy, float *dx)
{
    const struct sfd_support *support = &pass->layer->support;
    uint64_t done = 0u;
    uint32_t row, k;
    size_t at;

    for (row = 0u; row < support->rows; ++row, dy += pass->out.run) {
        float *in = dx + row_start(pass, row);
        const uint32_t end = support->row_pointer[row + 1u];
        for (k = support->row_pointer[row]; k < end; ++k) {
            const struct window *window = nonzero_window(pass, k, &at);
            sfd_window_add(window, pass->images, in + at, &pass->in, dy + window->out, &pass->out,
                           w[k]);
            done += window->count * window->lines;
        }
    }
    return done;
}

/* A part of the weight: columns [low, high) of the rows of a group. */
struct part {
    uint32_t group, low, high;
};

/* x is the input from column `low` on. */
static uint64_t part_d_weight(const struct pass *pass, const struct part *part, const float *x,
                              const float *dy, float *gradient)
{
    const struct sfd_support *support = &pass->layer->support;
    const size_t before = part->low / pass->area * pass->in.run;
    uint32_t row = part->group * pass->group_rows, k;
    const uint32_t last = row + pass->group_rows;
    uint64_t done = 0u;
    size_t at;

    for (dy += row * pass->out.run; row < last; ++row, dy += pass->out.run) {
        const uint32_t end = support->row_pointer[row + 1u];
        k = sfd_column_search(support, support->row_pointer[row], end, part->low);
        for (; k < end && sfd_column(support, k) < part->high; ++k) {
            const struct window *window = nonzero_window(pass, k, &at);
            gradient[k] += sfd_window_dot(pass, window, dy + window->out, x + (at - before));
            done += window->count * window->lines;
        }
    }
    return done;
}

/* The gradient from an input that is there as a whole. */
static uint64_t block_d_weight(const struct pass *pass, const float *x, const float *dy,
                               float *gradient)
{
    struct part part = {0u, 0u, pass->layer->support.columns};
    uint64_t done = 0u;

    for (; part.group < pass->layer->shape.groups; ++part.group, x += pass->group_run)
        done += part_d_weight(pass, &part, x, dy, gradient);
    return done;
}

/* Write what was kept of `count` elements from `at` on, and zeros between. Returns the values after
 * them. */
static SFD_HOT const float *unpack(const uint32_t *mask, size_t at, size_t count,
                                   const float *value, float *x)
{
    for (; count > 0u; --count, ++at)
        *x++ = mask[at / 32u] >> at % 32u & 1u ? *value++ : 0.0f;
    return value;
}

/* The gradient from a packed input of which much was kept, channel by channel. */
static uint64_t unpacked_d_weight(const struct pass *pass, const struct sfd_saved_input *x,
                                  size_t at, const float **value, float *channel, const float *dy,
                                  float *gradient)
{
    const struct sfd_layer *layer = pass->layer;
    struct part part = {0u, 0u, 0u};
    uint64_t done = 0u;

    for (; part.group < layer->shape.groups; ++part.group)
        for (part.low = 0u; part.low < layer->support.columns; part.low = part.high) {
            part.high = part.low + pass->area;
            *value = unpack(x->mask, at, pass->in.run, *value, channel);
            at += pass->in.run;
            done += part_d_weight(pass, &part, channel, dy, gradient);
        }
    return done;
}

static uint64_t forward(const struct sfd_layer *layer, const float *w, const float *bias,
                        const float *x, float *y, uint32_t n, void *scratch)
{
    uint64_t done = 0u;
    uint32_t first;

    if (sfd_is_linear(layer))
        return sfd_linear_forward(layer, w, bias, x, y, n);
    for (first = 0u; first < n; first += SFD_BLOCK) {
        const struct pass pass = sfd_pass_begin(layer, sfd_block_images(n, first), scratch);
        done += block_forward(&pass, w, bias, x + first * sfd_in_elements(layer),
                              y + first * sfd_out_elements(layer));
    }
    return done;
}

static uint64_t d_input(const struct sfd_layer *layer, const float *w, const float *dy, float *dx,
                        int accumulate, uint32_t n, void *scratch)
{
    uint64_t done = 0u;
    uint32_t first;

    if (!accumulate)
        memset(dx, 0, n * sfd_in_elements(layer) * sizeof *dx);
    if (sfd_is_linear(layer))
        return sfd_linear_d_input(layer, w, dy, dx, n);
    for (first = 0u; first < n; first += SFD_BLOCK) {
        const struct pass pass = sfd_pass_begin(layer, sfd_block_images(n, first), scratch);
        done += block_d_input(&pass, w, dy + first * sfd_out_elements(layer),
                              dx + first * sfd_in_elements(layer));
    }
    return done;
}

/* Whether so much of a packed input is kept, the share of the nonzeros, that multiplying all of it
 * takes less than finding what was kept. */
static int is_unpacked(const struct sfd_layer *layer)
{
    const struct sfd_support *support = &layer->support;

    return !sfd_is_linear(layer) &&
           3u * (uint64_t)support->count > (uint64_t)support->rows * support->columns;
}

static uint64_t d_weight(const struct sfd_layer *layer, const struct sfd_saved_input *x,
                         const float *dy, float *gradient, uint32_t n, void *scratch)
{
    float *channel = (float *)((struct window *)scratch + sfd_kernel_area(layer));
    const float *value = x->values;
    uint64_t done = 0u;
    uint32_t first;

    memset(gradient, 0, layer->support.count * sizeof *gradient);
    if (x->dense == NULL && !is_unpacked(layer))
        return sfd_packed_d_weight(layer, x, dy, gradient, n, scratch);
    for (first = 0u; first < n; first += SFD_BLOCK) {
        const struct pass pass = sfd_pass_begin(layer, sfd_block_images(n, first), scratch);
        const size_t at = first * sfd_in_elements(layer);
        const float *block_dy = dy + first * sfd_out_elements(layer);
        if (x->dense)
            done += block_d_weight(&pass, x->dense + at, block_dy, gradient);
        else
            done += unpacked_d_weight(&pass, x, at, &value, channel, block_dy, gradient);
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
    const uint64_t windows = forward_scratch_bytes(layer, n);
    const uint64_t pixels = (uint64_t)layer->in_height * layer->in_width;

    if (is_unpacked(layer))
        return windows + pixels * sfd_block_images(n, 0u) * sizeof(float);
    return sfd_maximum(windows, sfd_packed_scratch_bytes(layer, n));
}

static int skips_zeros(const struct sfd_layer *layer)
{
    return !is_unpacked(layer);
}

/* Measured on x86-64 with vectors of 16 bytes: an element takes twice as long as a multiply-add, and
 * 3.4 times as long with vectors of 64 bytes, so this is the fast sets' number by that ratio. */
#define ELEMENT_WORK 14u
const struct sfd_kernels sfd_kernels_portable = {
    .name = "portable",
    .tensors = &sfd_tensors_portable,
    .element_work = ELEMENT_WORK,
    .forwards_rows = 1,
    .skips_zeros = skips_zeros,
    .forward_scratch_bytes = forward_scratch_bytes,
    .backward_scratch_bytes = backward_scratch_bytes,
    .forward = forward,
    .backward = backward,
};
