/* Compares the smooth functions and powerprop of a kernel set with the C library in double precision,
 * over the whole range of floats. Usage: compare_functions SET. Prints the worst error of each, in
 * parts of its bound; ends with 0 where none is over it, 3 where this machine does not have the set. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "sfd_kernels.h"

#define COUNT 40000u

static float input[COUNT], gradient[COUNT], output[COUNT], start[COUNT];

/* Odd, so that the last vector is not whole: evenly from -20 to 20, then all exponents. */
static uint32_t fill_input(void)
{
    static const float special[] = {0.0f, -0.0f, 88.8f, -88.8f, INFINITY, -INFINITY, NAN, 1e-45f};
    uint32_t i, count = 0u;

    for (i = 0u; i < 20001u; ++i)
        input[count++] = (float)i / 500.0f - 20.0f;
    for (i = 0u; i < 19000u; ++i)
        input[count++] = ldexpf(i % 2u ? -1.0f - (float)i / 19000.0f : 1.0f + (float)i / 19000.0f,
                                (int)(i % 270u) - 149);
    for (i = 0u; i < sizeof special / sizeof *special; ++i)
        input[count++] = special[i];
    return count | 1u;
}

static double smooth_value(const struct sfd_operation *operation, double x)
{
    if (operation->kind == SFD_OPERATION_SILU)
        return x / (1.0 + exp(-x));
    if (operation->flags & SFD_FLAG_GELU_TANH)
        return 0.5 * x * (1.0 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    return 0.5 * x * erfc(-x / sqrt(2.0));
}

static double smooth_slope(const struct sfd_operation *operation, double x)
{
    if (operation->kind == SFD_OPERATION_SILU) {
        double s = 1.0 / (1.0 + exp(-x));
        return s * (1.0 + x * (1.0 - s));
    }
    if (operation->flags & SFD_FLAG_GELU_TANH) {
        double c = sqrt(2.0 / M_PI), t = tanh(c * (x + 0.044715 * x * x * x));
        return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3.0 * 0.044715 * x * x);
    }
    return 0.5 * erfc(-x / sqrt(2.0)) + x * exp(-0.5 * x * x) / sqrt(2.0 * M_PI);
}

/* In parts of the bound; where the true value is not a finite float, the same is wanted. */
static double error_of(float got, double wanted, double bound)
{
    if (wanted != wanted || fabs(wanted) > 3.4e38)
        return got == got && fabsf(got) < INFINITY ? INFINITY : 0.0;
    return got == got ? fabs(got - wanted) / bound : INFINITY;
}

static int report(const char *name, double part, double worst, float where)
{
    printf("%s %g: %.3f of the bound at %.9g\n", name, part, worst, where);
    return worst > 1.0;
}

/* Within 2^-20 of max(|x|, 1). Beyond 1e12 the cube of x is no float. */
static int compare_smooth(const struct sfd_kernels *kernels, uint32_t count)
{
    static const struct sfd_operation operations[] = {
        {.kind = SFD_OPERATION_SILU},
        {.kind = SFD_OPERATION_GELU},
        {.kind = SFD_OPERATION_GELU, .flags = SFD_FLAG_GELU_TANH},
    };
    uint32_t which, i;
    int bad = 0;

    for (which = 0u; which < 3u; ++which) {
        const struct sfd_operation *operation = &operations[which];
        double worst[2] = {0.0, 0.0};
        float where[2] = {0.0f, 0.0f};
        kernels->tensors->smooth_forward(operation, input, count, output);
        memcpy(gradient, start, sizeof gradient);
        kernels->tensors->smooth_backward(operation, input, start, count, gradient, 1);
        for (i = 0u; i < count; ++i) {
            double x = input[i], bound = ldexp(fmax(fabs(x), 1.0), -20);
            double error[2];
            uint32_t j;
            if (fabs(x) > 1e12) /* infinities and NaN may come out as either */
                continue;
            error[0] = error_of(output[i], smooth_value(operation, x), bound);
            error[1] = error_of(gradient[i], start[i] * (1.0 + smooth_slope(operation, x)), bound);
            for (j = 0u; j < 2u; ++j)
                if (!(error[j] <= worst[j])) {
                    worst[j] = error[j];
                    where[j] = input[i];
                }
        }
        bad |= report("smooth", which, worst[0], where[0]);
        bad |= report("slope", which, worst[1], where[1]);
    }
    return bad;
}

/* Within 2^-21 of the value, and as much for each 4 of its logarithm: a rounding or two of an exponent
 * of that size. Zero stays zero, whatever its gradient. */
static int compare_powerprop(const struct sfd_kernels *kernels, uint32_t count, float beta)
{
    double worst = 0.0;
    float where = 0.0f;
    uint32_t i;

    kernels->tensors->powerprop_forward(input, output, count, beta);
    memcpy(gradient, start, sizeof gradient);
    kernels->tensors->powerprop_backward(input, gradient, count, beta);
    for (i = 0u; i < count; ++i) {
        double v = input[i], a = fabs(v), w = copysign(pow(a, beta), v);
        double slope = a > 0.0 ? beta * pow(a, beta - 1.0) * start[i] : 0.0;
        double loose = a > 0.0 ? 1.0 + fabs(beta * log(a)) / 4.0 : 1.0, error;
        if (!(a < 3.4e38) || fabs(w) > 3.3e38 || (a > 0.0 && fabs(w) < 1.2e-38))
            continue; /* a state holds no such value, or the result is no normal float */
        error = fmax(error_of(output[i], w, ldexp(loose * fabs(w), -21) + 1e-45),
                     error_of(gradient[i], slope, ldexp(loose * fabs(slope), -21) + 1e-38));
        if (!(error <= worst)) {
            worst = error;
            where = input[i];
        }
    }
    return report("powerprop", beta, worst, where);
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
    static const float betas[] = {1.0f, 1.1f, 1.25f, 1.5f, 1.75f, 2.0f, 2.3f, 3.0f};
    const struct sfd_kernels *kernels = count == 2 ? find_set(argument[1]) : NULL;
    uint32_t values, i;
    int bad;

    if (count != 2)
        return 2;
    if (kernels == NULL)
        return 3;
    values = fill_input();
    for (i = 0u; i < values; ++i)
        start[i] = 0.25f + (float)(i % 7u) / 8.0f;
    bad = compare_smooth(kernels, values);
    for (i = 0u; i < sizeof betas / sizeof *betas; ++i)
        bad |= compare_powerprop(kernels, values, betas[i]);
    return bad;
}
