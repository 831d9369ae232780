/* Exact Top-K by magnitude: a radix search for the threshold, then one pass that takes what is
 * above it and, of what equals it, the lowest positions. */
#include <string.h>

#include "sfd_internal.h"

void sfd_selection_begin(struct sfd_selection *selection, uint32_t keep, uint32_t *histogram)
{
    selection->prefix = 0u;
    selection->remaining = keep;
    selection->shift = 24u;
    selection->histogram = histogram;
}

void sfd_selection_pass(struct sfd_selection *selection)
{
    memset(selection->histogram, 0, SFD_HISTOGRAM_BINS * sizeof *selection->histogram);
}

void sfd_selection_count(struct sfd_selection *selection, const float *x, uint32_t elements)
{
    uint32_t i, shift = selection->shift;
    uint32_t above = shift == 24u ? 0u : 0xffffffffu << (shift + 8u);

    for (i = 0u; i < elements; ++i) {
        uint32_t magnitude = sfd_magnitude(x[i]);
        if ((magnitude & above) == selection->prefix)
            ++selection->histogram[(magnitude >> shift) & 0xffu];
    }
}

/* Fix 8 more bits of the threshold. Returns 0 once all 32 are known. */
int sfd_selection_narrow(struct sfd_selection *selection)
{
    uint32_t bin = SFD_HISTOGRAM_BINS - 1u;

    while (bin > 0u && selection->histogram[bin] < selection->remaining) {
        selection->remaining -= selection->histogram[bin];
        --bin;
    }
    selection->prefix |= bin << selection->shift;
    if (selection->shift == 0u)
        return 0;
    selection->shift -= 8u;
    return 1;
}

uint64_t sfd_packed_bytes(uint32_t keep, uint64_t elements)
{
    return keep == 0u ? 0u : 4u * ((uint64_t)keep + (elements + 31u) / 32u);
}

/* One past the place, in the order image, element, of the last tie that is taken. */
static uint32_t tie_end(const float *x, uint32_t size, uint32_t n, uint32_t threshold,
                        uint32_t ties)
{
    uint32_t image, element;

    for (image = 0u; image < n; ++image)
        for (element = 0u; element < size; ++element)
            if (sfd_magnitude(x[(size_t)element * n + image]) == threshold && --ties == 0u)
                return image * size + element + 1u;
    return n * size;
}

void sfd_pack(const float *x, uint32_t size, uint32_t n, uint32_t keep, uint32_t *histogram,
              void *packed)
{
    float *value = packed;
    uint32_t *bits = (uint32_t *)packed + keep;
    struct sfd_selection selection;
    uint32_t i, taken = 0u, end, threshold, ties;

    if (keep == 0u)
        return;
    sfd_selection_begin(&selection, keep, histogram);
    do {
        sfd_selection_pass(&selection);
        sfd_selection_count(&selection, x, size * n);
    } while (sfd_selection_narrow(&selection));
    threshold = selection.prefix;
    ties = selection.remaining;
    end = size * n; /* which zeros are kept makes no difference: then any order will do */
    if (threshold != 0u && ties < histogram[threshold & 0xffu])
        end = tie_end(x, size, n, threshold, ties);

    for (i = 0u; i < size * n; ++i) {
        uint32_t magnitude = sfd_magnitude(x[i]);
        int take = magnitude > threshold;
        if (i % 32u == 0u)
            bits[i / 32u] = 0u;
        if (magnitude == threshold && ties > 0u && i % n * size + i / n < end) {
            --ties;
            take = 1;
        }
        if (take) {
            bits[i / 32u] |= 1u << (i % 32u);
            value[taken++] = x[i];
        }
    }
}

/* Unpack elements [first, first + elements) into x, zeros between. `taken` values come before
 * `first`; returns the number that comes before the end. */
uint32_t sfd_unpack(const void *packed, uint32_t keep, uint32_t first, uint32_t elements,
                    uint32_t taken, float *x)
{
    const float *value = packed;
    const uint32_t *bits = (const uint32_t *)packed + keep;
    uint32_t i;

    for (i = 0u; i < elements; ++i) {
        uint32_t position = first + i;
        x[i] = (bits[position / 32u] >> (position % 32u)) & 1u ? value[taken++] : 0.0f;
    }
    return taken;
}
