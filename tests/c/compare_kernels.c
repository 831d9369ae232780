/* Compares a kernel set with the portable one on random layers, both passes, with scratch of exactly
 * the bytes that it asks for, for the batch or for a larger one. Usage: compare_kernels SET CASES
 * SEED. Prints what differs by more than the stated bound; ends with 0 where nothing does, 3 where
 * this machine does not have the set.
 *
 * The bound: 2^-19 of the sum of the absolute products behind a number. */
#include <stdio.h>
#include <stdlib.h>

#include "sfd_kernels.h"

#define BOUND 0x1p-19

static uint64_t seed;

static uint32_t below(uint32_t limit)
{
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)((seed >> 33) % limit);
}

static float uniform(void)
{
    return (float)below(1u << 20) / (float)(1u << 19) - 1.0f;
}

static void *memory(size_t bytes)
{
    void *block = NULL;

    if (posix_memalign(&block, SFD_ALIGNMENT, bytes > 0u ? bytes : 1u) != 0)
        exit(2);
    return block;
}

static float *random_values(size_t count)
{
    float *values = memory(count * sizeof *values);
    size_t i;

    for (i = 0u; i < count; ++i)
        values[i] = uniform();
    return values;
}

static float *magnitudes(const float *values, size_t count)
{
    float *result = memory(count * sizeof *result);
    size_t i;

    for (i = 0u; i < count; ++i)
        result[i] = fabsf(values[i]);
    return result;
}

/* A layer with its batch: everything that one comparison needs. */
struct experiment {
    struct sfd_layer layer;
    struct sfd_saved_input saved;
    uint32_t n, planned, number;
    size_t in, out;
    uint32_t *row_pointer;
    void *column;
    uint32_t *mask;
    float *w, *bias, *x, *kept, *dy;
    int accumulate, with_dx;
};

static uint32_t pick(const uint32_t *values, uint32_t count)
{
    return values[below(count)];
}

static uint32_t output_length(uint32_t in, uint32_t kernel, uint32_t stride, uint32_t padding,
                              uint32_t dilation)
{
    return (in + 2u * padding - dilation * (kernel - 1u) - 1u) / stride + 1u;
}

/* Returns 0 for a kernel that does not fit the image. */
static int random_shape(struct sfd_layer *layer)
{
    static const uint32_t lengths[] = {1u, 2u, 3u, 4u, 5u, 7u, 8u, 9u, 12u, 16u, 17u, 25u, 33u};
    static const uint32_t kernels[] = {1u, 2u, 3u, 3u, 3u, 5u};
    struct sfd_convolution *shape = &layer->shape;
    const int is_wide = below(8u) == 0u;             /* many columns, small images */
    const int is_deep = !is_wide && below(6u) == 0u; /* many channels on either side */

    memset(layer, 0, sizeof *layer);
    shape->groups = below(5u) == 0u ? 2u + below(2u) : 1u;
    shape->kernel_h = pick(kernels, 6u);
    shape->kernel_w = below(4u) > 0u ? shape->kernel_h : pick(kernels, 6u);
    shape->stride_h = 1u + below(3u);
    shape->stride_w = below(4u) > 0u ? shape->stride_h : 1u + below(4u);
    shape->dilation_h = shape->dilation_w = below(5u) == 0u ? 2u : 1u;
    shape->padding_h = below(3u) > 0u ? shape->kernel_h / 2u : below(4u);
    shape->padding_w = below(3u) > 0u ? shape->kernel_w / 2u : below(4u);
    layer->threads = 1u;
    layer->in_channels = shape->groups * (1u + below(is_wide ? 200u : is_deep ? 48u : 6u));
    if (is_deep) { /* few zeros around the image */
        shape->padding_h = below(2u);
        shape->padding_w = below(2u);
    }
    layer->in_height = pick(lengths, is_wide ? 5u : is_deep ? 9u : 13u);
    layer->in_width = pick(lengths, is_wide ? 5u : is_deep ? 9u : 13u);
    if (layer->in_height + 2u * shape->padding_h <
            shape->dilation_h * (shape->kernel_h - 1u) + 1u ||
        layer->in_width + 2u * shape->padding_w < shape->dilation_w * (shape->kernel_w - 1u) + 1u)
        return 0;
    layer->out_height = output_length(layer->in_height, shape->kernel_h, shape->stride_h,
                                      shape->padding_h, shape->dilation_h);
    layer->out_width = output_length(layer->in_width, shape->kernel_w, shape->stride_w,
                                     shape->padding_w, shape->dilation_w);
    layer->support.rows =
        shape->groups * (is_deep ? 24u + below(40u) : 1u + below(below(4u) == 0u ? 24u : 6u));
    layer->support.columns = layer->in_channels / shape->groups * shape->kernel_h * shape->kernel_w;
    return 1;
}

/* A random support, with the multiply-adds of one image. */
static void random_support(struct experiment *e)
{
    struct sfd_layer *layer = &e->layer;
    struct sfd_support *support = &layer->support;
    const struct sfd_convolution *shape = &layer->shape;
    const uint32_t share = below(3u) == 0u ? 100u : below(101u);
    uint32_t row, column, count = 0u;

    support->index_width = below(2u) == 0u ? 2u : 4u;
    e->row_pointer = memory((support->rows + 1u) * sizeof *e->row_pointer);
    e->column = memory((size_t)support->rows * support->columns * 4u);
    for (row = 0u; row < support->rows; ++row) {
        e->row_pointer[row] = count;
        for (column = 0u; column < support->columns; ++column) {
            const uint32_t tap = column % (shape->kernel_h * shape->kernel_w);
            uint32_t y_low, y_high, x_low, x_high;
            if (below(100u) >= share)
                continue;
            if (support->index_width == 2u)
                ((uint16_t *)e->column)[count++] = (uint16_t)column;
            else
                ((uint32_t *)e->column)[count++] = column;
            sfd_valid_range(layer->in_height, layer->out_height, shape->stride_h, shape->padding_h,
                            tap / shape->kernel_w * shape->dilation_h, &y_low, &y_high);
            sfd_valid_range(layer->in_width, layer->out_width, shape->stride_w, shape->padding_w,
                            tap % shape->kernel_w * shape->dilation_w, &x_low, &x_high);
            layer->multiply_adds += (uint64_t)(y_high - y_low) * (x_high - x_low);
        }
    }
    e->row_pointer[support->rows] = support->count = count;
    support->row_pointer = e->row_pointer;
    support->column = e->column;
}

/* The input as it was saved: dense, or some entries of it. */
static void random_saved_input(struct experiment *e)
{
    const uint32_t share = below(60u);
    size_t i;

    e->mask = memory((e->in + 31u) / 32u * 4u);
    memset(e->mask, 0, (e->in + 31u) / 32u * 4u);
    e->kept = memory(e->in * sizeof *e->kept);
    memset(&e->saved, 0, sizeof e->saved);
    if (below(2u) == 0u) {
        e->saved.dense = e->x;
        return;
    }
    for (i = 0u; i < e->in; ++i)
        if (below(100u) < share) {
            e->mask[i / 32u] |= 1u << i % 32u;
            e->kept[e->saved.kept++] = e->x[i];
        }
    e->saved.values = e->kept;
    e->saved.mask = e->mask;
}

static int experiment_begin(struct experiment *e, uint32_t number)
{
    static const uint32_t batches[] = {1u,  2u,  3u,  4u,  5u,  8u,  13u, 16u,
                                       16u, 17u, 20u, 32u, 35u, 48u, 64u, 71u};

    memset(e, 0, sizeof *e);
    e->number = number;
    if (!random_shape(&e->layer))
        return 0;
    e->n = pick(batches, 16u);
    e->planned = e->n + (below(3u) == 0u ? below(40u) : 0u);
    e->in = (size_t)e->n * e->layer.in_channels * e->layer.in_height * e->layer.in_width;
    e->out = (size_t)e->n * e->layer.support.rows * e->layer.out_height * e->layer.out_width;
    random_support(e);
    e->w = random_values(e->layer.support.count);
    e->bias = below(2u) == 0u ? random_values(e->layer.support.rows) : NULL;
    e->x = random_values(e->in);
    e->dy = random_values(e->out);
    e->accumulate = (int)below(2u);
    e->with_dx = below(4u) > 0u;
    random_saved_input(e);
    return 1;
}

static void experiment_end(struct experiment *e)
{
    free(e->row_pointer);
    free(e->column);
    free(e->mask);
    free(e->w);
    free(e->bias);
    free(e->x);
    free(e->kept);
    free(e->dy);
}

/* What a set computes. */
struct result {
    float *y, *dx, *gradient;
    uint64_t forward;
    struct sfd_multiply_adds backward;
};

static struct result compute(const struct sfd_kernels *kernels, const struct experiment *e,
                             const float *w, const float *bias, const float *x,
                             const struct sfd_saved_input *saved, const float *dy)
{
    void *forward = memory((size_t)kernels->forward_scratch_bytes(&e->layer, e->planned));
    void *backward = memory((size_t)kernels->backward_scratch_bytes(&e->layer, e->planned));
    const uint32_t count = e->layer.support.count;
    struct result result;
    size_t i;

    memset(&result, 0, sizeof result);
    result.y = memory(e->out * sizeof *result.y);
    result.dx = memory(e->in * sizeof *result.dx);
    result.gradient = memory(count * sizeof *result.gradient);
    for (i = 0u; i < e->in; ++i)
        result.dx[i] = 0.25f;
    memcpy(result.gradient, w, count * sizeof *w); /* the gradient takes the place of w */
    result.forward = kernels->forward(&e->layer, w, bias, x, result.y, e->n, forward);
    kernels->backward(&e->layer, result.gradient, saved, dy, e->with_dx ? result.dx : NULL,
                      e->accumulate, result.gradient, e->n, backward, &result.backward);
    free(forward);
    free(backward);
    return result;
}

static void result_free(struct result *result)
{
    free(result->y);
    free(result->dx);
    free(result->gradient);
}

static int differ(const char *what, const struct experiment *e, const float *got,
                  const float *wanted, const float *magnitude, size_t count)
{
    size_t i;

    for (i = 0u; i < count; ++i)
        if (!(fabs((double)got[i] - wanted[i]) <= BOUND * fabs((double)magnitude[i]))) {
            printf("case %u, n %u, %s %zu: got %.9g, wanted %.9g, magnitude %.3g\n", e->number,
                   e->n, what, i, (double)got[i], (double)wanted[i], (double)magnitude[i]);
            return 1;
        }
    return 0;
}

/* The fast sets multiply by the zeros of a packed input as well. */
static int work_differs(const struct experiment *e, const struct result *got,
                        const struct result *portable)
{
    if (got->forward == portable->forward && got->forward == e->layer.multiply_adds * e->n &&
        got->backward.d_input == portable->backward.d_input &&
        got->backward.d_weight >= portable->backward.d_weight &&
        got->backward.d_weight <= got->forward)
        return 0;
    printf("case %u, n %u: counted work differs\n", e->number, e->n);
    return 1;
}

static int compare(const struct sfd_kernels *kernels, const struct experiment *e)
{
    const uint32_t count = e->layer.support.count;
    float *w = magnitudes(e->w, count), *x = magnitudes(e->x, e->in);
    float *dy = magnitudes(e->dy, e->out), *kept = magnitudes(e->kept, e->saved.kept);
    float *bias = e->bias ? magnitudes(e->bias, e->layer.support.rows) : NULL;
    struct sfd_saved_input saved = e->saved;
    struct result got = compute(kernels, e, e->w, e->bias, e->x, &e->saved, e->dy);
    struct result wanted = compute(&sfd_kernels_portable, e, e->w, e->bias, e->x, &e->saved, e->dy);
    struct result magnitude;
    int bad;

    saved.dense = e->saved.dense ? x : NULL;
    saved.values = kept;
    magnitude = compute(&sfd_kernels_portable, e, w, bias, x, &saved, dy);
    bad = differ("y", e, got.y, wanted.y, magnitude.y, e->out) |
          differ("dx", e, got.dx, wanted.dx, magnitude.dx, e->in) |
          differ("gradient", e, got.gradient, wanted.gradient, magnitude.gradient, count) |
          work_differs(e, &got, &wanted);
    result_free(&got);
    result_free(&wanted);
    result_free(&magnitude);
    free(w);
    free(x);
    free(dy);
    free(kept);
    free(bias);
    return bad;
}

static const struct sfd_kernels *find_set(const char *name)
{
    int32_t set;

    for (set = SFD_KERNELS_PORTABLE; sfd_kernels_name(set) != NULL; ++set)
        if (strcmp(sfd_kernels_name(set), name) == 0)
            return sfd_kernels_find(set);
    return NULL;
}

int main(int count, char **argument)
{
    const struct sfd_kernels *kernels = count == 4 ? find_set(argument[1]) : NULL;
    uint32_t number, cases, bad = 0u;

    if (count != 4)
        return 2;
    if (kernels == NULL)
        return 3;
    cases = (uint32_t)strtoul(argument[2], NULL, 10);
    seed = strtoull(argument[3], NULL, 10);
    for (number = 0u; number < cases; ++number) {
        struct experiment e;
        if (!experiment_begin(&e, number))
            continue;
        bad += (uint32_t)compare(kernels, &e);
        experiment_end(&e);
    }
    return bad > 0u;
}
