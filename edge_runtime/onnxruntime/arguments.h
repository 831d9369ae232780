/* The arguments of one call of an operator, which a file from anywhere may ask for.
 *
 * A fault is kept in `status`, after which functions do nothing and give NULL: an operator looks at it
 * once, before it computes. */
#ifndef ARGUMENTS_H
#define ARGUMENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ort_interface.h"

#define RANK_LIMIT 8u
#define INTEGERS_LIMIT 12u
#define NUMBERS_LIMIT 2u
#define EXAMPLE_LIMIT (1u << 26) /* elements, as in an artifact: docs/format.md */

struct operation;

/* One node of a graph. Its attributes: `integers` and `numbers`, in the order in which the operator
 * reads them, and `shape`, that of the first result; its first dimension is the batch and not read. */
struct kernel {
    const struct operation *operation;
    const struct ort_api *api;
    struct ort_memory *memory;
    int64_t integers[INTEGERS_LIMIT], shape[RANK_LIMIT];
    float numbers[NUMBERS_LIMIT];
    size_t rank;
};

struct call {
    const struct kernel *kernel;
    struct ort_context *context;
    struct ort_status *status;
};

/* data is NULL where an argument is absent. */
struct tensor {
    void *data;
    int64_t shape[RANK_LIMIT];
    size_t rank, count;
};

/* Notes a fault unless it holds; true while there is none. */
bool sfd_ort_require(struct call *call, bool holds, const char *fault);

struct tensor sfd_ort_input(struct call *call, size_t index);
struct tensor sfd_ort_optional_input(struct call *call, size_t index);

/* Examples along the first dimension. */
struct tensor sfd_ort_activation(struct call *call, size_t index);

/* Optional ones are NULL where the graph does not use them; a vector also where it has no elements. */
void *sfd_ort_output(struct call *call, size_t index, const int64_t *shape, size_t rank);
void *sfd_ort_output_like(struct call *call, size_t index, const struct tensor *like);
void *sfd_ort_vector(struct call *call, size_t index, uint32_t size);
void *sfd_ort_optional_output(struct call *call, size_t index, const int64_t *shape, size_t rank);
void *sfd_ort_optional_vector(struct call *call, size_t index, uint32_t size);

/* The first output, of the attribute's shape, with as many examples as `like`. */
struct tensor sfd_ort_shaped_output(struct call *call, const struct tensor *like);

/* Memory for the length of a call. */
struct scratch {
    struct ort_allocator *allocator;
    void *block, *aligned;
};

struct scratch sfd_ort_take_scratch(struct call *call, uint64_t bytes);
void sfd_ort_give_back(struct call *call, const struct scratch *scratch);

uint32_t sfd_ort_integer(const struct call *call, size_t index);
float sfd_ort_number(const struct call *call, size_t index);

uint32_t sfd_ort_images(const struct tensor *x);
uint32_t sfd_ort_example_size(const struct tensor *x);

/* Dimension 1 are the channels; a signal has height 1, a vector width 1 as well. */
uint32_t sfd_ort_channels(const struct tensor *x);
uint32_t sfd_ort_height(const struct tensor *x);
uint32_t sfd_ort_width(const struct tensor *x);

#endif
