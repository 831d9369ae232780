/* The firmware: takes what comes on the serial line, does it, and answers. Between requests it listens to
 * its sensors. */
#include "board.h"
#include "line.h"
#include "model.h"

int main(void)
{
    static struct line line;
    static struct trainer trainer;

    board_start();
    trainer_start(&trainer, board_memory_start,
                  (uint32_t)((uintptr_t)board_memory_end - (uintptr_t)board_memory_start));
    trainer_keep_constant(&trainer, SERIAL_OBJECT_ARTIFACT, model_artifact, model_artifact_bytes);
    trainer_keep_constant(&trainer, SERIAL_OBJECT_STATE, model_state, model_state_bytes);
    for (;;) {
        while (!board_has_byte())
            if (!BOARD_HAS_SENSORS || !trainer_sense(&trainer))
                board_sleep();
        line_take(&line, &trainer, board_receive());
    }
}
