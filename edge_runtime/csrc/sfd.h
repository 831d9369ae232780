/* Sparse federated training on a device: the public C interface.
 *
 * The core allocates nothing. The caller gives one arena per session:
 *
 *     sfd_workspace_bytes(artifact, artifact_bytes, &workspace_bytes, NULL);
 *     sfd_plan(artifact, artifact_bytes, state, state_bytes, 16, NULL,
 *              workspace, workspace_bytes, &plan, NULL);
 *     (take memory of plan.arena_bytes, aligned to SFD_ALIGNMENT)
 *     sfd_open(workspace, state, state_bytes, arena, plan.arena_bytes, &session, NULL);
 *     sfd_step(session, x, y, SFD_TARGET_INT32, 16, 0.1f, 1e-3f, &loss);
 *     sfd_update_encode(session, &keep, 1, round, update, capacity, &update_bytes);
 *
 * The arena needs memory without a declared type (malloc, mmap, a linker section), or a build with
 * -fno-strict-aliasing: the core keeps integers and floats in it.
 *
 * Each function returns SFD_OK or a negative sfd_error. A function that fails leaves the model as
 * it was. */
#ifndef SFD_H
#define SFD_H

#include <stddef.h>
#include <stdint.h>

#include "sfd_format.h"

#define SFD_ALIGNMENT 64u

#if defined(_WIN32)
#define SFD_API
#else
#define SFD_API __attribute__((visibility("default")))
#endif

/* name, code, text */
#define SFD_ERRORS(X)                                                                            \
    X(OK, 0, "no error")                                                                         \
    X(ERR_ARGUMENT, -1, "a required pointer is null or misaligned, or a number is out of range") \
    X(ERR_LENGTH, -2, "the data is shorter or longer than its header says")                      \
    X(ERR_MAGIC, -3, "the data does not begin with the expected magic")                          \
    X(ERR_VERSION, -4, "the format version is not known to this library")                        \
    X(ERR_CRC, -5, "the checksum does not match: the data is damaged")                           \
    X(ERR_STRUCTURE, -6, "a field holds a value that the format does not allow")                 \
    X(ERR_LIMIT, -7, "a size is over what this library accepts")                                 \
    X(ERR_ARENA, -8, "the arena or workspace is too small")                                      \
    X(ERR_MISMATCH, -9, "state and artifact, or update and base, do not belong together")        \
    X(ERR_INDEX, -10, "a sparse index is out of range or not in rising order")                   \
    X(ERR_VALUE, -11, "a stored value is not finite")                                            \
    X(ERR_INPUT, -12, "the batch holds a value that is not finite")                              \
    X(ERR_LABEL, -13, "a label is outside the classes of the model")                             \
    X(ERR_DIVERGED, -14, "loss, gradient or new value is not finite: the step was not applied")  \
    X(ERR_BATCH, -15, "the batch is empty, or larger than planned for or supported")             \
    X(ERR_SUPPORT, -16, "the update holds an entry outside the support of its base")             \
    X(ERR_CODEC, -17, "the codec or value type is not known to this library")                    \
    X(ERR_CAPACITY, -18, "the output buffer is too small")                                       \
    X(ERR_KERNELS, -19, "this build or this processor does not have the kernel set")             \
    X(ERR_THREADS, -20, "this build or this system does not give so many threads")               \
    X(ERR_OPERATION, -21, "this build does not have an operation of the model")

#define SFD_ENUM_ERROR(name, code, text) SFD_##name = code,
enum sfd_error { SFD_ERRORS(SFD_ENUM_ERROR) };

/* Where a parser stopped: byte offset of the offending field, what it held, what was wanted. */
struct sfd_problem {
    uint32_t position;
    uint32_t got;
    uint32_t wanted;
};

/* What a planned buffer is for. */
#define SFD_BUFFER_KINDS(X) \
    X(TABLES, 0)            \
    X(INDEX, 1)             \
    X(WEIGHT, 2)            \
    X(WORKING_WEIGHT, 3)    \
    X(DENSE, 4)             \
    X(ACTIVATION, 5)        \
    X(SAVED_INPUT, 6)       \
    X(MASK, 7)              \
    X(STATISTICS, 8)        \
    X(GRADIENT, 9)          \
    X(SCRATCH, 10)

#define SFD_ENUM_BUFFER(name, code) SFD_BUFFER_##name = code,
enum sfd_buffer_kind { SFD_BUFFER_KINDS(SFD_ENUM_BUFFER) SFD_BUFFER_KIND_COUNT };

/* What a step of the schedule does. A forward comes first for each operation, then the loss, then for
 * each operation from the last to the first its backward, with what that wants and was not kept
 * before it; the update comes last. */
#define SFD_ACTIONS(X)                                                                 \
    X(FORWARD, 0)  /* compute an operation's result */                                 \
    X(LOSS, 1)     /* compute the loss and the gradient of the output */               \
    X(RESTORE, 2)  /* compute the result again, with the same bits */                  \
    X(PACK, 3)     /* pack the input of a layer for its weight gradient */             \
    X(BACKWARD, 4) /* compute the gradients of an operation's inputs and parameters */ \
    X(UPDATE, 5)   /* change the model */

#define SFD_ENUM_ACTION(name, code) SFD_ACTION_##name = code,
enum sfd_action { SFD_ACTIONS(SFD_ENUM_ACTION) };

/* One step of the schedule. An operation that a batch norm takes along has no steps of its own. */
struct sfd_planned_step {
    uint16_t action;    /* enum sfd_action */
    uint16_t operation; /* 65535 for the loss and the update */
};

/* One region of the arena, alive from step to step of the schedule, both included. */
struct sfd_buffer {
    uint64_t offset;
    uint64_t bytes;
    uint32_t first_step;
    uint32_t last_step;
    uint16_t kind;  /* enum sfd_buffer_kind */
    uint16_t owner; /* parameter index for INDEX, WEIGHT, WORKING_WEIGHT, DENSE; else operation
                       index; 65535: none */
};

/* Kernel sets: name, code, text. The portable set gives the same bits on every machine; the others
 * are vectorised, and agree with it within rounding. */
#define SFD_KERNEL_SETS(X)       \
    X(AUTOMATIC, 0, "automatic") \
    X(PORTABLE, 1, "portable")   \
    X(SSE2, 2, "sse2")           \
    X(AVX2, 3, "avx2")           \
    X(AVX512, 4, "avx512")       \
    X(NEON, 5, "neon")

#define SFD_ENUM_KERNELS(name, code, text) SFD_KERNELS_##name = code,
enum sfd_kernel_set { SFD_KERNEL_SETS(SFD_ENUM_KERNELS) };

/* What to do about memory. Between forward and backward an activation is kept, or it is computed again
 * when the backward wants it: the same gradients to the bit, for less memory and more work. */
enum sfd_memory {
    SFD_MEMORY_FAST = 0,     /* compute again what takes little, whatever the density */
    SFD_MEMORY_SMALL = 1,    /* the least memory that is found for about one more forward */
    SFD_MEMORY_LAYERWISE = 2 /* for up to two more forwards, and no gradient outlives its layer's
                              * backward: a step changes the layers one by one, to the same bits.
                              * There is no sfd_gradients, and a step that diverges leaves no model:
                              * all that follows fails. Unless a plan of SFD_MEMORY_SMALL is as
                              * good: then that is taken */
};

/* How a session runs. Zeros are the defaults, as NULL is where a function takes options. */
struct sfd_options {
    int32_t kernels;      /* enum sfd_kernel_set; automatic: the best one that is available */
    uint32_t threads;     /* that a session uses, with the calling one; 0 or 1: no others */
    int32_t memory;       /* enum sfd_memory */
    uint64_t arena_bytes; /* a limit: SFD_ERR_ARENA if no plan fits it. SFD_MEMORY_FAST then is, of
                           * all plans that are found, the one that fits with the least work, never
                           * more for a higher limit; the least limit is what SFD_MEMORY_SMALL
                           * takes. SFD_MEMORY_LAYERWISE likewise, among its own plans. 0: no
                           * limit */
    const uint8_t
        *layout; /* of sfd_plan_layout: that plan again, without a search, whatever `memory`
                            * says; a build without a search wants one. NULL: none */
    uint32_t layout_bytes;
};

#define SFD_MAX_THREADS 16u

/* Multiply-adds over the prunable layers. */
struct sfd_multiply_adds {
    uint64_t forward;
    uint64_t d_input;
    uint64_t d_weight;
    uint64_t recomputed; /* forward once more, to restore what was not kept */
};

struct sfd_plan {
    uint64_t arena_bytes;     /* exact bytes of the arena */
    uint64_t transient_bytes; /* part of it that holds activations, gradients and scratch */
    uint64_t live_peak_bytes; /* most bytes alive at one step in that part: the lower bound of any
                                 placement */
    uint32_t live_peak_step;
    uint32_t buffer_count;
    uint32_t step_count;
    struct sfd_multiply_adds step; /* of one training step with a full batch: exact, but for
                                      d_weight of kernels that multiply the kept inputs alone, which
                                      depends on where those lie. There it is the expectation, as if
                                      all places were equally likely: for each layer, what it would
                                      be on the whole input times kept / elements, rounded down */
};

struct sfd_counters {
    struct sfd_multiply_adds done; /* in training mode: by sfd_step, and sfd_gradients */
    uint64_t evaluation;           /* by sfd_evaluate */
    uint64_t steps;                /* steps that changed the model */
};

/* A parameter inside a session. Pointers stay valid until the session ends. */
struct sfd_parameter_view {
    const float *value; /* v, or the dense tensor: `count` floats */
    const float
        *gradient; /* after sfd_gradients: dL/dv at the support, or dL/dp; NULL for statistics */
    const uint32_t *row_pointer; /* rows + 1; NULL unless sparse */
    const void *column;          /* `count` columns of index_width bytes; NULL unless sparse */
    uint32_t rows, columns, count;
    uint32_t index_width;
    uint32_t kind; /* enum sfd_parameter_kind */
};

/* Type of the targets that y points to. */
enum sfd_target { SFD_TARGET_INT32 = 1, SFD_TARGET_INT64 = 2, SFD_TARGET_FLOAT32 = 3 };

struct sfd_session;

/* The parts of a training step. */
#define SFD_PARTS(X)                                                                       \
    X(FORWARD, 0)  /* the forward, and the loss */                                         \
    X(BACKWARD, 1) /* all gradients, with what is computed again for them */               \
    X(TOP_K, 2)    /* the choice of the inputs that layers keep, in forward or backward */ \
    X(UPDATE, 3)   /* the change of the model */

#define SFD_ENUM_PART(name, code) SFD_PART_##name = code,
enum sfd_part { SFD_PARTS(SFD_ENUM_PART) SFD_PART_COUNT };

/* Someone who is told, in the thread that called sfd_step, when another part of it begins. */
struct sfd_watcher {
    void (*begins)(void *context, enum sfd_part part);
    void *context;
};

SFD_API const char *sfd_error_string(int error);

/* Whether this build and this processor have a set of enum sfd_kernel_set. */
SFD_API int sfd_kernels_available(int32_t set);

/* The name of a set; for SFD_KERNELS_AUTOMATIC of the one that it stands for here; NULL for a number
 * that is no set. */
SFD_API const char *sfd_kernels_name(int32_t set);

/* Check an artifact (docs/format.md, section 1). `problem` may be NULL, here and below. */
SFD_API int sfd_artifact_check(const uint8_t *artifact, size_t artifact_bytes,
                               struct sfd_problem *problem);

/* Check a state or an update (section 2): structure, checksum, indices, values. */
SFD_API int sfd_container_check(const uint8_t *data, size_t data_bytes,
                                struct sfd_problem *problem);

/* Check an update as above, that its tensors are those of `base`, and that its support lies inside
 * base's. */
SFD_API int sfd_update_check(const uint8_t *update, size_t update_bytes, const uint8_t *base,
                             size_t base_bytes, struct sfd_problem *problem);

/* Check an artifact and a state as above, and that the state's tensors are the artifact's
 * parameters (else SFD_ERR_MISMATCH). */
SFD_API int sfd_state_check(const uint8_t *artifact, size_t artifact_bytes, const uint8_t *state,
                            size_t state_bytes, struct sfd_problem *problem);

/* Bytes of workspace that sfd_plan takes for this artifact. Checks the artifact. */
SFD_API int sfd_workspace_bytes(const uint8_t *artifact, size_t artifact_bytes, uint64_t *bytes,
                                struct sfd_problem *problem);

/* Plan the memory and the work of training this state with batches of up to `batch` examples.
 * Options may be NULL. SFD_ERR_KERNELS when the kernel set is not available, SFD_ERR_THREADS for more
 * threads than SFD_MAX_THREADS, or than one where the build has none. The workspace must be aligned
 * to SFD_ALIGNMENT; it keeps the plan for sfd_open, sfd_plan_step and sfd_plan_buffer. */
SFD_API int sfd_plan(const uint8_t *artifact, size_t artifact_bytes, const uint8_t *state,
                     size_t state_bytes, uint32_t batch, const struct sfd_options *options,
                     void *workspace, size_t workspace_bytes, struct sfd_plan *plan,
                     struct sfd_problem *problem);

/* Step `index` < plan.step_count of the plan just made in this workspace. */
SFD_API int sfd_plan_step(const void *workspace, uint32_t index, struct sfd_planned_step *step);

/* Buffer `index` < plan.buffer_count of the plan just made in this workspace. */
SFD_API int sfd_plan_buffer(const void *workspace, uint32_t index, struct sfd_buffer *buffer);

/* The layout of the plan just made in this workspace: for sfd_plan, of the same artifact, kernels, threads
 * and batch, with a state of as many nonzeros, on any machine. *bytes: its size; SFD_ERR_CAPACITY where
 * `room` is less. */
SFD_API int sfd_plan_layout(const void *workspace, uint8_t *layout, uint64_t room, uint64_t *bytes);

/* Open a session in the arena, by the plan that sfd_plan made in the workspace, which may be the
 * beginning of the arena. The state has the support of the planned one, SFD_ERR_MISMATCH otherwise.
 * Plan and state are copied: the caller may free them. A session with threads is to be closed.
 * For SFD_ERR_ARENA, problem->got and ->wanted are the bytes given and needed. */
SFD_API int sfd_open(const void *workspace, const uint8_t *state, size_t state_bytes, void *arena,
                     size_t arena_bytes, struct sfd_session **session, struct sfd_problem *problem);

/* End the session's threads: before its arena goes, and the last call. Without threads there is
 * nothing to end. */
SFD_API void sfd_close(struct sfd_session *session);

/* One SGD step on n examples: x is n images in NCHW order, float or, where the artifact says so, int8_t;
 * y n labels or n target vectors.
 * v <- v - learning_rate * (dL/dv + weight_decay * v); likewise the dense parameters. */
SFD_API int sfd_step(struct sfd_session *session, const void *x, const void *y,
                     enum sfd_target target, uint32_t n, float learning_rate, float weight_decay,
                     float *loss);

/* Tell the watcher, which must outlive the session, of each part of the steps to come; NULL: nobody.
 * What is computed is the same. */
SFD_API int sfd_watch(struct sfd_session *session, const struct sfd_watcher *watcher);

/* Loss and all gradients of a batch in training mode, without changing the model. */
SFD_API int sfd_gradients(struct sfd_session *session, const void *x, const void *y,
                          enum sfd_target target, uint32_t n, float *loss);

/* Mean loss and number of right answers (0 for mean squared error) in evaluation mode. */
SFD_API int sfd_evaluate(struct sfd_session *session, const void *x, const void *y,
                         enum sfd_target target, uint32_t n, float *loss, uint32_t *correct);

/* Elements of one example of x, as sfd_step and the others read it. */
SFD_API uint32_t sfd_input_size(const struct sfd_session *session);

SFD_API uint32_t sfd_parameter_count(const struct sfd_session *session);
SFD_API int sfd_parameter(const struct sfd_session *session, uint32_t index,
                          struct sfd_parameter_view *view);

/* Encode the Top-K of |v| as an update. `keep` holds one count per parameter (entries of dense
 * parameters are ignored), or, when keep_entries is 1, one count over all layers. Ties go to the
 * lower position, exact zeros are never kept. With out = NULL only *bytes is set: the bytes that
 * the update would take. */
SFD_API int sfd_update_encode(struct sfd_session *session, const uint32_t *keep,
                              uint32_t keep_entries, uint32_t round, uint8_t *out, size_t capacity,
                              size_t *bytes);

SFD_API int sfd_counters(const struct sfd_session *session, struct sfd_counters *counters);

/* The int8 that stand for floats: out = x / scale + zero_point, rounded to the nearest, ties to even, and
 * put into -128 to 127. SFD_ERR_INPUT for a number that is not finite, and nothing is written then;
 * SFD_ERR_ARGUMENT for numbers that no artifact holds. */
SFD_API int sfd_quantize(const float *x, size_t count, float scale, int32_t zero_point,
                         int8_t *out);

/* Measuring the arena: paint it before sfd_open, ask afterwards for the bytes up to the last one
 * that changed. */
SFD_API void sfd_arena_paint(void *arena, size_t arena_bytes);
SFD_API size_t sfd_arena_touched(const void *arena, size_t arena_bytes);

#endif
