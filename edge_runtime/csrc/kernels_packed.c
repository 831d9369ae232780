/* The weight gradient of a packed input, portable: sparse times sparse.
 *
 * A stretch of kept inputs is expanded to coordinates, as many as scratch has room for. For each
 * column of the weight that has a nonzero, a list is made of what it multiplies: the inputs of its
 * channel whose output pixel, at the column's place of the kernel, lies inside the image. Each
 * nonzero runs over the list of its column; where columns have many nonzeros, those of four rows do
 * so together, and load the list once. A kernel of very many places has no lists: there each nonzero
 * goes over the kept inputs of its channel. Nor has a linear layer of which few inputs were kept: there
 * each nonzero looks its own up in the mask. */
#include "kernels_packed.h"

/* Inputs that a nonzero of a linear layer meets, on average, from which on lists pay. */
#define FEW 4u

static void list_make(struct product *product, uint32_t index)
{
    const uint32_t height = product->layer->out_height, width = product->layer->out_width;
    const uint32_t channel = index / product->area, end = product->start[channel + 1u];
    const struct place place = product->kernel[index - channel * product->area];
    const struct place *entry = product->entry + product->start[channel];
    const struct place *last = product->entry + end;
    const float *value = product->value + product->start[channel];
    struct factor *begin = product->factor + product->factors, *factor = begin;

    for (; entry < last; ++entry, ++value)
        if (entry->row - place.row < height && entry->column - place.column < width) {
            factor->offset = entry->offset - place.offset;
            factor->value = *value;
            ++factor;
        }
    product->column[index].list = product->factors;
    product->column[index].count = (uint32_t)(factor - begin);
    product->factors += product->column[index].count;
}

static const struct factor *list_find(struct product *product, uint32_t index, uint32_t *count)
{
    if (product->column[index].list == NOT_MADE)
        list_make(product, index);
    *count = product->column[index].count;
    return product->factor + product->column[index].list;
}

/* The sums of one, two or four rows over a list: four partial sums in all, fixed, so that the order
 * of additions is the same everywhere. */
static float dot_one(const struct factor *factor, uint32_t count, const float *dy)
{
    float a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f;

    for (; count >= 4u; count -= 4u, factor += 4) {
        a += factor[0].value * dy[factor[0].offset];
        b += factor[1].value * dy[factor[1].offset];
        c += factor[2].value * dy[factor[2].offset];
        d += factor[3].value * dy[factor[3].offset];
    }
    for (; count > 0u; --count, ++factor)
        a += factor->value * dy[factor->offset];
    return (a + c) + (b + d);
}

static void dot_two(const struct factor *factor, uint32_t count, const float *const *dy, float *sum)
{
    const float *first = dy[0], *second = dy[1];
    float a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f;

    for (; count >= 2u; count -= 2u, factor += 2) {
        a += factor[0].value * first[factor[0].offset];
        b += factor[0].value * second[factor[0].offset];
        c += factor[1].value * first[factor[1].offset];
        d += factor[1].value * second[factor[1].offset];
    }
    if (count > 0u) {
        a += factor->value * first[factor->offset];
        b += factor->value * second[factor->offset];
    }
    sum[0] = a + c;
    sum[1] = b + d;
}

static void dot_four(const struct factor *factor, uint32_t count, const float *const *dy,
                     float *sum)
{
    const float *first = dy[0], *second = dy[1], *third = dy[2], *fourth = dy[3];
    float a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f;

    for (; count > 0u; --count, ++factor) {
        a += factor->value * first[factor->offset];
        b += factor->value * second[factor->offset];
        c += factor->value * third[factor->offset];
        d += factor->value * fourth[factor->offset];
    }
    sum[0] = a;
    sum[1] = b;
    sum[2] = c;
    sum[3] = d;
}

/* Multiply one nonzero with the list of its column. */
static uint32_t nonzero_multiply(struct product *product, uint32_t index, const float *dy,
                                 float *gradient)
{
    uint32_t count;
    const struct factor *factor = list_find(product, index, &count);

    if (count > 0u)
        *gradient += dot_one(factor, count, dy);
    return count;
}

/* Whether a place of the kernel meets the image at all. */
static int meets_image(const struct sfd_layer *layer, uint32_t place)
{
    const struct sfd_convolution *shape = &layer->shape;
    uint32_t y_low, y_high, x_low, x_high;

    sfd_valid_range(layer->in_height, layer->out_height, shape->stride_h, shape->padding_h,
                    place / shape->kernel_w * shape->dilation_h, &y_low, &y_high);
    sfd_valid_range(layer->in_width, layer->out_width, shape->stride_w, shape->padding_w,
                    place % shape->kernel_w * shape->dilation_w, &x_low, &x_high);
    return y_low < y_high && x_low < x_high;
}

/* The same without a list, with what was kept of its channel. */
static uint32_t nonzero_multiply_unlisted(const struct product *product, uint32_t index,
                                          const float *dy, float *gradient)
{
    const uint32_t height = product->layer->out_height, width = product->layer->out_width;
    const struct place place = sfd_kernel_place(product, index % product->area);
    const uint32_t *start = &product->start[index / product->area];
    uint32_t i, count = 0u;
    float sum = 0.0f;

    if (!meets_image(product->layer, index % product->area))
        return 0u;
    for (i = start[0]; i < start[1]; ++i) {
        const struct place *entry = &product->entry[i];
        if (entry->row - place.row < height && entry->column - place.column < width) {
            sum += product->value[i] * dy[entry->offset - place.offset];
            ++count;
        }
    }
    *gradient += sum;
    return count;
}

/* Multiply the nonzeros collected in one column with its list. */
static uint64_t column_multiply(struct product *product, uint32_t index, const float *dy,
                                float *gradient)
{
    uint32_t next = product->column[index].nonzero, count;
    const struct factor *factor = list_find(product, index, &count);
    uint64_t done = 0u;

    while (count > 0u && next != NO_NONZERO) {
        const float *row[4];
        float sum[4];
        uint32_t place[4], found = 0u, i;
        for (; found < 4u && next != NO_NONZERO; next = product->nonzero[next].next) {
            row[found] = dy + (size_t)product->nonzero[next].row * product->out_run;
            place[found++] = product->nonzero[next].k;
        }
        if (found == 4u)
            dot_four(factor, count, row, sum);
        else if (found >= 2u)
            dot_two(factor, count, row, sum);
        if (found % 2u == 1u)
            sum[found - 1u] = dot_one(factor, count, row[found - 1u]);
        for (i = 0u; i < found; ++i)
            gradient[place[i]] += sum[i];
        done += (uint64_t)count * found;
    }
    return done;
}

/* Multiply what is collected, and begin to collect anew. */
static uint64_t collected_multiply(struct product *product, const float *dy, float *gradient)
{
    uint32_t i, columns = product->channels * product->area;
    uint64_t done = 0u;

    for (i = 0u; product->nonzeros > 0u && i < columns; ++i)
        if (product->column[i].nonzero != NO_NONZERO) {
            done += column_multiply(product, i, dy, gradient);
            product->column[i].nonzero = NO_NONZERO;
        }
    product->nonzeros = 0u;
    return done;
}

static void collect(struct product *product, uint32_t row, uint32_t k, uint32_t index)
{
    struct nonzero *nonzero = &product->nonzero[product->nonzeros];

    nonzero->row = row;
    nonzero->k = k;
    nonzero->next = product->column[index].nonzero;
    product->column[index].nonzero = product->nonzeros++;
}

/* Multiply or collect the nonzeros of one row in the channels of the stretch. */
static uint64_t row_multiply(struct product *product, uint32_t row, const float *dy,
                             float *gradient)
{
    const struct sfd_support *support = &product->layer->support;
    const float *row_dy = dy + (size_t)row * product->out_run;
    uint32_t group = row / product->group_rows * product->group_channels;
    uint32_t first = product->first_channel, last = first + product->channels;
    uint32_t low = (first > group ? first - group : 0u) * product->area;
    uint32_t high = (uint32_t)sfd_minimum(last - group, product->group_channels) * product->area;
    uint32_t k, end = support->row_pointer[row + 1u], before = (first - group) * product->area;
    uint64_t done = 0u;

    for (k = sfd_column_search(support, support->row_pointer[row], end, low); k < end; ++k) {
        uint32_t column = sfd_column(support, k);
        if (column >= high)
            break;
        column -= before;
        if (product->nonzero_room > 0u) {
            if (product->nonzeros == product->nonzero_room)
                done += collected_multiply(product, dy, gradient);
            collect(product, row, k, column);
        } else if (product->listed == 0u) {
            done += nonzero_multiply_unlisted(product, column, row_dy, &gradient[k]);
        } else {
            done += nonzero_multiply(product, column, row_dy, &gradient[k]);
        }
    }
    return done;
}

/* How many inputs are kept before each word of the mask. */
static void ranks_count(const uint32_t *mask, uint32_t words, uint32_t *rank)
{
    uint32_t i, before = 0u;

    for (i = 0u; i < words; ++i) {
        rank[i] = before;
        before += sfd_count_bits(mask[i]);
    }
}

/* The inputs kept before an element. */
static uint32_t kept_before(const uint32_t *mask, const uint32_t *rank, uint32_t at)
{
    return rank[at / 32u] + sfd_count_bits(mask[at / 32u] & ((1u << at % 32u) - 1u));
}

/* To the right, by the lowest bits of `count`: processors have an instruction for it. */
static inline uint32_t rotated(uint32_t bits, uint32_t count)
{
    return bits >> count % 32u | bits << (0u - count) % 32u;
}

/* Add the product of a nonzero with what was kept of its column: its images, from element `at` on. */
static uint32_t column_look_up(const struct sfd_saved_input *x, const uint32_t *rank, uint32_t at,
                               uint32_t images, const float *dy, float *gradient)
{
    const uint32_t *word = x->mask + at / 32u, shift = at % 32u;
    uint32_t bits = *word >> shift, count = 0u;
    const float *value;
    float sum = 0.0f;

    if (shift + images > 32u)
        bits |= word[1] << (32u - shift);
    bits &= (1u << images) - 1u;
    if (bits == 0u)
        return 0u;
    value = x->values + kept_before(x->mask, rank, at);
    for (; bits != 0u; bits &= bits - 1u)
        sum += value[count++] * dy[sfd_lowest_bit(bits)];
    *gradient += sum;
    return count;
}

/* The same for a row, with one nonzero at least, and one image. */
static SFD_HOT uint32_t row_look_up(const struct sfd_saved_input *x, const uint32_t *rank,
                                    const uint16_t *column, uint32_t count, uint32_t at, float dy,
                                    float *gradient)
{
    const uint32_t *const mask = x->mask;
    uint32_t done = 0u;

    do {
        const uint32_t element = at + *column++;
        if (rotated(mask[element / 32u], element) & 1u) {
            *gradient += x->values[kept_before(mask, rank, element)] * dy;
            ++done;
        }
        ++gradient;
    } while (--count > 0u);
    return done;
}

/* A linear layer of which few inputs were kept: each nonzero looks up its own. */
static uint64_t linear_d_weight(const struct sfd_layer *layer, const struct sfd_saved_input *x,
                                const float *dy, float *gradient, uint32_t n, uint32_t *rank)
{
    const struct sfd_support *support = &layer->support;
    const uint32_t *row_pointer = support->row_pointer;
    uint64_t done = 0u;
    uint32_t first, row, k, images;

    ranks_count(x->mask, (n * layer->in_channels + 31u) / 32u, rank);
    for (first = 0u; first < n; first += images) {
        const uint32_t at = first * layer->in_channels;
        images = sfd_block_images(n, first);
        for (row = 0u; row < support->rows; ++row, dy += images) {
            const uint32_t begin = row_pointer[row], end = row_pointer[row + 1u];
            if (begin < end && images == 1u && support->index_width == 2u)
                done += row_look_up(x, rank, (const uint16_t *)support->column + begin, end - begin,
                                    at, *dy, gradient + begin);
            else
                for (k = begin; k < end; ++k)
                    done += column_look_up(x, rank, at + sfd_column(support, k) * images, images,
                                           dy, &gradient[k]);
        }
    }
    return done;
}

/* Whether looking up the few inputs that a nonzero meets takes less than making lists of them. */
static int is_looked_up(const struct sfd_layer *layer, const struct sfd_saved_input *x, uint32_t n)
{
    return sfd_is_linear(layer) &&
           (uint64_t)x->kept * sfd_block_images(n, 0u) < (uint64_t)FEW * layer->in_channels * n;
}

uint64_t sfd_packed_d_weight(const struct sfd_layer *layer, const struct sfd_saved_input *x,
                             const float *dy, float *gradient, uint32_t n, void *scratch)
{
    struct product product;
    uint64_t done = 0u;
    uint32_t first, row;

    if (is_looked_up(layer, x, n))
        return linear_d_weight(layer, x, dy, gradient, n, scratch);
    product = sfd_product_begin(layer, x, n, scratch);
    for (first = 0u; first < n; first += SFD_BLOCK) {
        uint32_t at, end;
        sfd_product_block(&product, n, first);
        end = product.block + layer->in_channels * product.in_run;
        for (at = product.block; at < end;) {
            uint32_t last_group;
            at = sfd_product_stretch(&product, at);
            last_group = (product.first_channel + product.channels - 1u) / product.group_channels;
            for (row = product.first_channel / product.group_channels * product.group_rows;
                 row < (last_group + 1u) * product.group_rows; ++row)
                done += row_multiply(&product, row, dy, gradient);
            done += collected_multiply(&product, dy, gradient);
            product.value += product.start[product.channels];
        }
        dy += (size_t)layer->support.rows * product.out_run;
    }
    return done;
}
