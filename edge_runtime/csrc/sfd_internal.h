/* What the files of the core share: the tables of a session, the kernels, the mathematics.
 *
 * A session is one arena. It begins with the tables below; planned buffers follow. A session and
 * the workspace of sfd_plan hold the same tables, built by the same code, so that what is planned
 * is what is opened. */
#ifndef SFD_INTERNAL_H
#define SFD_INTERNAL_H

#include <math.h>
#include <string.h>

#include "sfd.h"
#include "sfd_parse.h"

#define SFD_HISTOGRAM_BINS 256u

/* A batch is cut into blocks of this many images; the last one may have fewer. Blocks follow each
 * other in memory. Within one the images are interleaved: the values of one pixel lie side by side,
 * pixels follow in rows, rows in channels. So a channel of a block is one run of floats, and a
 * kernel meets the same widths whatever the batch. */
#define SFD_BLOCK 16u
#define SFD_INFINITY HUGE_VALF

/* One planned region of the arena: the compact form of struct sfd_buffer. */
struct sfd_region {
    uint32_t offset;
    uint32_t bytes;
    uint16_t first_step;
    uint16_t last_step;
    uint16_t owner;
    uint8_t kind;
    uint8_t placed;       /* the rest is for the time of the placement */
    uint8_t urgency;      /* higher: earlier */
    uint16_t next;        /* next placed region by offset */
    uint32_t best_offset; /* of the best attempt so far */
};

/* What happens between the forward and the backward to a tensor that the backward wants. */
enum sfd_retention {
    SFD_KEEP,         /* it stays */
    SFD_RESTORE_ONCE, /* computed again when it is first wanted, then it stays until the last time */
    SFD_RESTORE_EACH, /* computed again whenever it is wanted */
    SFD_RETENTION_COUNT
};

/* A tensor at run time. Regions are indices into the region table, SFD_NONE where there is none. */
struct sfd_value {
    uint32_t channels, height, width, size;
    uint16_t gradient;  /* SFD_NONE: no gradient is needed */
    uint8_t retention;  /* enum sfd_retention */
    uint8_t is_there;   /* while the schedule is made: the backward has it at this point */
    uint8_t is_wanted;  /* while the schedule is made: it has to be restored now */
    uint16_t last_read; /* while the schedule is made: the last step that reads it */
    uint16_t storage;   /* while regions are listed: where it lies now; SFD_NONE: at the caller's */
    uint16_t settled;   /* while choices are searched: not to be changed before this round */
    uint8_t chosen;     /* while choices are searched: the best retention so far */
};

/* How an operation's backward delivers the gradient of one of its inputs. */
enum sfd_delivery {
    SFD_DELIVER_NOTHING,   /* the input needs no gradient */
    SFD_DELIVER_IN_PLACE,  /* the input's gradient lies where the output's lies */
    SFD_DELIVER_WRITE,     /* first contribution: overwrite */
    SFD_DELIVER_ACCUMULATE /* later contribution: add */
};

/* While choices are searched: what was last found to be the best change at an operation. */
struct sfd_promise {
    float value;
    uint8_t rank, is_packing, choice;
};

/* An operation at run time. */
struct sfd_node {
    struct sfd_operation operation;
    uint16_t saved;   /* SAVED_INPUT region; SFD_NONE: the input itself is kept */
    uint16_t mask;    /* MASK region: bits of a rectifier, winners of a max pool */
    uint16_t moments; /* STATISTICS region of a norm */
    uint8_t delivery0, delivery1;
    uint8_t has_backward;
    uint8_t fused;    /* a batch norm: operations after it that run with it, in both directions */
    uint8_t absorbed; /* operations back to the batch norm that it runs with; 0: it runs itself */
    uint8_t shares_gradient; /* an addition: both inputs can have one gradient in one place */
    uint8_t reads_input;     /* its backward reads its input, not a packed form of it */
    uint8_t packs_late;      /* its input is packed just before its backward */
    uint16_t last_run;       /* the last step that computes its output or packs its input */
    uint16_t backward;       /* the step of its backward */
    uint16_t settled;        /* while choices are searched: not to be changed before this round */
    uint8_t chosen;          /* while choices are searched: the best packs_late so far */
    struct sfd_promise promise;
    uint64_t packed_bytes; /* of its input; 0: it is not packed */
    uint64_t forward_scratch_bytes, backward_scratch_bytes;
    uint64_t multiply_adds; /* a sparse layer's forward, of one image */
};

/* One step of the schedule. */
struct sfd_step {
    uint16_t node;
    uint8_t action; /* enum sfd_action */
    uint8_t keeps;  /* it makes what its operation keeps for its backward: a packed input, a mask */
    uint16_t input0, input1, output; /* regions of the tensors */
    uint16_t scratch;                /* SCRATCH region of the kernels; SFD_NONE: none */
    uint16_t until;                  /* the last step that reads its output */
    uint32_t live;                   /* memory in use, in units of SFD_ALIGNMENT */
};

/* A parameter at run time. */
struct sfd_slot {
    uint32_t kind, rows, columns, count, index_width;
    uint16_t value; /* WEIGHT or DENSE region */
    uint16_t
        working; /* sparse: WORKING_WEIGHT region: w until the input gradient is done, then dL/dv */
    uint16_t index; /* sparse: INDEX region: row pointers, then columns */
};

struct sfd_kernels;
struct sfd_team;

struct sfd_session {
    struct sfd_node *nodes;
    struct sfd_value *values;
    struct sfd_slot *slots;
    struct sfd_region *regions;
    struct sfd_step *steps;
    uint32_t operation_count, tensor_count, parameter_count;
    uint32_t region_count, persistent_count;           /* persistent regions come first */
    uint32_t step_count, step_capacity, forward_steps; /* the step after those is the loss */
    uint32_t loss, output, batch, round, positions;
    float beta;
    uint8_t support_id[8];
    const struct sfd_kernels *kernels;
    struct sfd_team *team; /* NULL: one thread */
    uint32_t threads;
    struct sfd_multiply_adds planned; /* of one training step with a full batch */
    uint64_t search_left;             /* steps that the search for a plan may still look at */
    uint64_t scanned; /* while the schedule is made: operations looked at to restore others */
    struct sfd_counters counters;
    uint8_t *arena;
    const float *input; /* the caller's image, during a call with a batch of one */
    uint32_t histogram[SFD_HISTOGRAM_BINS];
};

/* The support of one sparse layer, in CSR. */
struct sfd_support {
    const uint32_t *row_pointer;
    const void *column;
    uint32_t rows, columns, count, index_width;
};

/* A tensor over one block of images. Strides are in floats. */
struct sfd_view {
    float *data;
    uint32_t channels, height, width;
    uint32_t channel_stride, row_stride;
};

/* Images of the block that begins at image `first` of a batch of n. */
static inline uint32_t sfd_block_images(uint32_t n, uint32_t first)
{
    return n - first < SFD_BLOCK ? n - first : SFD_BLOCK;
}

/* sfd_threads.c: the threads of a session. A task runs once on each of the `count` threads of the
 * team, on the calling one with index 0; it is done when sfd_team_run returns. A team that is NULL is
 * the calling thread alone. Each number is computed by one thread, in the order in which one thread
 * would: the bits do not depend on the threads. */
typedef void (*sfd_task)(void *context, uint32_t index, uint32_t count);
void sfd_team_run(struct sfd_team *team, sfd_task task, void *context);
uint32_t sfd_team_count(const struct sfd_team *team);

/* The most threads that this build can have. */
uint32_t sfd_threads_limit(void);

/* Bytes of the team, a multiple of SFD_ALIGNMENT; none for one thread. */
uint64_t sfd_team_bytes(uint32_t threads);

/* Start the threads of a team in `memory`; *started is NULL for one thread. */
int sfd_team_start(void *memory, uint32_t threads, struct sfd_team **started);

/* End the threads of a team, which may be NULL. */
void sfd_team_end(struct sfd_team *team);

/* Where the share of thread `index` of `count` begins; that of the next one is its end. */
static inline uint32_t sfd_share(uint32_t total, uint32_t index, uint32_t count)
{
    return (uint32_t)((uint64_t)total * index / count);
}

/* The same in runs of 64, so that the ends of vectors do not depend on the threads. */
static inline uint32_t sfd_run_share(uint32_t total, uint32_t index, uint32_t count)
{
    return index == count ? total : sfd_share(total / 64u, index, count) * 64u;
}

/* Passes over fewer floats than these take no longer than to call other threads. */
#define SFD_SHARED_LEAST 8192u

/* The geometry of a convolution. */
struct sfd_convolution {
    uint32_t groups, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h,
        dilation_w;
};

/* A convolution or linear layer as the kernels see it. A linear layer is a 1x1 convolution on images
 * of one pixel whose channels are its inputs. */
struct sfd_layer {
    struct sfd_convolution shape;
    struct sfd_support support; /* its rows are the output channels */
    uint32_t in_channels, in_height, in_width, out_height, out_width;
    uint64_t multiply_adds; /* of one image: a nonzero with an input inside it */
    uint32_t threads;       /* at most that many work on it, each with scratch of its own */
    struct sfd_team *team;
};

/* What the forward kept of a layer's input: all of it, or the kept values and the bitmask of their
 * places, both in the order of memory. */
struct sfd_saved_input {
    const float *dense; /* NULL: packed */
    const float *values;
    const uint32_t *mask;
    uint32_t kept;
};

/* One set of kernels: those below work over the nonzeros alone. w and gradient run over the support in CSR order, n is
 * the images of the batch, in all its blocks. Scratch is aligned to SFD_ALIGNMENT. Each pass returns
 * the multiply-adds that it did. */
struct sfd_kernels {
    const char *name;
    const struct sfd_tensor_kernels *tensors;
    /* Bytes of scratch, a multiple of 4. They follow from the sizes alone (the support's arrays are
     * not there yet), do not fall as n grows, and are the same for all sets of vectorised kernels. */
    uint64_t (*forward_scratch_bytes)(const struct sfd_layer *layer, uint32_t n);
    uint64_t (*backward_scratch_bytes)(const struct sfd_layer *layer, uint32_t n);
    /* y = bias + W x; bias may be NULL. */
    uint64_t (*forward)(const struct sfd_layer *layer, const float *w, const float *bias,
                        const float *x, float *y, uint32_t n, void *scratch);
    /* dx = W^T dy, or dx += W^T dy to accumulate, unless dx is NULL; then gradient = dy x^T at the
     * nonzeros. gradient may be w. Adds the multiply-adds that it did to *done. */
    void (*backward)(const struct sfd_layer *layer, const float *w, const struct sfd_saved_input *x,
                     const float *dy, float *dx, int accumulate, float *gradient, uint32_t n,
                     void *scratch, struct sfd_multiply_adds *done);
};

/* The portable set: the oracle of all others, and what microboards run. The same bits on every
 * machine; its weight gradient multiplies only the kept entries of a packed input. */
extern const struct sfd_kernels sfd_kernels_portable;

/* kernels_packed.c: add the weight gradient of a packed input. */
uint64_t sfd_packed_scratch_bytes(const struct sfd_layer *layer, uint32_t n);
uint64_t sfd_packed_d_weight(const struct sfd_layer *layer, const struct sfd_saved_input *x,
                             const float *dy, float *gradient, uint32_t n, void *scratch);

/* sfd_dispatch.c: the kernels of an enum sfd_kernel_set, NULL where this build or this processor
 * does not have them. */
const struct sfd_kernels *sfd_kernels_find(int32_t set);

/* A constant width makes it one load. */
static inline uint32_t sfd_column_at(const void *column, uint32_t k, uint32_t index_width)
{
    return index_width == 2u ? ((const uint16_t *)column)[k] : ((const uint32_t *)column)[k];
}

static inline uint32_t sfd_column(const struct sfd_support *support, uint32_t k)
{
    return sfd_column_at(support->column, k, support->index_width);
}

/* The first nonzero of [low, high), a part of a row, whose column is not below `column`; or high. */
static inline uint32_t sfd_column_search(const struct sfd_support *support, uint32_t low,
                                         uint32_t high, uint32_t column)
{
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2u;
        if (sfd_column(support, middle) < column)
            low = middle + 1u;
        else
            high = middle;
    }
    return low;
}

static inline uint64_t sfd_minimum(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t sfd_maximum(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Places of a layer's kernel. */
static inline uint32_t sfd_kernel_area(const struct sfd_layer *layer)
{
    return layer->shape.kernel_h * layer->shape.kernel_w;
}

/* Elements of one image of a layer's input, and of its output. */
static inline size_t sfd_in_elements(const struct sfd_layer *layer)
{
    return (size_t)layer->in_channels * layer->in_height * layer->in_width;
}

static inline size_t sfd_out_elements(const struct sfd_layer *layer)
{
    return (size_t)layer->support.rows * layer->out_height * layer->out_width;
}

/* Outputs y in [low, high) read an input inside [0, in) at kernel offset `offset`: 0 <= y * stride
 * - padding + offset < in. */
void sfd_valid_range(uint32_t in, uint32_t out, uint32_t stride, uint32_t padding, uint32_t offset,
                     uint32_t *low, uint32_t *high);

/* sfd_tables.c: lay the tables into `memory` and fill them from the artifact and the state. */
uint64_t sfd_tables_bytes(const struct sfd_artifact_view *artifact);
struct sfd_session *sfd_tables_build(const struct sfd_artifact_view *artifact,
                                     const struct sfd_container_view *state, uint32_t batch,
                                     const struct sfd_kernels *kernels, void *memory);

/* What a node reads, keeps and uses, with a full batch. Tensors must not pass SFD_ARENA_LIMIT. */
void sfd_tables_measure(struct sfd_session *session);

/* The sizes of a convolution or linear layer; its support's arrays are left NULL. */
struct sfd_layer sfd_layer_sizes(const struct sfd_session *session, const struct sfd_node *node);

#define SFD_MAX_BATCH 65535u

/* sfd_plan.c: check artifact and state, build the tables at `memory` and plan. The one way into a
 * session. */
int sfd_prepare(const uint8_t *artifact, size_t artifact_bytes, const uint8_t *state,
                size_t state_bytes, uint32_t batch, const struct sfd_options *options, void *memory,
                size_t memory_bytes, struct sfd_session **session,
                struct sfd_container_view *state_view, struct sfd_plan *plan,
                struct sfd_problem *problem);

/* More than this no offset can say. */
#define SFD_ARENA_LIMIT UINT32_C(0xffffffc0)

/* sfd_fusion.c: which operations run with the batch norm before them. */
void sfd_fusion_plan(struct sfd_session *session);

/* The operation, with those fused to it, that computes a tensor other than the input. */
static inline uint32_t sfd_producer(const struct sfd_session *session, uint32_t tensor)
{
    return tensor - 1u - session->nodes[tensor - 1u].absorbed;
}

/* What an operation computes together with those that are fused with it. */
static inline uint32_t sfd_result(const struct sfd_session *session, uint32_t node)
{
    return node + session->nodes[node].fused + 1u;
}

/* The second input of an operation or of the addition fused with it; SFD_NONE: none. */
uint32_t sfd_second_input(const struct sfd_session *session, uint32_t node);

/* Whether a gradient of this tensor is wanted. */
static inline int sfd_wants_gradient(const struct sfd_session *session, uint32_t tensor)
{
    return tensor != 0u && session->nodes[tensor - 1u].has_backward;
}

/* sfd_schedule.c: the steps that follow from the choices in values (retention) and nodes
 * (packs_late). 0: there are more than fit. */
int sfd_schedule_build(struct sfd_session *session);

/* sfd_lifetimes.c: the regions, with their sizes and lifetimes. Persistent ones do not depend on
 * choices; they have their lifetimes with the transient ones. */
void sfd_lifetimes_persistent(struct sfd_session *session, uint64_t tables_bytes);
void sfd_lifetimes_transient(struct sfd_session *session);

/* Add up what is alive in each step, beside what is persistent. A region counts in whole units. */
void sfd_lifetimes_sum(struct sfd_session *session, uint32_t unit);

/* The most of it in one step, in bytes; regions count in units of SFD_ALIGNMENT. */
uint64_t sfd_lifetimes_peak(struct sfd_session *session);

/* sfd_search.c: choose what is kept and what is computed again: the least work, up to a limit, with
 * at most so many bytes alive in each step. Leaves schedule and lifetimes behind. 0: nothing was
 * found. */
int sfd_search(struct sfd_session *session, uint64_t bytes, uint64_t work_limit);

/* The schedule and the lifetimes of the choices as they are. 0: there are too many steps. */
int sfd_search_build(struct sfd_session *session);

/* The work of one forward, and of that the writing of results, in the measure of the search. */
uint64_t sfd_search_forward_work(const struct sfd_session *session);
uint64_t sfd_search_element_work(const struct sfd_session *session);

/* Elements of a tensor over a full batch. */
uint64_t sfd_batch_elements(const struct sfd_session *session, uint32_t tensor);

/* sfd_placement.c: persistent regions lie one after the other. Returns where the transient ones may
 * begin. */
uint64_t sfd_place_persistent(struct sfd_session *session);

/* Those share memory over the steps. *end: the end of the highest one. SFD_ERR_LIMIT over
 * SFD_ARENA_LIMIT. */
int sfd_place_transient(struct sfd_session *session, uint64_t base, uint64_t *end);

/* sfd_memory.c: choose, list and place all regions. SFD_ERR_LIMIT over SFD_ARENA_LIMIT. */
int sfd_memory_plan(struct sfd_session *session, uint64_t tables_bytes,
                    const struct sfd_options *options, struct sfd_plan *plan);

/* Entries of a layer's input that are kept for the weight gradient: ceil(size * support /
 * positions). */
uint32_t sfd_keep_count(const struct sfd_slot *weight, uint64_t input_elements);

/* sfd_run.c */
void sfd_forward(struct sfd_session *session, const float *x, uint32_t n, int training);

/* sfd_backward.c */
void sfd_backward(struct sfd_session *session, uint32_t n);

static inline void *sfd_region_data(const struct sfd_session *session, uint32_t region)
{
    return session->arena + session->regions[region].offset;
}

void sfd_slot_support(const struct sfd_session *session, const struct sfd_slot *slot,
                      struct sfd_support *support);

/* dL/dv at the support, or dL/dp; NULL for a running statistic. */
float *sfd_slot_gradient(const struct sfd_session *session, const struct sfd_slot *slot);

/* The data of a tensor during a call. SFD_NONE is the caller's batch: it is read through the same
 * pointer type as the arena; no kernel writes to its input. */
static inline float *sfd_tensor_data(const struct sfd_session *session, uint32_t region)
{
    return region == SFD_NONE ? (float *)(uintptr_t)session->input
                              : sfd_region_data(session, region);
}

/* sfd_topk.c. Packed form: `keep` values, then the bitmask of their positions, both in the order of
 * memory. A tie goes to the lower position in the order image, element. */
uint64_t sfd_packed_bytes(uint32_t keep, uint64_t elements);
void sfd_pack(const float *x, uint32_t size, uint32_t n, uint32_t keep, uint32_t *histogram,
              void *packed, struct sfd_team *team);

/* Place in the order image, element of what lies at `at` in memory. */
uint32_t sfd_image_order(uint32_t size, uint32_t n, uint32_t at);

/* One past the place, in that order, of the last of `ties` elements of this magnitude. */
uint32_t sfd_tie_end(const float *x, uint32_t size, uint32_t n, uint32_t threshold, uint32_t ties);

/* Bit j of a mask word; a table instead of a shift lets the compiler use vectors everywhere. */
extern const uint32_t sfd_mask_bit[32];

/* Place of the lowest set bit, by a De Bruijn sequence: C99 has no instruction for it. */
extern const uint8_t sfd_bit_place[32];
static inline uint32_t sfd_lowest_bit(uint32_t bits)
{
    return sfd_bit_place[((bits & (0u - bits)) * UINT32_C(0x077cb531)) >> 27];
}

/* Bits of |x|: floats order as their bit patterns once the sign is gone. */
static inline uint32_t sfd_magnitude(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof bits);
    return bits & 0x7fffffffu;
}

/* A threshold search over magnitudes: passes over a few bits at a time, the highest first. */
struct sfd_selection {
    uint32_t prefix;    /* the bits of the threshold found so far */
    uint32_t remaining; /* entries still to take among those that share the prefix */
    uint32_t shift;     /* of the pass that runs */
    uint32_t *histogram;
};
void sfd_selection_begin(struct sfd_selection *selection, uint32_t keep, uint32_t *histogram);
void sfd_selection_pass(struct sfd_selection *selection);
void sfd_selection_count(struct sfd_selection *selection, const float *x, uint32_t elements);
int sfd_selection_narrow(struct sfd_selection *selection);

/* sfd_math.c: the same bits on every machine with IEEE-754 single precision and no contraction. */
float sfd_exp(float x);
float sfd_log(float x);
float sfd_tanh(float x);
float sfd_erf(float x);

#define SFD_INVERSE_SQRT_2 0.70710678f
#define SFD_INVERSE_SQRT_2_PI 0.39894228f
#define SFD_SQRT_2_OVER_PI 0.79788456f
#define SFD_GELU_CUBIC 0.044715f /* of the approximation by tanh */

float sfd_power(float base, float exponent);
void sfd_powerprop_forward(const float *v, float *w, uint32_t count, float beta);
void sfd_powerprop_backward(const float *v, float *gradient, uint32_t count, float beta);
int sfd_all_finite(const float *x, uint64_t count);

/* A tensor whose channels are treated alike, wherever their pixels lie. */
struct sfd_channels {
    uint32_t channels, pixels;
};

/* Where the run of one channel begins in the block that begins at image `first`. */
static inline size_t sfd_channel_start(const struct sfd_channels *shape, uint32_t n, uint32_t first,
                                       uint32_t channel)
{
    return ((size_t)first * shape->channels + (size_t)channel * sfd_block_images(n, first)) *
           shape->pixels;
}

/* A batch norm. Its statistics are given or, where `mean` is NULL, are those of the batch, which
 * `moments` takes: the means of all channels, then their variances. */
struct sfd_batch_norm {
    struct sfd_channels shape;
    float epsilon;
    const float *weight, *bias; /* NULL: ones, zeros */
    const float *mean, *variance;
    float *moments;
    struct sfd_team *team; /* which the vectorised kernels use */
};

/* What happens to the output of a batch norm in the same pass: an addition, then a rectifier. */
struct sfd_epilogue {
    const float *addend; /* NULL: none; may be the output */
    float ceiling;       /* of the rectifier; 0: none */
    uint32_t *mask;      /* the rectifier's; NULL: not wanted */
};

/* The gradients of a batch norm and of its epilogue. */
struct sfd_norm_gradient {
    const uint32_t *mask;     /* of the rectifier; NULL: none */
    float *dy;                /* may be overwritten */
    float *addend;            /* takes the gradient of the addend, may be dy; NULL: none */
    float *dx;                /* may be dy if the addend's is not; NULL: not wanted */
    int accumulate;           /* add to dx, which may be the addend's: added to it after dy */
    float *d_weight, *d_bias; /* NULL: not wanted */
};

/* Group and layer norm: `sets` of `elements` consecutive elements of an image are normalised, each
 * `span` of them share an affine coefficient, and the next set's coefficients begin `affine_step`
 * on. moments: block by block, for each set the means of its images, then the inverse deviations. */
struct sfd_norm {
    uint32_t sets, elements, span, affine_step;
};

/* One set of kernels over whole tensors: `count` floats, or n images in all their blocks. */
struct sfd_tensor_kernels {
    void (*batch_norm_forward)(const struct sfd_batch_norm *norm, const float *x, uint32_t n,
                               const struct sfd_epilogue *after, float *y);
    void (*batch_norm_backward)(const struct sfd_batch_norm *norm, const float *x, uint32_t n,
                                const struct sfd_norm_gradient *gradient);
    void (*norm_forward)(const struct sfd_norm *norm, const float *x, uint32_t n, float epsilon,
                         const float *weight, const float *bias, float *moments, float *y);
    void (*norm_backward)(const struct sfd_norm *norm, const float *x, uint32_t n,
                          const float *moments, const float *weight, const float *dy, float *dx,
                          int accumulate, float *d_weight, float *d_bias);
    /* y = min(max(x, 0), ceiling), and a bit where the slope is 1. y may be x, mask NULL. */
    void (*rectifier_forward)(const float *x, uint32_t count, float ceiling, uint32_t *mask,
                              float *y);
    /* dx is dy itself, or is added to. */
    void (*rectifier_backward)(const uint32_t *mask, const float *dy, uint32_t count, float *dx,
                               int accumulate);
    /* GELU and SiLU. y may be x. dx may be dy, unless it is added to. */
    void (*smooth_forward)(const struct sfd_operation *operation, const float *x, uint32_t count,
                           float *y);
    void (*smooth_backward)(const struct sfd_operation *operation, const float *x, const float *dy,
                            uint32_t count, float *dx, int accumulate);
    void (*add_forward)(const float *a, const float *b, uint32_t count, float *y);
    void (*add_into)(const float *x, uint32_t count, float *y);
    void (*bias_backward)(const struct sfd_channels *shape, const float *dy, uint32_t n,
                          float *d_bias);
    void (*pack)(const float *x, uint32_t size, uint32_t n, uint32_t keep, uint32_t *histogram,
                 void *packed, struct sfd_team *team);
    void (*powerprop_forward)(const float *v, float *w, uint32_t count, float beta);
    void (*powerprop_backward)(const float *v, float *gradient, uint32_t count, float beta);
};

extern const struct sfd_tensor_kernels sfd_tensors_portable;

/* kernels_norm.c */
void sfd_batch_norm_forward(const struct sfd_batch_norm *norm, const float *x, uint32_t n,
                            const struct sfd_epilogue *after, float *y);
void sfd_batch_norm_backward(const struct sfd_batch_norm *norm, const float *x, uint32_t n,
                             const struct sfd_norm_gradient *gradient);
void sfd_norm_forward(const struct sfd_norm *norm, const float *x, uint32_t n, float epsilon,
                      const float *weight, const float *bias, float *moments, float *y);
void sfd_norm_backward(const struct sfd_norm *norm, const float *x, uint32_t n,
                       const float *moments, const float *weight, const float *dy, float *dx,
                       int accumulate, float *d_weight, float *d_bias);

/* kernels_elementwise.c */
void sfd_rectifier_forward(const float *x, uint32_t count, float ceiling, uint32_t *mask, float *y);
void sfd_rectifier_backward(const uint32_t *mask, const float *dy, uint32_t count, float *dx,
                            int accumulate);
void sfd_smooth_forward(const struct sfd_operation *operation, const float *x, uint32_t count,
                        float *y);
void sfd_smooth_backward(const struct sfd_operation *operation, const float *x, const float *dy,
                         uint32_t count, float *dx, int accumulate);
void sfd_add_forward(const float *a, const float *b, uint32_t count, float *y);
void sfd_add_into(const float *x, uint32_t count, float *y);
void sfd_bias_backward(const struct sfd_channels *shape, const float *dy, uint32_t n,
                       float *d_bias);

/* kernels_pool.c */
void sfd_max_pool_forward(const struct sfd_operation *operation, const struct sfd_view *x,
                          const struct sfd_view *y, uint32_t n, uint16_t *winner);
void sfd_max_pool_backward(const struct sfd_operation *operation, const struct sfd_view *dy,
                           const struct sfd_view *dx, uint32_t n, const uint16_t *winner);
void sfd_average_pool_forward(const struct sfd_operation *operation, const struct sfd_view *x,
                              const struct sfd_view *y, uint32_t n);
void sfd_average_pool_backward(const struct sfd_operation *operation, const struct sfd_view *dy,
                               const struct sfd_view *dx, uint32_t n);

/* kernels_loss.c. Both return the mean loss and, where gradient is not null, dL/d(output). */
float sfd_cross_entropy(const float *logits, const void *labels, enum sfd_target target, uint32_t n,
                        uint32_t classes, float *gradient, uint32_t *correct);
float sfd_mean_squared_error(const float *output, const float *target, uint32_t n, uint32_t size,
                             float *gradient);

#endif
