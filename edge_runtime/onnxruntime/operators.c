/* The core's operators in ONNX Runtime: arguments are taken from the runtime, scratch from its
 * allocator. The work is done by sfd_operators.h.
 *
 * Activations are in the core's order. export/onnx_kernels.py writes the calls. */
#include "operators.h"

#include <stddef.h>

#include "arguments.h"
#include "checks.h"
#include "sfd_format.h"
#include "sfd_operators.h"

void to_blocks(struct call *call)
{
    const struct tensor x = activation(call, 0u);
    float *y = output_like(call, 0u, &x);

    if (call->status == NULL)
        sfd_to_blocks(x.data, example_size(&x), images(&x), y);
}

void to_rows(struct call *call)
{
    const struct tensor x = activation(call, 0u);
    float *y = output_like(call, 0u, &x);

    if (call->status == NULL)
        sfd_to_rows(x.data, example_size(&x), images(&x), y);
}

/* integers: groups, then kernel, stride, padding and dilation as height and width. */
static struct sfd_layer_geometry layer_geometry(const struct call *call, const struct tensor *x,
                                                const struct tensor *y)
{
    const struct sfd_layer_geometry geometry = {
        channels(x),       height(x),         width(x),          channels(y),
        height(y),         width(y),          integer(call, 0u), integer(call, 1u),
        integer(call, 2u), integer(call, 3u), integer(call, 4u), integer(call, 5u),
        integer(call, 6u), integer(call, 7u), integer(call, 8u)};

    return geometry;
}

/* x, v, bias; y. numbers: beta */
void layer(struct call *call)
{
    const struct tensor x = activation(call, 0u), v = input(call, 1u);
    const struct tensor bias = optional_input(call, 2u), y = shaped_output(call, &x);
    const struct sfd_layer_geometry geometry = layer_geometry(call, &x, &y);
    struct scratch scratch = {0};

    require_image(call, &x, &y);
    require_layer(call, &geometry, &v);
    require_optional_count(call, &bias, geometry.out_channels);
    if (call->status == NULL)
        scratch = take_scratch(call, sfd_layer_forward_bytes(&geometry, v.data, images(&x)));
    if (call->status == NULL)
        sfd_layer_forward(&geometry, v.data, number(call, 0u), bias.data, x.data, images(&x),
                          y.data, scratch.aligned);
    give_back(call, &scratch);
}

/* A layer's own count in keep; more than there are inputs is all of them. */
static uint32_t kept_inputs(struct call *call, const struct tensor *keep)
{
    const uint32_t place = integer(call, 9u);
    int64_t kept;

    if (!require(call, place < keep->count, "keep has no count for a layer"))
        return 0u;
    kept = ((const int64_t *)keep->data)[place];
    require(call, kept >= 0, "keep has a count below 0");
    return kept > UINT32_MAX ? UINT32_MAX : (uint32_t)kept;
}

/* dy, x, v, keep; dx, dv, d_bias. integers: those of layer, place in keep. numbers: beta */
void layer_backward(struct call *call)
{
    const struct tensor dy = activation(call, 0u), x = activation(call, 1u), v = input(call, 2u),
                        keep = input(call, 3u);
    const struct sfd_layer_geometry geometry = layer_geometry(call, &x, &dy);
    const uint32_t kept = kept_inputs(call, &keep);
    float *dx = optional_output(call, 0u, x.shape, x.rank), *dv = output_like(call, 1u, &v);
    float *d_bias = optional_vector(call, 2u, geometry.out_channels);
    struct scratch scratch = {0};

    require_image(call, &x, &dy);
    require_layer(call, &geometry, &v);
    if (call->status == NULL)
        scratch = take_scratch(call, sfd_layer_backward_bytes(&geometry, v.data, images(&x), kept));
    if (call->status == NULL)
        sfd_layer_backward(&geometry, v.data, number(call, 0u), x.data, dy.data, images(&x), kept,
                           dx, dv, d_bias, scratch.aligned);
    give_back(call, &scratch);
}

static struct sfd_batch_norm_geometry batch_norm_geometry(const struct call *call,
                                                          const struct tensor *x,
                                                          const float *weight, const float *bias)
{
    const struct sfd_batch_norm_geometry geometry = {channels(x), height(x) * width(x),
                                                     number(call, 0u), weight, bias};

    return geometry;
}

/* x, weight, bias, mean, variance; y, moments, new mean, new variance. numbers: epsilon, momentum */
void batch_norm(struct call *call)
{
    const struct tensor x = activation(call, 0u), weight = optional_input(call, 1u),
                        bias = optional_input(call, 2u), mean = input(call, 3u),
                        variance = input(call, 4u);
    const struct sfd_batch_norm_geometry geometry =
        batch_norm_geometry(call, &x, weight.data, bias.data);
    const float *const running[2] = {mean.data, variance.data};
    float *y = output_like(call, 0u, &x);
    float *moments = vector(call, 1u, 2u * geometry.channels);
    float *const next[2] = {output_like(call, 2u, &mean), output_like(call, 3u, &variance)};

    require_image(call, &x, &x);
    require_optional_count(call, &weight, geometry.channels);
    require_optional_count(call, &bias, geometry.channels);
    require_count(call, &mean, geometry.channels);
    require_count(call, &variance, geometry.channels);
    if (call->status == NULL)
        sfd_batch_norm_train(&geometry, x.data, images(&x), number(call, 1u), running, y, moments,
                             next);
}

/* x, weight, bias, mean, variance; y. numbers: epsilon */
void batch_norm_evaluated(struct call *call)
{
    const struct tensor x = activation(call, 0u), weight = optional_input(call, 1u),
                        bias = optional_input(call, 2u), mean = input(call, 3u),
                        variance = input(call, 4u);
    const struct sfd_batch_norm_geometry geometry =
        batch_norm_geometry(call, &x, weight.data, bias.data);
    float *y = output_like(call, 0u, &x);

    require_image(call, &x, &x);
    require_optional_count(call, &weight, geometry.channels);
    require_optional_count(call, &bias, geometry.channels);
    require_count(call, &mean, geometry.channels);
    require_count(call, &variance, geometry.channels);
    if (call->status == NULL)
        sfd_batch_norm_evaluate(&geometry, x.data, images(&x), mean.data, variance.data, y);
}

/* dy, x, weight, moments; dx, d_weight, d_bias. numbers: epsilon */
void batch_norm_backward(struct call *call)
{
    const struct tensor dy = input(call, 0u), x = activation(call, 1u),
                        weight = optional_input(call, 2u), moments = input(call, 3u);
    const struct sfd_batch_norm_geometry geometry =
        batch_norm_geometry(call, &x, weight.data, NULL);
    float *dx = output_like(call, 0u, &x);
    float *d_weight = vector(call, 1u, geometry.channels);
    float *d_bias = vector(call, 2u, geometry.channels);

    require_image(call, &x, &x);
    require_count(call, &dy, x.count);
    require_optional_count(call, &weight, geometry.channels);
    require_count(call, &moments, 2u * (uint64_t)geometry.channels);
    if (call->status == NULL)
        sfd_batch_norm_gradients(&geometry, x.data, dy.data, images(&x), moments.data, dx, d_weight,
                                 d_bias);
}

/* integers: sets, elements, span, affine_step. */
static struct sfd_norm_geometry norm_geometry(const struct call *call, const float *weight,
                                              const float *bias)
{
    const struct sfd_norm_geometry geometry = {integer(call, 0u),
                                               integer(call, 1u),
                                               integer(call, 2u),
                                               integer(call, 3u),
                                               number(call, 0u),
                                               weight,
                                               bias};

    return geometry;
}

/* How many coefficients weight and bias have. */
static uint32_t coefficients(const struct sfd_norm_geometry *geometry)
{
    const uint32_t sets = geometry->affine_step == 0u ? 1u : geometry->sets;

    return geometry->span == 0u ? 0u : geometry->elements / geometry->span * sets;
}

/* x, weight, bias; y, moments. numbers: epsilon */
void norm(struct call *call)
{
    const struct tensor x = activation(call, 0u), weight = optional_input(call, 1u),
                        bias = optional_input(call, 2u);
    const struct sfd_norm_geometry geometry = norm_geometry(call, weight.data, bias.data);
    const int64_t shape[2] = {x.shape[0], 2 * (int64_t)geometry.sets};
    float *y, *moments;

    require_norm(call, &geometry, &x);
    require_optional_count(call, &weight, coefficients(&geometry));
    require_optional_count(call, &bias, coefficients(&geometry));
    y = output_like(call, 0u, &x);
    moments = output(call, 1u, shape, 2u);
    if (call->status == NULL)
        sfd_norm(&geometry, x.data, images(&x), y, moments);
}

/* dy, x, weight, moments; dx, d_weight, d_bias. integers: those of norm, number of coefficients, 0 if
 * their gradients are not wanted */
void norm_backward(struct call *call)
{
    const struct tensor dy = input(call, 0u), x = activation(call, 1u),
                        weight = optional_input(call, 2u), moments = input(call, 3u);
    const struct sfd_norm_geometry geometry = norm_geometry(call, weight.data, NULL);
    const uint32_t wanted = integer(call, 4u);
    float *dx, *d_weight, *d_bias;

    require_norm(call, &geometry, &x);
    require(call, wanted == 0u || wanted == coefficients(&geometry),
            "a norm has another number of coefficients");
    require_count(call, &dy, x.count);
    require_optional_count(call, &weight, coefficients(&geometry));
    require_count(call, &moments, 2u * (uint64_t)geometry.sets * (uint64_t)x.shape[0]);
    dx = output_like(call, 0u, &x);
    d_weight = optional_vector(call, 1u, wanted);
    d_bias = optional_vector(call, 2u, wanted);
    if (call->status == NULL)
        sfd_norm_gradients(&geometry, x.data, dy.data, images(&x), moments.data, dx, d_weight,
                           d_bias);
}

/* x; y. numbers: ceiling */
void rectifier(struct call *call)
{
    const struct tensor x = input(call, 0u);
    float *y = output_like(call, 0u, &x);

    if (call->status == NULL)
        sfd_rectifier(x.data, (uint32_t)x.count, number(call, 0u), y);
}

/* dy, x; dx. numbers: ceiling */
void rectifier_backward(struct call *call)
{
    const struct tensor dy = input(call, 0u), x = input(call, 1u);
    float *dx = output_like(call, 0u, &dy);

    require_count(call, &x, dy.count);
    if (call->status == NULL)
        sfd_rectifier_gradient(x.data, dy.data, (uint32_t)dy.count, number(call, 0u), dx);
}

static void require_smooth(struct call *call)
{
    const uint32_t kind = integer(call, 0u);

    require(call, kind == SFD_OPERATION_SILU || kind == SFD_OPERATION_GELU,
            "an activation of no kind");
}

/* x; y. integers: kind, flags */
void smooth(struct call *call)
{
    const struct tensor x = input(call, 0u);
    float *y = output_like(call, 0u, &x);

    require_smooth(call);
    if (call->status == NULL)
        sfd_smooth(integer(call, 0u), integer(call, 1u), x.data, (uint32_t)x.count, y);
}

/* dy, x; dx. integers: kind, flags */
void smooth_backward(struct call *call)
{
    const struct tensor dy = input(call, 0u), x = input(call, 1u);
    float *dx = output_like(call, 0u, &dy);

    require_smooth(call);
    require_count(call, &x, dy.count);
    if (call->status == NULL)
        sfd_smooth_gradient(integer(call, 0u), integer(call, 1u), x.data, dy.data,
                            (uint32_t)dy.count, dx);
}

/* integers: kind, flags, kernel, stride and padding as height and width. */
static struct sfd_pool_geometry pool_geometry(const struct call *call, const struct tensor *x,
                                              const struct tensor *y)
{
    const struct sfd_pool_geometry geometry = {
        integer(call, 0u), integer(call, 1u), channels(x),       height(x),
        width(x),          height(y),         width(y),          integer(call, 2u),
        integer(call, 3u), integer(call, 4u), integer(call, 5u), integer(call, 6u),
        integer(call, 7u)};

    return geometry;
}

/* x; y, winners (absent for averages) */
void pool(struct call *call)
{
    const struct tensor x = activation(call, 0u), y = shaped_output(call, &x);
    const struct sfd_pool_geometry geometry = pool_geometry(call, &x, &y);
    uint16_t *winners = NULL;

    require_image(call, &x, &y);
    require(call, channels(&x) == channels(&y), "a pool changes the number of channels");
    require_pool(call, &geometry);
    if (geometry.kind == SFD_OPERATION_MAX_POOL)
        winners = output(call, 1u, y.shape, y.rank);
    if (call->status == NULL)
        sfd_pool(&geometry, x.data, images(&x), y.data, winners);
}

/* dy, winners (absent for averages); dx */
void pool_backward(struct call *call)
{
    const struct tensor dy = activation(call, 0u), winners = optional_input(call, 1u);
    const struct tensor dx = shaped_output(call, &dy);
    const struct sfd_pool_geometry geometry = pool_geometry(call, &dx, &dy);

    require_image(call, &dx, &dy);
    require(call, channels(&dx) == channels(&dy), "a pool changes the number of channels");
    require_pool(call, &geometry);
    if (geometry.kind == SFD_OPERATION_MAX_POOL) {
        require_count(call, &winners, dy.count);
        require_winners(call, &geometry, &winners, images(&dy));
    }
    if (call->status == NULL)
        sfd_pool_gradient(&geometry, dy.data, winners.data, images(&dy), dx.data);
}

/* p, gradient, rate, decay; next */
void descend(struct call *call)
{
    const struct tensor p = input(call, 0u), gradient = input(call, 1u), rate = input(call, 2u),
                        decay = input(call, 3u);
    float *next = output_like(call, 0u, &p);

    require_count(call, &gradient, p.count);
    require_count(call, &rate, 1u);
    require_count(call, &decay, 1u);
    if (call->status == NULL)
        sfd_descend(p.data, gradient.data, (uint32_t)p.count, *(const float *)rate.data,
                    *(const float *)decay.data, next);
}
