/* What a library of operators uses of ONNX Runtime's C interface, version 17 (ONNX Runtime 1.17).
 *
 * Stated here because the Python package of ONNX Runtime has no headers. Names are our own; places and
 * types are those of OrtApi and OrtCustomOp in onnxruntime_c_api.h. Newer versions only append to both,
 * so that any newer runtime runs what asks for version 17. A function without a name is not used. */
#ifndef ORT_INTERFACE_H
#define ORT_INTERFACE_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define ORT_CALL __stdcall
#else
#define ORT_CALL
#endif

#define ORT_VERSION 17u

enum { ORT_FLOAT = 1, ORT_UINT16 = 4, ORT_INT64 = 7 };
enum { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };
enum { ORT_REQUIRED = 0, ORT_OPTIONAL = 1 };
enum { ORT_ARENA_ALLOCATOR = 1, ORT_MEMORY_DEFAULT = 0 };

struct ort_status;
struct ort_value;
struct ort_shape;
struct ort_domain;
struct ort_options;
struct ort_context;
struct ort_info;
struct ort_memory;
struct ort_operator;

struct ort_allocator {
    uint32_t version;
    void *(ORT_CALL *allocate)(struct ort_allocator *allocator, size_t bytes);
    void(ORT_CALL *free)(struct ort_allocator *allocator, void *memory);
};

typedef void(ORT_CALL *ort_unused)(void);

struct ort_api {
    struct ort_status *(ORT_CALL *create_status)(int code, const char *message);
    ort_unused unused_1[25];
    struct ort_status *(ORT_CALL *create_domain)(const char *name, struct ort_domain **out);
    struct ort_status *(ORT_CALL *add_operator)(struct ort_domain *domain,
                                                const struct ort_operator *added);
    struct ort_status *(ORT_CALL *add_domain)(struct ort_options *options,
                                              struct ort_domain *domain);
    ort_unused unused_29[22];
    struct ort_status *(ORT_CALL *data)(struct ort_value *value, void **out);
    ort_unused unused_52[9];
    struct ort_status *(ORT_CALL *rank)(const struct ort_shape *shape, size_t *out);
    struct ort_status *(ORT_CALL *dimensions)(const struct ort_shape *shape, int64_t *out,
                                              size_t rank);
    ort_unused unused_63[1];
    struct ort_status *(ORT_CALL *count)(const struct ort_shape *shape, size_t *out);
    struct ort_status *(ORT_CALL *shape)(const struct ort_value *value, struct ort_shape **out);
    ort_unused unused_66[3];
    struct ort_status *(ORT_CALL *processor_memory)(int allocator, int kind,
                                                    struct ort_memory **out);
    ort_unused unused_70[20];
    struct ort_status *(ORT_CALL *input)(const struct ort_context *context, size_t index,
                                         const struct ort_value **out);
    struct ort_status *(ORT_CALL *output)(struct ort_context *context, size_t index,
                                          const int64_t *shape, size_t rank,
                                          struct ort_value **out);
    ort_unused unused_92[2];
    void(ORT_CALL *release_memory)(struct ort_memory *memory);
    ort_unused unused_95[4];
    void(ORT_CALL *release_shape)(struct ort_shape *shape);
    ort_unused unused_100[1];
    void(ORT_CALL *release_domain)(struct ort_domain *domain);
    ort_unused unused_102[30];
    void(ORT_CALL *release_allocator)(struct ort_allocator *allocator);
    ort_unused unused_133[29];
    struct ort_status *(ORT_CALL *floats)(const struct ort_info *info, const char *name, float *out,
                                          size_t *count);
    struct ort_status *(ORT_CALL *integers)(const struct ort_info *info, const char *name,
                                            int64_t *out, size_t *count);
    ort_unused unused_164[89];
    struct ort_status *(ORT_CALL *allocator)(const struct ort_context *context,
                                             const struct ort_memory *memory,
                                             struct ort_allocator **out);
};

struct ort_api_base {
    const struct ort_api *(ORT_CALL *api)(uint32_t version);
    const char *(ORT_CALL *version)(void);
};

struct ort_operator {
    uint32_t version;
    void *(ORT_CALL *create_1)(const struct ort_operator *, const struct ort_api *,
                               const struct ort_info *);
    const char *(ORT_CALL *name)(const struct ort_operator *);
    const char *(ORT_CALL *provider)(const struct ort_operator *);
    int(ORT_CALL *input_type)(const struct ort_operator *, size_t index);
    size_t(ORT_CALL *inputs)(const struct ort_operator *);
    int(ORT_CALL *output_type)(const struct ort_operator *, size_t index);
    size_t(ORT_CALL *outputs)(const struct ort_operator *);
    void(ORT_CALL *compute_1)(void *kernel, struct ort_context *);
    void(ORT_CALL *destroy)(void *kernel);
    int(ORT_CALL *input_kind)(const struct ort_operator *, size_t index);
    int(ORT_CALL *output_kind)(const struct ort_operator *, size_t index);
    int(ORT_CALL *input_memory)(const struct ort_operator *, size_t index);
    ort_unused variadic[4];
    struct ort_status *(ORT_CALL *create)(const struct ort_operator *, const struct ort_api *,
                                          const struct ort_info *, void **kernel);
    struct ort_status *(ORT_CALL *compute)(void *kernel, struct ort_context *);
    ort_unused infer_shapes;
    int(ORT_CALL *first_version)(const struct ort_operator *);
    int(ORT_CALL *last_version)(const struct ort_operator *);
    ort_unused in_place[4];
};
#endif
