/* Losses over the model's output, in blocks of interleaved images. */
#include <string.h>

#include "sfd_kernels.h"

/* Where the first value of an image lies; `step` is the distance to the next one. */
static size_t image_start(uint32_t size, uint32_t n, uint32_t image, uint32_t *step)
{
    uint32_t first = image / SFD_BLOCK * SFD_BLOCK;

    *step = sfd_block_images(n, first);
    return (size_t)first * size + (image - first);
}

/* Mean of log(sum(exp(z))) - z[label]; the gradient is (softmax(z) - onehot(label)) / n. */
float sfd_cross_entropy(const float *logits, const void *labels, enum sfd_target target, uint32_t n,
                        uint32_t classes, float *gradient, uint32_t *correct)
{
    uint32_t row, c;
    float loss = 0.0f;

    *correct = 0u;
    for (row = 0u; row < n; ++row) {
        uint32_t best = 0u, label, step;
        size_t start = image_start(classes, n, row, &step);
        const float *z = logits + start;
        float sum = 0.0f, top;
        label = target == SFD_TARGET_INT64 ? (uint32_t)((const int64_t *)labels)[row]
                                           : (uint32_t)((const int32_t *)labels)[row];
        for (c = 1u; c < classes; ++c)
            if (z[(size_t)c * step] > z[(size_t)best * step])
                best = c;
        top = z[(size_t)best * step];
        for (c = 0u; c < classes; ++c)
            sum += sfd_exp(z[(size_t)c * step] - top);
        loss += sfd_log(sum) - (z[(size_t)label * step] - top);
        *correct += best == label;
        if (gradient)
            for (c = 0u; c < classes; ++c)
                gradient[start + (size_t)c * step] =
                    (sfd_exp(z[(size_t)c * step] - top) / sum - (c == label ? 1.0f : 0.0f)) /
                    (float)n;
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
        uint32_t step;
        size_t start = image_start(size, n, row, &step);
        float part = 0.0f;
        for (i = 0u; i < size; ++i) {
            size_t at = start + (size_t)i * step;
            float d = output[at] - target[(size_t)row * size + i];
            part += d * d;
            if (gradient)
                gradient[at] = 2.0f * d / count;
        }
        loss += part;
    }
    return loss / count;
}
