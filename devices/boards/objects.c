/* Objects: bytes that come in pieces, and where they lie. */
#include "commands.h"

#include <string.h>

uint32_t trainer_artifact_offset(const struct trainer *trainer)
{
    const struct trainer_object *artifact = &trainer->object[SERIAL_OBJECT_ARTIFACT];

    return artifact->bytes == 0u ? trainer->memory_bytes : artifact->offset;
}

uint32_t trainer_examples_offset(const struct trainer *trainer)
{
    const struct trainer_object *examples = &trainer->object[SERIAL_OBJECT_EXAMPLES];

    return examples->bytes == 0u ? trainer_artifact_offset(trainer) : examples->offset;
}

void trainer_forget(struct trainer *trainer, uint32_t object)
{
    memset(&trainer->object[object], 0, sizeof trainer->object[object]);
    if (object == SERIAL_OBJECT_STATE)
        memset(&trainer->object[SERIAL_OBJECT_LAYOUT], 0, sizeof trainer->object[0]);
    if (BOARD_HAS_SENSORS && object == SERIAL_OBJECT_EXAMPLES)
        memset(&trainer->ring, 0, sizeof trainer->ring);
    trainer->incoming = NULL;
}

/* Forget an object, what was made of it, and what may lie in its way. */
static void forget_all_of(struct trainer *trainer, uint32_t object)
{
    if (object != SERIAL_OBJECT_LAYOUT &&
        (object != SERIAL_OBJECT_EXAMPLES || trainer->session == NULL)) {
        trainer_forget(trainer, SERIAL_OBJECT_STATE);
        trainer->session = NULL;
    }
    trainer_forget(trainer, object);
    trainer_forget(trainer, SERIAL_OBJECT_UPDATE);
    if (object == SERIAL_OBJECT_ARTIFACT)
        trainer_forget(trainer, SERIAL_OBJECT_EXAMPLES);
}

static int may_begin(const struct trainer *trainer, uint32_t object)
{
    switch (object) {
    case SERIAL_OBJECT_ARTIFACT:
        return SERIAL_STATUS_OK;
    case SERIAL_OBJECT_STATE:
    case SERIAL_OBJECT_EXAMPLES:
        return trainer->object[SERIAL_OBJECT_ARTIFACT].is_whole ? SERIAL_STATUS_OK
                                                                : SERIAL_STATUS_MISSING;
    case SERIAL_OBJECT_LAYOUT:
        return trainer->object[SERIAL_OBJECT_STATE].is_whole ? SERIAL_STATUS_OK
                                                             : SERIAL_STATUS_MISSING;
    default:
        return SERIAL_STATUS_RANGE;
    }
}

/* Whether an object is there already, whole or in part. No host knows what a board has collected. */
static int is_begun(const struct trainer *trainer, uint32_t number, uint32_t bytes, uint32_t crc)
{
    const struct trainer_object *object = &trainer->object[number];
    const int is_ring = number == SERIAL_OBJECT_EXAMPLES && trainer_has_ring(trainer);

    return object->bytes == bytes && object->crc == crc && !is_ring;
}

static const uint8_t *find_in_flash(const struct trainer *trainer, uint32_t number, uint32_t bytes,
                                    uint32_t crc)
{
    const struct trainer_constant *constant;

    if (number > SERIAL_OBJECT_STATE)
        return NULL;
    constant = &trainer->flash[number];
    return constant->bytes == bytes && constant->crc == crc ? constant->data : NULL;
}

/* Where an object has to end: a layout below the state, a state below the examples, those below the
 * artifact. */
static uint32_t top_of(const struct trainer *trainer, uint32_t number)
{
    switch (number) {
    case SERIAL_OBJECT_LAYOUT:
        return trainer->object[SERIAL_OBJECT_STATE].offset;
    case SERIAL_OBJECT_STATE:
        return trainer_examples_offset(trainer);
    default:
        return trainer_artifact_offset(trainer);
    }
}

/* Find the place of an object, above a session. Returns 0, with *room, if there is not so much. */
static int find_place(const struct trainer *trainer, uint32_t number, uint32_t bytes,
                      uint32_t *offset, uint32_t *room)
{
    const uint32_t top = top_of(trainer, number) / 4u * 4u;

    *room = top - (trainer->session == NULL ? 0u : trainer->reserved_from);
    if (bytes > *room)
        return 0;
    *offset = (top - bytes) / 4u * 4u;
    return 1;
}

/* Begin an object anew. What lies in flash is whole, and takes no room. */
static int begin_object(struct trainer *trainer, uint32_t number, uint32_t bytes, uint32_t crc,
                        uint32_t *room)
{
    struct trainer_object *object = &trainer->object[number];
    const uint8_t *flash = find_in_flash(trainer, number, bytes, crc);
    uint32_t offset;

    forget_all_of(trainer, number);
    if (!find_place(trainer, number, flash == NULL ? bytes : 0u, &offset, room))
        return SERIAL_STATUS_MEMORY;
    object->data = flash == NULL ? trainer->memory + offset : flash;
    object->offset = offset;
    object->bytes = bytes;
    object->crc = crc;
    object->is_whole = flash != NULL;
    object->received = object->is_whole ? bytes : 0u;
    return SERIAL_STATUS_OK;
}

/* object u32, bytes u32, crc u32 -> received u32, or the room for it. What is there already stays. */
void trainer_begin(struct trainer *trainer, const uint8_t *request, uint32_t bytes,
                   struct trainer_answer *answer)
{
    const uint32_t number = sfd_load_u32(request), wanted = sfd_load_u32(request + 4u);
    const uint32_t crc = sfd_load_u32(request + 8u);
    uint32_t room = 0u;

    (void)bytes;
    answer->status = wanted == 0u ? SERIAL_STATUS_RANGE : may_begin(trainer, number);
    if (answer->status != SERIAL_STATUS_OK)
        return;
    if (!is_begun(trainer, number, wanted, crc))
        answer->status = begin_object(trainer, number, wanted, crc, &room);
    if (answer->status != SERIAL_STATUS_OK) {
        answer_u32(answer, room);
        return;
    }
    trainer->incoming = &trainer->object[number];
    answer_u32(answer, trainer->incoming->received);
}

/* offset u32, then bytes of the object that was begun -> received u32. */
void trainer_take_data(struct trainer *trainer, const uint8_t *request, uint32_t bytes,
                       struct trainer_answer *answer)
{
    struct trainer_object *object = trainer->incoming;
    const uint32_t size = bytes - 4u;

    if (object == NULL) {
        answer->status = SERIAL_STATUS_MISSING;
        return;
    }
    if (sfd_load_u32(request) != object->received) {
        answer->status = SERIAL_STATUS_ORDER;
    } else if (size > object->bytes - object->received) {
        answer->status = SERIAL_STATUS_RANGE;
    } else {
        uint8_t *start = trainer->memory + object->offset;
        memcpy(start + object->received, request + 4u, size);
        object->received += size;
        object->is_whole =
            object->received == object->bytes && sfd_crc32(0u, start, object->bytes) == object->crc;
        if (object->received == object->bytes && !object->is_whole) {
            object->received = 0u;
            answer->status = SERIAL_STATUS_CHECKSUM;
        }
    }
    answer_u32(answer, object->received);
}
