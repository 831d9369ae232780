/* A session: one arena. It begins with the tables below; planned buffers follow. A session and the
 * workspace of sfd_plan hold the same tables, built by the same code, so that what is planned is what
 * is opened. */
#ifndef SFD_SESSION_H
#define SFD_SESSION_H

#include "sfd_kernels.h"

/* More than this no offset can say. */
#define SFD_ARENA_LIMIT UINT32_C(0xffffffc0)

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
    uint64_t arena_bytes;             /* of the plan; 0: it failed */
    struct sfd_multiply_adds planned; /* of one training step with a full batch */
    uint64_t search_left;             /* steps that the search for a plan may still look at */
    uint64_t scanned; /* while the schedule is made: operations looked at to restore others */
    struct sfd_counters counters;
    uint8_t *arena;
    const float *input;                /* the caller's image, during a call with a batch of one */
    const struct sfd_watcher *watcher; /* NULL: nobody watches */
    uint32_t histogram[SFD_HISTOGRAM_BINS];
};

/* sfd_tables.c: lay the tables into `memory` and fill them from the artifact and the state. */
uint64_t sfd_tables_bytes(const struct sfd_artifact_view *artifact);
struct sfd_session *sfd_tables_build(const struct sfd_artifact_view *artifact,
                                     const struct sfd_container_view *state, uint32_t batch,
                                     const struct sfd_kernels *kernels, void *memory);

/* Whether they were built for a state of this support. */
int sfd_tables_match(const struct sfd_session *session, const struct sfd_container_view *state);

/* Move them to the beginning of an arena, where they may be already. */
struct sfd_session *sfd_tables_move(const struct sfd_session *planned, void *arena);

/* What a node reads, keeps and uses, with a full batch. Tensors must not pass SFD_ARENA_LIMIT. */
void sfd_tables_measure(struct sfd_session *session);

/* The sizes of a convolution or linear layer; its support's arrays are left NULL. */
struct sfd_layer sfd_layer_sizes(const struct sfd_session *session, const struct sfd_node *node);

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

/* Elements of a tensor over a full batch. */
uint64_t sfd_batch_elements(const struct sfd_session *session, uint32_t tensor);

/* Entries of a layer's input that are kept for the weight gradient: ceil(size * support /
 * positions). */
uint32_t sfd_keep_count(const struct sfd_slot *weight, uint64_t input_elements);

static inline int sfd_is_aligned(const void *memory)
{
    return memory != NULL && (uintptr_t)memory % SFD_ALIGNMENT == 0u;
}

/* sfd_run.c */
void sfd_forward(struct sfd_session *session, const float *x, uint32_t n, int training);

/* sfd_backward.c */
void sfd_backward(struct sfd_session *session, uint32_t n);

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

/* The data of a tensor during a call. SFD_NONE is the caller's batch: it is read through the same
 * pointer type as the arena; no kernel writes to its input. */
static inline float *sfd_tensor_data(const struct sfd_session *session, uint32_t region)
{
    return region == SFD_NONE ? (float *)(uintptr_t)session->input
                              : sfd_region_data(session, region);
}

#endif
