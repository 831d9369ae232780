/* A session: one arena. It begins with the tables below; planned buffers follow. The workspace of
 * sfd_plan holds the same tables, built by the same code, so that what is planned is what is opened,
 * and behind them those that only planning needs. */
#ifndef SFD_SESSION_H
#define SFD_SESSION_H

#include "sfd_kernels.h"

#if !defined(SFD_PORTABLE_ALONE)
#define SFD_PORTABLE_ALONE 0
#endif

/* More than this no offset can say. */
#define SFD_ARENA_LIMIT UINT32_C(0xffffffc0)

/* One planned region of the arena. */
struct sfd_region {
    uint32_t offset;
    uint32_t bytes;
};

/* Planning: what a region is for, when it is alive, and the search for its place. */
struct sfd_lifetime {
    uint16_t first_step;
    uint16_t last_step;
    uint16_t owner;
    uint8_t kind;
    uint16_t next;        /* while regions are placed: the next placed one by offset */
    uint16_t later;       /* the next one in the order in which they are placed */
    uint32_t best_offset; /* of the best attempt so far */
};

/* What happens between the forward and the backward to a tensor that the backward wants. */
enum sfd_retention {
    SFD_KEEP,               /* it stays */
    SFD_RESTORE_ONCE,       /* computed again when it is first wanted, then it stays */
    SFD_RESTORE_EACH,       /* computed again whenever it is wanted */
    SFD_RESTORE_BY_CHANNEL, /* the same; the batch norm after it takes it one channel at a time */
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
    uint8_t chosen[3];  /* while choices are searched: the retention of the best plans so far */
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
    uint16_t saved;   /* SAVED_INPUT region; SFD_NONE: the input itself is kept */
    uint16_t mask;    /* MASK region: bits of a rectifier, winners of a max pool */
    uint16_t moments; /* STATISTICS region of a norm */
    uint8_t delivery0, delivery1;
    uint8_t has_backward;
    uint8_t fused;    /* a batch norm: operations after it that run with it, in both directions */
    uint8_t absorbed; /* operations back to the batch norm that it runs with; 0: it runs itself */
    struct sfd_operation operation;
    uint64_t multiply_adds; /* a sparse layer's forward, of one image */
};

/* Planning: what an operation reads, keeps and uses, and when it runs. */
struct sfd_node_plan {
    uint8_t shares_gradient; /* an addition: both inputs can have one gradient in one place */
    uint8_t reads_input;     /* its backward reads its input, not a packed form of it */
    uint8_t packs_late;      /* its input is packed just before its backward */
    uint8_t chosen[3];       /* while choices are searched: packs_late of the best plans so far */
    uint16_t settled;        /* while choices are searched: not to be changed before this round */
    uint16_t last_run;       /* the last step that computes its output or packs its input */
    uint16_t backward;       /* the step of its backward */
    struct sfd_promise promise;
    uint64_t packed_bytes; /* of its input; 0: it is not packed */
    uint64_t forward_scratch_bytes, backward_scratch_bytes;
};

/* One step of the schedule. */
struct sfd_step {
    uint16_t node;
    uint8_t action;         /* enum sfd_action */
    uint8_t keeps : 1;      /* it makes what its operation keeps for its backward: packed, a mask */
    uint8_t by_channel : 1; /* the batch norm's backward that follows computes the output */
    uint8_t loads : 1;      /* it interleaves the caller's images first */
    uint16_t input0, input1, output; /* regions of the tensors */
    uint16_t scratch;                /* SCRATCH region of the kernels; SFD_NONE: none */
    uint16_t working;                /* a sparse layer: WORKING_WEIGHT region that holds w */
    uint16_t until;                  /* the last step that reads its output */
    uint32_t live;                   /* memory in use, in units of SFD_ALIGNMENT */
};

/* A parameter at run time. */
struct sfd_slot {
    uint32_t rows, columns, count;
    uint8_t kind, index_width;
    uint16_t value;          /* WEIGHT or DENSE region */
    uint16_t index;          /* sparse: INDEX region: row pointers, then columns */
    uint16_t gradient;       /* region of dL/dv or dL/dp; SFD_NONE: a running statistic */
    uint32_t gradient_start; /* where in that region it begins, in floats */
};

/* Where the working copies of the weights are. */
enum sfd_working_copies {
    SFD_WORKING_KEPT,     /* w stays from the forward until the input gradient is computed */
    SFD_WORKING_RESTORED, /* w is computed wherever it is wanted, gradients stay until the update */
    SFD_WORKING_LAYERWISE /* the same, and a layer is updated as soon as its gradients are there */
};

struct sfd_session {
    struct sfd_node *nodes;
    struct sfd_value *values;
    struct sfd_slot *slots;
    struct sfd_region *regions;
    struct sfd_step *steps;
    uint8_t *arena;
    const struct sfd_kernels *kernels; /* NULL in a build with the portable ones alone */
    uint8_t working;                   /* enum sfd_working_copies */
    uint8_t has_failed;          /* layerwise: a step failed when layers were updated already */
    uint8_t tries_channels;      /* while choices are searched: SFD_RESTORE_BY_CHANNEL is one */
    uint8_t reloads;             /* the backward interleaves the images again where it reads them */
    struct sfd_node_plan *plans; /* NULL in an open session, as is the next one */
    struct sfd_lifetime *lifetimes; /* of the regions */
    uint32_t operation_count, tensor_count, parameter_count;
    uint32_t region_count, persistent_count;           /* persistent regions come first */
    uint32_t step_count, step_capacity, forward_steps; /* the step after those is the loss */
    uint32_t loss, output, batch, round, positions;
    float beta;
    uint8_t support_id[8];
    struct sfd_team *team; /* NULL: one thread */
    uint32_t threads;
    uint64_t arena_bytes;             /* of the plan; 0: it failed */
    struct sfd_multiply_adds planned; /* of one training step with a full batch */
    uint32_t search_left;             /* steps that the search for a plan may still look at */
    uint32_t scanned; /* while the schedule is made: operations looked at to restore others */
    struct sfd_counters counters;
    const void *input; /* the caller's batch, during a call */
    struct sfd_input input_form;
    const struct sfd_watcher *watcher; /* NULL: nobody watches */
};

/* The kernels of a session. Firmware has the portable ones alone, and calls them directly. */
static inline const struct sfd_kernels *sfd_kernels_of(const struct sfd_session *session)
{
    return SFD_PORTABLE_ALONE ? &sfd_kernels_portable : session->kernels;
}

/* sfd_tables.c: lay the tables into `memory` and fill them from the artifact and the state. */
uint32_t sfd_tables_bytes(const struct sfd_artifact_view *artifact);
struct sfd_session *sfd_tables_build(const struct sfd_artifact_view *artifact,
                                     const struct sfd_container_view *state, uint32_t batch,
                                     const struct sfd_kernels *kernels, void *memory);

/* Whether they were built for a state of this support. */
int sfd_tables_match(const struct sfd_session *session, const struct sfd_container_view *state);

/* Bytes of those that an open session needs. */
uint32_t sfd_tables_open_bytes(const struct sfd_session *session);

/* Move these to the beginning of an arena, where all of them may be already. */
struct sfd_session *sfd_tables_move(const struct sfd_session *planned, void *arena);

/* What a node reads, keeps and uses, with a full batch. Tensors must not pass SFD_ARENA_LIMIT. */
void sfd_tables_measure(struct sfd_session *session);

/* The sizes of a convolution or linear layer; its support's arrays are left NULL. */
struct sfd_layer sfd_layer_sizes(const struct sfd_session *session, const struct sfd_node *node);

/* The operation, with those fused to it, that computes a tensor other than the input. */
static inline uint32_t sfd_producer(const struct sfd_session *session, uint32_t tensor)
{
    return tensor - 1u - (SFD_HAS(BATCH_NORM) ? session->nodes[tensor - 1u].absorbed : 0u);
}

/* What an operation computes together with those that are fused with it. */
static inline uint32_t sfd_result(const struct sfd_session *session, uint32_t node)
{
    return node + (SFD_HAS(BATCH_NORM) ? session->nodes[node].fused : 0u) + 1u;
}

/* The second input of an operation or of the addition fused with it; SFD_NONE: none. */
uint32_t sfd_second_input(const struct sfd_session *session, uint32_t node);

/* Whether a gradient of this tensor is wanted. */
static inline int sfd_wants_gradient(const struct sfd_session *session, uint32_t tensor)
{
    return tensor != 0u && session->nodes[tensor - 1u].has_backward;
}

/* Whether an operation learns as soon as its backward is done. */
static inline int sfd_learns_early(const struct sfd_session *session, uint32_t node)
{
    return session->working == SFD_WORKING_LAYERWISE && session->nodes[node].has_backward;
}

/* Elements of a tensor over a full batch: of those that do not pass SFD_ARENA_LIMIT. */
uint32_t sfd_batch_elements(const struct sfd_session *session, uint32_t tensor);

/* Entries of a layer's input that are kept for the weight gradient: ceil(size * support /
 * positions). */
uint32_t sfd_keep_count(const struct sfd_slot *weight, uint64_t input_elements);

static inline int sfd_is_aligned(const void *memory)
{
    return memory != NULL && (uintptr_t)memory % SFD_ALIGNMENT == 0u;
}

/* sfd_run.c */
void sfd_forward(struct sfd_session *session, const void *x, uint32_t n, int training);

struct sfd_rates {
    float learning_rate, weight_decay;
};

/* sfd_backward.c: with rates each layer is updated once its gradients are there; SFD_ERR_DIVERGED where
 * a number would not stay finite. */
int sfd_backward(struct sfd_session *session, uint32_t n, const struct sfd_rates *rates);

/* sfd_learn.c: change the whole model, or what one operation learns, or the running statistics that no
 * backward has moved. SFD_ERR_DIVERGED, and nothing of it has changed, where a number would not stay
 * finite. */
int sfd_learn(struct sfd_session *session, uint32_t n, const struct sfd_rates *rates);
int sfd_learn_operation(struct sfd_session *session, uint32_t node, uint32_t n,
                        const struct sfd_rates *rates);
int sfd_learn_statistics(struct sfd_session *session, uint32_t n);

static inline void sfd_begin_part(const struct sfd_session *session, enum sfd_part part)
{
    if (session->watcher != NULL)
        session->watcher->begins(session->watcher->context, part);
}

static inline void *sfd_region_data(const struct sfd_session *session, uint32_t region)
{
    return session->arena + session->regions[region].offset;
}

void sfd_slot_support(const struct sfd_session *session, const struct sfd_slot *slot,
                      struct sfd_support *support);

/* dL/dv at the support, or dL/dp; NULL for a running statistic. */
float *sfd_slot_gradient(const struct sfd_session *session, const struct sfd_slot *slot);

/* Whether what the caller gives is read where it lies: one image of floats. */
static inline int sfd_reads_caller(const struct sfd_session *session)
{
    return session->batch == 1u && sfd_input_element_bytes(&session->input_form) == 4u;
}

/* The data of a tensor during a call. SFD_NONE is the caller's batch: it is read through the same
 * pointer type as the arena; no kernel writes to its input. */
static inline float *sfd_tensor_data(const struct sfd_session *session, uint32_t region)
{
    return region == SFD_NONE ? (float *)(uintptr_t)session->input
                              : sfd_region_data(session, region);
}

#endif
