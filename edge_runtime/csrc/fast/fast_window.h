/* Rows of the images that tiles read, copied. Channels that lie a power of two apart share a few sets
 * of the first-level cache; those of a copy lie an odd number of lines apart. And they come from
 * memory once, one after the other. */
#ifndef SFD_FAST_WINDOW_H
#define SFD_FAST_WINDOW_H

#include "fast_gather.h"

/* Sets of a usual first-level cache, a line each: a pixel is one. */
#define CACHE_SETS 64u

struct fast_window {
    const float *images; /* of one block */
    uint32_t channels, height;
    size_t row;     /* floats of a row */
    float *copy;    /* NULL: the images are read where they lie */
    size_t channel; /* from one channel to the next of what is read */
    uint32_t first_row, last_row;
};

/* What is read: it begins with the first row of the window. */
static const float *window_data(const struct fast_window *window)
{
    return window->copy ? window->copy : window->images;
}

/* The channels that one thread copies. */
static void window_share(void *context, uint32_t index, uint32_t count)
{
    const struct fast_window *window = context;
    const size_t floats = (window->last_row - window->first_row) * window->row;
    uint32_t channel = sfd_share(window->channels, index, count);
    const uint32_t last = sfd_share(window->channels, index + 1u, count);

    for (; channel < last; ++channel)
        memcpy(window->copy + channel * window->channel,
               window->images +
                   (channel * (size_t)window->height + window->first_row) * window->row,
               floats * sizeof *window->copy);
}

/* Move the window to where pixels of rows [top, bottom) read: from row * step on. */
static void window_move(struct fast_window *window, struct sfd_team *team,
                        const struct fast_program *program, uint32_t top, uint32_t bottom,
                        uint32_t step)
{
    int64_t low = window->height, high = 0;
    uint32_t t;

    if (!window->copy)
        return;
    for (t = 0u; t < program->taps; ++t) {
        const int64_t first = (int64_t)top * step + program->tap[t].shift_y;
        const int64_t last = (int64_t)(bottom - 1u) * step + program->tap[t].shift_y;
        low = first < low ? first : low;
        high = last >= high ? last + 1 : high;
    }
    high = high < window->height ? high : window->height;
    window->first_row = (uint32_t)(low > 0 ? low : 0);
    window->last_row = high > window->first_row ? (uint32_t)high : window->first_row;
    sfd_team_run(team, window_share, window);
}

#endif
