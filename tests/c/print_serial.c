/* Prints the numbers of the serial protocol, one a line, for a test that compares them with the
 * Python side and with docs/serial.md. */
#include <stdio.h>

#include "protocol.h"

#define COMMAND(name, code) printf("Command %s %d\n", #name, code);
#define OBJECT(name, code) printf("SerialObject %s %d\n", #name, code);
#define STATUS(name, code, text) printf("Status %s %d\n", #name, code);

int main(void)
{
    SERIAL_COMMANDS(COMMAND)
    SERIAL_OBJECTS(OBJECT)
    SERIAL_STATUSES(STATUS)
    printf("constant VERSION %u\n", SERIAL_VERSION);
    printf("constant MAX_PAYLOAD %u\n", SERIAL_MAX_PAYLOAD);
    printf("constant HEADER %u\n", SERIAL_HEADER_BYTES);
    printf("constant ANSWER %u\n", SERIAL_ANSWER);
    return 0;
}
