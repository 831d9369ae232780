/* Portable kernels over the nonzeros alone: forward, gradient of the input, and gradient of the
 * weight from an input that is dense, or of which much was kept. That from other packed inputs is in
 * kernels_packed.c.
 *
 * A row of pixels of a block is one run of floats, so that each nonzero does a long, plain loop
 * whatever the image's size. In a linear layer, where the run is that of the images alone, a few of
 * its floats meet all nonzeros of a row instead. Each output element is the sum over the nonzeros of
 * its row in CSR order, so that the result does not depend on how a loop is vectorised. */
#include "sfd_kernels.h"

/* Partial sums of a dot product: fixed, so that the order of additions is the same everywhere. */
#define LANES 8u

/* Outputs whose input lies before `end`, counted from that of output 0. */
static uint32_t outputs_before(uint32_t end, uint32_t stride)
{
    return stride == 1u ? end : end / stride + (end % stride != 0u);
}

void sfd_valid_range(uint32_t in, uint32_t out, uint32_t stride, uint32_t padding, uint32_t offset,
                     uint32_t *low, uint32_t *high)
{
    /* y * stride + offset must be in [padding, padding + in) */
    const uint32_t before = offset < padding ? padding - offset : 0u;
    const uint32_t beyond = offset > padding ? offset - padding : 0u;

    *low = outputs_before(before, stride);
    *high = 0u;
    if (beyond < in)
        *high = in < UINT32_MAX - before ? outputs_before(before + (in - beyond), stride) : out;
    if (*high > out)
        *high = out;
    if (*low > *high)
        *low = *high;
}

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
    int is_linear;
    size_t group_run;
    struct side in, out;
};

/* Add to a window, whose lines are known, the pixels of each. */
static void window_widen(const struct pass *pass, uint32_t offset_x, struct window *window)
{
    const struct sfd_layer *layer = pass->layer;
    const struct sfd_convolution *shape = &layer->shape;
    uint32_t low, high;

    sfd_valid_range(layer->in_width, layer->out_width, shape->stride_w, shape->padding_w, offset_x,
                    &low, &high);
    window->count = (high - low) * pass->images;
    window->in += (size_t)(low * shape->stride_w + offset_x - shape->padding_w) * pass->images;
    window->out += low * pass->out.step;
    if (window->count == 0u)
        window->lines = 0u;
    if (window->count == pass->out.line && pass->in.line == pass->out.line &&
        pass->in.step == pass->out.step) {
        window->count *= window->lines; /* the rows lie end to end: one long row */
        window->lines = window->lines > 0u;
    }
}

static void windows_find(const struct pass *pass, struct window *window)
{
    const struct sfd_layer *layer = pass->layer;
    const struct sfd_convolution *shape = &layer->shape;
    uint32_t ky, kx, low, high;

    for (ky = 0u; ky < shape->kernel_h; ++ky) {
        const uint32_t offset_y = ky * shape->dilation_h;
        sfd_valid_range(layer->in_height, layer->out_height, shape->stride_h, shape->padding_h,
                        offset_y, &low, &high);
        for (kx = 0u; kx < shape->kernel_w; ++kx, ++window) {
            window->lines = high - low;
            window->in = (size_t)(low * shape->stride_h + offset_y - shape->padding_h) *
                         layer->in_width * pass->images;
            window->out = low * pass->out.line;
            window_widen(pass, kx * shape->dilation_w, window);
        }
    }
}

static struct pass pass_begin(const struct sfd_layer *layer, uint32_t images, void *scratch)
{
    const struct sfd_convolution *shape = &layer->shape;
    struct pass pass;

    pass.layer = layer;
    pass.windows = scratch;
    pass.images = images;
    pass.area = sfd_kernel_area(layer);
    pass.group_rows = layer->support.rows / shape->groups;
    pass.in.run = (size_t)layer->in_height * layer->in_width * images;
    pass.in.step = (size_t)shape->stride_w * images;
    pass.in.line = (size_t)shape->stride_h * layer->in_width * images;
    pass.out.run = (size_t)layer->out_height * layer->out_width * images;
    pass.out.step = images;
    pass.out.line = (size_t)layer->out_width * images;
    pass.group_run = layer->in_channels / shape->groups * pass.in.run;
    windows_find(&pass, scratch);
    pass.is_linear = sfd_is_linear(layer);
    return pass;
}

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

/* y += w * x over a window whose pixels lie side by side, on both sides. */
static void window_add(float *restrict y, size_t y_line, const float *restrict x, size_t x_line,
                       uint32_t count, uint32_t lines, float w)
{
    const uint32_t fours = count / 4u, rest = count % 4u;
    uint32_t i;

    y_line -= count;
    x_line -= count;
    for (; lines > 0u; --lines, y += y_line, x += x_line) {
        for (i = fours; i > 0u; --i, y += 4, x += 4) {
            y[0] += w * x[0];
            y[1] += w * x[1];
            y[2] += w * x[2];
            y[3] += w * x[3];
        }
        for (i = rest; i > 0u; --i)
            *y++ += w * *x++;
    }
}

/* The same for pixels of one image that lie apart. */
static void window_add_apart(const struct window *window, float *restrict y, const struct side *to,
                             const float *restrict x, const struct side *from, float w)
{
    const size_t y_step = to->step, y_line = to->line - window->count * y_step;
    const size_t x_step = from->step, x_line = from->line - window->count * x_step;
    const uint32_t count = window->count;
    uint32_t i, lines;

    for (lines = window->lines; lines > 0u; --lines, y += y_line, x += x_line)
        for (i = count; i > 0u; --i, y += y_step, x += x_step)
            *y += w * *x;
}

/* The same from one side of a pass to the other. */
static void sides_add(const struct window *window, uint32_t n, float *y, const struct side *to,
                      const float *x, const struct side *from, float w)
{
    uint32_t line;

    if (to->step == from->step)
        window_add(y, to->line, x, from->line, window->count, window->lines, w);
    else if (n == 1u)
        window_add_apart(window, y, to, x, from, w);
    else /* the pixels of a line are lines of n floats */
        for (line = 0u; line < window->lines; ++line, y += to->line, x += from->line)
            window_add(y, to->step, x, from->step, n, window->count / n, w);
}

/* One image and columns of 16 bits are what boards have most: for them a row takes loops of its own. */
static int is_short(const struct sfd_support *support, uint32_t n)
{
    return n == 1u && support->index_width == 2u;
}

/* The row of a linear layer, of n images: y[image] += sum over its nonzeros of w * x[image]. */
static void linear_gather(const struct sfd_support *support, uint32_t row, const float *w,
                          const float *restrict x, uint32_t n, float *restrict y)
{
    const uint32_t begin = support->row_pointer[row], end = support->row_pointer[row + 1u];
    const uint16_t *const column = support->column;
    uint32_t i = 0u, k;

    for (; i + 4u <= n; i += 4u) {
        float a = y[i], b = y[i + 1u], c = y[i + 2u], d = y[i + 3u];
        for (k = begin; k < end; ++k) {
            const float *in = x + (size_t)sfd_column(support, k) * n + i;
            a += w[k] * in[0];
            b += w[k] * in[1];
            c += w[k] * in[2];
            d += w[k] * in[3];
        }
        y[i] = a;
        y[i + 1u] = b;
        y[i + 2u] = c;
        y[i + 3u] = d;
    }
    for (; i < n; ++i) {
        float sum = y[i];
        if (is_short(support, n))
            for (k = begin; k < end; ++k)
                sum += w[k] * x[column[k]];
        else
            for (k = begin; k < end; ++k)
                sum += w[k] * x[(size_t)sfd_column(support, k) * n + i];
        y[i] = sum;
    }
}

/* The other way round: dx[image] += w * dy[image] for each of its nonzeros. */
static void linear_scatter(const struct sfd_support *support, uint32_t row, const float *w,
                           const float *restrict dy, uint32_t n, float *restrict dx)
{
    const uint32_t begin = support->row_pointer[row], end = support->row_pointer[row + 1u];
    const uint16_t *const column = support->column;
    uint32_t i = 0u, k;

    for (; i + 4u <= n; i += 4u) {
        const float a = dy[i], b = dy[i + 1u], c = dy[i + 2u], d = dy[i + 3u];
        for (k = begin; k < end; ++k) {
            float *out = dx + (size_t)sfd_column(support, k) * n + i;
            out[0] += w[k] * a;
            out[1] += w[k] * b;
            out[2] += w[k] * c;
            out[3] += w[k] * d;
        }
    }
    for (; i < n; ++i)
        if (is_short(support, n))
            for (k = begin; k < end; ++k)
                dx[column[k]] += w[k] * *dy;
        else
            for (k = begin; k < end; ++k)
                dx[(size_t)sfd_column(support, k) * n + i] += w[k] * dy[i];
}

/* y[0..count) = value */
static void fill(float *y, size_t count, float value)
{
    for (; count >= 4u; count -= 4u, y += 4)
        y[0] = y[1] = y[2] = y[3] = value;
    for (; count > 0u; --count)
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
        if (pass->is_linear)
            linear_gather(support, row, w, in, pass->images, y);
        for (k = support->row_pointer[row]; k < end && !pass->is_linear; ++k) {
            const struct window *window = nonzero_window(pass, k, &at);
            sides_add(window, pass->images, y + window->out, &pass->out, in + at, &pass->in, w[k]);
            done += window->count * window->lines;
        }
    }
    return pass->is_linear ? (uint64_t)support->count * pass->images : done;
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
        if (pass->is_linear)
            linear_scatter(support, row, w, dy, pass->images, in);
        for (k = support->row_pointer[row]; k < end && !pass->is_linear; ++k) {
            const struct window *window = nonzero_window(pass, k, &at);
            sides_add(window, pass->images, in + at, &pass->in, dy + window->out, &pass->out, w[k]);
            done += window->count * window->lines;
        }
    }
    return pass->is_linear ? (uint64_t)support->count * pass->images : done;
}

/* Add the products of lines to the partial sums; element i of a line goes to sum i % LANES. */
static void lines_dot(const float *restrict y, size_t y_line, const float *restrict x,
                      size_t x_line, uint32_t count, uint32_t lines, float *restrict lane)
{
    const uint32_t rest = count % 4u;
    float a = lane[0], b = lane[1], c = lane[2], d = lane[3];
    float e = lane[4], f = lane[5], g = lane[6], h = lane[7];
    uint32_t i;

    y_line -= count - rest;
    x_line -= count - rest;
    for (; lines > 0u; --lines, y += y_line, x += x_line) {
        for (i = count / LANES; i > 0u; --i, y += LANES, x += LANES) {
            a += y[0] * x[0];
            b += y[1] * x[1];
            c += y[2] * x[2];
            d += y[3] * x[3];
            e += y[4] * x[4];
            f += y[5] * x[5];
            g += y[6] * x[6];
            h += y[7] * x[7];
        }
        if (count % LANES >= 4u) {
            a += y[0] * x[0];
            b += y[1] * x[1];
            c += y[2] * x[2];
            d += y[3] * x[3];
            y += 4;
            x += 4;
            if (rest > 0u)
                e += y[0] * x[0];
            if (rest > 1u)
                f += y[1] * x[1];
            if (rest > 2u)
                g += y[2] * x[2];
        } else {
            if (rest > 0u)
                a += y[0] * x[0];
            if (rest > 1u)
                b += y[1] * x[1];
            if (rest > 2u)
                c += y[2] * x[2];
        }
    }
    lane[0] = a, lane[1] = b, lane[2] = c, lane[3] = d;
    lane[4] = e, lane[5] = f, lane[6] = g, lane[7] = h;
}

/* The product of a window's inputs and outputs. */
static float window_dot(const struct pass *pass, const struct window *window, const float *y,
                        const float *x)
{
    const uint32_t n = pass->images, count = window->count;
    float lane[LANES] = {0.0f};
    uint32_t line, i;

    if (pass->in.step == n)
        lines_dot(y, pass->out.line, x, pass->in.line, count, window->lines, lane);
    else
        for (line = 0u; line < window->lines; ++line, y += pass->out.line, x += pass->in.line)
            if (n == 1u)
                for (i = 0u; i < count; ++i)
                    lane[i % LANES] += y[i] * x[i * pass->in.step];
            else /* the pixels of a line are lines of n floats */
                lines_dot(y, n, x, pass->in.step, n, count / n, lane);
    return ((lane[0] + lane[4]) + (lane[1] + lane[5])) +
           ((lane[2] + lane[6]) + (lane[3] + lane[7]));
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
            gradient[k] += window_dot(pass, window, dy + window->out, x + (at - before));
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
static const float *unpack(const uint32_t *mask, size_t at, size_t count, const float *value,
                           float *x)
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

    for (first = 0u; first < n; first += SFD_BLOCK) {
        const struct pass pass = pass_begin(layer, sfd_block_images(n, first), scratch);
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
        fill(dx, n * sfd_in_elements(layer), 0.0f);
    for (first = 0u; first < n; first += SFD_BLOCK) {
        const struct pass pass = pass_begin(layer, sfd_block_images(n, first), scratch);
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

    fill(gradient, layer->support.count, 0.0f);
    if (x->dense == NULL && !is_unpacked(layer))
        return sfd_packed_d_weight(layer, x, dy, gradient, n, scratch);
    for (first = 0u; first < n; first += SFD_BLOCK) {
        const struct pass pass = pass_begin(layer, sfd_block_images(n, first), scratch);
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
