/* The serial protocol of boards in C. docs/serial.md is the text; devices/serial_protocol.py is the
 * Python copy. Lists are X-macros, so that a test can compare the two. */
#ifndef PROTOCOL_H
#define PROTOCOL_H

#define SERIAL_VERSION 3u
#define SERIAL_HEADER_BYTES 6u
#define SERIAL_MAX_PAYLOAD 1024u
#define SERIAL_CHECKSUM_BYTES 4u
#define SERIAL_MAX_FRAME (SERIAL_HEADER_BYTES + SERIAL_MAX_PAYLOAD + SERIAL_CHECKSUM_BYTES)
#define SERIAL_ANSWER 0x80u /* set in the command of an answer */

#define SERIAL_COMMANDS(X) \
    X(COMPLAIN, 0)         \
    X(HELLO, 1)            \
    X(BEGIN, 2)            \
    X(DATA, 3)             \
    X(OPEN, 4)             \
    X(TRAIN, 5)            \
    X(EVALUATE, 6)         \
    X(ENCODE, 7)           \
    X(READ, 8)             \
    X(PROFILE, 9)          \
    X(RESET, 10)           \
    X(COLLECT, 11)

#define SERIAL_OBJECTS(X) \
    X(ARTIFACT, 0)        \
    X(STATE, 1)           \
    X(EXAMPLES, 2)        \
    X(LAYOUT, 3)          \
    X(UPDATE, 4)          \
    X(VALUES, 5)

/* Status of an answer: one of these, or a negative code of the core (sfd.h). */
#define SERIAL_STATUSES(X)                                                         \
    X(OK, 0, "no error")                                                           \
    X(DAMAGED, 1, "a frame came damaged: send it again")                           \
    X(COMMAND, 2, "the command is not known to this firmware")                     \
    X(LENGTH, 3, "the payload has the wrong length for its command")               \
    X(ORDER, 4, "this is not what comes next: go on from where the answer says")   \
    X(MEMORY, 5, "it does not fit the memory of this board")                       \
    X(MISSING, 6, "what the command needs is not there: the board may have reset") \
    X(CHECKSUM, 7, "an object came damaged: send it from its beginning")           \
    X(RANGE, 8, "a number is out of range")

#define SERIAL_ENUM_COMMAND(name, code) SERIAL_##name = code,
#define SERIAL_ENUM_OBJECT(name, code) SERIAL_OBJECT_##name = code,
#define SERIAL_ENUM_STATUS(name, code, text) SERIAL_STATUS_##name = code,

enum serial_command { SERIAL_COMMANDS(SERIAL_ENUM_COMMAND) };
enum serial_object { SERIAL_OBJECTS(SERIAL_ENUM_OBJECT) };
enum serial_status { SERIAL_STATUSES(SERIAL_ENUM_STATUS) };

#endif
