/* The commands of the serial protocol on one block of memory: what a board does, without its line.
 *
 *     | tables, v, ... | activations, gradients |   | gathered batch | examples | artifact |
 *     0           persistent_bytes          arena_end          reserved_from
 *
 * A session's arena begins the block, the artifact ends it, the examples lie below that. A state lies
 * below the examples while a session is opened, over memory that the session writes only later. An
 * update is encoded over the activations, and over the examples if it must. Artifact and state may lie
 * in flash instead, where they take nothing of the block.
 */
#ifndef TRAINER_H
#define TRAINER_H

#include "protocol.h"
#include "sfd_parse.h"

/* Bytes that come in pieces, in order. */
struct trainer_object {
    const uint8_t *data; /* in the block, or in flash */
    uint32_t offset;     /* in the block: where it begins, in flash where it would end */
    uint32_t bytes;
    uint32_t received;
    uint32_t crc;
    uint8_t is_whole; /* all is there, and its checksum matches */
};

/* An object that is part of the firmware. */
struct trainer_constant {
    const uint8_t *data;
    uint32_t bytes; /* 0: there is none */
    uint32_t crc;
};

/* Examples that the board collects are a ring in the place of those that are sent. */
struct trainer_ring {
    uint32_t capacity; /* 0: there is none */
    uint32_t held;
    uint32_t next;      /* place of the next one: once all are taken, of the oldest */
    uint32_t collected; /* since the ring was begun */
    uint32_t wanted;    /* to be collected still */
};

/* What is measured in ticks of the board's counter, in the order of PROFILE: the last of each, and then
 * the parts of that step. */
enum trainer_measured {
    TRAINER_PLAN,
    TRAINER_OPEN,
    TRAINER_STEP,
    TRAINER_EVALUATE,
    TRAINER_ENCODE,
    TRAINER_PARTS,
    TRAINER_MEASURED_COUNT = TRAINER_PARTS + SFD_PART_COUNT
};

/* What is used most lies where short instructions reach. */
struct trainer {
    struct sfd_session *session;     /* NULL: none */
    uint8_t *memory;                 /* aligned to SFD_ALIGNMENT */
    struct trainer_object *incoming; /* NULL: none */
    uint32_t memory_bytes;
    uint32_t persistent_bytes;          /* of the arena: what is written before the first step */
    uint32_t arena_end;                 /* where the arena may end, and what is painted does */
    uint32_t reserved_from;             /* where room for examples begins */
    uint32_t room_examples;             /* that the room for examples holds */
    uint32_t gathered_most;             /* that the room for a gathered batch holds */
    uint32_t input_bytes, target_bytes; /* of one example */
    enum sfd_target target;
    uint32_t touched_bytes; /* of the arena, when it was last asked for or became an update */
    enum sfd_part part;     /* of a step, that runs now */
    struct trainer_object object[SERIAL_OBJECT_UPDATE + 1u];
    struct trainer_ring ring;
    struct trainer_constant flash[SERIAL_OBJECT_STATE + 1u]; /* artifact and state */
    uint64_t part_began;                                     /* in ticks */
    uint64_t ticks[TRAINER_MEASURED_COUNT];
    struct sfd_plan plan;
    struct sfd_input input; /* what an input holds */
};

/* What a command answers. */
struct trainer_answer {
    int status; /* enum serial_status, or a negative code of the core */
    uint32_t size;
    uint8_t *payload; /* SERIAL_MAX_PAYLOAD bytes */
};

/* Begin with nothing in the block. */
void trainer_start(struct trainer *trainer, void *memory, uint32_t memory_bytes);

/* Take an artifact or a state that lies in flash; no bytes for none. */
void trainer_keep_constant(struct trainer *trainer, uint32_t object, const uint8_t *data,
                           uint32_t bytes);

/* Between requests: take an example of the board's sensors, if one is wanted and one is there.
 * Returns whether it was. */
int trainer_sense(struct trainer *trainer);

/* Do a command. Of the commands of the protocol HELLO and RESET are the caller's. */
void trainer_answer(struct trainer *trainer, uint32_t command, const uint8_t *request,
                    uint32_t request_bytes, struct trainer_answer *answer);

#endif
