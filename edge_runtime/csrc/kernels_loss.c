/* Losses over the model's output: value c of image i lies at [c * n + i]. */
#include <string.h>

#include "sfd_internal.h"

/* Mean of log(sum(exp(z))) - z[label]; the gradient is (softmax(z) - onehot(label)) / n. */
float sfd_cross_entropy(const float *logits, const void *labels, enum sfd_target target, uint32_t n,
                        uint32_t classes, float *gradient, uint32_t *correct)
{
    uint32_t row, c;
    float loss = 0.0f;

    *correct = 0u;
    for (row = 0u; row < n; ++row) {
        const float *z = logits + row;
        uint32_t best = 0u, label;
        float sum = 0.0f, top;
        label = target == SFD_TARGET_INT64 ? (uint32_t)((const int64_t *)labels)[row]
                                           : (uint32_t)((const int32_t *)labels)[row];
        for (c = 1u; c < classes; ++c)
            if (z[(size_t)c * n] > z[(size_t)best * n])
                best = c;
        top = z[(size_t)best * n];
        for (c = 0u; c < classes; ++c)
            sum += sfd_exp(z[(size_t)c * n] - top);
        loss += sfd_log(sum) - (z[(size_t)label * n] - top);
        *correct += best == label;
        if (gradient)
            for (c = 0u; c < classes; ++c)
                gradient[(size_t)c * n + row] =
                    (sfd_exp(z[(size_t)c * n] - top) / sum - (c == label ? 1.0f : 0.0f)) / (float)n;
    }
    return loss / (float)n;
}

/* Mean over all elements of (output - target)^2. */
float sfd_mean_squared_error(const float *output, const float *target, uint32_t n, uint32_t size,
                             float *gradient)
{
    uint32_t row, i;
    float loss = 0.0f, count = (float)n * (float)size;

    for (row = 0u; row < n; ++row) {
        float part = 0.0f;
        for (i = 0u; i < size; ++i) {
            size_t at = (size_t)i * n + row;
            float d = output[at] - target[(size_t)row * size + i];
            part += d * d;
            if (gradient)
                gradient[at] = 2.0f * d / count;
        }
        loss += part;
    }
    return loss / count;
}
